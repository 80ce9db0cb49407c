"""NIM-MAE's noise: the deviations it should have, a function of its key alone, in a real training too."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maep.config.load import load_settings
from maep.config.training_settings import ObjectiveSettings
from maep.pipeline.stages import STAGES
from maep.training.inputs import adversary, own_pairs
from maep.training.noise import noise_levels, noisy
from tests.tiny import Problem
from tests.training.test_loop import metrics, stop_at, weights

NIM = ["objective.name=nim", "pretrain.mask_ratio=0", "finetune.method=none", "pretrain.steps=12"]


@pytest.mark.parametrize(
    ("kind", "mean", "deviation", "most"), [("gamma", 75, 15, 400), ("uniform", 75, 150 / 12**0.5, 150),
                                            ("fixed", 75, 0, 75.001)],
)  # fmt: skip
def test_levels_are_those_published(kind: str, mean: float, deviation: float, most: float) -> None:
    """Γ(25, 3), U(0, 150) and a constant, in levels of 255; another seed draws others."""
    levels = 255 * np.array(noise_levels(range(4000), 0, ObjectiveSettings(noise=kind)))
    assert levels.mean() == pytest.approx(mean, rel=0.02)
    assert levels.std() == pytest.approx(deviation, rel=0.05, abs=1e-9)
    assert levels.min() > 0 or kind == "uniform"
    assert levels.max() <= most
    others = 255 * np.array(noise_levels(range(4000), 1, ObjectiveSettings(noise=kind)))
    assert kind == "fixed" or (levels != others).all()


def test_noise_is_normal_of_its_level_and_not_clipped() -> None:
    """Mean, deviation and tails of (x_n - x) / σ; it leaves [0, 1]; σ is the one that its key draws."""
    images, keys, settings = torch.rand(8, 3, 64, 64), list(range(8)), ObjectiveSettings()
    levels = torch.tensor(noise_levels(keys, 0, settings)).float()
    noise = (noisy(images, keys, 0, settings) - images) / levels[:, None, None, None]
    assert noise.mean(dim=(1, 2, 3)).abs().max() < 0.04
    assert noise.flatten(1).std(1) == pytest.approx(torch.ones(8), abs=0.03)
    for bound, share in ((1, 0.3173), (2, 0.0455), (3, 0.0027)):
        assert (noise.abs() > bound).float().mean().item() == pytest.approx(share, rel=0.12)
    assert noisy(images, keys, 0, settings).min() < 0


@pytest.mark.parametrize("kind", ["gamma", "fixed"])
def test_noise_is_a_function_of_its_key_alone(kind: str) -> None:
    """An image alone has the bits that it has in a batch, at sizes that fill no vector; keys and seeds differ, also
    where all deviations are the same."""
    images, settings = torch.rand(5, 3, 7, 7), ObjectiveSettings(noise=kind)
    together = noisy(images, [3, 4, 5, 2**33, 9], 7, settings)
    for row, key in ((1, 4), (3, 2**33)):
        assert torch.equal(together[row : row + 1], noisy(images[row : row + 1], [key], 7, settings))
    same = images[:1].expand(2, -1, -1, -1)
    first, second = noisy(same, [3, 4], 7, settings)
    assert (first != second).all()
    assert (noisy(same[:1], [3], 8, settings)[0] != first).all()


def test_no_attack_is_asked_for(problem: Problem, tmp_path: Path) -> None:
    """The attack stage has nothing to do, pairs are clean images alone, and what is added is this module's noise."""
    settings = load_settings("digits", problem.arguments(tmp_path, *NIM)[1:])
    assert "noise" in STAGES["attack"].idle(settings)
    assert STAGES["attack"].identity(settings) == "noise"
    pairs, online = own_pairs(settings, settings.pretrain), adversary(settings, settings.pretrain, 10).online
    assert pairs.adversarial is None
    assert online is not None
    images, labels = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    expected: Tensor = noisy(images, [3, 4], settings.run.seed, settings.objective)
    assert torch.equal(online(images, labels, [3, 4]), expected)


def test_stopped_and_on_two_processes_it_is_the_same_training(problem: Problem, run_dir: Path, tmp_path: Path) -> None:
    """Killed and resumed it ends with the same bits; two real processes see the same noise, so losses agree."""
    runs = {name: tmp_path / name for name in ("whole", "two")}
    for run in runs.values():
        shutil.copytree(problem.prepared, run)
    stop_at(problem, run_dir, 7, signal.SIGKILL, *NIM)
    for run, processes in ((run_dir, 1), (runs["whole"], 1), (runs["two"], 2)):
        done = problem.run("pretrain", run, *NIM, nproc=processes)
        assert done.returncode == 0, done.stdout + done.stderr
    assert weights(run_dir) == weights(runs["whole"])
    ours, theirs = ([line["loss"] for line in metrics(runs[name])] for name in runs)
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert "l_noise" in metrics(run_dir)[0]
