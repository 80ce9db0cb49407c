"""The purifying masked autoencoder P = D∘E: MAE's encoder and decoder on timm's blocks (Sec. 4.2).

Shapes: N images, T patches an image (row by row), K of them visible, D width, p patch side. Parameters are
named as in MAE's official code. Inside, pixels are in [-1, 1] and a hidden pixel is 0.
"""

import torch
from torch import Tensor, nn

from maep.config.training_settings import ModelSettings
from maep.models.convolutions import ConvStem, Refinement
from maep.models.normalized_patches import restored_patches
from maep.models.positions import sincos_positions
from maep.models.timm_blocks import Block, LayerNorm

MASK_TOKEN = "mask_token"  # stands for hidden patches: a step that hides none does not use it


def patchify(images: Tensor, patch: int) -> Tensor:
    """[N, C, H, W] to [N, T, p*p*C], each patch in the order (row, column, channel), as MAE's."""
    c, height, width = images.shape[1:]
    rows, columns = height // patch, width // patch
    # The first axis is -1: a trace keeps len(images) as a number, and the exported network takes that batch alone.
    grid = images.reshape(-1, c, rows, patch, columns, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(-1, rows * columns, patch * patch * c)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`. patches: [N, T, p*p*C]; grid: patches a column and a row."""
    rows, columns = grid
    channels = patches.shape[2] // patch**2
    split = patches.reshape(-1, rows, columns, patch, patch, channels)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * patch, columns * patch)


def visible_pixels(visible: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The patch mask M [N, T] as a pixel mask [N, 1, H, W]."""
    mask = visible.reshape(-1, 1, *grid)
    return mask.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


@torch.compiler.disable  # how many patches show is read from the tensor
def visible_index(visible: Tensor) -> Tensor:
    """Indices of the visible patches, in order: bool [N, T] to int64 [N, K].

    On an accelerator the host waits here for all that is under way: whoever makes a mask knows its index, and gives it.
    Raises ValueError if rows show different numbers of patches, or none.
    """
    counts = set(visible.sum(1).tolist())
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"every image must show equally many patches, at least one; got {sorted(counts)}")
    return visible.nonzero()[:, 1].reshape(visible.shape[0], -1)


class PatchEmbed(nn.Module):
    """Linear embedding of patches, as a strided convolution: [N, C, H, W] to [N, T, D]."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W], H and W multiples of p. Returns [N, T, D]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class MaskedAutoencoder(nn.Module):
    """P of the paper: predicts the clean image from the visible patches of an adversarial one.

    settings: sizes and parts; see maep.config.training_settings.ModelSettings.
    """

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.config = settings
        self.patch, self.unit = settings.patch_size, 2 * settings.residual_scale
        side = settings.image_size // self.patch
        self.num_patches = side * side
        self._make_encoder(settings, side)
        self._make_decoder(settings, side)
        self.apply(_initialise)
        self._initialise_ends()
        if settings.refine_width:
            width, depth, scale = settings.refine_width, settings.refine_depth, settings.refine_scale
            self.refine = Refinement(width, depth, scale)

    def _make_encoder(self, settings: ModelSettings, side: int) -> None:
        width = settings.encoder_width
        if settings.stem_width:
            self.stem = ConvStem(settings.stem_width, settings.stem_depth, settings.stem_scale)
        if settings.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = PatchEmbed(settings.stem_width or 3, width, self.patch // settings.stem_scale)
        self.blocks = _blocks(width, settings.encoder_heads, settings.mlp_ratio, settings.encoder_depth)
        self.norm = LayerNorm(width)
        self.register_buffer("pos_embed", sincos_positions(side, side, width), persistent=False)

    def _make_decoder(self, settings: ModelSettings, side: int) -> None:
        width = settings.decoder_width
        self.decoder_embed = nn.Linear(settings.encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        depth, heads = settings.decoder_depth, settings.decoder_heads
        self.decoder_blocks = _blocks(width, heads, settings.mlp_ratio, depth)
        self.decoder_norm = LayerNorm(width)
        self.decoder_pred = nn.Linear(width, self.patch**2 * 3)
        self.register_buffer("decoder_pos_embed", sincos_positions(side, side, width), persistent=False)

    def _initialise_ends(self) -> None:
        """Tokens and patch embedding as in MAE; a residual starts at 0, so that P starts as the identity."""
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.mask_token, std=0.02)
        if self.config.class_token:
            nn.init.normal_(self.cls_token, std=0.02)
        if self.config.prediction == "residual":
            nn.init.zeros_(self.decoder_pred.weight)

    @property
    def normalized_patch(self) -> int | None:
        """Side of the patches that are predicted normalized (`maep.models.normalized_patches`); None: pixels are."""
        return self.patch if self.config.prediction == "normalized" else None

    def forward(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        *,
        index: Tensor | None = None,
        latent: bool = False,
        normalized: bool = False,
        like: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """P(x_a ⊙ M), the predicted clean images (Eq. 11-12); with `latent`, a pair of them and E(x_a ⊙ M).

        images: [N, 3, H, W] in [0, 1], of any size that p divides. visible: bool [N, T], True = shown to the
        encoder, equally many a row; None = all (r = 0). What hidden pixels hold has no influence, but for the mean and
        deviation of their patch with prediction=normalized.
        index: int64 [N, K], `visible_index(visible)` where it is known; by default found here, for which an
        accelerator is waited for.
        normalized: leave the patches as they are predicted, where they are normalized; otherwise they get the mean and
        deviation of those of `like`, by default of `images`.
        Returns [N, 3, H, W] in the [0, 1] scale, not clipped. Raises ValueError for shapes that do not fit.
        """
        if visible is not None and index is None:
            index = visible_index(visible)
        masked = self._masked(images, visible)
        encoded = self._encode(masked, index)
        patches = self._decode(encoded, index, self._grid(images))
        decoded = unpatchify(patches, self.patch, self._grid(images)).to(images.dtype)
        correction = self.refine(masked, decoded) if self.config.refine_width else 0.0
        if self.config.prediction == "residual":
            decoded = masked + self.unit * (decoded + correction)
        else:
            decoded = decoded + self.unit * correction
        if self.normalized_patch is None:
            purified = (decoded + 1) / 2
        else:
            purified = (
                decoded if normalized else restored_patches(decoded, images if like is None else like, self.patch)
            )
        return (purified, encoded.to(images.dtype)) if latent else purified

    def encode(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """E(x ⊙ M), the latent of the visible patches; arguments as `forward`'s.

        Returns [N, K, D] or, with a class token, [N, 1 + K, D], that token first.
        """
        index = None if visible is None else visible_index(visible)
        return self._encode(self._masked(images, visible), index)

    def decode(self, latent: Tensor, grid: tuple[int, int], visible: Tensor | None = None) -> Tensor:
        """D(latent): predicted patches [N, T, p*p*3]: pixels in [-1, 1], residuals in units of residual_scale, or
        normalized.

        latent: of `encode`; grid: patches a column and a row; visible: as given to `encode`.
        """
        return self._decode(latent, None if visible is None else visible_index(visible), grid)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 3 or height % self.patch or width % self.patch:
            raise ValueError(f"images {tuple(images.shape)}: expected [N, 3, H, W], multiples of p")
        return height // self.patch, width // self.patch

    def _masked(self, images: Tensor, visible: Tensor | None) -> Tensor:
        """Images in [-1, 1] with hidden pixels 0."""
        pixels, grid = images * 2 - 1, self._grid(images)
        if visible is None:
            return pixels
        if visible.shape != (len(images), grid[0] * grid[1]):
            raise ValueError(f"visible {tuple(visible.shape)}: expected {(len(images), grid[0] * grid[1])}")
        return torch.where(visible_pixels(visible, self.patch, grid), pixels, 0.0)

    def _encode(self, masked: Tensor, index: Tensor | None) -> Tensor:
        rows, columns = self._grid(masked)
        features = self.stem(masked) if self.config.stem_width else masked
        tokens = self.patch_embed(features) + self._positions(self.pos_embed, rows, columns)
        if index is not None:
            tokens = tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))
        if self.config.class_token:
            tokens = torch.cat([self._class_tokens(tokens), tokens], dim=1)
        return self.norm(self.blocks(tokens))

    def _class_tokens(self, tokens: Tensor) -> Tensor:
        """The class token once for each image of [N, K, D]: [N, 1, D]."""
        return self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)

    def _decode(self, latent: Tensor, index: Tensor | None, grid: tuple[int, int]) -> Tensor:
        tokens = self.decoder_embed(latent)
        first = 1 if self.config.class_token else 0
        patches = tokens[:, first:]
        if index is not None:
            mask_tokens = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], grid[0] * grid[1], -1)
            patches = mask_tokens.scatter(1, index[:, :, None].expand_as(patches), patches)
        patches = patches + self._positions(self.decoder_pos_embed, *grid)
        tokens = torch.cat([tokens[:, :first].to(patches.dtype), patches], dim=1) if first else patches
        features = self.decoder_norm(self.decoder_blocks(tokens)[:, first:])
        # Rounding pixels to bf16 would move them by up to a quarter of an 8-bit level.
        with torch.autocast(features.device.type, enabled=False):
            return self.decoder_pred(features.to(self.decoder_norm.weight.dtype))

    def _positions(self, table: Tensor, rows: int, columns: int) -> Tensor:
        """Positions of a grid: those of the training size, or computed for another."""
        if rows == columns and rows * columns == self.num_patches:
            return table
        return sincos_positions(rows, columns, table.shape[1], table.device).to(table.dtype)

    def flops(self, image_size: int, mask_ratio: float) -> float:
        """Floating-point operations of one image's forward pass: matrix products and convolutions.

        image_size: side in pixels; mask_ratio: r in [0, 1). A training step costs three times as much.
        """
        c, pixels = self.config, image_size**2
        patches = (image_size // self.patch) ** 2
        token = int(c.class_token)
        visible = patches - round(mask_ratio * patches) + token
        channels, cells = c.stem_width or 3, pixels / c.stem_scale**2
        total = 2.0 * cells * channels * c.encoder_width
        total += c.encoder_depth * _block_flops(visible, c.encoder_width, c.mlp_ratio)
        total += 2 * visible * c.encoder_width * c.decoder_width
        total += c.decoder_depth * _block_flops(patches + token, c.decoder_width, c.mlp_ratio)
        total += 2 * pixels * c.decoder_width * 3
        # 18: a multiplication and an addition for each of the nine taps of a 3x3 convolution.
        if c.stem_width:
            total += 18 * cells * c.stem_width * (3 * c.stem_scale**2 + (c.stem_depth - 1) * c.stem_width)
        if c.refine_width:
            area = c.refine_scale**2
            total += 18 * pixels / area * c.refine_width * (9 * area + 2 * c.refine_depth * c.refine_width)
        return total


def _blocks(width: int, heads: int, mlp_ratio: float, depth: int) -> nn.Sequential:
    return nn.Sequential(*[Block(width, heads, mlp_ratio, qkv_bias=True) for _ in range(depth)])


def _block_flops(tokens: int, width: int, mlp_ratio: float) -> float:
    """Of a transformer block: four projections, the MLP, and attention."""
    return 2 * tokens * width * (4 * width + 2 * int(width * mlp_ratio)) + 4 * tokens**2 * width


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
