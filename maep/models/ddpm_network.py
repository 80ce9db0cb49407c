"""The U-Net of DDPM (Ho et al. 2020), with the names that pesser/pytorch_diffusion gave it.

`UNet2DModel` of diffusers computes the same under other names (`maep.models.published_denoisers` renames them).
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.models.denoiser import sinusoids
from maep.models.published_schedules import StepNumbers, linear_steps

GROUPS, EPSILON = 32, 1e-6  # of the group norms


def normalization(channels: int) -> nn.GroupNorm:
    """The group norm of all its layers."""
    return nn.GroupNorm(GROUPS, channels, eps=EPSILON)


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of maps [..., C, T]: each of T places asks all, scaled by 1/√C. Returns the same shape.

    By plain products, since torch's fused attention has no second derivative.
    """
    weights = (query.transpose(-1, -2) @ key / query.shape[-2] ** 0.5).softmax(-1)
    return value @ weights.transpose(-1, -2)


class TimedResidual(nn.Module):
    """Two convolutions beside the identity, or a 1 x 1 convolution where the channels change."""

    def __init__(self, before: int, after: int, timed: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = normalization(before), nn.Conv2d(before, after, 3, padding=1)
        self.temb_proj = nn.Linear(timed, after)
        self.norm2, self.conv2 = normalization(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)
        self.is_widened = before != after

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [N, before, H, W]; time: [N, timed]. Returns [N, after, H, W]."""
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + cast(Tensor, self.nin_shortcut(x) if self.is_widened else x)


class MapAttention(nn.Module):
    """Each pixel of a feature map asks all others, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = normalization(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W]. Returns the same shape."""
        normed = self.norm(x)
        result = attended(*(part(normed).flatten(2) for part in (self.q, self.k, self.v)))
        return x + cast(Tensor, self.proj_out(result.reshape(x.shape)))


class Halved(nn.Module):
    """Half the size, by a convolution that sees a row and a column of zeros at the far ends."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W], both even. Returns [N, channels, H/2, W/2]."""
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Doubled(nn.Module):
    """Twice the size by nearest pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W]. Returns [N, channels, 2H, 2W]."""
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class TimeEmbedding(nn.Module):
    """Two layers on the sinusoids of a step number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)])

    def forward(self, waves: Tensor) -> Tensor:
        """waves: [N, width]. Returns [N, 4 * width]."""
        return cast(Tensor, self.dense[1](F.silu(self.dense[0](waves))))


class Level(nn.Module):
    """The blocks of one size, each with attention or none has; then a change of size, unless it is the last one."""

    def __init__(self, inputs: Sequence[int], after: int, timed: int, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([TimedResidual(before, after, timed) for before in inputs])
        self.attn = nn.ModuleList([MapAttention(after) for _ in inputs] if attends else [])

    def step(self, number: int, x: Tensor, time: Tensor) -> Tensor:
        """One block and its attention. x: [N, inputs[number], H, W]. Returns [N, after, H, W]."""
        x = self.block[number](x, time)
        return cast(Tensor, self.attn[number](x)) if len(self.attn) else x


class Middle(nn.Module):
    """Two blocks around an attention, at the smallest size."""

    def __init__(self, channels: int, timed: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = TimedResidual(channels, channels, timed), TimedResidual(channels, channels, timed)
        self.attn_1 = MapAttention(channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [N, channels, H, W]. Returns the same shape."""
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x, time)), time))


class DdpmNetwork(nn.Module):
    """(u [N, 3, H, W], about [-1, 1]; times [N] of [0, 1]) → the noise in u, as `maep.models.denoiser.Denoiser`.

    width, multipliers, blocks: as there, multiples of 32; attention: the levels that have it, counted from 0, beside
    the middle. Ho et al.'s of CIFAR-10 is 128, [1, 2, 2, 2], 2, [1]: 35.7 million parameters.
    """

    heads = 1

    def __init__(
        self, width: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], latest: float
    ) -> None:
        super().__init__()
        self.width, self.latest, self.blocks = width, latest, blocks
        self.factor = 2 ** (len(multipliers) - 1)
        self.attended = 2 ** min(attention, default=len(multipliers) - 1)
        self.number = StepNumbers(linear_steps())
        widths, timed, last = [width * each for each in multipliers], 4 * width, len(multipliers) - 1
        self.temb, self.conv_in = TimeEmbedding(width), nn.Conv2d(3, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, kept = width, [width]
        for level, after in enumerate(widths):
            part = Level([now, *[after] * (blocks - 1)], after, timed, level in attention)
            kept += [after] * blocks
            if level < last:
                part.downsample = Halved(after)
                kept.append(after)
            self.down.append(part)
            now = after
        self.mid = Middle(now, timed)
        rising = []
        for level, after in reversed(list(enumerate(widths))):
            befores = [now, *[after] * blocks]
            part = Level([each + kept.pop() for each in befores], after, timed, level in attention)
            if level:
                part.upsample = Doubled(after)
            rising.append(part)
            now = after
        self.up.extend(reversed(rising))
        self.norm_out, self.conv_out = normalization(now), nn.Conv2d(now, 3, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, u: Tensor, times: Tensor) -> Tensor:
        """u: [N, 3, H, W], both divisible by `factor`; times: [N]. Returns u's shape."""
        time = self.temb(sinusoids(self.number(times), self.width))
        x = self.conv_in(u)
        kept = [x]
        for level in cast(Sequence[Level], self.down):
            for number in range(self.blocks):
                x = level.step(number, x, time)
                kept.append(x)
            if hasattr(level, "downsample"):
                x = cast(Halved, level.downsample)(x)
                kept.append(x)
        x = self.mid(x, time)
        for level in reversed(cast(list[Level], list(self.up))):
            for number in range(self.blocks + 1):
                x = level.step(number, torch.cat([x, kept.pop()], 1), time)
            if hasattr(level, "upsample"):
                x = cast(Doubled, level.upsample)(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))
