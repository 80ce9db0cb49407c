"""ablation.json: the committed ones are read, written again as they are, and a newer one is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from maep.ablation.tables.paper_page import render_paper
from maep.ablation.tables.summary_document import SUMMARY, SweepSummary, read_summary
from maep.runtime.errors import UserError
from maep.storage.atomic import write_json
from tests.tiny import ROOT

COMMITTED = sorted((ROOT / "tests" / "reports" / "ablation").glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_summary_is_read_and_written_as_it_is(path: Path, tmp_path: Path) -> None:
    """Every entry and their order, the differences from the paper included."""
    summary = SweepSummary.read(path)
    assert summary.finished == len(summary.points)
    summary.write(tmp_path / SUMMARY)
    assert json.loads((tmp_path / SUMMARY).read_text()) == json.loads(path.read_text())
    assert list(json.loads((tmp_path / SUMMARY).read_text())) == list(json.loads(path.read_text()))
    assert read_summary(tmp_path) == summary


def test_the_page_shows_the_committed_summaries() -> None:
    """As `maep paper` builds it."""
    page = render_paper(COMMITTED)
    assert f"{len(COMMITTED)} run." in page
    assert "12 of 12 points finished" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "format 2; this version of maep reads up to 1"),
        ({"values": "robust_accuracy"}, 'values="robust_accuracy": expected a list'),
        ({"cells": [{"names": []}]}, r"cells\[0\]: lacks the entry 'reading'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """With its file and entry."""
    write_json(tmp_path / SUMMARY, {**json.loads(COMMITTED[0].read_text()), **changes})
    with pytest.raises(UserError, match=rf"{SUMMARY}: .*{message}"):
        read_summary(tmp_path)
