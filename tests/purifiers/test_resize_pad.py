"""Random resizing and padding: Pillow's bicubic, nine places, a draw for each image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maep.config.load import load_settings
from maep.purifiers.resize_pad import ResizePadPurifier, ResizePadSettings, bicubic, placed
from maep.runtime.errors import UserError

WHITE = torch.ones(40, 3, 32, 32)


def test_the_kernel_is_pillows() -> None:
    """Smaller and larger, against Pillow on float images."""
    image = np.random.default_rng(0).random((20, 31), dtype=np.float32)
    for height, width in ((18, 29), (7, 12), (23, 40)):
        expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        resized = bicubic(20, height) @ torch.from_numpy(image) @ bicubic(31, width).T
        np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_each_image_is_small_and_lies_somewhere_on_black() -> None:
    """Of white images: a rectangle of a drawn size at one of nine places, or the image itself."""
    result = ResizePadPurifier(ResizePadSettings())(WHITE)
    sizes, places = set(), set()
    for image in result:
        rows, columns = (image[0].amax(axis).gt(0.5).nonzero().flatten() for axis in (1, 0))
        sizes.add(len(rows))
        assert len(rows) == len(columns)
        assert image[0].sum() == pytest.approx(len(rows) * len(columns), abs=1e-3)
        gap = 32 - len(rows)
        if gap:
            places.add((int(rows[0]) * 2 // gap, int(columns[0]) * 2 // gap))
    assert sizes == {28, 29, 30, 31, 32}
    assert len(places) > 6
    assert places <= {(row, column) for row in range(3) for column in range(3)}


def test_a_size_is_rounded_down_of_what_it_is_on_paper() -> None:
    """Not of its floating-point number, which may lie just below; of any share and side."""
    for percent in (2, 4, 6, 8, 10, 30):
        for side in range(1, 400):
            rows = placed(side, 1 - percent / 100, 1.0).any(1).sum()
            assert rows == max(1, side * (100 - percent) // 100), (percent, side)


def test_a_batch_does_not_share_its_draw() -> None:
    """The same picture in one batch comes out in several ways."""
    assert len({tuple(image.flatten().tolist()) for image in ResizePadPurifier(ResizePadSettings())(WHITE)}) > 5


def test_gradients_are_exact() -> None:
    """For each draw a linear map, clipped."""
    images = (0.2 + 0.6 * torch.rand(2, 3, 10, 12, dtype=torch.float64)).requires_grad_()
    images = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False).detach().requires_grad_()  # clipped nowhere
    purifier = ResizePadPurifier(ResizePadSettings(probability=1.0, shrink=[0.2]))

    def drawn(images: torch.Tensor) -> torch.Tensor:
        purifier.reseed(3)
        return purifier(images)

    assert torch.autograd.gradcheck(drawn, images, atol=1e-4)


def test_bad_settings_are_refused() -> None:
    """Nothing to draw from; a share that leaves nothing; an export."""
    with pytest.raises(UserError, match=r"resize_pad\.shrink=\[\]: expected at least one share"):
        load_settings(None, ["purifier.kind=resize_pad", "resize_pad.shrink=[]"])
    with pytest.raises(UserError, match=r"resize_pad\.shrink=1\.0.*must be at most 0\.9"):
        load_settings(None, ["purifier.kind=resize_pad", "resize_pad.shrink=[1.0]"])
    with pytest.raises(ValueError, match="resize_pad.*cannot be exported"):
        torch.jit.trace(ResizePadPurifier(ResizePadSettings()), torch.rand(1, 3, 8, 8))
