"""Purifiers on the denoiser of pictures N(0, c² I), c = 1/2, of which every mean and deviation is known beforehand.

With it a kind whose steps are linear in their state is as a whole u → a·u + noise, image by image, pixel by pixel. So
a is what a change of the picture becomes under the same draws: all of a kind's schedule is in it, none of its noise.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from maep.purifiers.denoising import DenoiserPurifier
from maep.purifiers.registry import purifier_class
from maep.purifiers.scoreopt import ScoreOptPurifier
from maep.purifiers.stepwise import walk
from maep.runtime.keyed_noise import normal_of, uniform_of
from tests.purifiers.denoisers import SPREAD, OfGaussians, pictures, random_purifier

TIME, LAST = 0.1, 1e-5  # DiffPure's t*, and where its SDE and ODE end
C2 = SPREAD**2


def known(kind: str, *words: str) -> DenoiserPurifier:
    """A purifier of that kind with the denoiser of such pictures."""
    network = ["width=16", "multipliers=[1]", "unshuffle=2", *words]
    settings = [f"purifier.kind={kind}", "objective.name=denoise", "pretrain.mask_ratio=0"]
    subject = random_purifier(purifier_class(kind), [*settings, *(f"{kind}.{word}" for word in network)])  # type: ignore[type-var]
    subject.model = OfGaussians()
    assert isinstance(subject, DenoiserPurifier)
    return subject


def purified(subject: DenoiserPurifier, u: Tensor, seeds: Tensor) -> Tensor:
    """What a purifier makes of pictures of [-1, 1], before it is clipped to the range."""
    return subject.result(walk(subject.start(u, seeds), u, subject.steps(seeds)), seeds)


def slope(subject: DenoiserPurifier) -> float:
    """What a change of the pictures becomes, by the same draws: one number, the same for all pixels."""
    u, change, seeds = 0.2 * pictures(2), 0.1 * pictures(2).flip(3) + 0.05, torch.tensor([3, 4])
    shares = (purified(subject, u + change, seeds) - purified(subject, u, seeds)) / change
    torch.testing.assert_close(shares, torch.full_like(shares, float(shares.mean())), rtol=1e-9, atol=0)
    return float(shares.mean())


# what is known, in the schedule's own numbers


def left(t: float) -> float:
    """ᾱ, by the authors' exponent."""
    return math.exp(-0.5 * 19.9 * t**2 - 0.1 * t)


def rate(t: float) -> float:
    return 0.1 + 19.9 * t


def variance(t: float) -> float:
    """Of u at time t."""
    return C2 * left(t) + 1 - left(t)


def kept(t: float) -> float:
    """Of the pictures' mean, given u/√ᾱ: c²/(c² + σ²)."""
    return C2 / (C2 + 1 / left(t) - 1)


def at_ends(time: float, count: int, last: float = 0.0) -> Iterable[tuple[float, float]]:
    """The times before and after each step from a time back to `last`, a count-th of the time apart."""
    return pairwise([*(time * (1 - step / count) for step in range(count)), last])


def of_sde(t: float, until: float) -> float:
    """u + h(βu/2 + βs), s = -u/variance."""
    return 1 + (t - until) * rate(t) * (1 / 2 - 1 / variance(t))


def of_ode(t: float, until: float) -> float:
    """u + h(βu + βs)/2."""
    return 1 + (t - until) * rate(t) * (1 - 1 / variance(t)) / 2


def of_ddim(t: float, until: float) -> float:
    """√ᾱ' of the pictures' mean and √(1-ᾱ') of the noise's."""
    picture, noise = C2 * math.sqrt(left(t)) / variance(t), math.sqrt(1 - left(t)) / variance(t)
    return math.sqrt(left(until)) * picture + math.sqrt(1 - left(until)) * noise


def of_ddpm(t: float, until: float) -> float:
    """cov(u', u)/var(u): the mean of the earlier state, given the later one."""
    share = math.sqrt(left(t) / left(until))
    return share * variance(until) / variance(t)


