"""DiffPure: samplers in closed form, there and back, seeds, exact gradients, refusals; trained, killed and resumed."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maep import load_purifier
from maep.attacks.threat_models import StraightThrough
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.evaluation.stage import purifier_identity
from maep.models.noise_schedule import alpha_bar, denoised, diffused, sigma_of
from maep.pipeline.execution import run_pipeline, unfinished_stages
from maep.purifiers.diffpure import DiffPurePurifier, ddpm_step, ode_step, sde_step
from maep.purifiers.stepwise import stepwise, walk
from maep.runtime.errors import Paused, UserError
from maep.storage.atomic import read_json, sha256_file
from maep.training.pretrain import pretrain
from tests.purifiers.denoisers import SPREAD, OfGaussians, random_purifier
from tests.tiny import Problem

SMALL = [
    "purifier.kind=diffpure", "diffpure.width=16", "diffpure.multipliers=[1,1]", "diffpure.unshuffle=2",
    "objective.name=denoise", "pretrain.mask_ratio=0",
]  # fmt: skip
QUICK = [
    "evaluation.images=2", "evaluation.adaptive_images=2", "evaluation.attacks=[pgd-1]", "evaluation.draws=1",
    "evaluation.check_images=1", "diffpure.steps=2", "evaluation.threat_models=[oblivious]",
]  # fmt: skip
SAMPLERS = ("sde", "ode", "ddpm", "ddim")
closed_form = OfGaussians()


def purifier(*words: str) -> DiffPurePurifier:
    """Of random weights that do not predict 0, in float64."""
    return random_purifier(DiffPurePurifier, [*SMALL, *words])


def pictures(count: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def at(time: float, count: int = 1) -> Tensor:
    return torch.full((count,), time, dtype=torch.float64)


def grid(start: float, end: float, count: int) -> list[tuple[Tensor, Tensor]]:
    times = torch.linspace(start, end, count + 1, dtype=torch.float64)
    return [(a[None], b[None]) for a, b in pairwise(times)]


def test_ode_there_and_back_is_the_identity() -> None:
    """From a picture to noise and back, by small steps; on the way it is what the closed form says."""
    start = u = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t, until in grid(1e-5, 0.2, 2000):
        u = ode_step(closed_form, u, t, until)
    left = alpha_bar(at(0.2))
    torch.testing.assert_close(u, start * (SPREAD**2 * left + 1 - left).sqrt() / SPREAD, rtol=1e-3, atol=1e-3)
    for t, until in reversed(grid(1e-5, 0.2, 2000)):
        u = ode_step(closed_form, u, until, t)
    torch.testing.assert_close(u, start, rtol=2e-3, atol=1e-3)


def test_one_step_of_ddim_is_the_one_shot_denoiser() -> None:
    """And many steps of DDIM are the ODE."""
    u = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, none = at(0.2, 2), torch.zeros_like(u)
    once = ddpm_step(closed_form, u, t, at(0.0, 2), none, eta=0, clip=False)
    torch.testing.assert_close(once, denoised(closed_form, u / alpha_bar(t).sqrt()[0], sigma_of(t)))
    ddim = ode = u[:1]
    for t, until in grid(0.2, 1e-5, 2000):
        ddim = ddpm_step(closed_form, ddim, t, until, none[:1], eta=0, clip=False)
        ode = ode_step(closed_form, ode, t, until)
    torch.testing.assert_close(ddim, ode, rtol=1e-3, atol=1e-3)


def test_a_step_of_ddpm_is_its_posterior() -> None:
    """Mean and variance of q(u_s | u_t, x) as Ho et al. write them, with β = 1 - ᾱ_t/ᾱ_s."""
    u = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, until, noise = at(0.15), at(0.12), torch.randn_like(u)
    before, after = alpha_bar(t), alpha_bar(until)
    rate = 1 - before / after
    x = (u - (1 - before).sqrt() * closed_form(u, t)) / before.sqrt()
    mean = (after.sqrt() * rate * x + (1 - rate).sqrt() * (1 - after) * u) / (1 - before)
    variance = rate * (1 - after) / (1 - before)
    found = ddpm_step(closed_form, u, t, until, noise, clip=False)
    torch.testing.assert_close(found, mean + variance.sqrt() * noise)
    clipped = ddpm_step(closed_form, 9 * u, t, at(0.0), noise)
    assert clipped.abs().max() <= 1


@pytest.mark.parametrize("sampler", ["sde", "ddpm"])
def test_random_samplers_draw_pictures(sampler: str) -> None:
    """From noised pictures of N(0, c² I), many steps give pictures of N(0, c² I)."""
    generator = torch.Generator().manual_seed(0)
    count = 4000
    x, noise = torch.randn(2, count, 1, 2, 2, dtype=torch.float64, generator=generator)
    u = diffused(SPREAD * x, at(0.2, count), noise)
    for t, until in grid(0.2, 1e-5, 200):
        drawn = torch.randn(u.shape, dtype=torch.float64, generator=generator)
        times = t.expand(count), until.expand(count)
        u = sde_step(closed_form, u, *times, drawn) if sampler == "sde" else ddpm_step(
            closed_form, u, *times, drawn, clip=False
        )  # fmt: skip
    assert float(u.std()) == pytest.approx(SPREAD, rel=0.02)
    # As much of the picture is kept as the noise at t* leaves to be known.
    sigma = float(sigma_of(at(0.2)))
    kept = SPREAD**2 / (SPREAD**2 + sigma**2)
    assert float((u * x).mean() / SPREAD) == pytest.approx(kept, abs=0.02)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_decide_and_batches_do_not(sampler: str) -> None:
    """The same key, the same bits; each image alone as among others, to rounding in float64; another key differs."""
    subject = purifier(f"diffpure.sampler={sampler}", "diffpure.steps=4")

    def purified(images: Tensor, key: int = 0) -> Tensor:
        subject.reseed(key)
        return torch.cat([subject(part) for part in images.split(1)]) if key < 0 else subject(images)

    together = purified(pictures())
    assert torch.equal(together, purified(pictures()))
    assert (together - purified(pictures(), 1)).abs().max() > 0.01
    subject.reseed(0)
    torch.testing.assert_close(torch.cat([subject(part) for part in pictures().split([1, 2])]), together)
    parts = subject.with_options(replace(subject.settings, batch_tiles=1))
    parts.reseed(0)
    assert parts.images_at_once(32, 32) == 1
    torch.testing.assert_close(parts(pictures(side=32)), purified(pictures(side=32)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision_are_refused(dtype: torch.dtype) -> None:
    """There 1-ᾱ is 0 at the last steps, and what it divides no number; under autocast the schedule stays in fp32."""
    subject = purifier("diffpure.steps=2").float()
    with pytest.raises(ValueError, match=r"images of torch\.b?float16: .* give float32, .* torch\.autocast"):
        subject(pictures().to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(subject(pictures().float()).isfinite().all())


def test_draws_of_several_keys_in_one_batch() -> None:
    """Each part of the batch gets what its key gives it alone; a part that does not fit is refused."""
    subject, keys = purifier("diffpure.steps=2"), [(3,), (4,), (3,)]
    parts = []
    for key in keys:
        subject.reseed(*key)
        parts.append(subject(pictures(2)))
    subject.reseed_each(keys)
    torch.testing.assert_close(subject(pictures(2).repeat(3, 1, 1, 1)), torch.cat(parts))
    with pytest.raises(ValueError, match="not a multiple of 3 draws"):
        subject(pictures(2))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradients_are_exact(sampler: str) -> None:
    """Through three steps, on images that must be padded: plain autograd's, which weights in training get; BPDA's is
    another.
    """
    subject = purifier(f"diffpure.sampler={sampler}", "diffpure.steps=3")

    def gradient(model: nn.Module) -> Tensor:
        images = pictures(2, 15).requires_grad_()
        subject.reseed(0)
        (found,) = torch.autograd.grad((model(images) * pictures(2, 15).flip(0)).sum(), images)
        return found

    exact, straight = gradient(subject), gradient(StraightThrough(subject))
    subject.requires_grad_(True)
    torch.testing.assert_close(exact, gradient(subject))
    assert (exact - straight).abs().max() > 0.05
    subject.reseed(0)
    subject(pictures()).sum().backward()
    assert all(weight.grad is not None for weight in subject.model.parameters())


def test_gradual_noise_is_round_after_round() -> None:
    """Two rounds are the purifier of the first, and on its result that of the second, with noise of its own; exact
    gradients. Without rounds, as it was judged before there were any, they stand in no identity.
    """
    words = ["diffpure.steps=2", "diffpure.sampler=ddim"]
    first, second = purifier(*words, "diffpure.time=0.05"), purifier(*words, "diffpure.time=0.1")
    both, seeds = purifier(*words, "diffpure.time=0.1", "diffpure.rounds=[0.05]"), torch.tensor([5, 6, 7])
    at = (2 * pictures() - 1).requires_grad_()
    middle = walk(first.start(at, seeds), at, first.steps(seeds))
    noised, *rest = both.steps(seeds)[2:]
    again = walk(noised(middle, at), at, rest)
    whole = walk(both.start(at, seeds), at, both.steps(seeds))
    assert torch.equal(whole, again)
    left, same = alpha_bar(torch.tensor(0.1, dtype=torch.float64)), second.start(middle, seeds)
    own, others = ((state - left.sqrt() * middle) / (1 - left).sqrt() for state in (noised(middle, at), same))
    assert 0.9 < float(own.detach().std()) < 1.1
    assert abs(float((own * others).mean())) < 0.1, "not the first round's noise again"
    (exact,) = torch.autograd.grad(stepwise(both.start(at, seeds), at, both.steps(seeds)).square().sum(), at)
    torch.testing.assert_close(exact, torch.autograd.grad(whole.square().sum(), at)[0])
    assert "rounds" not in str(second.identity_facts()) + str(DiffPurePurifier.use_facts(load_settings(None, SMALL)))
    assert "rounds" in str(both.identity_facts())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("diffpure.rounds=[0.1,0.3]", r"diffpure\.rounds=0\.3: is at time 0\.3 of .* up to diffpure\.latest=0\.2"),
        ("diffpure.time=0.3", r"diffpure\.time=0\.3: is at time 0\.3 of .* trained up to diffpure\.latest=0\.2"),
        ("diffpure.sampler=euler", r"diffpure\.sampler=euler .*: choose one of sde, ode, ddpm, ddim"),
        ("diffpure.steps=0", r"diffpure\.steps=0 .*: must be at least 1"),
        (
            "diffpure.time=0.0005",
            r"diffpure\.steps=100: from diffpure\.time=0\.0005 back each would be shorter than 1e-05",
        ),
        ("diffpure.sampler=ddim diffpure.rounds=[5e-5]", r"diffpure\.rounds=5e-05 back each .* shorter than 1e-06"),
        ("diffpure.width=12", r"diffpure\.width=12: must be a multiple of 8"),
        ("diffpure.unshuffle=4", r"diffpure\.width=16: must be at least 48 with unshuffle=4"),
        ("diffpure.multipliers=[]", r"diffpure\.multipliers=\[\]: expected at least one"),
        ("model.image_size=30 model.patch_size=2", r"model\.image_size=30: .* choose a multiple of 4"),
        ("objective.name=purification", r"objective\.name=purification: trains no network of purifier\.kind=diffpure"),
        ("attack.online=true pretrain.attacked=whole", r"objective\.name=denoise: trains on noise, not on attacks"),
        ("purify.passes=2", r"purify\.passes=2: diffpure has no such option"),
    ],
)
def test_settings_that_do_not_fit_are_refused(word: str, message: str) -> None:
    """On the command line, before anything is made."""
    with pytest.raises(UserError, match=message):
        load_settings(None, [*SMALL, *word.split()])


def trained_here(settings: Settings) -> None:
    """The pretrain stage, its training in this process: to start others takes longer than the training."""
    run_pipeline(settings, "pretrain", lambda _, given: pretrain(given))


def test_it_is_trained_on_clean_images_and_used_as_the_settings_say(
    problem: Problem, run_dir: Path, tmp_path: Path
) -> None:
    """Paused and gone on with: the same bits as in one go, and the same losses on two processes; the loss falls.

    No attack is needed; another sampler is judged anew, without training anew.
    """
    trained = [*SMALL, "diffpure.multipliers=[1]", "pretrain.steps=12", "pretrain.save_every=4", "pretrain.lr=0.01"]
    whole, two = (Path(shutil.copytree(problem.prepared, tmp_path / name)) for name in ("whole", "two"))
    trained_here(load_settings("digits", problem.arguments(whole, *trained)[1:]))
    with pytest.raises(Paused):
        trained_here(load_settings("digits", problem.arguments(run_dir, *trained, "pretrain.pause_at=5")[1:]))
    trained_here(load_settings("digits", problem.arguments(run_dir, *trained)[1:]))
    first, second = (sha256_file(run / "purifier/model.safetensors") for run in (whole, run_dir))
    assert first == second
    done = problem.run("pretrain", two, *trained, nproc=2)
    assert done.returncode == 0, done.stdout + done.stderr
    losses, of_two = (
        [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
        for run in (whole, two)
    )
    assert of_two == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < 0.95 * losses[0]  # a loss of 1 is that of predicting nothing
    assert set(read_json(whole / "stages/pretrain.json")["inputs"]) == {"shards"}
    assert load_purifier(whole).network.sampler == "sde"
    words = problem.arguments(whole, *trained, *QUICK)[1:]
    settings = load_settings("digits", words)
    run_pipeline(settings, "all", lambda name, _: pytest.fail(f"{name} was launched"))
    assert {row["purifier"] for row in read_json(whole / "report.json")["results"]} == {"diffpure"}
    other = load_settings("digits", [*words, "diffpure.sampler=ddim"])
    assert unfinished_stages(settings) == {}
    assert set(unfinished_stages(other)) == {"evaluate", "report"}
    assert purifier_identity(other, "pretrained") != purifier_identity(settings, "pretrained")
    assert load_purifier(whole).used_as(other).network.sampler == "ddim"
