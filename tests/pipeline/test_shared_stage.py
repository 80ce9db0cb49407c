"""A stage that several processes of this machine share (`maep run --nproc N`): real processes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from maep.pipeline import shared_stage
from maep.runtime.errors import UserError
from tests.tiny import ROOT, Problem, environment

JPEG = (
    "purifier.kind=jpeg", "evaluation.threat_models=[oblivious,bpda]", "evaluation.attacks=[pgd-20]",
    "evaluation.chunk_images=10", "evaluation.batch_size=10", "evaluation.adaptive_images=60",
)  # fmt: skip


def records(run: Path) -> dict[str, dict[str, Any]]:
    """What the chunks' records say, but for the seconds that they took and the digest over these too."""
    return {
        str(path.relative_to(run)): {
            key: value
            for key, value in json.loads(path.read_text()).items()
            if key not in ("seconds", "content_sha256")
        }
        for path in sorted((run / "evaluation").rglob("chunk-*.json"))
    }


def test_evaluation_of_two_processes_stopped_and_gone_on_with(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """SIGTERM to the launcher ends both at once, and the same command goes on; records are one process's, and the
    launcher finds them all made.
    """
    words = [*JPEG, f"run.cache={shutil.copytree(problem.cache, tmp_path / 'cache')}"]
    launcher = subprocess.Popen(
        problem.command("evaluate", run_dir, *words, nproc=2), cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not records(run_dir) and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM, output
    assert "goes on from there" in output
    assert not list(tmp_path.rglob("*.claim-*"))

    done = problem.run("evaluate", run_dir, *words, nproc=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluation: 12 of 12 chunks were done before\n" in done.stdout, "the launcher had nothing left to do"
    alone = Path(shutil.copytree(problem.prepared, tmp_path / "alone"))
    assert problem.run("evaluate", alone, *JPEG).returncode == 0
    assert len(records(alone)) == 12
    assert records(run_dir) == records(alone)


@pytest.mark.parametrize("arguments", [[], ["pretrain", "cfg=digits"]])
def test_a_stage_that_is_not_shared_is_refused(arguments: list[str]) -> None:
    """One line."""
    with pytest.raises(UserError, match="first argument must be one of attack, evaluate, certify"):
        shared_stage.main(arguments)


def test_its_exit_code_is_its_own_where_the_interpreter_would_abort() -> None:
    """As it does where a signal found a library half imported: the launcher would take it for a killed process."""
    program = (
        "import atexit, os, runpy, sys\n"
        "atexit.register(os.abort)\n"
        "sys.argv[1:] = ['pretrain']\n"
        "runpy.run_module('maep.pipeline.shared_stage', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
