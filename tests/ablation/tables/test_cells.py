"""The cells of a table: a dash where a point is not judged so, an error where its report breaks what was promised."""

import re
from pathlib import Path

import pytest

from maep.ablation.grid.points import expand, is_judged
from maep.ablation.grid.sweep import read_sweep
from maep.ablation.running.point_records import PointRecord, PointState, write_record
from maep.ablation.tables.cells import read_cells
from maep.ablation.tables.details import columns_of, read_details
from maep.ablation.tables.render import markdown_table, ours
from maep.ablation.tables.summary import write_summary
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json, write_json
from tests.ablation.sweeps import write

READINGS = {
    "PGD": {"attack": "pgd-2", "eps": "32/255"},
    "BIM": {"attack": "bim-3", "eps": "32/255"},
    "small": {"attack": "pgd-2", "eps": "16/255"},
    "adaptive": {"attack": "pgd-2", "eps": "32/255", "threat_model": "adaptive"},
    "finetuned": {"attack": "pgd-2", "eps": "32/255", "purifier": "finetuned"},
}
# Of two points each row is one's alone.
ZIP = {
    "evaluation.attacks": [["pgd-2"], ["bim-3"]],
    "evaluation.eps": [[32 / 255, 16 / 255], [32 / 255]],
    "evaluation.threat_models": [["oblivious", "adaptive"], ["oblivious"]],
    "finetune.method": ["none", "lora"],
}
ROWS = (
    [("maep", "oblivious", "pgd-2", 32), ("maep", "oblivious", "pgd-2", 16), ("maep", "adaptive", "pgd-2", 32)],
    [("maep", "oblivious", "bim-3", 32), ("maep+lora", "oblivious", "bim-3", 32)],
)


def test_a_reading_that_a_point_has_not_is_a_dash(tmp_path: Path) -> None:
    """By attack, budget, attacker and finetuning, whichever points are finished; the table and its summary are made."""
    readings = {**READINGS, "finetuned": {**READINGS["finetuned"], "attack": "bim-3"}}
    changes = {"grid": None, "zip": ZIP, "names": {"zip": ["first", "second"]}, "paper": None, "costs": ["n"]}
    sweep = read_sweep(str(write(tmp_path / "s.yaml", readings=readings, **changes)))
    points = expand(sweep, [f"run.cache={tmp_path}"])
    assert [[is_judged(each, point.settings) for each in sweep.row_selectors.values()] for point in points] == [
        [True, False, True, True, False], [False, True, False, False, True]
    ]  # fmt: skip
    expected = [["–"] * 5, ["–"] * 5]
    for number, (point, rows) in enumerate(zip(points, ROWS, strict=True)):
        common = {
            "clean_accuracy": 98.0,
            "clean_ci95": [96, 99],
            "robust_accuracy": 50.0,
            "robust_ci95": [40, 60],
            "n": 9,
        }
        keys = ("purifier", "threat_model", "attack")
        results = [{**common, **dict(zip(keys, row, strict=False)), "eps": row[3] / 255} for row in rows]
        point.directory.mkdir(parents=True)
        write_json(point.directory / "report.json", {"results": results})
        write_record(point, PointRecord(PointState.FINISHED))
        full = "98.00 [96.0, 99.0] / 50.00 [40.0, 60.0]"
        has = [is_judged(each, point.settings) for each in sweep.row_selectors.values()]
        expected[number] = [full if each else "–" for each in has]
        cells = read_cells(sweep, points)
        assert [ours(cell) for cell in cells] == [*expected[0], *expected[1]]
        assert full in markdown_table(sweep, cells)
        assert [columns_of(each)[0] for each in read_details(sweep, points, cells)][number] == "9"
    assert write_summary(sweep, points, tmp_path / "out", ["command"]).finished == 2
    path = points[0].directory / "report.json"
    write_json(path, {"results": read_json(path)["results"][1:]})
    with pytest.raises(UserError, match=r"its report has no result with purifier=pretrained, attack=pgd-2, eps=32/255"):
        read_cells(sweep, points)


def test_a_reading_that_no_point_has_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """Also of a purifier that no point makes or judges."""
    for words, reading in (
        (["finetune.method=none"], {"purifier": "finetuned"}),
        (["finetune.method=lora", "evaluation.purifiers=pretrained"], {"purifier": "finetuned"}),
        (["finetune.method=lora", "evaluation.purifiers=finetuned"], {"purifier": "pretrained"}),
        (["purifier.kind=median"], {"purifier": "finetuned"}),
    ):
        path = write(tmp_path / "s.yaml", readings={"a": {**READINGS["PGD"], **reading}}, paper=None)
        told = f"readings.a: purifier={reading['purifier']}: no point judges such a one"
        with pytest.raises(UserError, match=re.escape(told)):
            expand(read_sweep(str(path)), words)
