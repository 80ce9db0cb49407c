"""Bad input is found before anything is submitted."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.launch.cluster.jobs import KINDS, Job, job_of
from maep.launch.cluster.settings import add_options, read_cluster
from maep.launch.submission.validate import (
    check_model,
    check_partition,
    check_shared,
    check_time,
    check_workers,
    file_system,
    nodes_are_here,
)
from maep.runtime.errors import UserError
from tests.tiny import ROOT, environment

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /dev/shm rw - tmpfs tmpfs rw
31 22 0:27 / /home rw shared:1 master:2 - nfs4 server:/home rw
32 22 0:28 / /home/my\\040runs rw - lustre fs rw
"""


def job(stage: str, *words: str) -> Job:
    """The job of a stage on the default cluster with these options."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return job_of(stage, read_cluster(parser.parse_args(words), list(KINDS)), [])


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/data/runs", "ext4"), ("/dev/shm/x", "tmpfs"), ("/home/me/runs", "nfs4"), ("/home/my runs/a", "lustre")],
)
def test_file_system_of_a_path(path: str, kind: str) -> None:
    """The innermost mount counts; blanks in its name are escaped there."""
    assert file_system(Path(path), MOUNTS) == kind


def test_run_directory_on_this_machine_alone() -> None:
    """A local file system is refused, a shared one is not."""
    with pytest.raises(UserError, match="ext4, which only this machine sees"):
        check_shared(Path("/data/runs"), "ext4")
    check_shared(Path("/home/me"), "nfs4")


def test_nodes_on_this_machine_share_everything() -> None:
    """Addresses of this machine, and one that no machine has."""
    assert nodes_are_here({"127.0.0.1", "localhost"})
    assert not nodes_are_here({"127.0.0.1", "192.0.2.1"})
    assert not nodes_are_here(set())


def test_partition_and_nodes() -> None:
    """The valid partitions are listed; the most nodes are named; a range needs only its fewest."""
    there = {"main": 4, "big": 64}
    with pytest.raises(UserError, match=r"no such partition; did you mean main\? \(there are: main, big\)"):
        check_partition(job("pretrain", "--partition", "mian"), there)
    with pytest.raises(UserError, match="--nodes 5 .pretrain.: partition main has 4 nodes"):
        check_partition(job("pretrain", "--nodes", "5"), there)
    check_partition(job("pretrain", "--nodes", "5", "--min-nodes", "3"), there)
    check_partition(job("pretrain", "--nodes", "5", "--partition", "main,big"), there)
    check_partition(job("attack", "--nodes", "5"), there)


def test_time_below_the_grace() -> None:
    """The limit must exceed what the last save and leaving may take."""
    with pytest.raises(UserError, match="--time 2 .pretrain.: 120 s are not more"):
        check_time(job("pretrain", "--time", "2"), grace=110)
    check_time(job("pretrain", "--time", "2"), grace=109)


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    """A checkpoint that the stage's record does not explain is refused, naming the setting that differs."""
    settings = load_settings("digits", [f"run.dir={tmp_path}"])
    check_model(settings)
    checkpoint = tmp_path / "checkpoints" / "step-000010"
    checkpoint.mkdir(parents=True)
    model = asdict(settings.model)
    (checkpoint / "manifest.json").write_text(json.dumps({"step": 10, "model": model, "files": {}}))
    check_model(settings)
    (checkpoint / "manifest.json").write_text(
        json.dumps({"step": 10, "model": {**model, "encoder_depth": 9}, "files": {}})
    )
    for name in ("step-", "step-best", "step-000020.bak", "step-1e3"):  # no checkpoints, and passed over as by a resume
        shutil.copytree(checkpoint, checkpoint.with_name(name))
    with pytest.raises(UserError, match=r"000010: .*another model, with model\.encoder_depth=9; this run has 3"):
        check_model(settings)
    shutil.rmtree(checkpoint)
    check_model(settings)


def test_no_slurm_is_one_line(tmp_path: Path) -> None:
    """Where there is no sbatch, the launcher ends with 2, says what to do, and writes nothing."""
    words = [sys.executable, "launch/slurm.py", "cfg=digits", f"run.dir={tmp_path}/run"]
    there = {**environment(), "PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT)])}
    done = subprocess.run(words, cwd=ROOT, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "launch/local.py" in done.stderr
    assert not list(tmp_path.iterdir())


def test_more_workers_than_an_array_may_have(cluster_job: Job) -> None:
    """Named with the option and the most that the cluster takes."""
    check_workers(replace(cluster_job, workers=1001), 1001)
    with pytest.raises(UserError, match=r"^--workers 1002 \(evaluate\): arrays of this cluster have at most 1001"):
        check_workers(replace(cluster_job, workers=1002), 1001)


@pytest.fixture
def cluster_job() -> Job:
    """An array stage's job."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return job_of("evaluate", read_cluster(parser.parse_args([]), [*KINDS]), [])


def test_mount_points_may_have_any_name() -> None:
    """The kernel writes a blank, a tab, a newline and a backslash as octal numbers."""
    mounts = "22 1 0:1 / / rw - ext4 x rw\n23 22 0:2 / /a\\040b\\134c\\011d rw - nfs4 y rw\n"
    assert file_system(Path("/a b\\c\td/runs"), mounts) == "nfs4"
