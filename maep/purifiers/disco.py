"""DISCO as a purifier: an implicit model of the clean image around each pixel (Ho and Vasconcelos, NeurIPS 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from maep.config.setting import setting
from maep.models.local_implicit import LocalImplicitNetwork
from maep.purifiers.base import section_of
from maep.purifiers.whole_image import WholeImagePurifier
from maep.runtime.errors import fail

# Of the published files beside the weights: EDSR's shift of colours, which DISCO never applies.
UNUSED = tuple(f"encoder.{part}_mean.{name}" for part in ("sub", "add") for name in ("weight", "bias"))


@dataclass
class DiscoSettings:
    """Section `disco`. The defaults are the published network; the bounds keep a saved one from taking the machine."""

    blocks: int = setting(16, "residual blocks of the encoder", low=0, high=256)
    features: int = setting(64, "channels of the encoder", low=1, high=2**12)
    hidden: list[int] = setting([256] * 4, "widths of the perceptron's hidden layers", low=1, high=2**16)


class DiscoPurifier(WholeImagePurifier):
    """Purifies images of any size whole; `purify.passes` above 1 is DISCO's cascade."""

    kind = "disco"
    Settings = DiscoSettings

    @classmethod
    def check(cls, section: DiscoSettings) -> None:
        """Raise UserError where the perceptron has no hidden layer."""
        if not section.hidden:
            fail("disco.hidden=[]: expected at least one width, such as 256")

    def widest(self) -> int:
        """As `WholeImagePurifier.widest`: encoder or perceptron."""
        return max(self.network.features, *self.network.hidden)

    @classmethod
    def build(cls, network: DiscoSettings) -> LocalImplicitNetwork:
        """As `WholeImagePurifier.build`."""
        return LocalImplicitNetwork(network.blocks, network.features, network.hidden)

    @classmethod
    def used(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All but the shift of colours."""
        return {name: tensor for name, tensor in tensors.items() if name not in UNUSED}

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor], path: Path) -> DiscoSettings:
        """As `WholeImagePurifier.described`."""
        blocks = sum(name.startswith("encoder.body.") and name.endswith(".body.0.weight") for name in tensors)
        head = tensors.get("encoder.head.0.weight")
        layers = {
            name: tensor for name, tensor in tensors.items() if name.startswith("imnet.layers.") and tensor.ndim == 2
        }
        widths = [len(layers[name]) for name in sorted(layers, key=lambda name: int(name.split(".")[2]))]
        if head is None or len(widths) < 2:
            return DiscoSettings()
        return section_of(DiscoSettings, {"blocks": blocks, "features": len(head), "hidden": widths[:-1]}, str(path))
