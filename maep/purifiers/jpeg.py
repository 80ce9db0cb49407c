"""JPEG as a purifier: the codec throws away what people hardly see, perturbations among it.

Dziugaite et al. 2016; Das et al. 2017. `codec=pillow` is libjpeg itself, which has no gradient: an attacker takes the
identity's (BPDA). `codec=soft` is the same transform in torch with a rounding that has slopes (Shin and Song 2017), for
attackers, and for users who want a defense that hides no gradient.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import Filter, in_own_type, require_eager, require_images
from maep.purifiers.parts import in_fp32

# Tables K.1 and K.2 of ITU-T T.81, which every encoder scales by its quality.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *[(99,) * 8] * 4,
)  # fmt: skip
# JFIF's colours: rows Y, Cb, Cr of R, G, B; the chroma rows add 128 levels, which the level shift takes away again.
COLOURS = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
BLOCK = 8
LEVELS, SHIFT = 255, 128


@dataclass
class JpegSettings:
    """Section `jpeg`. Quality as libjpeg counts it; chroma at half the resolution (4:2:0), its default."""

    quality: int = setting(75, "quality, 100 the best", low=1, high=100)
    codec: str = setting(
        "pillow", "pillow: libjpeg, without gradients; soft: the same in torch, its rounding with slopes",
        choices=("pillow", "soft"),
    )  # fmt: skip


class JpegPurifier(Filter):
    """Compresses and decompresses each image."""

    kind = "jpeg"
    Settings = JpegSettings
    settings: JpegSettings

    def __init__(self, settings: JpegSettings) -> None:
        super().__init__(settings)
        self.is_differentiable = settings.codec == "soft"

    @property
    def reach(self) -> int | None:
        """As `Purifier.reach`: whole units, since blocks begin where units do; chroma is smoothed across borders.

        None for codec=soft, whose products of matrices have other last bits in blocks.
        """
        return None if self.is_differentiable else 2 * BLOCK

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: planes and their blocks; of codec=soft also two matrices that double an axis."""
        return 120 * height * width + 4 * (height**2 + width**2)

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range; of codec=pillow without a gradient.

        Raises ValueError for another shape, and where libjpeg's would be exported.
        """
        require_images(images)
        if self.is_differentiable:
            with in_own_type(images):
                return soft_jpeg(images, self.settings.quality)
        require_eager(self)
        return pillow_jpeg(images, self.settings.quality)


@torch.no_grad()
def pillow_jpeg(images: Tensor, quality: int) -> Tensor:
    """libjpeg, image by image, from and to 8-bit levels. images: [N, 3, H, W] in [0, 1]."""
    levels = (images.float().clamp(0, 1) * LEVELS).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.empty_like(levels)
    for place, pixels in enumerate(levels):
        decoded[place] = _recoded(pixels, quality)
    return (torch.from_numpy(decoded).permute(0, 3, 1, 2).float() / LEVELS).to(images)


def _recoded(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file).convert("RGB"))


def soft_jpeg(images: Tensor, quality: int) -> Tensor:
    """JPEG whose only rounding, that of the coefficients, is x → r + (x - r)³, r the nearest whole number.

    images: [N, 3, H, W] in [0, 1]; quality: 1 to 100. Returns the same shape, clipped; 8-bit levels are not rounded to.
    """
    kind, images = images.dtype, in_fp32(images)
    height, width = images.shape[2:]
    unit = 2 * BLOCK  # of 4:2:0: one block of chroma lies under four of luminance
    rows, columns = (ceil(length / unit) * unit for length in (height, width))
    images = images.index_select(2, _repeated(height, rows).to(images.device))
    images = images.index_select(3, _repeated(width, columns).to(images.device))
    colours = torch.tensor(COLOURS).to(images)
    planes = torch.einsum("kc,nchw->nkhw", colours, images * LEVELS)
    luminance = _quantised(planes[:, :1] - SHIFT, _table(LUMINANCE, quality).to(images)) + SHIFT
    halved = planes[:, 1:].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    halved = _quantised(halved, _table(CHROMINANCE, quality).to(images))
    inside = [ceil(length / 2) for length in (height, width)]  # beyond them nothing is taken in when doubling
    up, across = (_doubling(length).to(images) for length in inside)
    chroma = up @ halved[:, :, : inside[0], : inside[1]] @ across.T
    back = torch.from_numpy(np.linalg.inv(np.array(COLOURS))).to(images)
    decoded = torch.einsum(
        "kc,nchw->nkhw", back, torch.cat([part[:, :, :height, :width] for part in (luminance, chroma)], 1)
    )
    return (decoded / LEVELS).clamp(0, 1).to(kind)


def soft_round(values: Tensor) -> Tensor:
    """To the nearest whole number r, but r + (x - r)³, which has slopes everywhere except at the numbers themselves."""
    nearest = values.detach().round()
    return nearest + (values - nearest) ** 3


def _repeated(length: int, padded: int) -> Tensor:
    """Indices [padded] of an axis whose last pixel is repeated, as libjpeg fills its last blocks."""
    return torch.arange(padded).clamp(max=length - 1)


def _table(table: Sequence[Sequence[int]], quality: int) -> Tensor:
    """The steps of the coefficients [8, 8] at a quality, by libjpeg's rule (jpeg_quality_scaling)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * scale + 50) // 100).clamp(1, LEVELS)


def _cosines() -> Tensor:
    """The orthonormal transform (DCT-II) of 8 values, [8, 8]."""
    angle = (torch.arange(BLOCK)[None] * 2 + 1) * torch.arange(BLOCK)[:, None] * torch.pi / (2 * BLOCK)
    matrix = (2 / BLOCK) ** 0.5 * angle.cos()
    matrix[0] /= 2**0.5
    return matrix


def _quantised(planes: Tensor, steps: Tensor) -> Tensor:
    """Planes [N, C, H, W], whole blocks, with the coefficients of each block rounded to multiples of their steps."""
    cosines = _cosines().to(planes)
    blocks = planes.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    rounded = soft_round(cosines @ blocks @ cosines.T / steps) * steps
    return (cosines.T @ rounded @ cosines).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def _doubling(length: int) -> Tensor:
    """The matrix [2 length, length] of libjpeg's triangle filter: 3/4 of the nearer value and 1/4 of the other one."""
    place = torch.arange(length)
    other = torch.stack([place - 1, place + 1], 1).flatten().clamp(0, length - 1)  # at its ends, the value itself
    return 0.75 * torch.eye(length).repeat_interleave(2, 0) + 0.25 * torch.eye(length)[other]
