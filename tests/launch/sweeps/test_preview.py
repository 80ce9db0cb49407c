"""A sweep on paper: points, what they share, the batch script and the hours; nothing is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from maep.ablation.running.reuse import Reuse, reuse_between
from maep.ablation.study import prepare
from maep.launch.sweeps.preview import print_preview
from tests.ablation.sweeps import write
from tests.tiny import ROOT


def test_what_is_shared(tmp_path: Path) -> None:
    """By hand: own pairs and those of a smaller set, each purifier finetuned on its own set in two ways."""
    zipped = {"pretrain.source": [None, "digits"], "pretrain.source_set": [[], ["data.train_limit=60"]]}
    grid = {"finetune.method": ["lora", "full"]}
    sweep = write(tmp_path / "sweep.yaml", grid=grid, zip=zipped, names={"zip": ["own", "other"]}, paper=None)
    assert reuse_between(prepare(str(sweep), None, []).points) == [
        Reuse("clean shards", 6, 2),
        Reuse("classifiers trained", 6, 2),
        Reuse("training images attacked", 6, 2),
        Reuse("test images attacked", 4, 1),
        Reuse("pretrainings", 4, 2),
    ]


def test_slurm(tmp_path: Path) -> None:
    """The array's script has a worker a point; where there is no Slurm, and without a trace."""
    sweep = write(tmp_path / "sweep.yaml")
    command = [sys.executable, ROOT / "launch" / "slurm.py", f"cfg={sweep}", "--dry-run", "--time", "90"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    (tmp_path / "place").mkdir()
    done = subprocess.run(
        command, cwd=tmp_path / "place", capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    assert "2 points, 0 finished, 2 to run" in done.stdout
    assert "#SBATCH --array=0-1%" in done.stdout
    assert "training images attacked   2        1" in done.stdout
    assert "3.0" in done.stdout.splitlines()[-2]
    assert list((tmp_path / "place").iterdir()) == []


def test_what_the_points_would_not_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said once for all of them, under what they are; a sweep goes on with those that find theirs."""
    sweep = write(tmp_path / "sweep.yaml")
    print_preview(prepare(str(sweep), None, ["model.init=none", f"run.cache={tmp_path / 'cache'}"]))
    assert capsys.readouterr().out.count("warning: on this machine: model.init=none: no such file or directory") == 1
