"""Figures of a report, by matplotlib; `ink` is the colour of text and axes, so that pages may be dark."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from maep.attacks.catalog import title_of
from maep.attacks.verdict import NO_CLASS
from maep.evaluation.audit.gradient_masking import CheckAnswers
from maep.evaluation.reporting.report_row import ReportRow
from maep.evaluation.reporting.rows import Combination, Samples, judged_word
from maep.evaluation.scoring.tasks import eps_text
from maep.runtime.text import printable
from maep.storage.atomic import atomic_file

INK = "#1f2430"
BLUE, ORANGE, GREY = "#3b78d8", "#e0802b", "#9aa3b2"
COLOURS = (BLUE, ORANGE, "#3f9e5f", "#b0479a", "#c0392b", "#2aa5b8", "#8a6d3b", GREY)
# Inches: a letter in 8 points and a tenth more, a line of a legend, and what stands before and beside its letters.
LETTER, LINE, KEY = 0.07, 0.19, 0.6
ROWS = ("clean", "adversarial", "perturbation × 10", "purified", "residual × 10")


def save_figure(figure: Figure, path: Path) -> None:
    """Commit a figure as PNG on white."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG on a transparent ground."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, transparent=True)
    return buffer.getvalue()


def drawn(text: str) -> str:
    """The text as a figure shows it: matplotlib sees a formula between dollar signs, and fails on a wrong one."""
    return printable(text).replace("$", r"\$")


def legend_room(labels: Sequence[str], columns: int = 1) -> tuple[float, float]:
    """Width and height, in inches, of a legend in 8 points whose labels stand in so many columns."""
    lines = [line for label in labels for line in label.split("\n")]
    return columns * (KEY + letters_room(labels)), LINE * math.ceil(len(lines) / columns)


def letters_room(labels: Sequence[str]) -> float:
    """Width in inches of the longest line of some labels in 8 points."""
    return LETTER * max((len(line) for label in labels for line in label.split("\n")), default=0)


