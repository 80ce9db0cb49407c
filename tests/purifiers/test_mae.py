"""The MAE purifier: any size, exact where its model is the identity, bounded memory, exact gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from maep.config.evaluation_settings import PurifySettings
from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.normalized_patches import restored_patches
from maep.purifiers import MAEPurifier
from maep.purifiers.tiling import Tiling

MODEL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=16,
    decoder_depth=1, decoder_heads=2, prediction="residual", residual_scale=0.01, refine_width=4, refine_depth=1,
)  # fmt: skip


def purifier(trained: bool = True, prediction: str = "residual", **settings: Any) -> MAEPurifier:
    """A real one; untrained it is the identity, `trained` gives all its weights random values."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(MODEL, prediction=prediction)).requires_grad_(False)
    for parameter in model.parameters() if trained else ():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return MAEPurifier(model, PurifySettings(**settings)).eval()


@contextmanager
def batches_of(module: nn.Module) -> Iterator[list[int]]:
    """The batch sizes that go through a module."""
    sizes: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    handle.remove()


@pytest.mark.parametrize(("overlap", "shifts"), [(0, 1), (5, 1), (0, 3), (5, 2)])
def test_identity_model_returns_the_input(overlap: int, shifts: int) -> None:
    """50 x 70, no multiple of the tile: nothing is lost or moved, at the borders neither."""
    images = torch.randint(0, 256, (2, 3, 50, 70)) / 255
    torch.testing.assert_close(purifier(False, overlap=overlap, shifts=shifts)(images), images, rtol=0, atol=1e-6)
    model = nn.Identity()
    model.config = MODEL  # type: ignore[assignment]
    exact = MAEPurifier(model, PurifySettings(overlap=overlap, shifts=shifts))  # type: ignore[arg-type]
    assert torch.equal(exact(images), images)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 40), (16, 1), (33, 16)])
def test_takes_any_size_and_stays_in_range(height: int, width: int) -> None:
    """The output has the input's shape and lies in [0, 1]."""
    purified = purifier(overlap=3)(torch.rand(2, 3, height, width).round())
    assert purified.shape == (2, 3, height, width)
    assert purified.min() >= 0
    assert purified.max() <= 1


def test_grid_without_overlap_is_tile_by_tile() -> None:
    """Each tile of a 32 x 48 image is purified as an image of its own."""
    net, images = purifier(), torch.rand(1, 3, 32, 48)
    purified = net(images)
    tile = net(images[:, :, 16:32, 32:48])
    torch.testing.assert_close(purified[:, :, 16:32, 32:48], tile)


def test_shifted_grids_are_averaged() -> None:
    """With 4 shifts the mean of the grids that begin 0, 4, 8 and 12 pixels before the image, each tile alone."""
    net, images = purifier(), torch.rand(1, 3, 32, 48) * 0.2 + 0.4
    grids = []
    for shift in (0, 4, 8, 12):
        padded = torch.nn.functional.pad(images, (shift, 16, shift, 16), mode="reflect")
        grids.append(net(padded)[:, :, shift : shift + 32, shift : shift + 48])
    torch.testing.assert_close(purifier(shifts=4)(images), torch.stack(grids).mean(0))


class Brighten(nn.Module):
    """Adds to a whole tile a tenth of its mean, so that every border shows."""

    config = MODEL

    def forward(self, tiles: Tensor) -> Tensor:
        return tiles + tiles.mean((1, 2, 3), keepdim=True) / 10


def test_seams_are_measured_and_softened() -> None:
    """Steps at the borders of a plain grid alone; blending and shifted grids lessen them; one tile has none."""
    images = torch.rand(4, 3, 64, 80) * 0.8

    def seams(**settings: int) -> tuple[Tensor, Tensor]:
        net = MAEPurifier(Brighten(), PurifySettings(**settings))  # type: ignore[arg-type]
        measured = net.seam_error(images, net(images))
        assert measured is not None
        return measured

    across, inside = seams()
    assert across.shape == inside.shape == (4,)
    assert across.min() > 1e-4
    assert inside.max() < 1e-6
    for softer in ({"overlap": 8}, {"shifts": 4}):
        assert (seams(**softer)[0] < across / 2).all()
    assert purifier(shifts=4).seam_error(images[:, :, :16, :9], images[:, :, :16, :9]) is None


def test_an_image_of_the_models_size_is_one_tile() -> None:
    """It goes through the network once, as it is."""
    net, images = purifier(overlap=4), torch.rand(3, 3, 16, 16)
    with batches_of(net.model) as sizes:
        purified = net(images)
    assert sizes == [3]
    assert torch.equal(purified, net.model(images).clamp(0, 1))


