"""Names from outside in tables and figures: each shown as it is written, once, and nothing in it is believed."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from maep.ablation.grid.row_selector import RowSelector
from maep.ablation.grid.sweep import Axis, Sweep
from maep.ablation.tables.cells import Cell, Measure
from maep.ablation.tables.value_figures import value_figure
from maep.evaluation.reporting.bounds import Bound, Bounds, bounds_figure
from maep.evaluation.reporting.certificates import certificate_figure
from maep.evaluation.reporting.comparison import (
    ComparedColumn,
    ComparedRow,
    Comparison,
    Condition,
    McNemar,
    ReportedDefense,
    comparison_figure,
    comparison_table,
)
from maep.evaluation.reporting.figures import drawn, png_bytes, samples_figure
from maep.evaluation.reporting.report_certificate import CertificateRow
from maep.evaluation.reporting.report_row import ReportRow
from maep.evaluation.reporting.rows import Samples, judged_word
from maep.runtime.console import PlainConsole
from tests.evaluation.reporting.rows_of_reports import report_row

NAMES = ["[red]x[/]", "[/]", ":bomb:", "$\\frac{$", "a$b$c", "\\[x]", "<b>&amp;", "{x}", "50 % #1_a"]


def compared(name: str) -> tuple[list[ReportedDefense], Comparison]:
    """Two defenses of that name in one column, one with an alarm."""
    row = report_row(classifier=name, purifier=name, attack="pgd-20", dataset=name)
    defenses = [
        ReportedDefense(Path(f"runs/{run}"), name, name, {Condition.of(row): row}, alarms)
        for run, alarms in (("one", ()), ("two", (name,)))
    ]
    rows = tuple(
        ComparedRow(str(each.run), name, name, 90.0, (80.0, 95.0), 50.0, (40.0, 60.0), 70.0, test, each.alarms, 20)
        for each, test in zip(defenses, (None, McNemar(1, 2, 0.5)), strict=True)
    )
    column = ComparedColumn(name, "abcdef", "adaptive", "pgd-20", "Linf", 8 / 255, n=20, rows=rows)
    return defenses, Comparison((column,))


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_shows_names_as_they_are(name: str) -> None:
    """In the terminal beside numbers whose own marks are no markup, and in the figure as no formula."""
    defenses, comparison = compared(name)
    file = io.StringIO()
    PlainConsole(file=file, width=300).print(comparison_table(defenses, comparison))
    shown = file.getvalue()
    assert shown.count(f"one: {name}, {name} ") == 1
    assert shown.count(f"! two: {name}, {name}: alarms: {name}") == 1
    assert shown.count(f"{name} abcdef, n = 20") == 1
    assert "50.0 [40.0, 60.0] !" in shown
    assert "bold" not in shown
    figure = comparison_figure(defenses, comparison)
    assert png_bytes(figure).startswith(b"\x89PNG")
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert any(drawn(f"one: {name}, {name}") in text for text in texts)


def test_an_alarm_shows_in_the_figure() -> None:
    """The bars of the defense that it speaks against are hatched, and the legend names it."""
    defenses, comparison = compared("net")
    figure = comparison_figure(defenses, comparison)
    (axes,) = figure.axes
    bars = {str(group.get_label()): {bar.get_hatch() for bar in group} for group in axes.containers if len(group) == 1}
    hatched = {name: hatches for name, hatches in bars.items() if hatches != {None}}
    assert list(hatched.values()) == [{"//"}]
    assert list(hatched) == ["two: net, net\n! alarms: net"]


@pytest.mark.parametrize("name", NAMES)
def test_images_are_labelled_as_they_are(name: str) -> None:
    """Classes of a stranger's shard set stand below the images."""
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    tensors = dict.fromkeys(("clean", "adversarial", "purified"), pixels)
    tensors |= {"labels": torch.tensor([0]), "ids": torch.tensor([0])}
    for kind in ("clean", "adversarial", "purified"):
        tensors |= {f"{kind}_prediction": torch.tensor([0]), f"{kind}_confidence": torch.tensor([0.5])}
    figure = samples_figure(Samples(tensors, [name]), "defended")
    assert png_bytes(figure).startswith(b"\x89PNG")
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert texts.count(drawn(f"{name} 50 %"[:16])) == 3
    assert "defended" in texts
    assert "purified" not in texts


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([("none", "none")], "model"), ([("mine", "defended")], "defended"), ([("maep", "maep")], "purified"),
        ([("maep", None)], "purified"), ([("none", "none"), ("mine", "defended")], "defended"),
        ([("mine", "defended"), ("maep", "maep")], "purified"), ([("x", "other")], "purified"),
    ],
)  # fmt: skip
def test_what_is_judged_has_its_word(kinds: list[tuple[str, str | None]], expected: str) -> None:
    """A model without a purifier, and a defense that changes no image, purify nothing."""
    rows: list[ReportRow] = [report_row(purifier=name, kind=kind) for name, kind in kinds]
    assert judged_word(rows) == expected


