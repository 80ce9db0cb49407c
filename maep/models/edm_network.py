"""EDM's network of the architecture that it calls ddpmpp (Karras et al. 2022), with the names of its files.

It is DDPM++ that is told ln σ / 4, and in a preconditioning a denoiser: D(v, σ) = c_skip·v + c_out·F(c_in·v, ln σ / 4)
of v = x + σ·noise. What is asked of it here is the noise, (v - D) / σ. The file that ScoreOpt asks on CIFAR-10 has `vp`
in its name, which says the architecture; its preconditioning is EDM's, of σ_data = 1/2.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.models.ddpm_network import attended
from maep.models.denoiser import sinusoids
from maep.models.noise_schedule import per_image, sigma_of
from maep.models.score_sde_network import HALF, normalization, resized

SIDE = 32  # of the images of the finest level, by which files name the levels: CIFAR-10's
SIGMA_DATA = 0.5  # of the preconditioning


class ResizingConvolution(nn.Conv2d):
    """A convolution after a change of size, whose filter, a mean of four pixels or the nearest, the files have too."""

    def __init__(self, before: int, after: int, kernel: int, change: str) -> None:
        super().__init__(before, after, kernel, padding=kernel // 2)
        self.change = change
        if change:
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, before, H, W]. Returns [N, after, …], resized."""
        return super().forward(resized(x, self.change))


class EdmBlock(nn.Module):
    """Two convolutions beside the identity, both resized alike, their sum over √2; then attention, alike."""

    def __init__(self, before: int, after: int, timed: int, change: str = "", attends: bool = False) -> None:
        super().__init__()
        self.attends, self.is_shortened = attends, before == after and not change
        self.norm0, self.conv0 = normalization(before), ResizingConvolution(before, after, 3, change)
        self.affine = nn.Linear(timed, after)
        self.norm1, self.conv1 = normalization(after), ResizingConvolution(after, after, 3, "")
        if not self.is_shortened:
            self.skip = ResizingConvolution(before, after, 1, change)
        if attends:
            self.norm2 = normalization(after)
            self.qkv, self.proj = nn.Conv2d(after, 3 * after, 1), nn.Conv2d(after, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [N, before, H, W]; time: [N, timed]. Returns [N, after, …], resized."""
        h = self.conv0(F.silu(self.norm0(x))) + self.affine(time)[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        x = HALF * (h + cast(Tensor, x if self.is_shortened else self.skip(x)))
        if not self.attends:
            return x
        # Query, key and value of a channel lie side by side.
        parts = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, 3)).unbind(2)
        return HALF * (x + cast(Tensor, self.proj(attended(*parts).reshape(x.shape))))


class EdmNetwork(nn.Module):
    """(u [N, 3, H, W], about [-1, 1]; times [N] of (0, 1]) → the noise in u, as `maep.models.denoiser.Denoiser`.

    width, multipliers, blocks: as there; attention: the levels that have it, counted from 0, beside the middle; going
    up in their last block alone. The published one is 128, [2, 2, 2], 4, [1]: 55.7 million parameters.
    """

    heads = 1

    def __init__(
        self, width: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], latest: float
    ) -> None:
        super().__init__()
        self.width, self.latest, self.factor = width, latest, 2 ** (len(multipliers) - 1)
        self.attended = 2 ** min(attention, default=len(multipliers) - 1)
        widths, timed, now = [width * each for each in multipliers], 4 * width, width
        self.map_layer0, self.map_layer1 = nn.Linear(width, timed), nn.Linear(timed, timed)
        self.enc = nn.ModuleDict({f"{_level(0)}_conv": ResizingConvolution(3, width, 3, "")})
        self.dec, kept = nn.ModuleDict(), [width]
        for level, after in enumerate(widths):
            if level:
                self.enc[f"{_level(level)}_down"] = EdmBlock(now, now, timed, "down")
                kept.append(now)
            for block in range(blocks):
                self.enc[f"{_level(level)}_block{block}"] = EdmBlock(now, after, timed, attends=level in attention)
                now = after
                kept.append(now)
        for level, after in reversed(list(enumerate(widths))):
            if level == len(widths) - 1:
                self.dec[f"{_level(level)}_in0"] = EdmBlock(now, now, timed, attends=True)
                self.dec[f"{_level(level)}_in1"] = EdmBlock(now, now, timed)
            else:
                self.dec[f"{_level(level)}_up"] = EdmBlock(now, now, timed, "up")
            for block in range(blocks + 1):
                attends = level in attention and block == blocks
                self.dec[f"{_level(level)}_block{block}"] = EdmBlock(now + kept.pop(), after, timed, attends=attends)
                now = after
        self.dec[f"{_level(0)}_aux_norm"] = normalization(now)
        tail = self.dec[f"{_level(0)}_aux_conv"] = ResizingConvolution(now, 3, 3, "")
        nn.init.zeros_(tail.weight)
        nn.init.zeros_(cast(Tensor, tail.bias))

    def forward(self, u: Tensor, times: Tensor) -> Tensor:
        """u: [N, 3, H, W], both divisible by `factor`; times: [N]. Returns u's shape."""
        levels = sigma_of(times)
        sigma = per_image(levels)
        v, scale = u * (1 + sigma.square()).sqrt(), (sigma.square() + SIGMA_DATA**2).sqrt()
        told = self._asked(v / scale, levels.log() / 4)
        # (v - D) / σ, with c_skip = σ_data²/scale² and c_out = σ·σ_data/scale: nothing is divided by a small σ.
        return (sigma * v / scale - SIGMA_DATA * told) / scale

    def _asked(self, x: Tensor, number: Tensor) -> Tensor:
        """F. number: what is told of the noise, [N]."""
        time = F.silu(self.map_layer1(F.silu(self.map_layer0(sinusoids(number, self.width)))))
        kept: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, time) if isinstance(block, EdmBlock) else block(x)
            kept.append(x)
        for name, block in self.dec.items():
            if isinstance(block, EdmBlock):
                x = block(torch.cat([x, kept.pop()], 1) if "_block" in name else x, time)
            else:
                x = F.silu(block(x)) if name.endswith("_norm") else block(x)
        return x


def _level(number: int) -> str:
    """What files call a level, counted from 0."""
    return f"{SIDE >> number}x{SIDE >> number}"
