"""The median filter as a purifier: no weights, nothing drawn. It is the baseline that a trained purifier must beat.

Median smoothing was proposed against adversarial perturbations by Xu, Evans and Qi 2018 ("Feature Squeezing"); an
attacker who differentiates through it breaks it.
"""

from dataclasses import dataclass

from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import Filter, is_recorded, require_images
from maep.purifiers.tiling import reflected_around
from maep.runtime.errors import fail


@dataclass
class MedianSettings:
    """Section `median`. A window of 1 would be the identity; one above 15 leaves nothing of a 32 x 32 image."""

    window: int = setting(3, "side of the square whose median each pixel becomes; odd", unit="pixels", low=3, high=15)


class MedianPurifier(Filter):
    """Each pixel of each channel becomes the median of the window around it; images are mirrored at their ends."""

    kind = "median"
    Settings = MedianSettings
    settings: MedianSettings

    @classmethod
    def check(cls, section: MedianSettings) -> None:
        """Raise UserError for a window that has no middle."""
        if section.window % 2 == 0:
            fail(f"median.window={section.window}: must be odd, such as {section.window + 1}")

    @property
    def reach(self) -> int:
        """As `Purifier.reach`: half the window."""
        return self.settings.window // 2

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: values and their order, 20 bytes, of each window."""
        return (20 * self.settings.window**2 + 40) * 3 * height * width

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range.

        The gradient goes to the pixel that was the median. Raises ValueError for another shape.
        """
        require_images(images)
        side = self.settings.window
        windows = reflected_around(images, side // 2).unfold(2, side, 1).unfold(3, side, 1).flatten(-2)
        middle = side**2 // 2
        if is_recorded():  # ONNX has no stable sort; the values, all that an export needs, are the same
            return windows.topk(middle + 1, largest=False).values[..., middle]
        # torch.median may pick any of equal values on CUDA, and so another gradient each time; a stable sort may not.
        return windows.sort(dim=-1, stable=True).values[..., middle]
