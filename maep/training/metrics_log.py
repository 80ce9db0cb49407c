"""What a training writes as it goes: metrics.jsonl, TensorBoard, and on request the samples that were consumed.

A resumed run writes again what it does again, so lines after the step it goes on from are forgotten first: a step is
never in a log twice.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from maep.storage.atomic import atomic_file
from maep.training.distributed.world import gather_objects, world


def forget_after(path: Path, step: int) -> None:
    """Drop a log's lines of later steps, and a last line that a kill cut off."""
    lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


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
