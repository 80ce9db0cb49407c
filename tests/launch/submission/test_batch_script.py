"""Batch scripts: what Slurm is asked for, and what bash does with them."""

import argparse
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.launch.cluster.jobs import KINDS, Job, job_of
from maep.launch.cluster.settings import add_options, read_cluster
from maep.launch.submission.batch_script import Submission
from tests.tiny import ROOT


@pytest.fixture
def made(tmp_path: Path) -> Submission:
    """A submission whose run directory has a blank and a quote in its name, and whose code is this checkout."""
    run = tmp_path / "my run's"
    return Submission(load_settings("digits", [f"run.dir={json.dumps(str(run))}"]), run, tmp_path, ROOT)


def job(stage: str, *words: str) -> Job:
    """The job of a stage on the default cluster with these options."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return job_of(stage, read_cluster(parser.parse_args(words), list(KINDS)), [])


def directives(script: str) -> dict[str, str]:
    """`{option: value}` of the #SBATCH lines."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_training_job_asks_for_what_was_given(made: Submission) -> None:
    """Every option arrives; memory is a node's; the signal leaves the grace and a margin."""
    words = ["--nodes", "4", "--gpus-per-node", "8", "--cpus-per-task", "12", "--mem-per-task", "2G", "--qos", "q"]
    asked = directives(made.script(job("pretrain", *words, "--time", "2-0", "--constraint", "a&b"), ["11", "12"]))
    for name, value in {
        "nodes": "4", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "12", "mem": "16384M", "qos": "q",
        "time": "2880", "constraint": "'a&b'", "dependency": "afterok:11:12", "kill-on-invalid-dep": "yes",
        "requeue": "", "signal": "USR2@70", "open-mode": "append", "job-name": "digits-pretrain",
    }.items():  # fmt: skip
        assert asked[name] == value, name


def test_fewer_nodes_are_asked_for_as_a_range(made: Submission) -> None:
    """Slurm chooses the nodes, and the number of tasks follows from what it gave."""
    script = made.script(job("pretrain", "--nodes", "4", "--min-nodes", "2", "--nproc-per-node", "3"), [])
    asked = directives(script)
    assert (asked["nodes"], asked["mincpus"]) == ("2-4", "6")
    assert "ntasks-per-node" not in asked
    assert 'SLURM_NTASKS="$((SLURM_JOB_NUM_NODES * 3))"' in script


def test_workers_become_an_array(made: Submission) -> None:
    """The array's size and how many run at a time; logs of each worker apart."""
    asked = directives(made.script(job("attack", "--workers", "5", "--array-parallelism", "2"), []))
    assert asked["array"] == "0-4%2"
    assert asked["output"].endswith("%A_%a_0_log.out'")


@pytest.mark.parametrize("code", [0, 66, 140])
def test_script_hands_on_the_code_and_asks_for_a_decision(made: Submission, tmp_path: Path, code: int) -> None:
    """Run by bash with the processes' part replaced: the exit code stays, and the attempt is written down."""
    asked = replace(job("pretrain"), nodes=(1, 1))
    lines = [line for line in made.script(asked, []).splitlines() if not line.startswith("srun")]
    environment = {"SLURM_JOB_ID": "7", "PATH": "/bin"}
    done = subprocess.run(["bash", "-c", "\n".join([*lines, f"(exit {code})"])], env=environment, check=False)
    assert done.returncode == code
    attempts = made.folder("pretrain") / "exits" / "7" / "attempts.jsonl"
    assert json.loads(attempts.read_text())["code"] == code


@pytest.mark.parametrize("stage", KINDS)
def test_scripts_are_bash(made: Submission, stage: str) -> None:
    """Quotes and blanks in names break no script."""
    script = made.script(job(stage, "--nodes", "3", "--min-nodes", "1", "--workers", "2"), ["1"])
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_settings_and_place_pick_the_file(made: Submission) -> None:
    """Other settings have another file, so that a queued job's are never overwritten."""
    other = replace(made, settings=load_settings("digits", ["run.seed=1"]))
    assert made.config != other.config
