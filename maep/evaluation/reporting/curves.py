"""The curves of a run's trainings, as metrics.jsonl has them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Curve = Sequence[Mapping[str, float]]
FILES = {"metrics.jsonl": "pretraining", "metrics-finetune.jsonl": "finetuning"}


def read_curves(directory: Path) -> dict[str, Curve]:
    """`{training: lines}` of what was trained in a run directory."""
    curves = {name: read_metrics(directory / file) for file, name in FILES.items()}
    return {name: lines for name, lines in curves.items() if lines}


def read_metrics(path: Path) -> list[Mapping[str, float]]:
    """The lines of a metrics.jsonl by rising step; [] if there is none.

    A last line that a kill cut short is left out; of a step that a resumed run logged again, the later counts.
    Raises ValueError for another line that is not JSON.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    steps: dict[float, Mapping[str, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise
            continue
        steps[values["step"]] = values
    return [steps[step] for step in sorted(steps)]
