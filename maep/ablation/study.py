"""A sweep ready to run: its points resolved, its directory chosen, everything checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maep.ablation.spec.points import Point, expand
from maep.ablation.spec.sweep import Sweep, read_sweep
from maep.ablation.tables.summary import check_directory
from maep.storage.atomic import read_json

SPEC = "sweep.json"
AXIS_WORDS = ("grid.", "zip.", "seeds=")
DIRECTORY_WORD = "run.dir="


@dataclass(frozen=True)
class Study:
    """directory: where ablation.json and the tables go; the points have their own, in run.cache/points."""

    sweep: Sweep
    points: list[Point]
    directory: Path


def prepare(name: str, scale: str | None, words: Sequence[str]) -> Study:
    """Read and validate `cfg=NAME` with `key=value` words; runs and writes nothing.

    scale: one of the sweep's. words: settings of every point, `grid.KEY=[…]`, `zip.KEY=[…]`, `seeds=[…]`, and
    `run.dir=` for the sweep's own directory. Raises UserError, one line, for all that `read_sweep` and `expand`
    refuse, and for a directory that holds another sweep's or scale's table.
    """
    axes = [word for word in words if word.startswith(AXIS_WORDS)]
    places = [word.removeprefix(DIRECTORY_WORD) for word in words if word.startswith(DIRECTORY_WORD)]
    rest = [word for word in words if word not in axes and not word.startswith(DIRECTORY_WORD)]
    sweep = read_sweep(name, scale, axes)
    directory = Path(places[-1]) if places else sweep.directory
    check_directory(sweep, directory)
    return Study(sweep, expand(sweep, rest), directory)


def read_study(directory: Path) -> tuple[Study, list[str]]:
    """The sweep that was submitted in a directory, and the command that did it."""
    spec: dict[str, Any] = read_json(directory / SPEC)
    return prepare(spec["cfg"], spec["scale"], spec["words"]), spec["command"]
