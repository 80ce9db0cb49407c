"""What a purifier is, and the one of this library."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maep.config.schema import PurifySettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers.tiling import Tiling, seam_error
from maep.runtime.randomness import keyed_rng


class Purifier(nn.Module):
    """Removes adversarial perturbations from images; subclasses give `purify`."""

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1], any size. Returns the same shape and range; differentiable."""
        raise NotImplementedError

    def images_at_once(self, height: int, width: int) -> int:
        """How many images of a size are best given to `purify` together, at least 1."""
        return 1

    def seam_error(self, images: Tensor, purified: Tensor) -> tuple[Tensor, Tensor] | None:
        """How visible the borders of tiles are in what was purified: see `maep.purifiers.tiling.seam_error`.

        images, purified: [N, 3, H, W], before and after. None where there is no border.
        """
        return None

    def reseed(self, *key: int) -> None:
        """Start the random numbers at `key`, if the purifier draws any."""

    def forward(self, images: Tensor) -> Tensor:
        """`purify`, so that a purifier is a module like any other."""
        return self.purify(images)


class MAEPurifier(Purifier):
    """Purifies with a masked autoencoder that sees the whole image (r = 0), tile by tile where it is larger.

    model: takes and returns [N, 3, s, s], s = model.config.image_size.
    settings: tiles a forward, overlap, shifted grids, passes; noise and mask_ratio, drawn anew at every call.
    """

    def __init__(self, model: MaskedAutoencoder, settings: PurifySettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.reseed(0)

    def reseed(self, *key: int) -> None:
        """Start the noise and masks at `key`; what follows depends on it and on the calls since alone."""
        self._rng = keyed_rng("purifier", *key)

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape, clipped to [0, 1].

        At most `batch_tiles` tiles are in the network at a time, also in the backward pass, which computes
        activations again where there is more than one batch of tiles. Raises ValueError for another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images {tuple(images.shape)}: expected [N, 3, H, W]")
        for _ in range(self.settings.passes):
            images = self._once(self._noisy(images)).clamp(0, 1)
        return images

    def _noisy(self, images: Tensor) -> Tensor:
        if not self.settings.noise:
            return images
        noise = self._rng.standard_normal(tuple(images.shape), dtype=np.float32)
        return images + self.settings.noise * torch.from_numpy(noise).to(images)

    def _visible(self, tiles: Tensor) -> Tensor | None:
        """Patches shown of each tile, bool [N, T], equally many; None for all."""
        if not self.settings.mask_ratio:
            return None
        patches = self.model.num_patches
        hidden = min(patches - 1, round(self.settings.mask_ratio * patches))
        order = self._rng.random((len(tiles), patches)).argsort(1)
        return torch.from_numpy(order >= hidden).to(tiles.device)

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

    def _once(self, images: Tensor) -> Tensor:
        size = self.model.config.image_size
        if images.shape[-2:] == (size, size):
            return self._tiles(images)
        grids = self._grids(*images.shape[-2:])
        removed = torch.zeros_like(images)
        for grid in grids:
            tiles = grid.cut(images)
            removed = removed + grid.join(self._tiles(tiles) - tiles)
        return images + removed / len(grids)

    def _tiles(self, tiles: Tensor) -> Tensor:
        """Drawn before the batches, masks are the same when activations are computed again."""
        parts: list[tuple[Tensor, ...]] = [(batch,) for batch in tiles.split(self.settings.batch_tiles)]
        visible = self._visible(tiles)
        if visible is not None:
            masks = visible.split(self.settings.batch_tiles)
            parts = [(*part, mask) for part, mask in zip(parts, masks, strict=True)]
        if len(parts) > 1 and torch.is_grad_enabled() and tiles.requires_grad:
            return torch.cat([checkpoint(self.model, *part, use_reentrant=False) for part in parts])
        return torch.cat([self.model(*part) for part in parts])
