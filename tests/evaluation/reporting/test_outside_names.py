"""Names from outside in tables and figures: each shown as it is written, once, and nothing in it is believed."""

import io
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text

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
