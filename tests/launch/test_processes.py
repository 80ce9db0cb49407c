"""What the launcher of several processes gives each of them, and how it ends when one of them does."""

import os
import sys
from pathlib import Path

import pytest

from maep.config.load import load_settings, to_yaml
from maep.launch import processes
from maep.launch.processes import spawn
from maep.runtime.errors import ProcessFailed, Stopped, exit_code


def _python_of(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize("code", [1, 2])
def test_it_ends_with_the_code_of_the_process(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1, a loss that is not finite, is not taken for bad input, 2: scripts tell them apart."""
    _python_of(f"exit {code}", tmp_path, monkeypatch)
    settings = load_settings("digits", [f"run.dir={tmp_path}"])
    with pytest.raises(ProcessFailed):
        spawn("pretrain", settings, 2)
    assert exit_code(lambda: spawn("pretrain", settings, 2)) == code  # type: ignore[func-returns-value, return-value, arg-type]
    assert f"pretrain: one of its 2 processes ended with code {code}" in capsys.readouterr().err


MEASURE = """\
import os, sys, torch
from pathlib import Path
from maep.training import worker

def measure(settings, on_stall):
    text = f"{torch.get_num_threads()} of {os.environ['LOCAL_WORLD_SIZE']}"
    Path(settings.run.dir, f"threads-{os.environ['RANK']}").write_text(text)

worker.TRAININGS["pretrain"] = measure
sys.exit(worker.main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("cores", "words", "threads"), [(4, [], 2), (2, [], 1), (2, ["compute.threads=2"], 2)])
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="torch takes no more threads than there are cores")
def test_processes_share_the_cores(
    cores: int, words: list[str], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real ones, which join: torch computes in each with its share of the cores, or with what a setting says."""
    (tmp_path / "measure.py").write_text(MEASURE)
    _python_of(f'exec {sys.executable} {tmp_path}/measure.py "$@"', tmp_path, monkeypatch)
    monkeypatch.setattr(processes, "task_cores", lambda: cores)
    settings = load_settings("digits", [f"run.dir={tmp_path}", "compute.device=cpu", *words])
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    spawn("pretrain", settings, 2)
    assert [(tmp_path / f"threads-{rank}").read_text() for rank in range(2)] == [f"{threads} of 2"] * 2


def test_processes_of_a_shared_stage_know_which_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of how many, and get the run's settings: each takes another share."""
    _python_of(f'echo "$WORLD_SIZE $*" > {tmp_path}/$RANK', tmp_path, monkeypatch)
    spawn("evaluate", load_settings("digits", [f"run.dir={tmp_path}"]), 3)
    said = f"3 -m maep.pipeline.shared_stage evaluate cfg={tmp_path}/config.yaml\n"
    assert [(tmp_path / f"{rank}").read_text() for rank in range(3)] == [said] * 3


@pytest.mark.parametrize(("end", "code", "says"), [("exit 2", 2, "with code 2"), ("kill -9 $$", 3, "by SIGKILL; the")])
def test_one_of_a_shared_stage_ends_the_others(
    end: str, code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, where ranks of a training would be waited for; what a killed one had is taken up by the same command."""
    waits = "import signal, time; signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); time.sleep(600)"
    _python_of(f"[ $RANK = 0 ] && exec {sys.executable} -c '{waits}'; {end}", tmp_path, monkeypatch)
    monkeypatch.setattr(processes, "GRACE", 600)
    settings = load_settings("digits", [f"run.dir={tmp_path}"])
    assert exit_code(lambda: spawn("attack", settings, 2)) == code  # type: ignore[func-returns-value, return-value, arg-type]
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "kill -TERM $PPID; sleep 0.2; exit 0",
        "kill -TERM $PPID; sleep 0.2; exit 143",
        f"kill -TERM $PPID; exec {sys.executable} -c 'import time; from maep.runtime import unwinding; "
        "unwinding.unblock_signals(); time.sleep(600)'",
    ],
    ids=["done", "unwound", "killed"],
)
@pytest.mark.parametrize("stage", ["pretrain", "evaluate"])
def test_a_signal_to_the_launcher_is_passed_on_and_never_lost(
    stage: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it still starts them, and also where they were done before it came, or had nothing to unwind yet.

    The command ends, before its next stage, and says that it was stopped; not that a process was lost.
    """
    _python_of(text, tmp_path, monkeypatch)
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        spawn(stage, load_settings("digits", [f"run.dir={tmp_path}"]), 2)
