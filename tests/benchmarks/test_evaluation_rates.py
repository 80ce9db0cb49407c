"""What the evaluation's bench refuses before it measures."""

from pathlib import Path

import pytest

from maep.__main__ import run
from maep.runtime.errors import exit_code
from tests.tiny import Problem

WIDE = ("model.image_size=32", "purify.overlap=0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", "61"), "--images 61: there are 60 test images"),
        (("--images", "9", "classifier.epochs=2"), "is not there; train it first, with maep run stage=classifier"),
    ],
    ids=["images", "classifier"],
)
def test_what_is_not_there(
    problem: Problem, tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """More images than there are, and a classifier that nobody has trained: one line, and no report."""
    options = [word for word in words if "=" not in word]
    settings = problem.arguments(tmp_path / "run", *WIDE, *[word for word in words if "=" in word])
    assert exit_code(lambda: run(["bench-evaluation", *settings, *options])) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert message in line
    assert line.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))
