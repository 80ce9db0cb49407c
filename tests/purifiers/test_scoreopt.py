"""ScoreOpt: Adam is torch's, the loss goes down, each image by itself, second order, refusals; O and N."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from maep.config.load import load_settings
from maep.purifiers.scoreopt import ScoreOptPurifier, adam_step
from maep.purifiers.stepwise import stepwise, walk
from maep.runtime.errors import UserError
from tests.purifiers.denoisers import OfGaussians, assert_same_in_inference_mode, pictures, random_purifier

SMALL = [
    "purifier.kind=scoreopt", "scoreopt.width=16", "scoreopt.multipliers=[1]", "scoreopt.unshuffle=2",
    "scoreopt.steps=3", "scoreopt.lr=0.05", "objective.name=denoise", "pretrain.mask_ratio=0",
]  # fmt: skip


def purifier(*words: str) -> ScoreOptPurifier:
    """Of random weights that do not predict 0, in float64."""
    return random_purifier(ScoreOptPurifier, [*SMALL, *words])


def test_a_step_of_adam_is_torchs() -> None:
    """Three of them, on gradients beside which its epsilon is nothing."""
    at = pictures(1).requires_grad_()
    optimizer = torch.optim.Adam([at], lr=0.05)
    state = torch.cat([pictures(1), *(torch.zeros_like(pictures(1)) for _ in range(2))], 1)
    for number in range(3):
        at.grad = pictures(1).roll(number, 3) + 0.1
        state = adam_step(*state.chunk(3, 1), at.grad, 1 + number, 0.05)
        optimizer.step()
    torch.testing.assert_close(state[:, :3], at.detach(), rtol=1e-6, atol=1e-6)


def test_it_goes_down_the_loss_of_its_noise() -> None:
    """Of N(0, c² I), D(v, σ) = v·c²/(c²+σ²); where v counts more than the noise, every step shrinks it."""
    subject = purifier("scoreopt.steps=1", "scoreopt.spread=0")
    subject.model = OfGaussians()
    kept, sigma, seeds = 0.25 / (0.25 + 0.25**2), torch.tensor([0.25], dtype=torch.float64), torch.tensor([3])
    v, noise = 2 * pictures(1) - 1, pictures(1).flip(0) - 0.5
    expected = 2 * (kept - 1) * (kept * (v + 0.25 * noise) - v) / 3072
    torch.testing.assert_close(subject._gradient(v, partial(subject._picture_loss, sigma, noise)), expected)
    state = subject.steps(seeds)[0](subject.start(v, seeds), v)
    far = v.abs() > 0.9
    assert far.any()
    assert ((v - state[:, :3])[far] * v[far].sign() > 0).float().mean() > 0.7


def test_n_descends_on_the_noise_that_it_added_and_denoises_at_the_end() -> None:
    """Of N(0, c² I) the noise that is found in v is v·σ/(c²+σ²); the same noise at every step, a fixed deviation."""
    subject = purifier("scoreopt.variant=n", "scoreopt.steps=2", "scoreopt.spread=0.9")
    subject.model = OfGaussians()
    v, seeds = 2 * pictures(2) - 1, torch.tensor([3, 4])
    start = subject.start(v, seeds)
    noise = (start[:, :3] - v) / 0.25
    assert 0.9 < float(noise.std()) < 1.1
    share = 0.25 / (0.25 + 0.25**2)
    expected = start
    for number, step in enumerate(subject.steps(seeds)):
        at, *moments = expected.chunk(3, 1)
        expected = adam_step(at, *moments, 2 * share * (share * at - noise) / 3072, 1 + number, 0.05)
        start = step(start, v)
        torch.testing.assert_close(start, expected)
    kept = 0.25 / (0.25 + 0.25**2)
    torch.testing.assert_close(subject.result(start, seeds), kept * start[:, :3])


def test_the_variant_is_part_of_an_identity_only_where_it_is_n() -> None:
    """What was judged before there were two stays what it was; O's settings do not bind N."""
    one, other = (load_settings(None, [*SMALL, f"scoreopt.variant={name}"]) for name in "on")
    assert "variant" not in ScoreOptPurifier.use_facts(one)["scoreopt"]  # type: ignore[operator]
    assert ScoreOptPurifier.use_facts(other)["scoreopt"]["variant"] == "n"  # type: ignore[index]
    subject = purifier()
    assert "variant" not in str(subject.identity_facts())
    subject.network = replace(subject.network, variant="n")
    assert "variant" in str(subject.identity_facts())


@pytest.mark.parametrize("variant", ["o", "n"])
def test_every_image_is_purified_as_if_it_were_alone(variant: str) -> None:
    """To rounding in float64: no mean over the batch comes near Adam's epsilon, no deviation is shared."""
    subject = purifier(f"scoreopt.variant={variant}")
    subject.reseed(0)
    together = subject(pictures())
    subject.reseed(0)
    torch.testing.assert_close(torch.cat([subject(image) for image in pictures().split(1)]), together)
    assert (together - pictures()).abs().max() > 0.03


@pytest.mark.parametrize("variant", ["o", "n"])
def test_it_purifies_where_a_caller_derives_nothing(variant: str) -> None:
    """In torch.inference_mode, whose tensors autograd refuses, to the same bits."""
    assert_same_in_inference_mode(purifier(f"scoreopt.variant={variant}"), pictures())


@pytest.mark.parametrize("variant", ["o", "n"])
def test_gradients_are_exact(variant: str) -> None:
    """Plain autograd's through three steps, in second order, and near finite differences; BPDA's is another. Without
    gradients the same bits come out, and no graph is kept.
    """
    subject, seeds = purifier(f"scoreopt.variant={variant}"), torch.tensor([5, 6])
    side = pictures(2).flip(0)

    def loss(images: Tensor, follow: object = stepwise) -> Tensor:
        state = (walk if follow is walk else stepwise)(subject.start(images, seeds), images, subject.steps(seeds))
        return (subject.result(state, seeds) * side).sum()

    images = (2 * pictures(2) - 1).requires_grad_()
    (exact,) = torch.autograd.grad(loss(images), images)
    (plain,) = torch.autograd.grad(loss(images, walk), images)
    torch.testing.assert_close(exact, plain)
    assert (exact - side).abs().max() > 1e-3
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ahead, behind = (loss(images.detach() + by * way) for by in (1e-7, -1e-7))
    assert float((ahead - behind) / 2e-7) == pytest.approx(float((exact * way).sum()), rel=1e-3)
    assert float(loss(images.detach())) == float(loss(images))
    assert not loss(images.detach()).requires_grad


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("scoreopt.sigma=0.9", r"scoreopt\.sigma=0\.9: is at time 0\.2\d* of .* trained up to scoreopt\.latest=0\.2"),
        ("scoreopt.spread=0.3", r"scoreopt\.spread=0\.3: must be below scoreopt\.sigma=0\.25"),
        ("scoreopt.variant=x", r"scoreopt\.variant=x .*: choose one of o, n"),
        ("scoreopt.steps=0", r"scoreopt\.steps=0 .*: must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(word: str, message: str) -> None:
    """On the command line, before anything is made."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*SMALL, word])
