"""What a training writes as it goes: metrics.jsonl, TensorBoard, and on request the samples that were consumed.

A resumed run writes again what it does again, so lines after the step it goes on from are forgotten first: a step is
never in a log twice.
"""

import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from maep.runtime.console import say
from maep.runtime.errors import UserError
from maep.runtime.plain_files import open_regular
from maep.storage.atomic import atomic_file
from maep.storage.json_files import parse_json
from maep.training.distributed.world import gather_objects, world

UNCOMPILED = "uncompiled"  # in a line: the step was to be compiled, and could not be
LONGEST = 2**20  # bytes: a line has some hundreds; what is longer is no line of a log, and not read as one


def forget_after(path: Path, step: int) -> None:
    """Drop a log's lines of later steps, a last line that a kill cut off, and with a word what is no line of it."""
    with atomic_file(path) as temporary, temporary.open("wb") as kept, open_regular(path) as log:
        for number, line in enumerate(iter(partial(log.readline, LONGEST), b""), 1):
            is_last = not line.endswith(b"\n") and not log.peek(1)
            if _step_of(line, f"{path}: line {number}", is_last=is_last) <= step:
                kept.write(line.rstrip(b"\n") + b"\n")


def _step_of(line: bytes, where: str, *, is_last: bool) -> float:
    """Infinity for what is no line of a log. is_last: a line without an end, which a kill may have cut off."""
    try:
        values = parse_json(line, where)
    except UserError as problem:
        if not is_last:
            say(f"{problem}; the line is dropped")
        return math.inf
    step = values.get("step") if isinstance(values, dict) else None
    if not isinstance(step, int | float):
        say(f"{where}: has no step; the line is dropped")
        return math.inf
    return float(step)


class MetricsLog:
    """Appends to `path` and to TensorBoard from the step after `step` on."""

    def __init__(self, path: Path, tensorboard: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # only the rank that logs pays for this import

        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            forget_after(path, step)
        self._file = path.open("a")
        self._board = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def write(self, values: Mapping[str, int | float]) -> None:
        """values: of one step, by name, with `step`."""
        self._file.write(json.dumps(dict(values)) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()


class SampleLog:
    """Which samples this rank consumed: `directory/rank-0003.jsonl`, an object {step, epoch, index} a sample.

    Every rank makes one together: rank 0 first makes all ranks' files forget what comes after `step`, also those of
    ranks that a smaller job no longer has.
    """

    def __init__(self, directory: Path, step: int) -> None:
        if world().rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            for path in directory.glob("rank-*.jsonl"):
                forget_after(path, step)
        gather_objects(None)
        self._file = (directory / f"rank-{world().rank:04d}.jsonl").open("a")

    def write(self, step: int, samples: Iterable[tuple[int, int]]) -> None:
        """step: 1-based, as in metrics.jsonl; samples: (epoch, index) of what it consumed, in order."""
        lines = [json.dumps({"step": step, "epoch": epoch, "index": index}) for epoch, index in samples]
        self._file.write("".join(line + "\n" for line in lines))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