STEP: dict[str, tuple[Callable[[float, float], float], float]] = {
    "sde": (of_sde, LAST), "ode": (of_ode, LAST), "ddim": (of_ddim, 0.0), "ddpm": (of_ddpm, 0.0),
}  # fmt: skip


def product(sampler: str, time: float, count: int) -> float:
    """The noise at first, then every step."""
    step, last = STEP[sampler]
    return math.sqrt(left(time)) * math.prod(step(*ends) for ends in at_ends(time, count, last))


@pytest.mark.parametrize("sampler", STEP)
@pytest.mark.parametrize("count", [1, 5])
def test_a_walk_of_diffpure_is_the_product_of_its_steps(sampler: str, count: int) -> None:
    """From t* back at equal distances, SDE and ODE to 1e-5, the others to 0; of two rounds it is both products."""
    words = [f"sampler={sampler}", f"steps={count}", f"time={TIME}", "clip=false"]
    assert slope(known("diffpure", *words)) == pytest.approx(product(sampler, TIME, count), rel=1e-9)
    both = slope(known("diffpure", *words, "rounds=[0.05]"))
    assert both == pytest.approx(product(sampler, 0.05, count) * product(sampler, TIME, count), rel=1e-9)


def test_many_steps_are_the_mean_and_the_flow() -> None:
    """SDE and DDPM lead to the mean picture behind the noise, c²/(c²+σ²), DDPM in any number of steps; ODE and DDIM
    to the picture at the same share of its deviation, √ᾱ·c/√(c²ᾱ+1-ᾱ).
    """
    flow = math.sqrt(left(TIME)) * SPREAD / math.sqrt(variance(TIME))
    for sampler, limit in (("sde", kept(TIME)), ("ddpm", kept(TIME)), ("ode", flow), ("ddim", flow)):
        assert product(sampler, TIME, 20_000) == pytest.approx(limit, rel=1e-4)
    for count in (1, 7):
        few = slope(known("diffpure", "sampler=ddpm", f"steps={count}", f"time={TIME}", "clip=false"))
        assert few == pytest.approx(kept(TIME), rel=1e-9)


