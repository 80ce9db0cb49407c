"""The DDPM++ network of Song et al. (2021), which DiffPure asks on CIFAR-10, with the names of score_sde's files.

Its modules stand in one list, `all_modules`, in the order in which they are asked.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.models.ddpm_network import attended
from maep.models.denoiser import TIME_SCALE, sinusoids

MOST_GROUPS, EPSILON = 32, 1e-6  # of the group norms
HALF = 2**-0.5  # of what a block adds and what it is added to


def normalization(channels: int) -> nn.GroupNorm:
    """The group norm of all its layers."""
    return nn.GroupNorm(min(channels // 4, MOST_GROUPS), channels, eps=EPSILON)


def resized(x: Tensor, change: str) -> Tensor:
    """[N, C, H, W] `up` to twice the size by nearest pixels, `down` to half by means of four, or as it is."""
    if change == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(x, 2) if change == "down" else x


class TimedResidual(nn.Module):
    """Two convolutions beside the identity, both resized alike (BigGAN's block), their sum over √2."""

    def __init__(self, before: int, after: int, timed: int, change: str = "") -> None:
        super().__init__()
        self.change, self.is_shortened = change, before == after and not change
        self.GroupNorm_0, self.Conv_0 = normalization(before), nn.Conv2d(before, after, 3, padding=1)
        self.Dense_0 = nn.Linear(timed, after)
        self.GroupNorm_1, self.Conv_1 = normalization(after), nn.Conv2d(after, after, 3, padding=1)
        if not self.is_shortened:
            self.Conv_2 = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [N, before, H, W]; time: [N, timed]. Returns [N, after, …], resized."""
        h = self.Conv_0(resized(F.silu(self.GroupNorm_0(x)), self.change))
        h = h + self.Dense_0(F.silu(time))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        x = resized(x, self.change)
        return HALF * (h + cast(Tensor, x if self.is_shortened else self.Conv_2(x)))


class ChannelMix(nn.Module):
    """A 1 x 1 convolution, its weights W the other way round, [in, out]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.empty(channels, channels)), nn.Parameter(torch.zeros(channels))
        nn.init.xavier_uniform_(self.W)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, T]. Returns the same shape."""
        return self.W.t() @ x + self.b[:, None]


class MapAttention(nn.Module):
    """Each pixel of a feature map asks all others, with one head; its sum over √2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = normalization(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (ChannelMix(channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W]. Returns the same shape."""
        normed = self.GroupNorm_0(x).flatten(2)
        result = self.NIN_3(attended(self.NIN_0(normed), self.NIN_1(normed), self.NIN_2(normed)))
        return HALF * (x + cast(Tensor, result).reshape(x.shape))


class ScoreSdeNetwork(nn.Module):
    """(u [N, 3, H, W], about [-1, 1]; times [N] of [0, 1]) → the noise in u, as `maep.models.denoiser.Denoiser`.

    width, multipliers, blocks: as there; attention: the levels that have it, counted from 0, beside the middle; going
    up one alone after all blocks of its level. DiffPure's is 128, [1, 2, 2, 2], 8, [1]: 106.6 million parameters.
    """

    heads = 1

    def __init__(
        self, width: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], latest: float
    ) -> None:
        super().__init__()
        self.width, self.latest, self.blocks = width, latest, blocks
        self.widths, self.attention = [width * each for each in multipliers], tuple(attention)
        self.factor = 2 ** (len(multipliers) - 1)
        self.attended = 2 ** min(attention, default=len(multipliers) - 1)
        self.all_modules = nn.ModuleList(self._modules_in_order())
        tail = cast(nn.Conv2d, self.all_modules[-1])
        nn.init.zeros_(tail.weight)
        nn.init.zeros_(tail.bias)  # type: ignore[arg-type]

    def _modules_in_order(self) -> Iterator[nn.Module]:
        timed, now, kept, last = 4 * self.width, self.width, [self.width], len(self.widths) - 1
        yield from (nn.Linear(self.width, timed), nn.Linear(timed, timed), nn.Conv2d(3, now, 3, padding=1))
        for level, after in enumerate(self.widths):
            for _ in range(self.blocks):
                yield TimedResidual(now, after, timed)
                if level in self.attention:
                    yield MapAttention(after)
                now = after
                kept.append(now)
            if level < last:
                yield TimedResidual(now, now, timed, "down")
                kept.append(now)
        yield from (TimedResidual(now, now, timed), MapAttention(now), TimedResidual(now, now, timed))
        for level, after in reversed(list(enumerate(self.widths))):
            for _ in range(self.blocks + 1):
                yield TimedResidual(now + kept.pop(), after, timed)
                now = after
            if level in self.attention:
                yield MapAttention(now)
            if level:
                yield TimedResidual(now, now, timed, "up")
        yield from (normalization(now), nn.Conv2d(now, 3, 3, padding=1))

    def forward(self, u: Tensor, times: Tensor) -> Tensor:
        """u: [N, 3, H, W], both divisible by `factor`; times: [N]. Returns u's shape."""
        first, second, head, *parts, norm, tail = self.all_modules
        time = second(F.silu(first(sinusoids(TIME_SCALE * times, self.width))))
        x = head(u)
        kept, asked, last = [x], iter(parts), len(self.widths) - 1
        for level in range(len(self.widths)):
            for _ in range(self.blocks):
                x = next(asked)(x, time)
                if level in self.attention:
                    x = next(asked)(x)
                kept.append(x)
            if level < last:
                x = next(asked)(x, time)
                kept.append(x)
        x = next(asked)(x, time)
        x = next(asked)(x)
        x = next(asked)(x, time)
        for level in reversed(range(len(self.widths))):
            for _ in range(self.blocks + 1):
                x = next(asked)(torch.cat([x, kept.pop()], 1), time)
            if level in self.attention:
                x = next(asked)(x)
            if level:
                x = next(asked)(x, time)
        return cast(Tensor, tail(F.silu(norm(x))))
