"""GDMP: short diffusions in place of a long one, each step pulled towards the attacked image (Wang et al. 2022).

The pull keeps what the image shows, and some of the attack with it. It is the gradient of a squared distance, which the
authors average over the batch: what a lone image becomes there depends on who else is purified. Here every image has
its own, at the strength that theirs has in batches of 100. The path through the pull is part of the exact gradient;
without it the defense was long overrated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from maep.config.setting import setting
from maep.models.noise_schedule import Noise, alpha_bar, at_time, clean_estimate, diffused, per_image
from maep.purifiers.denoising import DenoiserPurifier, DenoiserSettings
from maep.purifiers.sections import USED
from maep.purifiers.stepwise import Step
from maep.runtime.keyed_noise import normal_of


@dataclass
class GdmpSettings(DenoiserSettings):
    """Section `gdmp`. The defaults of its use are the authors' for CIFAR-10."""

    time: float = setting(
        0.036, "time of the diffusion that images are noised to in each round", above=0.0, high=1.0, affects_result=USED
    )
    steps: int = setting(36, "steps from there back in each round", low=1, high=10_000, affects_result=USED)
    rounds: int = setting(4, "how often an image is noised and denoised", low=1, high=1000, affects_result=USED)
    guidance: float = setting(
        18.7, "strength of the pull towards the noised attacked image (18.7 is the authors' in batches of 100, 1868 "
        "theirs for a lone image; 0: none)", low=0.0, high=1e6, affects_result=USED,
    )  # fmt: skip


def guided_step(
    predict: Noise, u: Tensor, t: Tensor, until: Tensor, target: Tensor, noise: Tensor, guidance: float
) -> Tensor:
    """One step of DDPM with its larger variance β, from times t to `until`, both [N], and a pull towards a target.

    u, target, noise: [N, 3, H, W]; target: the attacked image, noised to t. The pull is β·√((1-ᾱ)/ᾱ)·guidance of the
    way there. To time 0 no noise is added.
    """
    before, after = per_image(alpha_bar(t)), per_image(alpha_bar(until))
    rate = 1 - before / after
    x = clean_estimate(u, t, predict(u, t)).clamp(-1, 1)
    mean = (after.sqrt() * rate * x + (1 - rate).sqrt() * (1 - after) * u) / (1 - before)
    pull = guidance * rate * ((1 - before) / before).sqrt()
    return mean - pull * (u - target) + (rate * (after < 1)).sqrt() * noise


class GdmpPurifier(DenoiserPurifier):
    """Noises images to a small time and takes that away, `rounds` times. Noise is drawn anew at every call.

    The distance is the squared one; the authors have another by structural similarity. They purify an image ten times
    and average what the classifier says; here an evaluation says what one draw is worth, and how many together.
    """

    kind = "gdmp"
    Settings = GdmpSettings
    network: GdmpSettings

    @classmethod
    def check(cls, section: GdmpSettings) -> None:
        """Raise UserError where the time is out of the network's training, or too early for so many steps."""
        super().check(section)
        cls.check_time(section, "time", section.time, section.time)
        cls.check_steps(section, "time", section.time)

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """As they are: the first step noises them."""
        return pictures

    def steps(self, seeds: Tensor) -> list[Step]:
        """Round by round: the noise, then back at equal distances in time, to 0. The authors noise one step further."""
        return [step for number in range(self.network.rounds) for step in self._round(seeds, number)]

    def _round(self, seeds: Tensor, number: int) -> Iterator[Step]:
        count, time = self.network.steps, self.network.time
        stream = number * (1 + 2 * count)  # of the draws: one at the start, two a step
        yield partial(self._noised, seeds, stream)
        for step in range(count):
            times = time * (1 - step / count), time * (1 - (step + 1) / count)
            yield partial(self._step, seeds, stream + 1 + 2 * step, *times)

    def _noised(self, seeds: Tensor, stream: int, u: Tensor, pictures: Tensor) -> Tensor:
        return diffused(u, at_time(u, self.network.time), normal_of(seeds, stream, u.shape[1:]).to(u))

    def _step(self, seeds: Tensor, stream: int, t: float, until: float, u: Tensor, pictures: Tensor) -> Tensor:
        times = at_time(u, t), at_time(u, until)
        shift, noise = (normal_of(seeds, stream + part, u.shape[1:]).to(u) for part in range(2))
        target = diffused(pictures, times[0], shift)
        return guided_step(self.model, u, *times, target, noise, self.network.guidance)
