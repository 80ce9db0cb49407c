"""What jobs could not read is told before they are submitted."""

import subprocess
import sys
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.launch.submission.read_by_jobs import check_what_is_read
from maep.runtime.errors import UserError
from tests.tiny import ROOT, environment


def test_what_jobs_would_read_is_asked_for_before_they_wait(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Weights that are not there are refused; images may lie where the nodes alone see them. On paper all is said."""
    runs = [
        load_settings("cifar10", [f"run.dir={tmp_path}", f"run.cache={tmp_path}", f"data.root={tmp_path}/none", *more])
        for more in (["classifier.weights=none.pt"], ["classifier.weights=none.pt", "run.seed=1"])
    ]
    check_what_is_read([(settings, ["shards"]) for settings in runs])
    assert capfd.readouterr().out.count("warning: on this machine: data.root=") == 1
    with pytest.raises(UserError, match=r"^classifier.weights=none.pt: no such file.*; nothing was submitted$"):
        check_what_is_read([(settings, ["attack", "evaluate"]) for settings in runs])
    check_what_is_read([(settings, ["attack", "evaluate"]) for settings in runs], on_paper=True)
    assert capfd.readouterr().out.count("warning: on this machine: classifier.weights=none.pt: no such file") == 1


def test_a_dry_run_says_what_jobs_would_not_find(tmp_path: Path) -> None:
    """Beside the batch scripts, which another machine may submit."""
    words = ["cfg=digits", f"run.dir={tmp_path}/run", "classifier.weights=none.pt", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "launch/slurm.py", *words], cwd=ROOT, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("warning: on this machine: classifier.weights=none.pt: no such file") == 1
    assert not list(tmp_path.iterdir())
