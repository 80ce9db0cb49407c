"""Figures of Sec. 4.2: purified images, and how clean and adversarial images are moved by each purifier of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from maep.ablation.grid.points import Point, is_judged
from maep.ablation.grid.row_selector import row_of
from maep.ablation.grid.sweep import Sweep
from maep.ablation.running.point_records import PointState, read_record
from maep.attacks.attack_state import load_tensors
from maep.evaluation.reporting.figures import drawn, save_figure
from maep.evaluation.scoring.chunk_record import read_row
from maep.evaluation.scoring.plan import SAMPLES

VALUES = ("distance_clean", "distance_adversarial", "direction_cosine")
KINDS = ("clean", "adversarial", "purified")
IMAGES = 3  # of a point: three of each kind still fit a page's width


@dataclass(frozen=True)
class View:
    """What one point made of the test images.

    images: uint8 [K, 3, H, W] of each of KINDS; values: VALUES by image, as far as they are defined.
    """

    label: str
    images: dict[str, Tensor]
    values: dict[str, list[float]]


def draw_purification(sweep: Sweep, points: Sequence[Point], folder: Path) -> None:
    """Write purified.png and directions.png, if the sweep reads distances and a point is finished."""
    if not set(VALUES) & set(sweep.values):
        return
    finished = [point for point in points if read_record(point).state == PointState.FINISHED]
    views = [_view(sweep, point) for point in finished if is_judged(sweep.first_selector, point.settings)]
    if views:
        save_figure(purified_figure(views), folder / "purified.png")
        save_figure(directions_figure(views), folder / "directions.png")


def _view(sweep: Sweep, point: Point) -> View:
    row = row_of(point.directory / "report.json", sweep.first_selector)
    assert row is not None  # the table's cells were read from it
    directory = point.directory / "evaluation"
    records = read_row(directory, row["records"])
    samples = load_tensors(directory / row["records"] / SAMPLES)
    images = {kind: samples[0][kind][:IMAGES] for kind in KINDS} if samples else {}
    values = {name: [x for record in records for x in getattr(record, name) if x is not None] for name in VALUES}
    return View(point.label, images, values)


def purified_figure(views: Sequence[View]) -> Figure:
    """A row a point: some of its images, each clean, adversarial and purified."""
    views = [view for view in views if view.images]
    figure = Figure(figsize=(1.1 * IMAGES * len(KINDS), 1.45 * max(1, len(views))), layout="constrained")
    grid = figure.subplots(max(1, len(views)), IMAGES * len(KINDS), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, view in zip(grid, views, strict=False):
        line[0].text(0, 1.25, drawn(view.label), transform=line[0].transAxes, fontsize=8)
        for column, axes in enumerate(line[: len(view.images["clean"]) * len(KINDS)]):
            image, kind = divmod(column, len(KINDS))
            pixels = view.images[KINDS[kind]][image].permute(1, 2, 0)
            axes.imshow(pixels.numpy(), interpolation="nearest")
            axes.set_title(KINDS[kind], fontsize=7)
    return figure


def directions_figure(views: Sequence[View]) -> Figure:
    """A row a point: both distances from the clean image, and the cosine of both directions, by image."""
    figure = Figure(figsize=(7, 2.6 * len(views)), layout="constrained")
    for line, view in zip(figure.subplots(len(views), 2, squeeze=False), views, strict=True):
        _distances(line[0], view)
        line[1].hist(view.values["direction_cosine"], bins=40, range=(-1, 1), color="C0")
        line[1].set_xlabel("cosine of P(x) − x and P(x_a) − x_a", fontsize=8)
        line[1].set_ylabel("images", fontsize=8)
        for axes in line:
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
    return figure


def _distances(axes: Axes, view: View) -> None:
    clean, adversarial = view.values["distance_clean"], view.values["distance_adversarial"]
    axes.plot(clean, adversarial, ".", markersize=2, alpha=0.6)
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    axes.set_title(drawn(view.label), fontsize=8)
    axes.set_xlabel("‖P(x) − x‖, mean absolute", fontsize=8)
    axes.set_ylabel("‖P(x_a) − x‖", fontsize=8)
