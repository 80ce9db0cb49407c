"""A denoiser after 300 steps on digits: it takes noise away that it has not seen, and DiffPure on it an attack."""

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.config.data_settings import AttackSettings
from maep.config.evaluation_settings import PurifySettings
from maep.config.training_settings import ObjectiveSettings
from maep.models.denoiser import Denoiser
from maep.models.noise_schedule import denoised, sigma_of
from maep.purifiers.diffpure import DiffPurePurifier, DiffPureSettings
from maep.runtime.keyed_noise import normal_of, sample_seeds
from maep.training.module import TrainingModule
from tests.small import digits, train_small

SEEN = 1400  # of the 1797 digits


@pytest.fixture(scope="module")
def network() -> Denoiser:
    """Trained as `objective.name=denoise` does, without seeing the last digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Denoiser(16, [1, 2], 1, 2, 0.2)
        module, images = TrainingModule(made, ObjectiveSettings(name="denoise"), "fp32"), digits()[0][:SEEN]
        optimizer = torch.optim.Adam(made.parameters(), lr=4e-3)
        for step in range(300):
            chosen = torch.randint(SEEN, (32,))
            seeds = sample_seeds("objective", 0, range(32 * step, 32 * step + 32), torch.device("cpu"))
            losses, _ = module(images[chosen], images[chosen], None, seeds=seeds)
            optimizer.zero_grad()
            losses.mean().backward()
            nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()
    return made.eval().requires_grad_(False)


def unseen(count: int) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[SEEN : SEEN + count], labels[SEEN : SEEN + count]


def test_it_is_nearer_to_the_picture_than_the_noisy_one_is(network: Denoiser) -> None:
    """At t = 0.1, DiffPure's t* for CIFAR-10: a fifth of the squared error is left at most."""
    x = 2 * unseen(100)[0] - 1
    sigma = sigma_of(torch.full((len(x),), 0.1))
    v = x + sigma[:, None, None, None] * normal_of(torch.arange(len(x)), 0, x.shape[1:])
    error, noise = ((each - x).square().mean() for each in (denoised(network, v, sigma), v))
    assert float(noise) == pytest.approx(0.340**2, rel=0.02)
    assert error < 0.2 * noise


def test_diffpure_lifts_accuracy_above_that_without_a_defense(network: Denoiser) -> None:
    """Of digits that PGD has attacked before the bare classifier; the clean ones are still recognised."""
    classifier, (images, labels) = train_small(), unseen(100)
    spec = AttackSpec.of(AttackSettings(eps=0.1, step=0.025, steps=10))
    attacked = attack(classifier, images, labels, spec, range(100), 0)
    purifier = DiffPurePurifier(network, DiffPureSettings(time=0.2, steps=10), PurifySettings())

    def accuracy(seen: Tensor) -> float:
        return float((classifier(seen).argmax(1) == labels).float().mean())

    purifier.reseed(0)
    bare, lifted, clean = accuracy(attacked), accuracy(purifier(attacked)), accuracy(purifier(images))
    assert lifted > bare + 0.2
    assert clean > 0.8
