"""FreqPure: gradual noise that keeps the low frequencies of the picture (Pei et al. 2025).

    u ← √ᾱ·x + √(1-ᾱ)·noise                         to a round's time
    x̂ ← the network's estimate of the picture in u   at each step, whose amplitudes and phases near frequency 0 are
                                                     then those of one estimate of the round's beginning
    u ← a step of DDPM towards x̂

An attack lies mostly in high frequencies, its authors say, so these come from the diffusion alone. The exact gradient
goes through the estimate that the low frequencies are taken from. They attack one step of a round in the place of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from maep.config.setting import setting
from maep.models.noise_schedule import at_time, clean_estimate, diffused
from maep.purifiers.denoising import DenoiserPurifier, DenoiserSettings
from maep.purifiers.diffpure import step_towards
from maep.purifiers.sections import USED
from maep.purifiers.stepwise import Step
from maep.runtime.errors import fail
from maep.runtime.keyed_noise import normal_of


@dataclass
class FreqPureSettings(DenoiserSettings):
    """Section `freqpure`. The defaults of its use are the authors' for CIFAR-10."""

    rounds: list[float] = setting(
        [0.02] * 5 + [0.05] * 5, "times of the diffusion that images are noised to, round by round", above=0.0,
        high=1.0, affects_result=USED,
    )  # fmt: skip
    steps: int = setting(5, "steps from there back in each round", low=1, high=10_000, affects_result=USED)
    estimate: float = setting(
        0.05, "time that a round's beginning is noised to once for the low frequencies", above=0.0, high=1.0,
        affects_result=USED,
    )  # fmt: skip
    amplitude_radius: float = setting(
        3.0, "frequencies up to here keep its amplitudes, in periods an image", low=0.0, high=1e6, affects_result=USED
    )
    phase_radius: float = setting(3.0, "frequencies up to here keep its phases", low=0.0, high=1e6, affects_result=USED)
    phase_range: float = setting(
        0.3, "by how much a phase may differ from it, in radians", low=0.0, high=3.15, affects_result=USED
    )
    around: bool = setting(
        True, "differences of phases go around the circle; as published they do not, and phases near ±π are held at "
        "the wrong end", affects_result=USED,
    )  # fmt: skip


def low_frequencies_of(
    kept: Tensor, images: Tensor, amplitude_radius: float, phase_radius: float, phase_range: float, around: bool = True
) -> Tensor:
    """Images with the amplitudes of `kept` up to one radius, and phases within a range of its own up to another.

    kept, images: [N, 3, H, W] in [0, 1]; radii in periods an image, range in radians. Returns the same shape, clipped.
    """
    height, width = images.shape[2:]
    down, across = (torch.fft.fftfreq(height) * height).to(images), (torch.fft.rfftfreq(width) * width).to(images)
    radius = (down[:, None].square() + across.square()).sqrt()
    ours, theirs = torch.fft.rfft2(images), torch.fft.rfft2(kept)
    amplitude = torch.where(radius <= amplitude_radius, theirs.abs(), ours.abs())
    turn = ours.angle() - theirs.angle()
    if around:
        turn = torch.remainder(turn + torch.pi, 2 * torch.pi) - torch.pi
    held = theirs.angle() + turn.clamp(-phase_range, phase_range)
    phase = torch.where(radius <= phase_radius, held, ours.angle())
    mixed = torch.where(radius <= max(amplitude_radius, phase_radius), torch.polar(amplitude, phase), ours)
    return torch.fft.irfft2(mixed, s=(height, width)).abs().clamp(0, 1)


class FreqPurePurifier(DenoiserPurifier):
    """Round by round, noise and DDPM's steps back, each towards a picture with low frequencies of the beginning.

    Its state holds the picture and, below it, that estimate: [N, 6, H, W]. The authors let ten draws vote; here an
    evaluation says what one draw is worth, and how many together.
    """

    kind = "freqpure"
    Settings = FreqPureSettings
    network: FreqPureSettings

    @classmethod
    def check(cls, section: FreqPureSettings) -> None:
        """Raise UserError where a time is out of the network's training, or too early for so many steps, or there is no
        round.
        """
        super().check(section)
        if not section.rounds:
            fail("freqpure.rounds=[]: expected at least one time, such as 0.05")
        cls.check_time(section, "estimate", section.estimate, section.estimate)
        for time in section.rounds:
            cls.check_time(section, "rounds", time, time)
            cls.check_steps(section, "rounds", time)

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """The pictures as they are, twice: the first step of a round replaces both."""
        return torch.cat([pictures, pictures], 1)

    def steps(self, seeds: Tensor) -> list[Step]:
        """Round by round, the last step of each to time 0."""
        return [step for number, time in enumerate(self.network.rounds) for step in self._round(seeds, number, time)]

    def result(self, state: Tensor, seeds: Tensor) -> Tensor:
        """The picture of the state."""
        return state[:, :3]

    def _round(self, seeds: Tensor, number: int, time: float) -> Iterator[Step]:
        count = self.network.steps
        stream = number * (2 + count)  # of the draws: two at the start, one a step
        yield partial(self._begin, seeds, stream, time)
        for step in range(count):
            times = time * (1 - step / count), time * (1 - (step + 1) / count)
            yield partial(self._step, seeds, stream + 2 + step, *times)

    def _begin(self, seeds: Tensor, stream: int, time: float, state: Tensor, pictures: Tensor) -> Tensor:
        u = state[:, :3]
        first, second = (normal_of(seeds, stream + part, u.shape[1:]).to(u) for part in range(2))
        times = at_time(u, self.network.estimate)
        noised = diffused(u, times, first)
        estimate = clean_estimate(noised, times, self.model(noised, times)).clamp(-1, 1)
        return torch.cat([diffused(u, at_time(u, time), second), estimate], 1)

    def _step(self, seeds: Tensor, stream: int, t: float, until: float, state: Tensor, pictures: Tensor) -> Tensor:
        u, kept = state.chunk(2, 1)
        times = at_time(u, t), at_time(u, until)
        x = clean_estimate(u, times[0], self.model(u, times[0])).clamp(-1, 1)
        use = self.network
        radii = use.amplitude_radius, use.phase_radius
        mixed = low_frequencies_of((kept + 1) / 2, (x + 1) / 2, *radii, use.phase_range, use.around)
        noise = normal_of(seeds, stream, u.shape[1:]).to(u)
        return torch.cat([step_towards(2 * mixed - 1, u, *times, noise), kept], 1)
