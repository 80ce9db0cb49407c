"""The curves of a run's trainings, as metrics.jsonl has them."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maep.runtime.errors import UserError, fail
from maep.runtime.plain_files import open_regular
from maep.storage.json_files import parse_json

Curve = Sequence[Mapping[str, float]]
MAX_LINE = 2**16  # bytes; a training logs 300 a step
MAX_LINES = 2**17  # kept of a log at a time, at a kilobyte each; a figure has room for a thousand
NEEDED = ("step", "loss")  # without which there is no curve
FILES = {"metrics.jsonl": "pretraining", "metrics-finetune.jsonl": "finetuning"}


def read_curves(directory: Path) -> dict[str, Curve]:
    """`{training: lines}` of what was trained in a run directory."""
    curves = {name: read_metrics(directory / file) for file, name in FILES.items()}
    return {name: lines for name, lines in curves.items() if lines}


def read_metrics(path: Path) -> list[Mapping[str, float]]:
    """The lines of a metrics.jsonl by rising step; [] if there is none.

    A last line that a kill cut short is left out; of a step that a resumed run logged again, the later counts. Of a log
    of more than MAX_LINES, every 2nd, 4th, … and the last. Raises UserError, naming the line, for another that is not
    what a training logs.
    """
    steps: dict[float, tuple[int, Mapping[str, float]]] = {}
    stride = 1
    for number, values, is_last in _lines(path):
        if number % stride and not is_last:
            continue
        steps[values["step"]] = number, values
        if len(steps) > MAX_LINES:
            stride *= 2
            steps = {step: line for step, line in steps.items() if not line[0] % stride}
    return [steps[step][1] for step in sorted(steps)]


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, float], bool]]:
    """The number of each line, counted from 1, what it holds, and whether it is the last."""
    if not path.is_file():
        return
    try:
        with open_regular(path) as file:
            line, number = file.readline(MAX_LINE), 1
            while line:
                following = file.readline(MAX_LINE)
                if following or line.endswith(b"\n"):  # else it was cut
                    yield number, _values(line, f"{path}: line {number}"), not following.endswith(b"\n")
                line, number = following, number + 1
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}; remove it, the curves are then left out")


def _values(line: bytes, where: str) -> Mapping[str, float]:
    """What a line holds."""
    try:
        values = parse_json(line, where)
    except UserError as problem:
        fail(f"{problem}; remove the line, the curves are then drawn without it")
    _check_line(values, where)
    return {sys.intern(name): value for name, value in values.items()}


def _check_line(values: object, where: str) -> None:
    """Raise UserError, naming the place, unless it is an object with finite numbers in NEEDED and nowhere text."""
    if not isinstance(values, dict):
        fail(f"{where}: expected a JSON object; remove the line, the curves are then drawn without it")
    for name in (*NEEDED, *values):
        value = values.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (is_number or (value is None and name not in NEEDED)):
            fail(f"{where}: {name}={json.dumps(value)[:60]}: expected a number; remove the line")
