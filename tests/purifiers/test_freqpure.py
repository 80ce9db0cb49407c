"""FreqPure: the exchange of low frequencies in closed form, rounds, no exchange is DDPM, exact gradients, refusals."""

import numpy as np
import pytest
import torch
from torch import Tensor

from maep.config.load import load_settings
from maep.models.noise_schedule import alpha_bar, clean_estimate
from maep.purifiers.diffpure import ddpm_step
from maep.purifiers.freqpure import FreqPurePurifier, low_frequencies_of
from maep.purifiers.stepwise import stepwise, walk
from maep.runtime.errors import UserError
from maep.runtime.keyed_noise import normal_of
from tests.purifiers.denoisers import pictures, random_purifier

SMALL = [
    "purifier.kind=freqpure", "freqpure.width=16", "freqpure.multipliers=[1]", "freqpure.unshuffle=2",
    "freqpure.steps=2", "freqpure.rounds=[0.05,0.1]", "objective.name=denoise", "pretrain.mask_ratio=0",
]  # fmt: skip


def purifier(*words: str) -> FreqPurePurifier:
    """Of random weights that do not predict 0, in float64."""
    return random_purifier(FreqPurePurifier, [*SMALL, *words])


@pytest.mark.parametrize("around", [True, False])
def test_low_frequencies_are_exchanged(around: bool) -> None:
    """As NumPy's centred transform has it, frequency by frequency: amplitudes up to 2, phases up to 1."""
    kept, images = pictures(1), pictures(1).flip(2) ** 2
    found = low_frequencies_of(kept, images, 2, 1, 0.3, around)
    theirs, ours = (np.fft.fftshift(np.fft.fft2(each.numpy()), axes=(2, 3)) for each in (kept, images))
    wanted = ours.copy()
    for row, column in np.ndindex(8, 8):
        radius, at = np.hypot(row - 4, column - 4), np.s_[0, :, row, column]
        amplitude = np.abs(theirs[at] if radius <= 2 else ours[at])
        turn = np.angle(ours[at]) - np.angle(theirs[at])
        turn = (turn + np.pi) % (2 * np.pi) - np.pi if around else turn
        phase = np.angle(theirs[at]) + turn.clip(-0.3, 0.3) if radius <= 1 else np.angle(ours[at])
        wanted[at] = amplitude * np.exp(1j * phase)
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(wanted, axes=(2, 3))).real).clip(0, 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert (found - images).abs().max() > 0.05


def test_without_low_frequencies_it_is_gradual_noise() -> None:
    """A range of phases that holds none and no amplitude: a step is DDPM's, but for the sign that |·| takes away."""
    subject, seeds = purifier("freqpure.rounds=[0.1]", "freqpure.phase_range=3.15"), torch.tensor([5, 6])
    subject.network.amplitude_radius = -1
    begin, step, _ = subject.steps(seeds)
    at = 2 * pictures(2) - 1
    state = begin(subject.start(at, seeds), at)
    times = torch.full((2,), 0.1, dtype=torch.float64), torch.full((2,), 0.05, dtype=torch.float64)
    noise = normal_of(seeds, 2, at.shape[1:]).double()
    torch.testing.assert_close(step(state, at)[:, :3], ddpm_step(subject.model, state[:, :3], *times, noise))


def test_a_round_begins_with_an_estimate_and_noise() -> None:
    """The picture is noised to the round's time; beside it lies one estimate of it; no two draws are the same."""
    subject, seeds = purifier(), torch.tensor([7])
    steps, at = subject.steps(seeds), 2 * pictures(1) - 1
    assert len(steps) == 2 * (1 + 2)
    state = steps[0](subject.start(at, seeds), at)
    first, second = (normal_of(seeds, stream, at.shape[1:]).double() for stream in range(2))
    left, once = alpha_bar(torch.tensor(0.05, dtype=torch.float64)), torch.tensor([0.05], dtype=torch.float64)
    torch.testing.assert_close(state[:, :3], left.sqrt() * at + (1 - left).sqrt() * second)
    noised = left.sqrt() * at + (1 - left).sqrt() * first
    expected = clean_estimate(noised, once, subject.model(noised, once)).clamp(-1, 1)
    torch.testing.assert_close(state[:, 3:], expected)
    assert len({each.args[1] for each in steps if hasattr(each, "args")}) == 6


def test_gradients_are_exact() -> None:
    """Plain autograd's through two rounds, the way through the estimate included; each image by itself."""
    subject, seeds = purifier(), torch.tensor([5, 6])

    def gradient(*, plain: bool = False) -> Tensor:
        images = (2 * pictures(2) - 1).requires_grad_()
        follow = walk if plain else stepwise
        state = follow(subject.start(images, seeds), images, subject.steps(seeds))
        (found,) = torch.autograd.grad((subject.result(state, seeds) * pictures(2).flip(0)).sum(), images)
        return found

    torch.testing.assert_close(gradient(), gradient(plain=True))
    assert gradient().isfinite().all()
    subject.reseed(0)
    together = subject(pictures())
    subject.reseed(0)
    torch.testing.assert_close(torch.cat([subject(image) for image in pictures().split(1)]), together)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("freqpure.rounds=[]", r"freqpure\.rounds=\[\]: expected at least one time"),
        ("freqpure.rounds=[0.3]", r"freqpure\.rounds=0\.3: is at time 0\.3 of .* up to freqpure\.latest=0\.2"),
        ("freqpure.rounds=[0.1,1e-6]", r"freqpure\.steps=\d+: from freqpure\.rounds=1e-06 back each .* choose fewer"),
        ("freqpure.estimate=0.5", r"freqpure\.estimate=0\.5: is at time 0\.5 of .* up to freqpure\.latest=0\.2"),
        ("freqpure.phase_range=4", r"freqpure\.phase_range=4\.0 .*: must be at most 3\.15"),
        ("objective.name=score", r"objective\.name=score: trains no network of purifier\.kind=freqpure"),
    ],
)
def test_settings_that_do_not_fit_are_refused(word: str, message: str) -> None:
    """On the command line, before anything is made."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*SMALL, word])
