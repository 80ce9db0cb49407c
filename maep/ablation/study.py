"""A sweep ready to run: its points resolved, its directory chosen, everything checked.

run.dir/sweep.json    what was asked of the cluster, for the workers that run it there
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maep.ablation.grid.points import Point, expand, writings_of_points
from maep.ablation.grid.sweep import Sweep, read_sweep
from maep.ablation.tables.cells import check_values
from maep.ablation.tables.summary import check_directory
from maep.pipeline.unread_settings import say_unread_of_points
from maep.storage.documents import Document

REQUEST = "sweep.json"
AXIS_WORDS = ("grid.", "zip.", "seeds=")
DIRECTORY_WORD = "run.dir="


@dataclass(frozen=True)
class Study:
    """directory: where ablation.json and the tables go; the points have their own, in run.cache/points."""

    sweep: Sweep
    points: list[Point]
    directory: Path


@dataclass(frozen=True)
class SweepRequest(Document):
    """A sweep as a command asked for it. cfg, scale, words: as `prepare` takes them; command: sys.argv."""

    cfg: str
    scale: str
    words: tuple[str, ...]
    command: tuple[str, ...]


def prepare(name: str, scale: str | None, words: Sequence[str]) -> Study:
    """Read and validate `cfg=NAME` with `key=value` words; runs and writes nothing.

    scale: one of the sweep's. words: settings of every point, `grid.KEY=[…]`, `zip.KEY=[…]`, `seeds=[…]`, and
    `run.dir=` for the sweep's own directory. Raises UserError, one line, for all that `read_sweep` and `expand`
    refuse, for values that no report has, and for a directory that holds another sweep's or scale's table.
    """
    axes = [word for word in words if word.startswith(AXIS_WORDS)]
    directories = [word.removeprefix(DIRECTORY_WORD) for word in words if word.startswith(DIRECTORY_WORD)]
    settings = [word for word in words if word not in axes and not word.startswith(DIRECTORY_WORD)]
    sweep = read_sweep(name, scale, axes)
    directory = Path(directories[-1]) if directories else sweep.directory
    check_directory(sweep, directory)
    check_values(sweep)
    return Study(sweep, expand(sweep, settings), directory)


def say_unread(study: Study, words: Sequence[str]) -> None:
    """Say which settings of the words, or of a sweep file of one's own, no point has a use for."""
    axes = [word.partition("=")[0].partition(".")[2] for word in words if word.startswith(AXIS_WORDS)]
    settings = [word for word in words if not word.startswith((*AXIS_WORDS, DIRECTORY_WORD))]
    written = writings_of_points(study.sweep, settings, axes)
    say_unread_of_points(list(zip((point.settings for point in study.points), written, strict=True)))


def read_study(directory: Path) -> tuple[Study, list[str]]:
    """The sweep that was submitted in a directory, and the command that did it. Raises UserError if none was."""
    request = SweepRequest.read(directory / REQUEST)
    return prepare(request.cfg, request.scale, request.words), list(request.command)
