"""What a training writes as it goes: metrics.jsonl, TensorBoard, and on request the samples that were consumed.

A resumed run writes again what it does again, so lines after the step it goes on from are forgotten first: a step is
never in a log twice.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
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


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Raise UserError, naming the log, for what cannot be appended to it: the system names no file then."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


class MetricsLog:
    """Appends to `path` and to TensorBoard from the step after `step` on."""

    def __init__(self, path: Path, tensorboard: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # only the rank that logs pays for this import

        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            forget_after(path, step)
        self._path, self._file = path, path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def write(self, values: Mapping[str, int | float]) -> None:
        """values: of one step, by name, with `step`.

        One that is not finite, such as the gradient norm of a step that fp16 overflows in, is null: JSON has no number
        for it, and the report would refuse the line.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with _disk_errors(self._path):
            self._file.write(json.dumps(finite) + "\n")
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Flush both; what a full disk does not take was said when it was written."""
        with suppress(OSError):
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
        self._path = directory / f"rank-{world().rank:04d}.jsonl"
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, samples: Iterable[tuple[int, int]]) -> None:
        """step: 1-based, as in metrics.jsonl; samples: (epoch, index) of what it consumed, in order."""
        lines = [json.dumps({"step": step, "epoch": epoch, "index": index}) for epoch, index in samples]
        with _disk_errors(self._path):
            self._file.write("".join(line + "\n" for line in lines))
            self._file.flush()

    def close(self) -> None:
        """Close the file, as the other log."""
        with suppress(OSError):
            self._file.close()
