"""ADP: noise, then ascent of a score network that is not told how much noise there is (Yoon, Hwang and Lee, ICML 2021).

    y = clip(x + σ·noise);   up to `steps` times   y ← clip(y + α·f(y)),   f = minus the noise that is found in y

The step α is adaptive: the smaller, the less f changes along itself; an image whose step has become small stays as it
is from then on. What is found is in units of the noise's deviation, of which the network is told nothing. The paper
attacks it by BPDA; exact gradients through its steps, α's way included, are no more than twenty questions long.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maep.config.setting import setting
from maep.models.noise_schedule import at_time, per_image
from maep.purifiers.denoising import DenoiserPurifier, TimedNetworkSettings
from maep.purifiers.sections import USED
from maep.purifiers.stepwise import Step
from maep.runtime.errors import fail
from maep.runtime.keyed_noise import normal_of

ASIDE = 1e-3  # how far along f the network is asked again, in units of the noise, as the authors'
SHORTEST, LONGEST = 1e-5, 0.1  # steps
SMALL = 1e-3  # an image whose step is not above it stays
# The authors map pixels by this, as dequantised ones lie, and with `drift` back after every step.
SCALE, SHIFT = 255 / 256, 1 / 512


@dataclass
class AdpSettings(TimedNetworkSettings):
    """Section `adp`. The defaults of its use are the authors' against an oblivious attacker; against BPDA they take
    sigma=0.25.
    """

    most: float = setting(
        0.5,
        "deviation of the noise up to which it is trained, from 0.01 on (the authors: 50)",
        unit="[0,1] pixels of noise",
        above=0.01,
        high=100.0,
    )
    sigma: float = setting(
        0.1, "deviation of the noise that is added", unit="[0,1] pixels", low=0.0, high=100.0, affects_result=USED
    )
    steps: int = setting(10, "steps, at most", low=1, high=10_000, affects_result=USED)
    rate: float = setting(0.05, "lambda, the adaptive step's size", above=0.0, high=10.0, affects_result=USED)
    drift: bool = setting(
        False, "widen contrast by a 255th after every step, as the authors' code does", affects_result=USED
    )

    @property
    def latest(self) -> float:
        """What the network holds as the end of its training: here a deviation."""
        return self.most


def adaptive_step(found: Tensor, aside: Tensor, rate: float) -> Tensor:
    """α of each image, [N], within its bounds: rate·δ / (1 - ⟨f, f'⟩/⟨f, f⟩), the shortest where f grows along itself.

    found: f(y), aside: f(y + δ·f(y)), both [N, 3, H, W], δ being ASIDE.
    """
    change = ((found - aside) * found).flatten(1).sum(1) / found.square().flatten(1).sum(1).clamp_min(1e-12)
    # As the quotient is bounded by its own bounds, a change of zero or less has no part in a derivative. The authors'
    # quotient is negative there, and their step the shortest.
    bounded = change.clamp(rate * ASIDE / LONGEST, rate * ASIDE / SHORTEST)
    return torch.where(change < 0, torch.full_like(change, SHORTEST), rate * ASIDE / bounded)


class AdpPurifier(DenoiserPurifier):
    """Noises images once, then follows the score in adaptive steps; its state is the image and whether it still moves,
    [N, 4, H, W]. Noise is drawn anew at every call; the authors average over ten draws, which is an evaluation's to do.
    """

    kind = "adp"
    Settings = AdpSettings
    network: AdpSettings
    network_kind = "score"

    @classmethod
    def check(cls, section: AdpSettings) -> None:
        """Raise UserError where the noise is more than the network has seen."""
        super().check(section)
        if section.sigma > section.most:
            fail(
                f"adp.sigma={section.sigma:g}: the network is trained up to adp.most={section.most:g}; choose less, or "
                "train it further"
            )

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """Noised, clipped to [0, 1] and moving."""
        noise = normal_of(seeds, 0, pictures.shape[1:]).to(pictures)
        y = SCALE * ((pictures + 1) / 2 + self.network.sigma * noise).clamp(0, 1) + SHIFT
        return torch.cat([y, torch.ones_like(y[:, :1])], 1)

    def steps(self, seeds: Tensor) -> list[Step]:
        """All alike; none draws."""
        return [self._step] * self.network.steps

    def result(self, state: Tensor, seeds: Tensor) -> Tensor:
        """The image of the state, in [-1, 1]."""
        y = state[:, :3]
        return 2 * (y if self.network.drift else (y - SHIFT) / SCALE) - 1

    def _step(self, state: Tensor, pictures: Tensor) -> Tensor:
        y, moves = state[:, :3], state[:, 3:]
        found = self._score(y)
        size = adaptive_step(found, self._score(y + ASIDE * found), self.network.rate)
        moves = moves * per_image((size > SMALL).to(y))
        moved = y + per_image(size) * found
        moved = ((moved - SHIFT) / SCALE).clamp(0, 1)
        return torch.cat([torch.where(moves > 0, moved if self.network.drift else SCALE * moved + SHIFT, y), moves], 1)

    def _score(self, y: Tensor) -> Tensor:
        """Minus the noise in images [N, 3, H, W], in units of its deviation; the time that is told never changes."""
        return -self.model(2 * y - 1, at_time(y, 0.0))
