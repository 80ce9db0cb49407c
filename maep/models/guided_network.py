"""The U-Net of improved and guided diffusion (Nichol, Dhariwal 2021; Dhariwal, Nichol 2021), with their files' names.

It predicts the noise and, in three channels more, its variance, which no purifier here asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from maep.models.ddpm_network import attended
from maep.models.denoiser import sinusoids
from maep.models.published_schedules import StepNumbers, cosine_steps, linear_steps
from maep.models.score_sde_network import resized

GROUPS = 32  # of the group norms
CHANNELS = 6  # noise and variance


@dataclass(frozen=True)
class GuidedVariant:
    """What stands in no file of weights. heads, or channels a head: of the attention, the other 0; resizes: whether
    residual blocks change the size, not convolutions; cosine: the schedule, of 4000 steps, whose numbers are told as a
    quarter; otherwise linear, of 1000.
    """

    heads: int
    head_channels: int
    resizes: bool
    cosine: bool

    def heads_of(self, channels: int) -> int:
        """Of a map with so many channels."""
        return self.heads or max(1, channels // self.head_channels)

    def numbers(self) -> StepNumbers:
        """What the network is told of the time."""
        return StepNumbers(cosine_steps(), 0.25) if self.cosine else StepNumbers(linear_steps())


IMPROVED = GuidedVariant(heads=4, head_channels=0, resizes=False, cosine=True)  # cifar10_uncond_50M_500K.pt
GUIDED = GuidedVariant(heads=0, head_channels=64, resizes=True, cosine=False)  # 256x256_diffusion_uncond.pt


class TimedResidual(nn.Module):
    """Two convolutions beside the identity, both resized alike; the time scales and shifts the second's features."""

    def __init__(self, before: int, after: int, timed: int, change: str = "") -> None:
        super().__init__()
        self.change = change
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(timed, 2 * after))
        convolution = nn.Conv2d(after, after, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(GROUPS, after), nn.SiLU(), nn.Identity(), convolution)
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [N, before, H, W]; time: [N, timed]. Returns [N, after, …], resized."""
        norm, activation, convolution = self.in_layers
        h = convolution(resized(activation(norm(x)), self.change))
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, 1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return cast(Tensor, self.skip_connection(resized(x, self.change)) + h)


class MapAttention(nn.Module):
    """Each pixel of a feature map asks all others; a head's query, key and value lie side by side."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W]. Returns the same shape."""
        heads = self.qkv(self.norm(x.flatten(2))).unflatten(1, (self.heads, -1))
        result = attended(*heads.chunk(3, 2)).flatten(1, 2)
        return x + cast(Tensor, self.proj_out(result)).reshape(x.shape)


class Halved(nn.Module):
    """Half the size, by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W]. Returns [N, channels, H/2, W/2]."""
        return cast(Tensor, self.op(x))


class Doubled(nn.Module):
    """Twice the size by nearest pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W]. Returns [N, channels, 2H, 2W]."""
        return cast(Tensor, self.conv(resized(x, "up")))


class Stage(nn.Sequential):
    """Layers one after another, of which the residual ones hear the time."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        """x: [N, C, H, W]; time: [N, timed]. Returns what the last layer gives."""
        for layer in self:
            x = layer(x, time) if isinstance(layer, TimedResidual) else layer(x)
        return x


class GuidedNetwork(nn.Module):
    """(u [N, 3, H, W], about [-1, 1]; times [N] of [0, 1]) → the noise in u, as `maep.models.denoiser.Denoiser`.

    width, multipliers, blocks: as there, multiples of 32; attention: the levels that have it, counted from 0, beside
    the middle. CIFAR-10's is 128, [1, 2, 2, 2], 3, [1, 2], `IMPROVED`; ImageNet's 256, [1, 1, 2, 2, 4, 4], 2,
    [3, 4, 5], `GUIDED`.
    """

    def __init__(
        self, width: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], latest: float,
        variant: GuidedVariant,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.latest = width, latest
        self.factor = 2 ** (len(multipliers) - 1)
        self.attended = 2 ** min(attention, default=len(multipliers) - 1)
        self.heads, self.number = variant.heads_of(width * max(multipliers)), variant.numbers()
        widths, timed, last = [width * each for each in multipliers], 4 * width, len(multipliers) - 1
        self.time_embed = nn.Sequential(nn.Linear(width, timed), nn.SiLU(), nn.Linear(timed, timed))
        self.input_blocks, self.output_blocks = (
            nn.ModuleList([Stage(nn.Conv2d(3, width, 3, padding=1))]),
            nn.ModuleList(),
        )
        now, kept = width, [width]

        def attending(level: int, channels: int) -> list[nn.Module]:
            return [MapAttention(channels, variant.heads_of(channels))] if level in attention else []

        for level, after in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(Stage(TimedResidual(now, after, timed), *attending(level, after)))
                now = after
                kept.append(now)
            if level < last:
                self.input_blocks.append(
                    Stage(TimedResidual(now, now, timed, "down") if variant.resizes else Halved(now))
                )
                kept.append(now)
        self.middle_block = Stage(
            TimedResidual(now, now, timed), MapAttention(now, variant.heads_of(now)), TimedResidual(now, now, timed)
        )
        for level, after in reversed(list(enumerate(widths))):
            for number in range(blocks + 1):
                layers = [TimedResidual(now + kept.pop(), after, timed), *attending(level, after)]
                if level and number == blocks:
                    layers.append(TimedResidual(after, after, timed, "up") if variant.resizes else Doubled(after))
                self.output_blocks.append(Stage(*layers))
                now = after
        tail = nn.Conv2d(now, CHANNELS, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, now), nn.SiLU(), tail)
        nn.init.zeros_(tail.weight)
        nn.init.zeros_(tail.bias)  # type: ignore[arg-type]

    def forward(self, u: Tensor, times: Tensor) -> Tensor:
        """u: [N, 3, H, W], both divisible by `factor`; times: [N]. Returns u's shape."""
        sines, cosines = sinusoids(self.number(times), self.width, last=0).chunk(2, 1)
        time = self.time_embed(torch.cat([cosines, sines], 1))
        x, kept = u, []
        for stage in self.input_blocks:
            x = stage(x, time)
            kept.append(x)
        x = self.middle_block(x, time)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, kept.pop()], 1), time)
        return cast(Tensor, self.out(x))[:, : CHANNELS // 2]
