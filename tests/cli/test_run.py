"""`maep run --dry-run` says what would be done, and does nothing; `--worker` does a share of one stage."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from maep.cli.run import main as run
from maep.cli.shard_commands import main as shards
from maep.cli.slurm import main as slurm
from maep.runtime.errors import UserError
from tests.data.images.test_build import arguments, write_folders
from tests.tiny import Problem


def test_dry_run_of_shards_says_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same lines from every command, or the same refusal; nothing is written."""
    root, cache = write_folders(tmp_path / "data"), tmp_path / "cache"
    words = ["cfg=cifar10", *arguments(cache, root), f"run.dir={tmp_path / 'run'}", "--dry-run"]
    assert shards(["build", *words]) == 0
    understood = capsys.readouterr().out
    assert "layout folders: train 19 images, test 5 images" in understood
    assert run([*words, "stage=shards"]) == 0
    assert capsys.readouterr().out == understood
    assert slurm([*words, "stage=shards"]) == 0
    assert capsys.readouterr().out.endswith(understood)
    shutil.rmtree(root / "b")
    shutil.rmtree(root / "c")
    for command in (run, slurm):
        with pytest.raises(UserError, match="a single class"):
            command([*words, "stage=shards"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_jobs_on_paper_need_no_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is none, and where there is one that does not answer: what is assumed of the nodes is said."""
    monkeypatch.chdir(tmp_path)
    words = ["cfg=digits", f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}", "--dry-run"]
    assumed = "no Slurm here tells what the nodes have: 0 GPUs and"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert slurm(words) == 0
    assert assumed in " ".join(capsys.readouterr().out.split())
    (tmp_path / "bin").mkdir()
    for name in ("scontrol", "sinfo"):
        program = tmp_path / "bin" / name
        program.write_text("#!/bin/sh\necho 'slurm_load: Unable to contact slurm controller' >&2\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert slurm(words) == 0
    assert assumed in " ".join(capsys.readouterr().out.split())


def test_dry_run_refuses_what_the_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that its stages could not read: after what would be done, in the words of the run; nothing is written."""
    words = ["cfg=digits", f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}", "model.init=none"]
    for more in (["--dry-run"], []):
        with pytest.raises(UserError, match="^model.init=none: no such file or directory$"):
            run([*words, *more])
        assert ("pretrain: would run" in capsys.readouterr().out) == bool(more)
    assert not list(tmp_path.iterdir())


def test_dry_run_of_all_names_the_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that would run, and what was understood of the images that the first of them needs."""
    root = write_folders(tmp_path / "data")
    words = ["cfg=cifar10", *arguments(tmp_path / "cache", root), f"run.dir={tmp_path / 'run'}", "--dry-run"]
    weights = tmp_path / "data" / "w.safetensors"
    save_file({}, weights)
    assert run([*words, f"classifier.weights={weights}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"data.root={root}: layout folders")
    assert "shards: would run: it has not run" in lines
    assert "classifier: nothing to do, its weights are given (classifier.weights)" in lines
    assert "pretrain: would run: shards runs before it; attack runs before it" in lines
    with pytest.raises(UserError, match="stage=pretrain: needs stage shards, not finished"):
        run([*words, "stage=pretrain"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_dry_run_of_what_is_finished(
    problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished stage is said to be; one that needs only finished ones would run; the run stays as it was."""
    directory = Path(shutil.copytree(problem.prepared, tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["maep"])
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    assert run([*problem.arguments(directory), "stage=attack", "--dry-run"]) == 0
    assert run([*problem.arguments(directory), "stage=pretrain", "--dry-run"]) == 0
    assert capsys.readouterr().out == "attack: finished before\npretrain: would run: it has not run\n"
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_workers_share_a_stage(
    problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes all that nobody has, with the bytes of one process; who comes too late finds it finished."""
    directory = Path(shutil.copytree(problem.prepared, tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["maep"])
    cache = Path(shutil.copytree(problem.cache, tmp_path / "cache"))
    alone = {path.name: path.read_bytes() for path in (cache / "adversarial").rglob("*.tar")}
    shutil.rmtree(cache / "adversarial")
    words = [*Problem(cache, problem.prepared).arguments(directory), "stage=attack", "--worker"]
    assert run([*words, "0/2"]) == 0
    assert capsys.readouterr().out.endswith("attack: worker 0 of 2 is done; all is finished\n")
    assert run([*words, "1/2"]) == 0
    assert capsys.readouterr().out == "attack: finished before\n"
    assert len(alone) == 4
    assert {path.name: path.read_bytes() for path in (cache / "adversarial").rglob("*.tar")} == alone


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--worker", "0/2"], "shares one stage, such as stage=evaluate"),
        (["stage=evaluate", "--worker", "2/2"], "--worker 2/2: expected i/n with i from 0 to n-1"),
        (["stage=evaluate", "--worker", "0/2", "--dry-run"], "without --dry-run and --nproc"),
        (["stage=pretrain", "--worker", "0/2"], "stage=pretrain: its work is not shared out; choose attack"),
        (["stage=evaluat", "--worker", "0/2"], "stage=evaluat: choose one of shards"),
        (["stage=evaluate", "--worker", "0/2"], "stage=evaluate: needs stage shards, not finished"),
        (["stage=evaluate", "--worker", "0/2", "classifier.weights=nowhere.pt"], "nowhere.pt: no such file"),
    ],
)
def test_worker_that_cannot_share(words: list[str], says: str, tmp_path: Path) -> None:
    """One line, and nothing is written."""
    with pytest.raises(UserError, match=re.escape(says)):
        run(["cfg=digits", f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}", *words])
    assert not list(tmp_path.rglob("*.json"))


def test_workers_of_a_sweep_need_no_number() -> None:
    """They share its points without one."""
    with pytest.raises(UserError, match="--worker 0/2: processes share a sweep's points without it"):
        run(["cfg=ablation/table15", "--worker", "0/2"])


def test_a_stage_of_one_process_says_that_nproc_is_not_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs all the same."""
    root = write_folders(tmp_path / "data")
    words = ["cfg=cifar10", *arguments(tmp_path / "cache", root), f"run.dir={tmp_path / 'run'}", "stage=shards"]
    assert run([*words, "--nproc", "4"]) == 0
    assert (
        "--nproc 4: only pretrain, finetune, attack, evaluate, certify run on several processes"
        in capsys.readouterr().out
    )
