"""The paper's purifier: a masked autoencoder that removes perturbations it was trained on (arXiv 2501.16904)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maep.config.consistency import check_model
from maep.config.evaluation_settings import PurifySettings
from maep.config.schema import Settings
from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.official import load_initial
from maep.models.weights import build_with_weights
from maep.purifiers.adapter import merge_adapter
from maep.purifiers.base import UNNAMED, Source, TileLayout, TrainedPurifier, is_recorded, require_images, section_of
from maep.purifiers.parts import Part, Read, regrouped
from maep.purifiers.registry import DEFAULT_STAGES
from maep.purifiers.tiling import Tiling, seam_error
from maep.runtime.compiling import compiled_copy
from maep.runtime.device import upload
from maep.runtime.errors import fail
from maep.runtime.randomness import SideBySide, keyed_rng


def tile_options(options: PurifySettings, size: int) -> dict[str, PurifySettings]:
    """Ways to lay tiles of side `size` over an image: the three there are, and the one in use if it is another."""
    plain = replace(options, overlap=0, shifts=1)
    layouts = {
        "plain": plain,
        # A quarter of a tile, and four grids: enough to hide a seam, at 1.8 and 4 times the forward passes.
        "overlapping, blended": replace(plain, overlap=size // 4),
        "shifted, averaged": replace(plain, shifts=4),
    }
    return layouts if options in layouts.values() else {**layouts, "as used": options}


class Draws(NamedTuple):
    """What a pass over N images draws. noise: [N, 3, H, W], of deviation 1, or None; visible: of each grid the patches
    shown of its K tiles an image, bool [N * K, T], or None.
    """

    noise: np.ndarray | None
    visible: list[np.ndarray] | None


class MAEPurifier(TrainedPurifier):
    """Purifies with a masked autoencoder that sees the whole image (r = 0), tile by tile where it is larger.

    model: takes and returns [N, 3, s, s], s = model.config.image_size.
    settings: tiles a forward, overlap, shifted grids, passes; noise and mask_ratio, drawn anew at every call.
    Its settings are the sections `model`, `objective`, `pretrain`, `finetune` and `purify`.
    """

    kind = "maep"
    options = tuple(item.name for item in fields(PurifySettings))
    stages = DEFAULT_STAGES

    model: MaskedAutoencoder

    def __init__(self, model: MaskedAutoencoder, settings: PurifySettings) -> None:
        super().__init__(model, model.config, settings)
        self._kept_grids: list[Tiling] = []
        self._grids_key: tuple[object, ...] | None = None  # what they are for
        self.reseed(0)

    @property
    def is_random(self) -> bool:
        """Whether noise or masks are drawn."""
        return bool(self.settings.noise or self.settings.mask_ratio)

    def reseed(self, *key: int) -> None:
        """Start the noise and masks at `key`; images draw one after another, all of one before the next one's."""
        self.reseed_each([key])

    def reseed_each(self, keys: Sequence[tuple[int, ...]]) -> None:
        """Of images that are so many batches, one after the other, each has the draws of its own key."""
        self._rng = SideBySide([keyed_rng("purifier", *key) for key in keys])

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape, clipped to [0, 1].

        At most `batch_tiles` tiles are in the network at a time, also in the backward pass, which computes
        activations again where there is more than one batch of tiles; an exported or traced purifier takes all at once.
        Raises ValueError for another shape, and for exporting one that draws random numbers.
        """
        require_images(images)
        if self.is_random and is_recorded():
            raise ValueError(
                "purify.noise and purify.mask_ratio must be 0 in an export: it would repeat one draw for ever"
            )
        if self.is_random and not len(images):  # of which nothing can be drawn
            return images
        for draws in self._drawn(images):
            images = self._once(images, draws).clamp(0, 1)
        return images

    def _drawn(self, images: Tensor) -> list[Draws]:
        """For each pass. An image draws for all passes before the next one does: no batch decides what it gets."""
        if not self.is_random:
            return [Draws(None, None)] * self.settings.passes
        count, passes, patches = len(images), self.settings.passes, self.model.num_patches
        tiles = [grid.rows * grid.columns for grid in self._grids(*images.shape[-2:])]
        noise = np.empty((passes, *images.shape) if self.settings.noise else 0, np.float32)
        visible = [np.empty((passes, count, each, patches) if self.settings.mask_ratio else 0, bool) for each in tiles]
        for image, rng in enumerate(self._rng.of_images(count)):
            for number in range(passes):
                if self.settings.noise:
                    noise[number, image] = rng.standard_normal(images.shape[1:], dtype=np.float32)
                if self.settings.mask_ratio:
                    for shown in visible:
                        shown[number, image] = self._visible(rng, shown.shape[2])
        return [
            Draws(
                noise[number] if self.settings.noise else None,
                [shown[number].reshape(-1, patches) for shown in visible] if self.settings.mask_ratio else None,
            )
            for number in range(passes)
        ]

    def _visible(self, rng: np.random.Generator, tiles: int) -> np.ndarray:
        """Patches shown of each tile, equally many: bool [tiles, T]."""
        patches = self.model.num_patches
        hidden = min(patches - 1, round(self.settings.mask_ratio * patches))
        shown: np.ndarray = rng.random((tiles, patches)).argsort(1) >= hidden
        return shown

    def _noisy(self, images: Tensor, noise: np.ndarray | None) -> Tensor:
        if noise is None:
            return images
        return images + self.settings.noise * upload(torch.from_numpy(noise), images.device).to(images.dtype)

    def images_at_once(self, height: int, width: int) -> int:
        """As many as fill one batch of tiles."""
        return max(1, self.settings.batch_tiles // max(grid.rows * grid.columns for grid in self._grids(height, width)))

    def seam_error(self, images: Tensor, purified: Tensor) -> tuple[Tensor, Tensor] | None:
        """As `Purifier.seam_error`, over the borders of all grids; None where one tile holds the image."""
        borders = [grid.borders() for grid in self._grids(*images.shape[-2:])]
        rows, columns = (torch.stack(along).any(0) for along in zip(*borders, strict=True))
        if not bool(rows.any() | columns.any()):
            return None
        return seam_error(purified - images, (rows.to(images.device), columns.to(images.device)))

    def _grids(self, height: int, width: int) -> list[Tiling]:
        """The grids whose results are averaged; one where a tile holds the image, since that has no seams."""
        size, overlap = self.model.config.image_size, self.settings.overlap
        shifts = 1 if height <= size and width <= size else self.settings.shifts
        return [Tiling(height, width, size, overlap, (size - overlap) * number // shifts) for number in range(shifts)]

    def _grids_on(self, images: Tensor) -> list[Tiling]:
        """`_grids` of these images, on their device: those of the images before where they fit, as they mostly do."""
        height, width = images.shape[-2:]
        key = (height, width, images.device, images.dtype, self.settings.overlap, self.settings.shifts)
        if is_recorded() or torch.compiler.is_compiling():  # what is made now belongs to the recording
            return [grid.to(images) for grid in self._grids(height, width)]
        if key != self._grids_key:
            with torch.inference_mode(False):  # or autograd could not use them later
                self._kept_grids = [grid.to(images) for grid in self._grids(height, width)]
            self._grids_key = key
        return self._kept_grids

    def _once(self, images: Tensor, draws: Draws) -> Tensor:
        noisy, size = self._noisy(images, draws.noise), self.model.config.image_size
        # Normalized patches get the mean and deviation that they have without the noise, as NIM-MAE's do.
        like = images if draws.noise is not None and self.model.config.prediction == "normalized" else None
        if images.shape[-2:] == (size, size):
            return self._tiles(noisy, None if draws.visible is None else draws.visible[0], like)
        grids = self._grids_on(noisy)
        removed = torch.zeros_like(noisy)
        for number, grid in enumerate(grids):
            tiles = grid.cut(noisy)
            shown = None if draws.visible is None else draws.visible[number]
            purified = self._tiles(tiles, shown, None if like is None else grid.cut(like))
            removed = removed + grid.join(purified - tiles)
        return noisy + removed / len(grids)

    def _tiles(self, tiles: Tensor, visible: np.ndarray | None, like: Tensor | None) -> Tensor:
        """Drawn before the batches, masks are the same when activations are computed again."""
        if is_recorded():
            return cast(Tensor, self.model(tiles))
        size = self.settings.batch_tiles
        batches = tiles.split(size)
        mask: list[Sequence[Tensor | None]] = [[None] * len(batches)] * 2
        if visible is not None:
            index = visible.nonzero()[1].reshape(len(tiles), -1)  # of the patches shown, int64 [N, K]
            mask = [upload(torch.from_numpy(each), tiles.device).split(size) for each in (visible, index)]
        alike = [None] * len(batches) if like is None else like.split(size)
        parts = list(zip(batches, *mask, alike, strict=True))
        if len(parts) > 1 and torch.is_grad_enabled() and tiles.requires_grad:
            return torch.cat([checkpoint(self._through_model, *part, use_reentrant=False) for part in parts])
        return torch.cat([self._through_model(*part) for part in parts])

    def _through_model(
        self, tiles: Tensor, visible: Tensor | None = None, shown: Tensor | None = None, like: Tensor | None = None
    ) -> Tensor:
        masked = {} if visible is None else {"visible": visible, "index": shown}
        restored = {} if like is None else {"like": like}
        return cast(Tensor, self.model(tiles, **masked, **restored))

    # large images

    def _is_by_bands(self, height: int, width: int) -> bool:
        """Whether an image is purified by bands: draws, and passes over what was purified, need the whole of it."""
        tiles = max(grid.rows * grid.columns for grid in self._grids(height, width))
        return tiles > self.settings.batch_tiles and not self.is_random and self.settings.passes == 1

    def part_size(self, height: int, width: int) -> tuple[int, int]:
        """As `Purifier.part_size`: the rows of tiles of a batch, and those that overlap them."""
        if not self._is_by_bands(height, width):
            return height, width
        grid = self._grids(height, width)[0]
        rows = math.ceil(self.settings.batch_tiles / grid.columns) + math.ceil(grid.size / grid.stride)
        return min(height, rows * grid.size), width

    def purify_parts(self, read: Read, height: int, width: int) -> Iterator[Part]:
        """As `Purifier.purify_parts`, by bands of rows where an image has more than one batch of tiles."""
        if not self._is_by_bands(height, width):
            yield from super().purify_parts(read, height, width)
            return
        grids, top = self._grids(height, width), 0
        removed = [self._removed_bands(grid, lambda rows: read(rows, slice(0, width))) for grid in grids]
        for bands in zip(*removed, strict=True):
            images = read(slice(top, top + bands[0].shape[2]), slice(0, width))
            total = sum(bands, torch.zeros_like(images))
            yield Part(top, 0, (images + total / len(grids)).clamp(0, 1))
            top += bands[0].shape[2]

    def _removed_bands(self, grid: Tiling, read: Callable[[slice], Tensor]) -> Iterator[Tensor]:
        """What is removed of an image, [1, 3, size of a tile, W] from its top on; batches of tiles are as in `purify`,
        since the last bits depend on them.
        """
        tiles = regrouped(grid.cut_rows(read), self.settings.batch_tiles)
        removed = (self._through_model(batch) - batch for batch in tiles)
        return regrouped(grid.join_rows(regrouped(removed, grid.columns)), grid.size, axis=2)

    # variants of it

    def tile_layouts(self) -> Sequence[TileLayout]:
        """Plain, overlapping and shifted grids, and the one in use."""
        layouts = tile_options(self.settings, self.model.config.image_size)
        return [TileLayout(name, options, options == self.settings) for name, options in layouts.items()]

    def with_options(self, options: PurifySettings, source: str | Path = "this purifier") -> "MAEPurifier":
        """The same network used otherwise. Raises UserError for an overlap of a whole tile."""
        size = self.model.config.image_size
        if options.overlap >= size:
            fail(f"purify.overlap={options.overlap}: must be below the side of the tiles of {source}, {size}")
        return MAEPurifier(self.model, options).train(self.training)

    def with_adapter(self, directory: Path) -> "MAEPurifier":
        """The network with an adapter merged, as `maep.purifiers.adapter.merge_adapter`."""
        return MAEPurifier(merge_adapter(self.model, directory), self.settings)

    def compiled(self) -> "MAEPurifier":
        """The network alone is compiled: masks and noise are drawn outside it."""
        return MAEPurifier(compiled_copy(self.model), self.settings).eval()

    # on disk

    def identity_facts(self) -> object:
        """The network's settings alone: as it was before purifiers had kinds, so that old records stay valid."""
        return asdict(self.model.config)

    @classmethod
    def from_config(cls, config: Mapping[str, object], tensors: Mapping[str, Tensor], source: Source = UNNAMED) -> Self:
        """As `Purifier.from_config`."""
        settings = section_of(ModelSettings, config.get("model"), source.config)
        check_model(settings, source.config)
        model = build_with_weights(partial(MaskedAutoencoder, settings), tensors, source.weights)
        options = section_of(PurifySettings, config.get("purify") or {}, source.config)
        purifier = cls(model, options)
        purifier.with_options(options, source.config)
        return purifier

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """With random weights from torch's generator."""
        return cls(MaskedAutoencoder(settings.model), settings.purify)

    @classmethod
    def untrained(cls, settings: Settings) -> Self:
        """As `TrainedPurifier.untrained`, from model.init if that is set."""
        purifier = cls.from_settings(settings)
        if settings.model.init:
            load_initial(purifier.model, Path(settings.model.init))
        return purifier