def certificate(name: str) -> CertificateRow:
    """A row of that purifier."""
    return CertificateRow(
        dataset="x", classifier="x", purifier=name, threat_model="certified", norm="L2", sigma=0.25,
        trained_on_noise=True, trained_sigma=0.25, samples=10, first_samples=10, alpha=0.001, n=20,
        certified=((0.0, 50.0), (0.5, 20.0)), certified_ci95=((40.0, 60.0), (10.0, 30.0)), abstained=0.0,
        seconds_per_image=0.0, seed=0, config_hash="", image_set="", records="",
    )  # fmt: skip


def of_sweep(long: list[str]) -> Figure:
    """Robust accuracies of so many rows, ours and published."""
    attackers = {name: RowSelector() for name in ("oblivious", "adaptive")}
    axes = (Axis("base, model.encoder_width, model.encoder_depth, pretrain.batch_size", tuple(long), ()),)
    sweep = Sweep("s", Path("s"), "", "", "cpu", "", "", {}, axes, (0,), attackers, ("robust_accuracy",), {}, ())
    measures = (Measure("robust_accuracy", 1, 50.0, None, (40.0, 60.0), 70.0),)
    return value_figure(sweep, [Cell((name,), at, "finished", measures) for name in long for at in attackers], 0)


@pytest.mark.parametrize("which", ["compare", "certificates", "bounds", "sweep"])
def test_many_long_names_leave_room_for_what_they_name(which: str) -> None:
    """As many defenses as the field has, named like runs: nothing is cut off, and the axes keep their size."""
    long = [f"robust_cifar10_cpu_wrn_transfer-step-{number:06d}" for number in range(25 if which == "sweep" else 9)]
    if which == "compare":
        defenses, columns = zip(*((compared(name)[0][0], compared(name)[1].columns[0]) for name in long), strict=True)
        rows = tuple(column.rows[0] for column in columns)
        figure = comparison_figure(defenses, Comparison((replace(columns[0], rows=rows),)))
    elif which == "certificates":
        figure = certificate_figure([certificate(name) for name in long])
    elif which == "bounds":
        bar = Bound("clean", "not attacked", 50.0, (40.0, 60.0), 1000)
        figure = bounds_figure([Bounds(name, (bar, bar), "x") for name in long])
    else:
        figure = of_sweep(long)
    figure.draw_without_rendering()
    axes = figure.axes[0].get_window_extent()
    assert min(axes.width, axes.height) > 100, "of a hundred dots an inch"
    words = [text for text in figure.findobj(Text) if any(map(str.isalpha, text.get_text()))]
    texts = [text.get_window_extent() for text in words]
    assert len(texts) > len(long)
    assert all(text.x0 >= 0 and text.x1 <= figure.bbox.x1 for text in texts)
    assert all(text.y0 >= 0 and text.y1 <= figure.bbox.y1 for text in texts)
    assert not any(text.overlaps(axes.padded(-1)) for text in texts)
