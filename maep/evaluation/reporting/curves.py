"""The curves of a run's trainings, as metrics.jsonl has them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from maep.runtime.errors import UserError, fail
from maep.storage.json_files import parse_json, read_bytes

Curve = Sequence[Mapping[str, float]]
LIMIT = 2**30  # bytes: at 300 a logged step, three million steps
NEEDED = ("step", "loss")  # without which there is no curve
FILES = {"metrics.jsonl": "pretraining", "metrics-finetune.jsonl": "finetuning"}


def read_curves(directory: Path) -> dict[str, Curve]:
    """`{training: lines}` of what was trained in a run directory."""
    curves = {name: read_metrics(directory / file) for file, name in FILES.items()}
    return {name: lines for name, lines in curves.items() if lines}


def read_metrics(path: Path) -> list[Mapping[str, float]]:
    """The lines of a metrics.jsonl by rising step; [] if there is none.

    A last line that a kill cut short is left out; of a step that a resumed run logged again, the later counts.
    Raises UserError, naming the line, for another that is not what a training logs.
    """
    lines = read_bytes(path, LIMIT).split(b"\n") if path.is_file() else [b""]
    steps: dict[float, Mapping[str, float]] = {}
    for number, line in enumerate(lines[:-1], 1):  # the last is empty, or was cut
        where = f"{path}: line {number}"
        try:
            values = parse_json(line, where)
        except UserError as problem:
            fail(f"{problem}; remove the line, the curves are then drawn without it")
        _check_line(values, where)
        steps[values["step"]] = values
    return [steps[step] for step in sorted(steps)]


def _check_line(values: object, where: str) -> None:
    """Raise UserError, naming the place, unless it is an object with finite numbers in NEEDED and nowhere text."""
    if not isinstance(values, dict):
        fail(f"{where}: expected a JSON object; remove the line, the curves are then drawn without it")
    for name in (*NEEDED, *values):
        value = values.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (is_number or (value is None and name not in NEEDED)):
            fail(f"{where}: {name}={json.dumps(value)[:60]}: expected a number; remove the line")