def style_axes(axes: Axes, ink: str) -> None:
    """The look of all figures: no frame, a faint grid, everything in `ink`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)
    axes.tick_params(colors=ink, labelsize=9)
    axes.xaxis.label.set_color(ink)
    axes.yaxis.label.set_color(ink)
    axes.grid(color=ink, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean over about a twentieth of the run."""
    width = max(1, len(values) // 20)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(0, stop - width)
    return (sums[stop] - sums[start]) / (stop - start)


def curve_figure(lines: Sequence[Mapping[str, float]], ink: str = INK) -> Figure:
    """Loss (logarithmic) and learning rate over steps. lines: those of metrics.jsonl, at least one."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps, losses, rates = (np.array([line.get(key, np.nan) for line in lines]) for key in ("step", "loss", "lr"))
    marker = "o" if len(lines) == 1 else None
    top.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=1, marker=marker)
    top.plot(steps, _smoothed(losses), color=BLUE, linewidth=2)
    if (losses > 0).all():
        top.set_yscale("log")
    top.set_ylabel("loss")
    bottom.plot(steps, rates, color=ORANGE, linewidth=1.5, marker=marker)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.ticklabel_format(axis="y", scilimits=(-2, 3))
    bottom.yaxis.offsetText.set(color=ink, size=8)
    for axes in (top, bottom):
        style_axes(axes, ink)
        axes.tick_params(which="minor", colors=ink, labelsize=8)
    figure.align_ylabels([top, bottom])
    return figure


def checks_figure(checks: CheckAnswers, ink: str = INK) -> Figure:
    """The attack's loss and the accuracy that remains, against budget and against steps."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col")
    curves = ((checks.against_eps, "eps"), (checks.against_steps, "steps"))
    for column, (points, key) in enumerate(curves):
        positions = [getattr(point, key) for point in points]
        for axes, value, colour in zip(grid[:, column], ("loss", "accuracy"), (ORANGE, BLUE), strict=True):
            axes.plot(positions, [getattr(point, value) for point in points], color=colour, marker="o", markersize=4)
            axes.set_ylim(bottom=0)
            style_axes(axes, ink)
        if key == "eps":
            for axes in grid[:, column]:
                axes.axvline(checks.eps, color=ink, linewidth=1, linestyle=":")
        else:
            grid[1, column].set_xscale("log")
        grid[1, column].set_xlabel("ε of PGD-20" if key == "eps" else f"steps of PGD, ε = {eps_text(checks.eps)}")
    grid[0, 0].set_ylabel("loss of the attack")
    grid[1, 0].set_ylabel("accuracy in %")
    return figure


def eps_figure(curves: Sequence[Sequence[Combination]], ink: str = INK) -> Figure:
    """Robust accuracy with its interval against the budget, from the clean accuracy at 0 on.

    curves: rows that differ in nothing but their budget.
    """
    sides = [sorted((row.result for row in curve), key=lambda result: result.eps) for curve in curves]
    labels = [f"{rows[0].purifier}, {rows[0].threat_model}, {title_of(rows[0].attack)}" for rows in sides]
    width, height = legend_room(labels)
    figure = Figure(figsize=(max(5.6, width), max(3.6, 2.6 + height)), layout="constrained")
    axes = figure.subplots()
    for number, (rows, label) in enumerate(zip(sides, labels, strict=True)):
        first = rows[0]
        points = [(0.0, first.clean_accuracy, first.clean_ci95)]
        points += [(result.eps, result.robust_accuracy, result.robust_ci95) for result in rows]
        eps, values, intervals = zip(*points, strict=True)
        low, high = zip(*intervals, strict=True)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(eps, values, color=colour, marker="o", markersize=4, label=drawn(label))
        axes.fill_between(eps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(ylim=(0, 100), xlim=(0, None), xlabel="ε", ylabel="accuracy in %")
    style_axes(axes, ink)
    figure.legend(loc="outside upper left", ncols=1, frameon=False, fontsize=8, labelcolor=ink)
    return figure


def accuracy_figure(rows: Sequence[Combination], ink: str = INK) -> Figure:
    """Robust accuracy with its 95 % interval, undefended and defended, and clean accuracy as a mark."""
    judged = judged_word([row.result for row in rows])
    labels = [_row_label(row.result) for row in rows]
    # Half of it for the bars; names of runs may be longer than the other half.
    figure = Figure(figsize=(max(5.6, 2.8 + letters_room(labels)), 0.9 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    heights = np.arange(len(rows))[::-1]
    for height, row in zip(heights, rows, strict=True):
        result = row.result
        bars = (
            (0.19, result.undefended_robust_accuracy, row.undefended_ci95[1], GREY),
            (-0.19, result.robust_accuracy, result.robust_ci95, BLUE),
        )
        for offset, value, (low, high), colour in bars:
            error = [[max(0, value - low)], [max(0, high - value)]]
            axes.barh(height + offset, value, 0.34, color=colour, xerr=error,
                      error_kw={"ecolor": ink, "elinewidth": 1, "capsize": 2.5})  # fmt: skip
        axes.plot([result.clean_accuracy] * 2, [height - 0.38, height], color=ORANGE, linewidth=2.5)
    axes.set_yticks(heights, labels)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy in %")
    style_axes(axes, ink)
    axes.grid(visible=False, axis="y")
    handles: list[Artist] = [Patch(color=GREY), Patch(color=BLUE), Line2D([], [], color=ORANGE, lw=2.5)]
    names = ["undefended, attacked", f"{judged}, attacked", f"{judged}, clean"]
    figure.legend(handles, names, loc="outside upper left", ncols=3, frameon=False, fontsize=8, labelcolor=ink,
                  handlelength=1.2, columnspacing=1.2)  # fmt: skip
    return figure


def _row_label(row: ReportRow) -> str:
    norm = " L2" if row.norm == "L2" else ""
    return drawn(f"{row.threat_model}, {row.purifier}\n{title_of(row.attack)} {eps_text(row.eps)}{norm}")


def sample_images(samples: Samples) -> dict[str, np.ndarray]:
    """The images of `ROWS`, each uint8 [K, H, W, 3].

    perturbation = adversarial - clean and residual = purified - clean, ten times enlarged around grey.
    """
    clean, adversarial, purified = (
        samples.tensors[name].permute(0, 2, 3, 1).numpy() for name in ("clean", "adversarial", "purified")
    )
    perturbation, residual = (_enlarged(image, clean) for image in (adversarial, purified))
    return dict(zip(ROWS, (clean, adversarial, perturbation, purified, residual), strict=True))


def _enlarged(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    difference = images.astype(np.int16) - reference.astype(np.int16)
    return (128 + 10 * difference).clip(0, 255).astype(np.uint8)


def verdicts(samples: Samples, row: str) -> list[tuple[str, bool]] | None:
    """For each image of a row of `ROWS`, the class the classifier sees with its confidence, and whether it is right."""
    if row not in samples.tensors:
        return None
    predictions, labels = samples.tensors[f"{row}_prediction"].tolist(), samples.tensors["labels"].tolist()
    sure = samples.tensors[f"{row}_confidence"].tolist()
    return [
        ("no number" if p == NO_CLASS else f"{samples.classes[p]} {100 * share:.0f} %", p == label)
        for p, label, share in zip(predictions, labels, sure, strict=True)
    ]


def samples_figure(samples: Samples, judged: str = "purified") -> Figure:
    """One column an image, one row each of `ROWS`, with the classifier's verdict below. judged: as `judged_word`.

    In one pair of axes, an image a unit wide: as many axes as images would take longer than the rest of a report.
    """
    images, count = sample_images(samples), len(samples.tensors["labels"])
    step, margin = 1.18, 0.25  # from row to row, an image and its verdict; before the first column, the row's name
    figure = Figure(figsize=(1.25 * (count + margin), 1.25 * step * len(ROWS)))
    axes = figure.add_axes((0, 0, 1, 1))
    for line, name in enumerate(ROWS):
        top, answers = line * step, verdicts(samples, name)
        for column, image in enumerate(images[name]):
            half_height, half_width = (0.48 * side / max(image.shape[:2]) for side in image.shape[:2])
            x, y = column + 0.5, top + 0.5
            extent = (x - half_width, x + half_width, y + half_height, y - half_height)
            axes.imshow(image, interpolation="nearest", extent=extent)
            if answers:
                text, right = answers[column]
                colour = "#1a7f4b" if right else "#c0392b"
                axes.text(x, top + 1, drawn(text[:16]), fontsize=8, color=colour, ha="center", va="top")
        label = judged if name == "purified" else name
        axes.text(-margin / 2, top + 0.5, label, fontsize=9, color=INK, ha="center", va="center", rotation="vertical")
    axes.set(xlim=(-margin, count), ylim=(len(ROWS) * step, 0), aspect="auto")
    axes.set_axis_off()
    return figure