@pytest.mark.parametrize(("side", "ratio"), [(16, 0.0), (16, 0.5), (40, 0.0), (40, 0.5)])
def test_normalized_patches_get_mean_and_deviation_of_what_was_not_noised(side: int, ratio: float) -> None:
    """You et al.'s, by hand: P sees x + σn, the patches of x give theirs; of tiles each has its own."""
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    subject = purifier(prediction="normalized", noise=0.3, mask_ratio=ratio, batch_tiles=4)
    found = subject(images)
    subject.reseed(0)
    (draws,) = subject._drawn(images)
    noisy = images + 0.3 * torch.from_numpy(draws.noise)
    grid = Tiling(side, side, 16, 0)
    tiles, like = (noisy, images) if side == 16 else (grid.cut(noisy), grid.cut(images))
    shown = None if draws.visible is None else torch.from_numpy(draws.visible[0])
    predicted = subject.model(tiles, shown, normalized=True)
    expected = restored_patches(predicted, like, 4) if side == 16 else grid.join(restored_patches(predicted, like, 4))
    torch.testing.assert_close(found, expected.clamp(0, 1))


def test_passes_apply_it_again() -> None:
    """Two passes are the purifier of the purifier."""
    images = torch.rand(1, 3, 20, 20)
    torch.testing.assert_close(purifier(passes=2)(images), purifier()(purifier()(images)))


def test_never_more_than_batch_tiles_at_a_time() -> None:
    """2 images of 12 tiles in batches of 5, forward and, computed again, backward; the result is the same."""
    net, images = purifier(batch_tiles=5), torch.rand(2, 3, 40, 64)
    with batches_of(net.model) as sizes, torch.no_grad():
        torch.testing.assert_close(net(images), purifier()(images))
    assert sizes == [5, 5, 5, 5, 4]
    with batches_of(net.model) as sizes:
        net(images.requires_grad_()).sum().backward()
    assert sorted(sizes) == [4, 4] + [5] * 8


def saved_numbers(net: MAEPurifier, images: Tensor) -> int:
    """How many numbers a forward pass keeps for its backward pass."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        net(images.clone().requires_grad_())
    return total


def test_gradients_need_memory_for_one_batch_of_tiles() -> None:
    """Beyond images and tiles nothing is kept for the backward pass, where the whole network would be."""
    images = torch.rand(1, 3, 96, 96)
    bound = 3 * images.numel()
    assert saved_numbers(purifier(batch_tiles=4), images) < bound
    assert saved_numbers(purifier(batch_tiles=64), images) > 5 * bound


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"overlap": 5},
        {"batch_tiles": 2, "overlap": 3},
        {"passes": 2},
        {"shifts": 3},
        {"prediction": "normalized", "batch_tiles": 2},
    ],
)
def test_gradient_is_exact_through_tiles(settings: dict[str, Any]) -> None:
    """Autograd's gradient equals finite differences in double precision, with overlap, padding and batches."""
    net = purifier(**settings).double()
    images = torch.rand(1, 3, 18, 20, dtype=torch.float64) * 0.2 + 0.4
    assert torch.equal(net(images).clamp(1e-6, 1 - 1e-6), net(images)), "the check needs unclipped pixels"
    assert torch.autograd.gradcheck(net, images.requires_grad_(), fast_mode=True)


def test_batches_of_equal_images_fill_one_batch_of_tiles() -> None:
    """A 32 x 32 image is 4 tiles: 5 of them in 20 tiles; an image larger than a batch goes alone."""
    net = purifier(batch_tiles=20)
    assert net.images_at_once(32, 32) == 5
    assert net.images_at_once(16, 16) == 20
    assert net.images_at_once(500, 500) == 1
    assert purifier(batch_tiles=20, shifts=2).images_at_once(32, 32) == 2  # the shifted grid has 9


def test_refuses_other_shapes() -> None:
    """Grey images are not guessed at."""
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        purifier()(torch.rand(2, 1, 16, 16))


@pytest.mark.parametrize(
    "settings",
    [
        {"overlap": 4, "shifts": 2},
        {"noise": 0.1, "mask_ratio": 0.5, "batch_tiles": 4},
        {"prediction": "normalized", "noise": 0.1},
    ],
)
def test_nothing_is_left_on_the_host_or_read(settings: dict[str, Any], elsewhere: torch.device) -> None:
    """Forward and backward where the images are."""
    images = torch.rand(2, 3, 40, 24, device=elsewhere, requires_grad=True)
    purified = purifier(**settings).to(elsewhere)(images)
    purified.sum().backward()
    assert purified.device == elsewhere
    assert images.grad is not None


def test_grids_are_made_once_a_size() -> None:
    """The same size takes the grids that are there; results are those of a new purifier, whatever came before."""
    used = purifier(overlap=4, shifts=2)
    made = []
    for size in (24, 24, 30, 24):
        images = torch.rand(1, 3, size, 20)
        expected = purifier(overlap=4, shifts=2)(images)
        with mock.patch("maep.purifiers.mae.Tiling", side_effect=Tiling) as tiling:
            assert torch.equal(used(images), expected)
        made.append(tiling.call_count)
    assert made == [2, 0, 2, 2]


def test_grids_made_without_autograd_serve_with_it() -> None:
    """First used in inference mode, as purifying is, then attacked."""
    used, images = purifier(overlap=4), torch.rand(1, 3, 24, 24)
    with torch.inference_mode():
        used(images)
    images.requires_grad_()
    used(images).sum().backward()
    assert images.grad is not None
    assert images.grad.any()
