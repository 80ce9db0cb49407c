"""Hill et al.'s defense: a long Langevin walk on a learnt energy forgets the attack (ICLR 2021, Stochastic Security).

    u ← u - ∇U(u) + ε·noise, `steps` times, from the image itself; nothing is clipped before the end

They average what the classifier says after 150 such walks; an evaluation here says what one is worth, and how many
together (`evaluation.draws`). With leaky rectifiers, as published, U is linear in pieces: its second derivative is 0
wherever it has one, so the exact gradient of the walk is the identity's (nothing is computed for it), and BPDA's
attacker has all that a gradient can tell. With `activation=silu` each step's Hessian product is taken, exactly.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from maep.config import schema
from maep.config.evaluation_settings import PurifySettings
from maep.config.setting import setting
from maep.models.energy_network import HALVINGS, SIDE, EnergyNetwork, langevin_step, padded_side
from maep.models.weights import read_weights
from maep.purifiers.base import section_of
from maep.purifiers.denoising import DenoiserPurifier
from maep.purifiers.sections import USED
from maep.purifiers.stepwise import Step, gradient_within
from maep.runtime.errors import fail
from maep.runtime.keyed_noise import normal_of

SMOOTH = ("silu",)  # activations by which an energy has a second derivative


@dataclass
class EbmSettings:
    """Section `ebm`. The defaults are the authors' for CIFAR-10."""

    width: int = setting(32, "channels of the first layer, doubled by each of three more", low=1, high=2**12)
    activation: str = setting(
        "leaky_relu", "between layers; silu: has a second derivative, where leaky_relu, as published, has none",
        choices=("leaky_relu", "silu"),
    )  # fmt: skip
    noise: float = setting(0.01, "deviation of a Langevin step's noise, in units of [-1, 1] pixels", above=0.0, high=10)
    chain_steps: int = setting(100, "steps that a training step's chains are taken further", low=1, high=100_000)
    chain_start: str = setting(
        "uniform", "where a chain begins: at uniform noise, or, for a short training, at its image",
        choices=("uniform", "images"),
    )  # fmt: skip
    data_noise: float = setting(
        0.02, "deviation of the noise on training images, in units of [-1, 1] pixels", low=0.0, high=10.0
    )
    steps: int = setting(1500, "Langevin steps of purifying", low=1, high=100_000, affects_result=USED)


class EbmPurifier(DenoiserPurifier):
    """Walks from the image on the energy. Noise is drawn anew at every call.

    Trained by `objective.name=energy` on clean images and one chain for each of them, which goes on where it was left
    when the image comes again; checkpoints hold all chains. Where the authors end with plain SGD, the rate falls.
    """

    kind = "ebm"
    Settings = EbmSettings
    network: EbmSettings
    network_kind = "energy"

    @classmethod
    def check(cls, section: EbmSettings) -> None:
        """Every combination fits."""

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As `Purifier.check_settings`: the chains of a training need the network whole on every process, and images
        that the network sees without a padding, in which no chain would be where the images are.
        """
        super(DenoiserPurifier, cls).check_settings(settings)
        size = settings.model.image_size
        if size != padded_side(size):
            fail(f"model.image_size={size}: is halved by the layers of ebm down to {SIDE // HALVINGS} pixels at least; "
                 f"choose a multiple of {HALVINGS} from {SIDE} on")  # fmt: skip
        if settings.compute.zero_stage == 3:
            fail("compute.zero_stage=3: the chains of ebm need the network whole on every process; set it up to 2")

    @classmethod
    def build(cls, section: EbmSettings) -> nn.Module:
        """As `DenoiserPurifier.build`."""
        return EnergyNetwork(
            section.width, section.activation, section.noise, section.chain_steps, section.data_noise,
            section.chain_start,
        )  # fmt: skip

    @classmethod
    def from_published(cls, path: Path) -> Self:
        """The purifier in the authors' `ebm.pth`, of any width, with their settings for CIFAR-10."""
        tensors = read_weights(path)
        first = tensors.get("f.0.weight")
        values = {} if first is None else {"width": len(first)}
        section = section_of(EbmSettings, values, str(path))
        return cls(cls.loaded(section, tensors, path), section, PurifySettings())

    def side_taken(self, side: int) -> int:
        """As `DenoiserPurifier.side_taken`: pixels of the padding walk by themselves. Were the padding left to the
        network, a pixel of the border would feel the slopes of all its copies, and take so many steps at once.
        """
        return padded_side(side)

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """The pictures as they are."""
        return pictures

    def steps(self, seeds: Tensor) -> list[Step]:
        """Langevin's."""
        return [partial(self._step, seeds, number) for number in range(self.network.steps)]

    def _step(self, seeds: Tensor, number: int, u: Tensor, pictures: Tensor) -> Tensor:
        at = u if self.network.activation in SMOOTH else u.detach()
        gradient = gradient_within(lambda at: self.model(at).sum(), at, self.model)
        return langevin_step(gradient, u, self.network.noise, normal_of(seeds, number, u.shape[1:]).to(u))

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: a derivative with its graph, 33 a channel of the finest level."""
        return 40 * self.network.width * self.side_taken(height) * self.side_taken(width)
