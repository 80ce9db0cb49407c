"""Batch scripts: what Slurm is asked for, and what bash does with them."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.launch.cluster.jobs import KINDS, Job, job_of
from maep.launch.cluster.settings import add_options, read_cluster
from maep.launch.submission.batch_script import Submission
from maep.runtime.errors import UserError
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


def test_no_wckey_and_what_the_site_demands(made: Submission) -> None:
    """Submitit's own wckey is gone; GPU type, gres, and further options of sbatch and srun arrive, quoted."""
    words = ["--gpus-per-node", "4", "--gpu-type", "a100", "--nodes", "2"]
    assert "wckey" not in directives(made.script(job("pretrain", *words), []))
    words += ["--sbatch", "reservation=my res", "--sbatch", "exclusive", "--sbatch", "mem-per-cpu=2G"]
    words += ["--sbatch", "wckey=k", "--sbatch", "gres=nvme:1", "--srun", "mpi=pmix", "--sbatch", "licenses=a@b:1"]
    script = made.script(job("pretrain", *words), [])
    asked = directives(script)
    for name, value in {
        "gpus-per-node": "a100:4", "reservation": "'my res'", "exclusive": "", "mem-per-cpu": "2G", "wckey": "k",
        "gres": "nvme:1", "licenses": "a@b:1", "requeue": "",
    }.items():  # fmt: skip
        assert asked[name] == value, name
    assert " --mpi=pmix " in next(line for line in script.splitlines() if line.startswith("srun"))
    assert directives(made.script(job("attack", *words), []))["gpus-per-node"] == "a100:1"
    by_gres = directives(made.script(job("pretrain", *words[:6], "--gpu-option", "gres"), []))
    assert by_gres["gres"] == "gpu:a100:4"
    assert "gpus-per-node" not in by_gres


def test_an_interpreter_of_several_words(made: Submission) -> None:
    """A container's command starts every process; nodes are asked for its program, not for a file of that name."""
    words = ["--python", "apptainer exec --nv 'my image.sif' python", "--nodes", "2"]
    script = made.script(job("pretrain", *words), [])
    start = "apptainer exec --nv 'my image.sif' python"
    srun = next(line for line in script.splitlines() if line.startswith("srun"))
    assert f" {start} -I -S " in srun
    assert srun.count(start) == 2
    assert f"{start} -m maep.launch.job.requeue" in script
    assert 'command -v "$2"' in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("text", ["\n", "\r", "\x00", "\u2028"])
@pytest.mark.parametrize("place", ["name", "directory", "working", "code", "dependency", "option"])
def test_no_text_becomes_a_line(made: Submission, place: str, text: str) -> None:
    """A run's name from a stranger's file, paths, and job ids from records: refused, naming which."""
    foreign, asked, after = f"x{text}touch /tmp/y", job("pretrain"), list[str]()
    settings = made.settings
    match place:
        case "name":
            made = replace(made, settings=replace(settings, run=replace(settings.run, name=foreign)))
        case "directory":
            made = replace(made, run=Path(foreign))
        case "working":
            made = replace(made, working_directory=Path(foreign))
        case "code":
            made = replace(made, code=Path(foreign))
        case "dependency":
            after = [foreign]
        case "option":
            asked = replace(asked, settings=replace(asked.settings, setup=["true", foreign]))
    with pytest.raises(UserError, match="control character") as error:
        made.script(asked, after)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a%jb", "a\\b"])
def test_patterns_in_the_run_directory(made: Submission, name: str) -> None:
    """Slurm would write the output elsewhere than where it is looked for."""
    with pytest.raises(UserError, match="is a pattern"):
        replace(made, run=Path(name)).script(job("pretrain"), [])


@pytest.mark.parametrize(
    ("array", "name"), [({}, "7"), ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}, "7_0")]
)
def test_requeued_from_outside_of_a_container(
    made: Submission, tmp_path: Path, array: dict[str, str], name: str
) -> None:
    """Where the interpreter has no scontrol beside it, the script hands it the answer, and does what it decides."""
    program, tools = tmp_path / "container", tmp_path / "tools"
    tools.mkdir()
    program.write_text(f'#!/bin/sh\nshift\nPATH=/nowhere exec {sys.executable} "$@"\n')
    ids = "ArrayJobId=7 ArrayTaskId=0" if array else ""
    (tools / "scontrol").write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\necho "JobId=7 {ids} JobState=RUNNING"\n'
    )
    for path in (program, tools / "scontrol"):
        path.chmod(0o755)
    lines = made.script(job("pretrain", "--python", f"{program} exec"), []).splitlines()
    script = "\n".join([*(line for line in lines if not line.startswith("srun")), "(exit 140)"])
    environment = {"SLURM_JOB_ID": "7", **array, "PATH": f"{tools}:/bin"}
    assert subprocess.run(["bash", "-c", script], env=environment, check=False).returncode == 140
    assert (tmp_path / "calls").read_text().splitlines() == [f"--oneliner show job {name}", f"requeue {name}"]
