"""DiffPure: drown the perturbation in noise, then take the noise away (Nie et al., ICML 2022).

Its randomness and its length hide how weak it is: under exact gradients most of its robustness is gone (Kassis et al.
2025), and whoever may ask often finds a draw that fails. Samplers are named in full since they differ in what they
withstand: the authors' is the SDE; DDPM's steps are what later work calls by the same name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from maep.config.setting import setting
from maep.models.noise_schedule import Noise, alpha_bar, at_time, beta, clean_estimate, diffused, per_image, score
from maep.purifiers.denoising import SHORTEST, DenoiserPurifier, DenoiserSettings
from maep.purifiers.sections import USED
from maep.purifiers.stepwise import Step
from maep.runtime.keyed_noise import normal_of

LAST = 1e-5  # where the authors stop: the score has no meaning at 0


@dataclass
class DiffPureSettings(DenoiserSettings):
    """Section `diffpure`. The defaults of its use are the authors' for CIFAR-10 in L-infinity."""

    sampler: str = setting(
        "sde", "how the noise is taken away: Euler-Maruyama steps of the reverse SDE, Euler steps of its ODE, or steps "
        "of DDPM or DDIM", choices=("sde", "ode", "ddpm", "ddim"), affects_result=USED,
    )  # fmt: skip
    time: float = setting(
        0.1, "time t* of the diffusion that images are noised to (the authors: L2 0.075, ImageNet 0.15)",
        above=LAST, high=1.0, affects_result=USED,
    )  # fmt: skip
    steps: int = setting(100, "steps from there back, each asks the network once", low=1, high=10_000,
                         affects_result=USED)  # fmt: skip
    rounds: list[float] = setting(
        [], "times of rounds that go before it, each noised to and taken back in as many steps (gradual noise, Lee and "
        "Kim 2023: 0.03 four times, 0.05 twice, 0.125, and time=0.125, by ddpm, unclipped)",
        above=LAST, high=1.0, affects_result=USED, added=True,
    )  # fmt: skip
    clip: bool = setting(True, "clip the picture that a step of ddpm or ddim aims at to its range", affects_result=USED)


def sde_step(predict: Noise, u: Tensor, t: Tensor, until: Tensor, noise: Tensor) -> Tensor:
    """One Euler-Maruyama step of the reverse VP-SDE, from times t down to `until`, both [N]. u, noise: [N, 3, H, W]."""
    span, rate = per_image(t - until), per_image(beta(t))
    return u + span * rate * (u / 2 + score(predict, u, t)) + (rate * span).sqrt() * noise


def ode_step(predict: Noise, u: Tensor, t: Tensor, until: Tensor) -> Tensor:
    """One Euler step of the probability-flow ODE from times t to `until`, earlier or later, both [N]."""
    return u + per_image((t - until) * beta(t)) * (u + score(predict, u, t)) / 2


def ddpm_step(
    predict: Noise, u: Tensor, t: Tensor, until: Tensor, noise: Tensor, eta: float = 1.0, clip: bool = True
) -> Tensor:
    """One step of DDPM (eta=1) or DDIM (eta=0, Song et al. 2021a) from times t to earlier ones, both [N].

    At eta=1 it is a draw of DDPM's posterior, with its variance β̃; to time 0 it is the network's estimate of the
    picture. clip: that to [-1, 1].
    """
    x = clean_estimate(u, t, predict(u, t))
    return step_towards(x.clamp(-1, 1) if clip else x, u, t, until, noise, eta)


def step_towards(x: Tensor, u: Tensor, t: Tensor, until: Tensor, noise: Tensor, eta: float = 1.0) -> Tensor:
    """The same where x [N, 3, H, W] is what the picture is taken for, clipped or not."""
    before, after = per_image(alpha_bar(t)), per_image(alpha_bar(until))
    told = (u - before.sqrt() * x) / (1 - before).sqrt()
    drawn = eta * ((1 - before / after) * (1 - after) / (1 - before)).sqrt()
    return after.sqrt() * x + drawn * noise + (1 - after - drawn.square()).clamp(min=0).sqrt() * told


class DiffPurePurifier(DenoiserPurifier):
    """Noises images to time t* at once, and takes that away step by step, in one round or several. Noise is drawn anew
    at every call.

    The ODE and DDIM draw the first noise alone. As published the result is not clipped to [0, 1]; here it is.
    """

    kind = "diffpure"
    Settings = DiffPureSettings
    network: DiffPureSettings

    @classmethod
    def check(cls, section: DiffPureSettings) -> None:
        """Raise UserError where t* is out of the network's training, or too early for so many steps."""
        super().check(section)
        shortest = LAST if section.sampler == "sde" else SHORTEST  # its last step must not lead back in time
        for key, time in [("time", section.time), *(("rounds", time) for time in section.rounds)]:
            cls.check_time(section, key, time, time)
            cls.check_steps(section, key, time, shortest)

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """Noised to t*, by the continuous schedule; the authors' discrete ᾱ is 0.08 % above it at t* = 0.1."""
        return _noised(seeds, 0, self._times()[0], pictures, pictures)

    def steps(self, seeds: Tensor) -> list[Step]:
        """Round by round."""
        return [step for number, time in enumerate(self._times()) for step in self._round(seeds, number, time)]

    def _times(self) -> list[float]:
        return [*self.network.rounds, self.network.time]

    def _round(self, seeds: Tensor, number: int, time: float) -> Iterator[Step]:
        """The noise, but for the first round, then back at equal distances in time.

        The steps of DDPM and DDIM end at 0, the others where the score still has a meaning. The last step of the SDE
        draws as well, as the authors' does.
        """
        count = self.network.steps
        stream = number * (1 + count)  # of the draws: one at the start, one a step
        if number:
            yield partial(_noised, seeds, stream, time)
        ends = [time * (1 - (step + 1) / count) for step in range(count)]
        if self.network.sampler in ("sde", "ode"):
            ends[-1] = LAST
        for step, (t, until) in enumerate(zip([time, *ends], ends, strict=False)):
            yield partial(self._step, seeds, stream + 1 + step, t, until)

    def _step(self, seeds: Tensor, stream: int, t: float, until: float, u: Tensor, pictures: Tensor) -> Tensor:
        times = at_time(u, t), at_time(u, until)
        if self.network.sampler == "ode":
            return ode_step(self.model, u, *times)
        noise = normal_of(seeds, stream, u.shape[1:]).to(u)
        if self.network.sampler == "sde":
            return sde_step(self.model, u, *times, noise)
        return ddpm_step(self.model, u, *times, noise, float(self.network.sampler == "ddpm"), self.network.clip)


def _noised(seeds: Tensor, stream: int, time: float, u: Tensor, pictures: Tensor) -> Tensor:
    return diffused(u, at_time(u, time), normal_of(seeds, stream, u.shape[1:]).to(u))
