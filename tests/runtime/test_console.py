"""Progress is a bar in a terminal, and elsewhere a line from time to time: no log is silent for long."""

import time

import pytest

from maep.runtime import console
from maep.runtime.console import progress_bar


def lines_of(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """What was said, once there are so many lines; on stderr alone."""
    text, deadline = "", time.monotonic() + 20
    while text.count("\n") < count and time.monotonic() < deadline:
        time.sleep(0.005)
        out, err = capsys.readouterr()
        assert out == ""
        text += err
    return text.splitlines()


def test_progress_is_said_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What, how much of how much, for how long, and the note, which cannot steer a terminal; not what is finished."""
    monkeypatch.setattr(console, "EVERY", 0.01)
    with progress_bar() as bar:
        bar.update(bar.add_task("done", total=1, note=""), completed=1)
        row = bar.add_task("evaluate", total=40, note="")
        bar.update(row, completed=8, note="lora · adaptive\x1b[2J")
        lines = lines_of(capsys, 3)
    assert len(lines) >= 3
    assert lines[-1].startswith("evaluate: 8 of 40, 0:0")
    assert "· lora · adaptive" in lines[-1]
    assert not any("done" in line or "\x1b" in line for line in lines)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr() == ("", ""), "nothing is said after the end"


def test_a_process_that_shows_nothing_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several ranks one speaks."""
    monkeypatch.setattr(console, "EVERY", 0.01)
    with progress_bar(enabled=False) as bar:
        bar.add_task("pretrain", total=40, note="")
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")
