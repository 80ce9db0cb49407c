"""GDMP: a step in closed form, the pull per image, rounds, exact gradients with the way through the pull, refusals."""

import pytest
import torch
from torch import Tensor

from maep.config.load import load_settings
from maep.models.noise_schedule import alpha_bar
from maep.purifiers.gdmp import GdmpPurifier, guided_step
from maep.purifiers.stepwise import stepwise, walk
from maep.runtime.errors import UserError
from tests.purifiers.denoisers import pictures, random_purifier

SMALL = [
    "purifier.kind=gdmp", "gdmp.width=16", "gdmp.multipliers=[1]", "gdmp.unshuffle=2", "gdmp.steps=2", "gdmp.rounds=2",
    "objective.name=denoise", "pretrain.mask_ratio=0",
]  # fmt: skip


def purifier(*words: str) -> GdmpPurifier:
    """Of random weights that do not predict 0, in float64."""
    return random_purifier(GdmpPurifier, [*SMALL, *words])


def purified(subject: GdmpPurifier, images: Tensor) -> Tensor:
    subject.reseed(0)
    return subject(images)


def silent(u: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(u)


def test_a_step_is_ddpm_and_a_pull() -> None:
    """Ho et al.'s posterior mean with variance β, and κ·β·√((1-ᾱ)/ᾱ) of the way to the target; no noise at the end."""
    u, target, noise = (0.3 * pictures(1).roll(by, 3) for by in range(3))
    t, until = (torch.tensor([time], dtype=torch.float64) for time in (0.05, 0.04))
    before, after = alpha_bar(t), alpha_bar(until)
    beta = 1 - before / after
    x = (u / before.sqrt()).clamp(-1, 1)
    mean = (after.sqrt() * beta * x + (1 - beta).sqrt() * (1 - after) * u) / (1 - before)
    pulled = mean - 20 * beta * ((1 - before) / before).sqrt() * (u - target)
    torch.testing.assert_close(guided_step(silent, u, t, until, target, noise, 20), pulled + beta.sqrt() * noise)
    torch.testing.assert_close(guided_step(silent, u, t, 0 * t, u, noise, 20), x)


def test_every_image_is_pulled_as_if_it_were_alone() -> None:
    """To rounding in float64, at the strength that a lone image has with the authors, where a mean over the batch would
    be seen; and a pull is felt.
    """
    subject = purifier("gdmp.guidance=1868")
    together = purified(subject, pictures())
    subject.reseed(0)
    torch.testing.assert_close(torch.cat([subject(image) for image in pictures().split(1)]), together)
    assert (purified(purifier("gdmp.guidance=0"), pictures()) - together).abs().max() > 0.05


def test_rounds_draw_their_own_noise() -> None:
    """Every draw of every round is another stream, and each noise step noises."""
    subject = purifier("gdmp.rounds=3", "gdmp.guidance=0")
    steps = subject.steps(torch.tensor([1]))
    assert len(steps) == 3 * (1 + 2)
    noised = [steps[number](torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)) for number in (0, 3, 6)]
    spread = float((1 - alpha_bar(torch.tensor(0.036))).sqrt())
    assert all(float(each.std()) == pytest.approx(spread, rel=0.15) for each in noised)
    assert not torch.equal(noised[0], noised[1])
    assert not torch.equal(noised[1], noised[2])


def test_gradients_are_exact() -> None:
    """Plain autograd's through two rounds; without the way through the pull it is another."""
    subject, seeds = purifier("gdmp.guidance=300"), torch.tensor([5, 6])

    def gradient(*, guided: bool = True, plain: bool = False) -> Tensor:
        images = (2 * pictures(2) - 1).requires_grad_()
        follow = walk if plain else stepwise
        result = follow(images, images if guided else images.detach(), subject.steps(seeds))
        (found,) = torch.autograd.grad((result * pictures(2).flip(0)).sum(), images)
        return found

    torch.testing.assert_close(gradient(), gradient(plain=True))
    assert (gradient(guided=False) - gradient()).abs().max() > 0.01


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gdmp.time=0.3", r"gdmp\.time=0\.3: is at time 0\.3 of .* trained up to gdmp\.latest=0\.2"),
        ("gdmp.time=1e-6", r"gdmp\.steps=\d+: from gdmp\.time=1e-06 back each would be shorter than 1e-06"),
        ("gdmp.rounds=0", r"gdmp\.rounds=0 .*: must be at least 1"),
        ("gdmp.guidance=-1", r"gdmp\.guidance=-1\.0 .*: must be at least 0"),
        ("objective.name=maep", r"objective\.name=maep: trains no network of purifier\.kind=gdmp"),
    ],
)
def test_settings_that_do_not_fit_are_refused(word: str, message: str) -> None:
    """On the command line, before anything is made."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*SMALL, word])
