"""A plain convolutional denoiser as a purifier: the least that learns from pairs, for others to be compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from maep.config.setting import setting
from maep.models.convolutions import ResidualDenoiser
from maep.purifiers.base import section_of
from maep.purifiers.whole_image import WholeImagePurifier


@dataclass
class ResidualCnnSettings:
    """Section `residual_cnn`. The defaults have DISCO's encoder's size; the bounds keep a saved one from taking the
    machine.
    """

    width: int = setting(64, "channels", low=1, high=2**12)
    depth: int = setting(16, "residual blocks", low=0, high=256)
    scale: int = setting(1, "the blocks work on pixels unshuffled by this factor", choices=(1, 2, 4))
    unit: float = setting(
        8 / 255, "unit of the predicted noise; a fraction may be written", unit="[0,1] pixels", above=0.0, high=1.0
    )


class ResidualCnnPurifier(WholeImagePurifier):
    """Purifies images of any size whole; `purify.passes` above 1 is a cascade."""

    kind = "residual_cnn"
    Settings = ResidualCnnSettings

    def widest(self) -> int:
        """As `WholeImagePurifier.widest`: of the blocks, at a scale a share of the pixels; or the image unshuffled."""
        scaled = -(-self.network.width // self.network.scale**2)
        return max(scaled, 3)

    @classmethod
    def build(cls, network: ResidualCnnSettings) -> ResidualDenoiser:
        """As `WholeImagePurifier.build`."""
        return ResidualDenoiser(network.width, network.depth, network.scale, network.unit)

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor], path: Path) -> ResidualCnnSettings:
        """As `WholeImagePurifier.described`; the unit is not in the tensors, and is the default's."""
        head = tensors.get("head.weight")
        if head is None or head.ndim != 4:
            return ResidualCnnSettings()
        depth = sum(name.startswith("blocks.") and name.endswith(".conv1.weight") for name in tensors)
        values = {"width": len(head), "depth": depth, "scale": round((head.shape[1] / 3) ** 0.5)}
        return section_of(ResidualCnnSettings, values, str(path))
