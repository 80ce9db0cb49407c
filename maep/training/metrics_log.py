"""metrics.jsonl and TensorBoard: one object a logged step, never more than one for a step, also after a resume."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from maep.files import atomic_file


class MetricsLog:
    """Appends to `path` and to TensorBoard; forgets lines after `step`, which a resumed run writes again."""

    def __init__(self, path: Path, tensorboard: Path, step: int) -> None:
        self.path = path
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            with atomic_file(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self._board = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def write(self, values: dict[str, Any]) -> None:
        """values: JSON-able, with `step`."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
