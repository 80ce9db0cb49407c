"""Network, schedules and samplers against those of the library diffusers, where it is installed (`.[test]`)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maep.models.noise_schedule import at_time, diffused, time_of
from maep.models.published_denoisers import Sizes, build_published, read_published
from maep.models.published_schedules import linear_steps
from maep.models.weights import load_weights
from maep.purifiers.diffpure import ddpm_step
from maep.purifiers.flowpure import FlowPurePurifier
from maep.purifiers.gdmp import guided_step
from maep.purifiers.stepwise import walk
from tests.models.test_published_denoisers import times_at
from tests.purifiers.denoisers import random_purifier

diffusers = pytest.importorskip("diffusers", reason="needs diffusers (pip install -e '.[test]')")


def noisy(seed: int = 0, side: int = 16) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predicted(u: Tensor, t: Tensor) -> Tensor:
    """Some noise that depends on the state and the time."""
    return (3 * u + t.view(-1, 1, 1, 1)).tanh()


def network() -> torch.nn.Module:
    """diffusers' own of DDPM, small, as its folders of Ho et al.'s weights configure it."""
    torch.manual_seed(0)
    made = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=2, downsample_padding=0, flip_sin_to_cos=False,
        freq_shift=1, norm_eps=1e-6, attention_head_dim=None, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.double().eval()


def test_a_folder_of_diffusers_computes_what_diffusers_does(tmp_path: Path) -> None:
    """Saved by diffusers and loaded here: sizes, names and outputs, at the schedulers' steps."""
    theirs = network()
    theirs.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler(variance_type="fixed_large", clip_sample=True).save_pretrained(tmp_path / "scheduler")
    found = read_published(tmp_path)
    assert found.sizes == Sizes(32, [1, 2], 2, [1])
    ours = build_published(found.layout, found.sizes, 1.0).double()
    load_weights(ours, found.tensors, tmp_path)
    with torch.no_grad():
        for step in (0, 7, 180):
            expected = theirs(noisy(), step).sample
            result = ours(noisy(), times_at(linear_steps(), step, step))
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def time_at(scheduler: object, step: int) -> float:
    """The time of ours whose ᾱ a scheduler has at a step; after the last, 0."""
    left = scheduler.alphas_cumprod[step].double() if step >= 0 else torch.tensor(1.0, dtype=torch.float64)  # type: ignore[attr-defined]
    return float(time_of((1 / left - 1).sqrt()))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_steps_of_ddim_are_its_schedulers(eta: float, clip: bool) -> None:
    """From each of 50 steps of a thousand to the one before, the last to the picture."""
    scheduler = diffusers.DDIMScheduler(clip_sample=clip, set_alpha_to_one=True)
    scheduler.set_timesteps(50)
    for step in (480, 100, 20, 0):
        u, noise, t = 0.7 * noisy(step), noisy(1), time_at(scheduler, step)
        until = at_time(u, time_at(scheduler, step - 20))
        # With the noise that belongs to the clipped picture, as DDPM's posterior has it.
        options = {"eta": eta, "variance_noise": noise, "use_clipped_model_output": clip}
        theirs = scheduler.step(predicted(u, at_time(u, t)), step, u, **options).prev_sample
        ours = ddpm_step(predicted, u, at_time(u, t), until, noise, eta, clip)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_steps_of_ddpm_are_its_schedulers(variance: str) -> None:
    """With DiffPure's smaller variance and with GDMP's larger one, unguided."""
    scheduler = diffusers.DDPMScheduler(variance_type=variance, clip_sample=True)
    scheduler.set_timesteps(1000)
    # In fp32, as there, 1 - ᾱ loses digits that one step of a thousand needs.
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), torch.exp(-linear_steps()), rtol=1e-5, atol=1e-7)
    scheduler.alphas_cumprod = torch.exp(-linear_steps())
    for step in (99, 35, 1):
        u = 0.7 * noisy(step)
        times = [at_time(u, time_at(scheduler, each)) for each in (step, step - 1)]
        told = predicted(u, times[0])
        theirs = scheduler.step(told, step, u, generator=torch.Generator().manual_seed(step)).prev_sample
        noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        if variance == "fixed_small":
            ours = ddpm_step(predicted, u, *times, noise)
        else:
            ours = guided_step(predicted, u, *times, target=u, noise=noise, guidance=0.0)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_noised_picture_is_its_schedulers() -> None:
    """ᾱ of the step in both weights."""
    scheduler, x, noise = diffusers.DDPMScheduler(), noisy(3), noisy(4)
    theirs = scheduler.add_noise(x, noise, torch.tensor([99, 35]))
    times = torch.tensor([time_at(scheduler, step) for step in (99, 35)], dtype=torch.float64)
    torch.testing.assert_close(diffused(x, times, noise), theirs, rtol=1e-5, atol=1e-5)


class Predicting(torch.nn.Module):
    """`predicted` as the network of a purifier."""

    factor = 1

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        return predicted(u, t)


def test_a_flow_is_followed_as_its_scheduler_follows_it() -> None:
    """FlowPure's nine Euler steps, of velocities whose sign and time run the other way there."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - number / 9 for number in range(9)])
    words = ["purifier.kind=flowpure", "flowpure.width=16", "flowpure.multipliers=[1]", "objective.name=flow"]
    subject = random_purifier(FlowPurePurifier, [*words, "pretrain.mask_ratio=0"])
    subject.model, theirs, seeds = Predicting(), noisy(5), torch.tensor([1, 2])
    for number, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(-predicted(theirs, at_time(theirs, number / 9)), t, theirs).prev_sample
    ours = subject.result(walk(subject.start(noisy(5), seeds), noisy(5), subject.steps(seeds)), seeds)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
