"""FlowPure: a flow from attacked to clean images, followed in a few steps (Collaert et al. 2025).

Its velocities are learnt from the run's own pairs (`objective.name=flow`), so it knows the attack it was trained on. It
adds no noise and draws none: its gradient is an attacker's for the asking.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from maep.config import schema
from maep.config.setting import setting
from maep.models.noise_schedule import at_time
from maep.purifiers.denoising import DenoiserPurifier, TimedNetworkSettings
from maep.purifiers.sections import USED
from maep.purifiers.stepwise import Step
from maep.runtime.errors import fail


@dataclass
class FlowPureSettings(TimedNetworkSettings):
    """Section `flowpure`. The default of its use is the authors', and their attackers' surrogate takes 4 steps."""

    latest: ClassVar[float] = 1.0  # its time is a share of the way, all of which is trained
    steps: int = setting(9, "Euler steps from the attacked image to the clean one", low=1, high=10_000,
                         affects_result=USED)  # fmt: skip


class FlowPurePurifier(DenoiserPurifier):
    """Follows the velocities that a network predicts, at equal distances in time from 0 to 1.

    The authors' variant that starts from noise is not here. Their network is given the time as it is, where its
    embedding is made for a thousand times that, and hardly sees it; ours sees it.
    """

    kind = "flowpure"
    Settings = FlowPureSettings
    network: FlowPureSettings
    network_kind = "velocity"
    stages = ("shards", "classifier", "attack", "pretrain")

    @property
    def is_random(self) -> bool:
        """As `Purifier.is_random`; here never."""
        return False

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As `Purifier.check_settings`: what is attacked whole is a map of images, and this network is none."""
        super().check_settings(settings)
        if "whole" in (settings.pretrain.attacked, settings.finetune.attacked):
            fail("pretrain.attacked=whole: flowpure is trained on pairs; set it to classifier")

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """The pictures as they are."""
        return pictures

    def steps(self, seeds: Tensor) -> list[Step]:
        """Euler's, each a step's share of the way along the velocity at its beginning."""
        return [partial(self._step, number / self.network.steps) for number in range(self.network.steps)]

    def _step(self, t: float, u: Tensor, pictures: Tensor) -> Tensor:
        moved: Tensor = u + self.model(u, at_time(u, t)) / self.network.steps
        return moved
