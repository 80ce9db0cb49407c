"""Training is exact: killed and resumed, on one process or several, with and without ZeRO. Real processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from maep import load_purifier
from maep.config.load import load_settings
from maep.data.order import batch_at
from maep.data.pairs import PairBatches
from maep.runtime.errors import PeerLost, UserError
from maep.storage.manifests import CheckpointManifest
from maep.storage.tensor_files import ShardedTensors
from maep.training.checkpointing.directory import checkpoints, newest_whole
from maep.training.inputs import own_pairs
from maep.training.loop import Trainer, TrainingJob
from maep.training.pretrain import seeded_purifier
from maep.training.signals import StopFlag
from tests.tiny import ROOT, Problem, environment


def weights(run: Path) -> bytes:
    """The bytes of the trained purifier."""
    return (run / "purifier" / "model.safetensors").read_bytes()


def metrics(run: Path) -> list[dict[str, float]]:
    """The logged steps."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_logged(run: Path) -> int:
    """How many steps metrics.jsonl holds by now."""
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def stop_at(problem: Problem, run: Path, step: int, signum: int, *more: str, nproc: int = 1) -> int:
    """Start the pretrain stage and send it a signal once `step` steps are logged; returns its exit code."""
    process = subprocess.Popen(
        problem.command("pretrain", run, *more, nproc=nproc), cwd=ROOT, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while steps_logged(run) < step:
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.005)
    if signum == signal.SIGKILL:
        subprocess.run(["pkill", "-KILL", "-g", str(process.pid)], check=True)
    else:
        process.send_signal(signum)
    process.communicate()
    return process.returncode


