"""JPEG: libjpeg's own bits, its tables, and the soft codec against it."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maep.config.load import load_settings
from maep.purifiers import jpeg
from maep.purifiers.jpeg import CHROMINANCE, LUMINANCE, JpegPurifier, JpegSettings, pillow_jpeg, soft_jpeg, soft_round
from maep.runtime.errors import UserError

QUALITIES = (10, 50, 75, 95)


def pictures(height: int = 40, width: int = 40) -> Tensor:
    """Smooth colours of 8-bit levels."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, (height, width), mode="bilinear") * 255).round() / 255


def test_pillow_is_the_codec() -> None:
    """One image through a file of the same quality, 4:2:0."""
    images = pictures()
    file = io.BytesIO()
    pixels = (images[1] * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=75, subsampling=2)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    purifier = JpegPurifier(JpegSettings())
    assert torch.equal(purifier(images)[1], expected)
    assert not purifier.is_differentiable


@pytest.mark.parametrize("quality", [1, 30, 50, 75, 100])
def test_tables_are_libjpegs(quality: int) -> None:
    """As it writes them into its files."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    for number, table in enumerate((LUMINANCE, CHROMINANCE)):
        assert tables[number] == jpeg._table(table, quality).flatten().tolist()


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("size", [(40, 40), (17, 30)])
def test_soft_is_the_same_transform(quality: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded hard, libjpeg's result but for the whole numbers between its steps: at most 2 levels on average.

    With the soft one it is as near as the rounding allows, and far nearer than the image itself.
    """
    images = pictures(*size)
    exact, soft = pillow_jpeg(images, quality), soft_jpeg(images, quality)
    monkeypatch.setattr(jpeg, "soft_round", torch.round)
    assert (soft_jpeg(images, quality) - exact).abs().mean() * 255 < 2.0
    assert (soft - exact).abs().mean() < 0.4 * (images - exact).abs().mean()


def test_soft_rounding() -> None:
    """Whole numbers stay, halves move least; its slope is 3 (x - r)²."""
    values = torch.tensor([0.0, 0.25, -1.4], requires_grad=True)
    rounded = soft_round(values)
    torch.testing.assert_close(rounded, torch.tensor([0.0, 0.25**3, -1 - 0.4**3]))
    (gradient,) = torch.autograd.grad(rounded.sum(), values)
    torch.testing.assert_close(gradient, 3 * torch.tensor([0.0, 0.25, 0.4]).square())


def test_soft_gradients_are_exact() -> None:
    """Against finite differences, at a quality whose steps are fine enough for none to fall on a half."""
    images = 0.2 + 0.6 * torch.rand(1, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    purifier = JpegPurifier(JpegSettings(quality=60, codec="soft"))
    assert purifier.is_differentiable
    assert torch.autograd.gradcheck(purifier, images.requires_grad_(), eps=1e-7, atol=1e-4)


def test_bad_settings_are_refused() -> None:
    """A quality beyond 100, an unknown codec; libjpeg in an export."""
    with pytest.raises(UserError, match=r"jpeg\.quality=101.*must be at most 100"):
        load_settings(None, ["purifier.kind=jpeg", "jpeg.quality=101"])
    with pytest.raises(UserError, match=r"jpeg\.codec=webp.*choose one of pillow, soft"):
        load_settings(None, ["purifier.kind=jpeg", "jpeg.codec=webp"])
    with pytest.raises(ValueError, match="jpeg.*cannot be exported"):
        torch.jit.trace(JpegPurifier(JpegSettings()), torch.rand(1, 3, 8, 8))
