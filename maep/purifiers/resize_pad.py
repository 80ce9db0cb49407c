"""Random resizing and padding as a purifier: the attacker does not know where the pixels will lie.

After Xie et al. 2018 ("Mitigating Adversarial Effects Through Randomization"), at the size of the image as DISCO's
comparison has it: shrunk a little at random, bicubic, and put at a random place on black. Linear for each draw, so
gradients are exact, and an attacker who averages over draws (EOT) breaks it (Athalye et al. 2018).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import RandomFilter, in_own_type, require_eager, require_images
from maep.runtime.errors import fail

PLACES = (0.0, 0.5, 1.0)  # of the gap left or above: at one end, in the middle, at the other end
ROUNDING = 1e-6  # of a pixel: 90 · (1 - 0.3) is a little below 63
SHARPNESS = -0.5  # of the cubic kernel: Catmull-Rom's, which Pillow takes


@dataclass
class ResizePadSettings:
    """Section `resize_pad`; the defaults are those of DISCO's comparison."""

    probability: float = setting(0.8, "share of images that are resized", above=0.0, high=1.0)
    shrink: list[float] = setting(
        [0.1, 0.08, 0.06, 0.04, 0.02], "shares of the side by which an image is made smaller; one is drawn",
        above=0.0, high=0.9,
    )  # fmt: skip


class ResizePadPurifier(RandomFilter):
    """Each image is made smaller and lies at one of nine places on black, drawn anew at every call and for each."""

    kind = "resize_pad"
    Settings = ResizePadSettings
    settings: ResizePadSettings

    @classmethod
    def check(cls, section: ResizePadSettings) -> None:
        """Raise UserError where there is no share to draw."""
        if not section.shrink:
            fail("resize_pad.shrink=[]: expected at least one share, such as 0.1")

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: copies of the image, and two square matrices, each in three steps."""
        return super().bytes_taken(height, width) + 12 * (height**2 + width**2)

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range.

        Raises ValueError for another shape, and where it is exported.
        """
        require_images(images)
        require_eager(self)
        if not len(images):
            return images
        height, width = images.shape[2:]
        pairs = [self._drawn(height, width) for _ in range(len(images))]
        rows, columns = (torch.stack(each).to(images) for each in zip(*pairs, strict=True))
        with in_own_type(images):
            return (rows[:, None] @ images @ columns[:, None].transpose(2, 3)).clamp(0, 1)

    def _drawn(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The two matrices that resize and place one image; every image draws four numbers, whatever they are."""
        chance, share, top, left = self.rng.random(4)
        if chance >= self.settings.probability:
            return torch.eye(height), torch.eye(width)
        factor = 1 - self.settings.shrink[int(share * len(self.settings.shrink))]
        row, column = (PLACES[int(place * len(PLACES))] for place in (top, left))
        return placed(height, factor, row), placed(width, factor, column)


def placed(length: int, factor: float, place: float) -> Tensor:
    """The matrix [length, length] that makes an axis smaller and pads it with zeros.

    factor: new length over old, rounded down, at least 1 pixel; place: share of the gap that lies before it.
    """
    size = max(1, int(length * factor + ROUNDING))
    matrix = torch.zeros(length, length)
    start = int(place * (length - size))
    matrix[start : start + size] = bicubic(length, size)
    return matrix


def bicubic(length: int, size: int) -> Tensor:
    """The matrix [size, length] that resizes an axis by the cubic kernel, widened against aliasing, as Pillow does."""
    ratio = max(1.0, length / size)
    centres = (np.arange(size) + 0.5) * length / size
    distance = np.abs((np.arange(length) + 0.5)[None] - centres[:, None]) / ratio
    near = (SHARPNESS + 2) * distance**3 - (SHARPNESS + 3) * distance**2 + 1
    far = SHARPNESS * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))