@pytest.fixture(scope="module")
def undisturbed(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(problem.prepared, run)
    done = problem.run("pretrain", run)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def test_pauses_and_goes_on(problem: Problem, run_dir: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Paused at 7, asked again, then let go: weights and learning rates as in one go. Two processes pause alike."""
    both = shutil.copytree(problem.prepared, tmp_path / "both")
    for run, nproc in ((run_dir, 1), (run_dir, 1), (both, 2)):
        done = problem.run("pretrain", run, "pretrain.pause_at=7", nproc=nproc)
        assert done.returncode == 4, done.stderr
        assert "paused at step 7" in done.stderr
        assert metrics(run)[-1]["step"] == 7
        assert not (run / "purifier").exists()
    done = problem.run("pretrain", run_dir)
    assert done.returncode == 0, done.stderr
    assert [line["lr"] for line in metrics(run_dir)] == [line["lr"] for line in metrics(undisturbed)]
    assert weights(run_dir) == weights(undisturbed)


def test_sigkill_at_random_steps_ends_with_the_same_weights(problem: Problem, run_dir: Path, undisturbed: Path) -> None:
    """Killed by SIGKILL three times at random and resumed: bit-identical weights and the same log of losses."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    for step in sorted(random.Random(seed).sample(range(2, 28), 3)):
        if steps_logged(run_dir) < step:
            stop_at(problem, run_dir, step, signal.SIGKILL)
    assert not (run_dir / "purifier").exists()
    done = problem.run("pretrain", run_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(run_dir) == weights(undisturbed)
    assert [line["loss"] for line in metrics(run_dir)] == [line["loss"] for line in metrics(undisturbed)]
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, 31))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_signal_saves_and_repeats_no_step(problem: Problem, run_dir: Path, undisturbed: Path, signum: int) -> None:
    """A signal ends the run with a checkpoint of the very step it reached; the resumed run ends the same."""
    code = stop_at(problem, run_dir, 7, signum)
    assert code == 128 + signum
    newest = newest_whole(run_dir / "checkpoints")
    assert newest is not None
    assert int(newest.name[5:]) == steps_logged(run_dir)
    done = problem.run("pretrain", run_dir)
    assert f"goes on from step {int(newest.name[5:])} of 30" in done.stdout
    assert weights(run_dir) == weights(undisturbed)


def test_damaged_newest_checkpoint_is_passed_over(problem: Problem, run_dir: Path, undisturbed: Path) -> None:
    """A flipped byte in the newest checkpoint: named, the one before is used, and the result is the same."""
    stop_at(problem, run_dir, 12, signal.SIGTERM)
    found = checkpoints(run_dir / "checkpoints")
    damaged = next(found[-1].glob("rank-*"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    done = problem.run("pretrain", run_dir)
    assert str(damaged) in done.stdout
    assert f"goes on from step {int(found[-2].name[5:])} " in done.stdout
    assert weights(run_dir) == weights(undisturbed)


def consumed(run: Path) -> list[tuple[int, int, int]]:
    """(step, epoch, index) of every sample in the logs of all ranks, in order."""
    lines = [line for path in (run / "samples").glob("rank-*.jsonl") for line in path.read_text().splitlines()]
    return sorted((line["step"], line["epoch"], line["index"]) for line in map(json.loads, lines))


def test_consumed_samples_are_logged_once(problem: Problem, run_dir: Path) -> None:
    """Three processes killed, and resumed as one: the logs hold each sample of each epoch once, at its step."""
    settings = load_settings("digits", problem.arguments(run_dir)[1:])
    expected = [
        (step + 1, epoch, index)
        for step in range(30)
        for epoch, index in batch_at(step * 16, 16, 120, settings.run.seed)
    ]
    stop_at(problem, run_dir, 12, signal.SIGKILL, "compute.log_samples=true", nproc=3)
    done = problem.run("pretrain", run_dir, "compute.log_samples=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert consumed(run_dir) == sorted(expected)
    assert len(list((run_dir / "samples").iterdir())) == 3


@pytest.mark.parametrize("nproc", [2, 4])
def test_processes_do_not_change_the_losses(problem: Problem, run_dir: Path, undisturbed: Path, nproc: int) -> None:
    """With 2 and 4 processes the losses of the first 20 steps agree with one process to 1e-5 relative (fp32)."""
    done = problem.run("pretrain", run_dir, nproc=nproc)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = [line["loss"] for line in metrics(run_dir)][:20]
    assert ours == pytest.approx([line["loss"] for line in metrics(undisturbed)][:20], rel=1e-5)
    assert len(list(checkpoints(run_dir / "checkpoints")[-1].glob("rank-*.safetensors"))) == nproc


def test_accumulation_does_not_change_the_losses(problem: Problem, run_dir: Path, undisturbed: Path) -> None:
    """Three uneven micro-batches a step give the losses of one batch."""
    done = problem.run("pretrain", run_dir, "pretrain.accumulation=3")
    assert done.returncode == 0, done.stdout + done.stderr
    ours = [line["loss"] for line in metrics(run_dir)][:20]
    assert ours == pytest.approx([line["loss"] for line in metrics(undisturbed)][:20], rel=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_trains_and_resumes_exactly(
    problem: Problem, run_dir: Path, tmp_path: Path, undisturbed: Path, stage: int
) -> None:
    """DeepSpeed ZeRO on two processes: the losses of plain training, and a stopped run ends bit-identically."""
    option = f"compute.zero_stage={stage}"
    whole = tmp_path / "whole"
    shutil.copytree(problem.prepared, whole)
    done = problem.run("pretrain", whole, option, nproc=2)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = [line["loss"] for line in metrics(whole)][:20]
    assert ours == pytest.approx([line["loss"] for line in metrics(undisturbed)][:20], rel=1e-4)
    stop_at(problem, run_dir, 12, signal.SIGTERM, option, nproc=2)
    done = problem.run("pretrain", run_dir, option, nproc=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on from step" in done.stdout
    assert weights(run_dir) == weights(whole)


@pytest.mark.parametrize(
    "ways",
    [
        [(2, None), (1, None), (2, None)],
        [(4, None), (2, None), (3, None)],
        [(2, 1), (3, 3), (1, None)],
        [(1, None), (2, 2), (2, 0)],
        [(3, 3), (2, 1), (2, 3)],
    ],
    ids=["2-1-2", "4-2-3", "zero1-zero3-plain", "plain-zero2-zero0", "zero3-zero1-zero3"],
)
def test_resume_on_other_processes_and_stages(
    problem: Problem, run_dir: Path, undisturbed: Path, ways: list[tuple[int, int | None]]
) -> None:
    """Stopped twice and resumed each time on other processes and ZeRO stages: every loss within 1e-4 relative."""
    for (nproc, stage), step in zip(ways, (10, 20, None), strict=True):
        option = [] if stage is None else [f"compute.zero_stage={stage}"]
        if step is None:
            done = problem.run("pretrain", run_dir, *option, nproc=nproc)
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            assert stop_at(problem, run_dir, step, signal.SIGTERM, *option, nproc=nproc) == 128 + signal.SIGTERM
    ours = [line["loss"] for line in metrics(run_dir)]
    assert ours == pytest.approx([line["loss"] for line in metrics(undisturbed)], rel=1e-4)


GAN = ["objective.name=feature", "objective.gan_weight=0.1", "pretrain.steps=12"]


def test_a_discriminator_is_trained_beside_and_left_behind(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """Killed and resumed it ends with the same bits; two processes, and ZeRO, begin with the same gradient and go on
    with the same losses. It changes the purifier, and is in its checkpoints alone, from which the purifier can be read.
    """
    ways = {"whole": (1, []), "two": (2, []), "zero": (2, ["compute.zero_stage=2"])}
    for name in (*ways, "without"):
        shutil.copytree(problem.prepared, tmp_path / name)
    stop_at(problem, run_dir, 7, signal.SIGKILL, *GAN)
    done = [problem.run("pretrain", run_dir, *GAN)]
    done += [problem.run("pretrain", tmp_path / name, *GAN, *more, nproc=count) for name, (count, more) in ways.items()]
    done += [problem.run("pretrain", tmp_path / "without", *GAN, "objective.gan_weight=0")]
    assert not any(each.returncode for each in done), [each.stdout + each.stderr for each in done]
    assert weights(run_dir) == weights(tmp_path / "whole") != weights(tmp_path / "without")
    for ours, two, zero in zip(metrics(run_dir), metrics(tmp_path / "two"), metrics(tmp_path / "zero"), strict=True):
        # Adam's first steps follow signs, of gradients too that are nearly zero: rounding grows faster than elsewhere.
        assert [two["loss"], zero["loss"]] == pytest.approx([ours["loss"]] * 2, rel=3e-4)
        if ours["step"] == 1:
            for part in ("l_gan", "l_discriminator", "gradient_norm"):
                assert [two[part], zero[part]] == pytest.approx([ours[part]] * 2, rel=1e-5)
    newest = checkpoints(run_dir / "checkpoints")[-1]
    assert any("discriminator" in name for name in ShardedTensors(newest).names("model/"))
    saved, trained = load_purifier(newest).state_dict(), load_purifier(run_dir / "purifier").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in trained.items())


def test_a_discriminator_is_refused_where_weights_are_apart(problem: Problem, run_dir: Path) -> None:
    """Under ZeRO-3, before anything runs; an objective that has none is not asked."""
    with pytest.raises(UserError, match=r"objective\.gan_weight=0\.1: .*compute\.zero_stage=3; choose 2"):
        load_settings("digits", problem.arguments(run_dir, *GAN, "compute.zero_stage=3")[1:])
    apart = ["objective.gan_weight=0.1", "compute.zero_stage=3"]
    load_settings("digits", problem.arguments(run_dir, *apart)[1:])
    load_settings(
        "digits", problem.arguments(run_dir, *apart, "finetune.objective=feature", "finetune.method=none")[1:]
    )


def test_loss_not_finite_names_step_samples_and_checkpoint(problem: Problem, run_dir: Path) -> None:
    """An absurd learning rate ends with code 1 and one line: step, sample keys, last good checkpoint."""
    done = problem.run("pretrain", run_dir, "pretrain.lr=1e30", "pretrain.clip=0", "pretrain.warmup=0")
    assert done.returncode == 1
    assert "loss is not finite at step" in done.stderr
    assert "(epoch 0)" in done.stderr
    assert "last good checkpoint" in done.stderr


def test_batch_smaller_than_processes_is_refused(problem: Problem, run_dir: Path) -> None:
    """Two processes cannot share a batch of one."""
    done = problem.run("pretrain", run_dir, "pretrain.batch_size=1", nproc=2)
    assert done.returncode == 2
    assert "smaller than 2 processes" in done.stderr


def test_a_killed_loader_is_one_line(problem: Problem, run_dir: Path) -> None:
    """As the kernel kills one that is out of memory, or of a container's /dev/shm; the same command goes on."""
    settings = load_settings("digits", problem.arguments(run_dir)[1:])
    job = TrainingJob(
        "pretrain", seeded_purifier(settings).model, own_pairs(settings, settings.pretrain), settings.pretrain,
        settings.objective, settings.compute, run_dir / "checkpoints", run_dir / "metrics.jsonl", run_dir / "samples",
        CheckpointManifest(step=0), workers=1,
    )  # fmt: skip
    trainer = Trainer(job)
    step = trainer._step

    def killing(batches: PairBatches, stop: StopFlag) -> object:
        os.kill(batches._batches._workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        return step(batches, stop)

    trainer._step = killing  # type: ignore[assignment, method-assign]
    with pytest.raises(PeerLost, match=r"pretrain: a process that loads images was killed.*data\.workers=0"):
        trainer.run()
