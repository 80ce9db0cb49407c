"""What a purifier is, and the one of this library."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers.tiling import Tiling, tile_count
from maep.settings import PurifySettings


class Purifier(nn.Module):
    """Removes adversarial perturbations from images; subclasses give `purify`."""

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1], any size. Returns the same shape and range; differentiable."""
        raise NotImplementedError

    def images_at_once(self, height: int, width: int) -> int:
        """How many images of a size are best given to `purify` together, at least 1."""
        return 1

    def forward(self, images: Tensor) -> Tensor:
        """`purify`, so that a purifier is a module like any other."""
        return self.purify(images)


class MAEPurifier(Purifier):
    """Purifies with a masked autoencoder that sees the whole image (r = 0), tile by tile where it is larger.

    model: takes and returns [N, 3, s, s], s = model.config.image_size.
    settings: tiles a forward, overlap, passes.
    """

    def __init__(self, model: MaskedAutoencoder, settings: PurifySettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape, clipped to [0, 1].

        At most `batch_tiles` tiles are in the network at a time, also in the backward pass, which computes
        activations again where there is more than one batch of tiles. Raises ValueError for another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images {tuple(images.shape)}: expected [N, 3, H, W]")
        for _ in range(self.settings.passes):
            images = self._once(images).clamp(0, 1)
        return images

    def images_at_once(self, height: int, width: int) -> int:
        """As many as fill one batch of tiles."""
        size, overlap = self.model.config.image_size, self.settings.overlap
        tiles = tile_count(height, size, overlap) * tile_count(width, size, overlap)
        return max(1, self.settings.batch_tiles // tiles)

    def _once(self, images: Tensor) -> Tensor:
        size = self.model.config.image_size
        if images.shape[-2:] == (size, size):
            return self._tiles(images)
        tiling = Tiling(images.shape[-2], images.shape[-1], size, self.settings.overlap)
        tiles = tiling.cut(images)
        return images + tiling.join(self._tiles(tiles) - tiles)

    def _tiles(self, tiles: Tensor) -> Tensor:
        batches = tiles.split(self.settings.batch_tiles)
        if len(batches) > 1 and torch.is_grad_enabled() and tiles.requires_grad:
            return torch.cat([checkpoint(self.model, batch, use_reentrant=False) for batch in batches])
        return torch.cat([self.model(batch) for batch in batches])
