"""How the launcher of several processes ends when one of them does."""

import sys
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.launch.processes import spawn
from maep.runtime.errors import ProcessFailed, exit_code


@pytest.mark.parametrize("code", [1, 2])
def test_it_ends_with_the_code_of_the_process(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1, a loss that is not finite, is not taken for bad input, 2: scripts tell them apart."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    settings = load_settings("digits", [f"run.dir={tmp_path}"])
    with pytest.raises(ProcessFailed):
        spawn("pretrain", settings, 2)
    assert exit_code(lambda: spawn("pretrain", settings, 2)) == code  # type: ignore[func-returns-value, return-value, arg-type]
    assert f"pretrain: one of its 2 processes ended with code {code}" in capsys.readouterr().err