def test_one_step_of_ddim_is_the_denoiser_asked_once() -> None:
    """ADBM's and DiffPure's: c²/(c²+σ²) of the noised picture, whose noise stays with the same share; so does DDPM's
    to time 0, which draws nothing there.
    """
    u, seeds = pictures(2) - 0.5, torch.tensor([8, 9])
    sigma = math.sqrt(1 / left(TIME) - 1)
    once = kept(TIME) * (u + sigma * normal_of(seeds, 0, u.shape[1:]).double())
    one = ["steps=1", f"time={TIME}", "clip=false"]
    for kind, sampler in (("diffpure", "ddim"), ("adbm", "ddim"), ("diffpure", "ddpm")):
        subject = known(kind, *one, f"sampler={sampler}")
        torch.testing.assert_close(purified(subject, u, seeds), once, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", ["sde", "ddpm"])
def test_every_step_adds_noise_of_its_own_and_as_much_as_it_should(sampler: str) -> None:
    """Of black pictures the result's variance is the noise's that came in at t* and at each step, each shrunk by the
    steps after it: βh of the SDE, β̃ of DDPM. Draws that were shared by two steps would add up otherwise.
    """
    count, seeds = 4, torch.arange(2000)
    subject = known("diffpure", f"sampler={sampler}", f"steps={count}", f"time={TIME}", "clip=false")
    step, last = STEP[sampler]
    expected = 1 - left(TIME)
    for t, until in at_ends(TIME, count, last):
        added = (t - until) * rate(t)
        if sampler == "ddpm":
            added = (1 - left(t) / left(until)) * (1 - left(until)) / (1 - left(t))
        expected = step(t, until) ** 2 * expected + added
    found = purified(subject, torch.zeros(len(seeds), 3, 8, 8, dtype=torch.float64), seeds)
    assert float(found.var()) == pytest.approx(expected, rel=0.01)  # of 384,000 numbers
    assert abs(float(found.mean())) < 0.002


@pytest.mark.parametrize("guidance", [0.0, 18.7])
def test_gdmp_is_ddpm_and_a_pull_round_after_round(guidance: float) -> None:
    """Each step is the mean of the earlier state, less κ·β·√((1-ᾱ)/ᾱ) of the way from the noised picture; unguided, a
    round is c²/(c²+σ²) in any number of steps.
    """
    time, count, rounds = 0.036, 6, 3
    subject = known("gdmp", f"time={time}", f"steps={count}", f"rounds={rounds}", f"guidance={guidance}")
    expected = 1.0
    for _ in range(rounds):
        expected *= math.sqrt(left(time))
        for t, until in at_ends(time, count):
            beta = 1 - left(t) / left(until)
            pull = guidance * beta * math.sqrt((1 - left(t)) / left(t))
            expected = of_ddpm(t, until) * expected - pull * (expected - math.sqrt(left(t)))
    assert slope(subject) == pytest.approx(expected, rel=1e-9)
    if not guidance:
        assert expected == pytest.approx(kept(time) ** rounds, rel=1e-9)
    else:
        assert expected > 1.005 * kept(time) ** rounds


def test_freqpure_without_low_frequencies_is_ddpm_round_after_round() -> None:
    """No amplitude is kept, and any phase may be: each round is c²/(c²+σ²)."""
    subject = known("freqpure", "rounds=[0.02,0.05,0.05]", "steps=5", "phase_range=3.15")
    subject.network.amplitude_radius = -1
    assert slope(subject) == pytest.approx(kept(0.02) * kept(0.05) ** 2, rel=1e-9)


@pytest.mark.parametrize("variant", ["o", "n"])
def test_scoreopt_is_adam_on_the_known_loss(variant: str) -> None:
    """torch's Adam on ‖D(v + σn, σ) - v‖² or ‖(v - D(v, σ))/σ - n‖² with D(v, σ) = v·c²/(c²+σ²); O's σ is uniform in
    its range, another at each step and for each image.
    """
    count, seeds, lr, sigma, spread = 4, torch.tensor([3, 4]), 0.05, 0.25, 0.1
    subject = known(
        "scoreopt", f"variant={variant}", f"steps={count}", f"lr={lr}", f"sigma={sigma}", f"spread={spread}"
    )
    assert isinstance(subject, ScoreOptPurifier)
    u = 2 * pictures(2) - 1

    def denoised(v: Tensor, deviation: Tensor | float) -> Tensor:
        return v * C2 / (C2 + deviation**2)

    first = normal_of(seeds, 1, u.shape[1:]).double()
    v = (u if variant == "o" else u + sigma * first).clone().requires_grad_()
    optimizer, drawn = torch.optim.Adam([v], lr=lr, eps=1e-20), []
    clear = torch.ones_like(u, dtype=torch.bool)  # where no gradient comes near Adam's epsilon, 1e-8
    for number in range(count):
        deviation = sigma - spread + 2 * spread * uniform_of(seeds, 2 * number).double().view(2, 1, 1, 1)
        noise = normal_of(seeds, 2 * number + 1, u.shape[1:]).double()
        drawn.append(deviation)
        found = denoised(v + deviation * noise, deviation) - v if variant == "o" else (
            (v - denoised(v, sigma)) / sigma - first
        )  # fmt: skip
        optimizer.zero_grad()
        (found.square().sum() / 3072).backward()
        clear &= v.grad.abs() > 1e-7  # type: ignore[union-attr]
        optimizer.step()
    expected = v.detach() if variant == "o" else denoised(v.detach(), sigma)
    assert clear.float().mean() > 0.95
    torch.testing.assert_close(purified(subject, u, seeds)[clear], expected[clear], rtol=1e-4, atol=2e-4)
    assert len({float(each) for each in torch.stack(drawn).flatten()}) == 2 * count
