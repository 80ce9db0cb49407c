"""Large images by parts: the same bits as whole, whatever the size, the layout of tiles and the kind."""

import itertools

import numpy as np
import pytest
import torch

from maep.config.evaluation_settings import PurifySettings
from maep.config.training_settings import ModelSettings
from maep.data.purifying import check_memory, purify_pixels
from maep.data.shards import to_float, to_uint8
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier, Purifier
from maep.purifiers.parts import regrouped
from maep.purifiers.registry import purifier_class
from maep.runtime.errors import UserError

MODEL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=16,
    decoder_depth=1, decoder_heads=2,
)  # fmt: skip
LAYOUTS = [
    PurifySettings(batch_tiles=batch, overlap=overlap, shifts=shifts)
    for batch, overlap, shifts in itertools.product((3, 7), (0, 5, 11), (1, 3))
]
USES = [*LAYOUTS, PurifySettings(batch_tiles=3, noise=0.1), PurifySettings(batch_tiles=3, passes=2)]
FILTERS = [
    ("median", {}), ("median", {"window": 7}), ("bilateral", {}), ("non_local_means", {"patch": 5, "window": 7}),
    ("bit_depth", {}), ("jpeg", {}), ("jpeg", {"quality": 20}),
    ("jpeg", {"codec": "soft"}), ("gaussian_blur", {}), ("gaussian_noise", {}), ("resize_pad", {}),
    ("tvm", {"iterations": 4}),
]  # fmt: skip


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check(purifier: Purifier, pixels: np.ndarray) -> int:
    """Compares parts, joined, with the whole, in fp32 and in 8 bits; how many parts there were."""
    images = to_float(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2))
    joined, count = torch.full_like(images, -1), 0
    with torch.inference_mode():
        purifier.reseed(0)
        whole = purifier.purify(images)
        purifier.reseed(0)
        for top, left, part in purifier.purify_parts(lambda r, c: images[:, :, r, c], *images.shape[2:]):
            joined[:, :, top : top + part.shape[2], left : left + part.shape[3]] = part
            count += 1
    assert torch.equal(joined, whole)
    purifier.reseed(0)
    assert np.array_equal(purify_pixels(purifier, pixels), to_uint8(whole)[0].permute(1, 2, 0).numpy())
    return count


@pytest.mark.parametrize("size", [(16, 16), (1, 90), (90, 1), (5, 40), (61, 37), (48, 64)])
def test_bands_of_tiles(size: tuple[int, int]) -> None:
    """Plain, overlapping (also more than two tiles over a pixel) and shifted grids, with batches of any number."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(MODEL)
    counts = [check(MAEPurifier(model, use), picture(*size)) for use in USES]
    assert counts[-2:] == [1, 1]  # draws and second passes take the image whole
    assert min(size) < 37 or all(count > 1 for count in counts[:-2])


@pytest.mark.parametrize("size", [(20, 37), (129, 131), (200, 257), (1, 300)])
def test_filters(size: tuple[int, int]) -> None:
    """By blocks with what lies around them, or whole where a kind draws or multiplies matrices."""
    counts = []
    for kind, values in FILTERS:
        cls = purifier_class(kind)
        assert cls.Settings is not None
        counts.append(check(cls.from_config({kind: values}, {}), picture(*size)))
    blocks = -(-size[0] // 128) * -(-size[1] // 128)
    assert counts == [blocks] * 7 + [1] * 5


def test_regrouping_keeps_the_order() -> None:
    """Chunks of 2, 5 and 0 entries become threes, the last one of what is left."""
    chunks = regrouped(torch.arange(7).split([2, 5, 0]), 3)
    assert [chunk.tolist() for chunk in chunks] == [[0, 1, 2], [3, 4, 5], [6]]


def test_what_must_be_whole_is_bounded() -> None:
    """60 megapixels pass by parts; kinds that see the whole are refused by name, with the limit and its unit."""
    by_parts = [
        MAEPurifier(MaskedAutoencoder(MODEL), LAYOUTS[-1]),
        purifier_class("median").from_config({"median": {}}, {}),
    ]
    for purifier in by_parts:
        check_memory(purifier, 6336, 9504, 10**9, "a.png")
    noise = purifier_class("gaussian_noise").from_config({"gaussian_noise": {}}, {})
    check_memory(noise, 3000, 4000, 10**9, "a.png")
    with pytest.raises(UserError, match=r"a\.png: 9504 x 6336 pixels: .* gaussian_noise, .* the whole image .*"
                       r"4335 MB; compute\.image_memory=1000000000 allows 1000 MB"):  # fmt: skip
        check_memory(noise, 6336, 9504, 10**9, "a.png")
