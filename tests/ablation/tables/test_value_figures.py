"""Figures of a sweep: what stands for numbers is joined by a line, and what has no name asks for no legend."""

import warnings
from pathlib import Path

import pytest

from maep.ablation.grid.row_selector import RowSelector
from maep.ablation.grid.sweep import Axis, Sweep, read_sweep
from maep.ablation.tables.cells import Cell, Measure
from maep.ablation.tables.value_figures import value_figure
from tests.ablation.sweeps import write


@pytest.mark.parametrize(
    ("names", "is_joined"),
    [
        (("0.25", "0.5", "1e-3"), True),
        (("4/255", "8/255"), True),
        (("MAEP, 18 TFLOP", "DISCO, 18 TFLOP"), False),
        (("1", "none"), False),
    ],
)
@pytest.mark.parametrize("paper", [None, 70.0])
def test_systems_are_not_joined_and_numbers_are(names: tuple[str, ...], is_joined: bool, paper: float | None) -> None:
    """Of one column; and without the paper's numbers there is no legend, nor matplotlib's word that it is empty."""
    axes = (Axis("setting", names, ()),)
    sweep = Sweep("s", Path("s"), "", "", "cpu", "", "", {}, axes, (0,), {"": RowSelector()}, ("accuracy",), {}, ())
    measures = (Measure("accuracy", 1, 50.0, None, (40.0, 60.0), paper),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = value_figure(sweep, [Cell((name,), "", "finished", measures) for name in names], 0)
        figure.draw_without_rendering()
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(names) and line.get_marker() == "o"]
    assert len(lines) == (1 if paper is None else 2)
    assert [line.get_linestyle() for line in lines] == (["-", "--"] if is_joined else ["None"] * 2)[: len(lines)]
    assert len(figure.legends) == (0 if paper is None else 1)


def test_rows_of_a_table_are_joined_whatever_their_columns_are() -> None:
    """A line holds a row together."""
    axes = (Axis("row", ("a", "b"), ()), Axis("column", ("x", "y"), ()))
    sweep = Sweep("s", Path("s"), "", "", "cpu", "", "", {}, axes, (0,), {"": RowSelector()}, ("accuracy",), {}, ())
    measures = (Measure("accuracy", 1, 50.0, None, (40.0, 60.0), None),)
    cells = [Cell((row, column), "", "finished", measures) for row in "ab" for column in "xy"]
    figure = value_figure(sweep, cells, 0)
    assert [line.get_linestyle() for line in figure.axes[0].lines if line.get_marker() in "os"] == ["-", "-"]


def test_the_head_of_many_lists_side_by_side_is_short(tmp_path: Path) -> None:
    """Where their rows have names; where their values are the names, each is in the head."""
    keys = ["pretrain.steps", "model.encoder_depth", "objective.rec_weight", "finetune.method"]
    lists = {"zip": dict(zip(keys, ([5, 6], [1, 2], [0.1, 0.2], ["none", "lora"]), strict=True)), "grid": None}
    for names, title in (
        ({"zip": ["first", "second"]}, "pretrain.steps, model.encoder_depth and 2 more settings"),
        (None, ", ".join(keys)),
    ):
        (axis,) = read_sweep(str(write(tmp_path / "s.yaml", **lists, names=names, paper=None))).axes
        assert axis.title == title
