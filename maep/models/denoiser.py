"""The network of the generative purifiers: a small U-Net that is told the time (after Ho et al. 2020)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8  # of the group norms; widths are multiples of it
TIME_SCALE = 999.0  # from times of [0, 1] to Ho et al.'s step numbers, for which the embedding's frequencies are made
LONGEST = 10_000  # wavelength of the embedding, in steps


def sinusoids(steps: Tensor, width: int, last: int = 1) -> Tensor:
    """Sines, then cosines of step numbers [N], wavelengths in a geometric series: [N, width], width even.

    last: by how many terms the series ends before it comes to LONGEST; Ho et al.'s has 1, guided diffusion's 0.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, device=steps.device) * (-math.log(LONGEST) / (half - last)))
    angles = steps[:, None] * rates.to(steps.dtype)
    return torch.cat([angles.sin(), angles.cos()], 1)


class TimedBlock(nn.Module):
    """Two convolutions with a way around them; the time shifts the features between the two."""

    def __init__(self, before: int, after: int, timed: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, before), nn.Conv2d(before, after, 3, padding=1)
        self.time = nn.Linear(timed, after)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, after), nn.Conv2d(after, after, 3, padding=1)
        self.around = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [N, before, H, W]; time: [N, timed]. Returns [N, after, H, W]."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.around(x) + self.conv2(F.silu(self.norm2(h)))


class PixelAttention(nn.Module):
    """Each pixel of a feature map asks all others, with one head.

    By plain products, since torch's fused attention has no second derivative, which purifiers that follow a gradient
    need.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, width, H, W]. Returns the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).chunk(3, 2)
        weights = (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(2)
        return x + self.out(weights @ value).transpose(1, 2).reshape(x.shape)


class Denoiser(nn.Module):
    """(u [N, 3, H, W], times [N]) → a field of u's shape: its noise, or whatever else it is trained to tell.

    width: channels of the finest level; multipliers: of each level, each half as fine as the one before; blocks: a
    level; unshuffle: pixels become channels by this factor first; latest: the time up to which it is trained. `factor`
    divides H and W. Predicts 0 at first: its last convolution starts at zero. `attended`, `heads`: where it has
    attention, an image is so many times smaller, and of each pair of pixels there are so many numbers.
    """

    heads = 1

    def __init__(self, width: int, multipliers: Sequence[int], blocks: int, unshuffle: int, latest: float) -> None:
        super().__init__()
        self.width, self.unshuffle, self.latest = width, unshuffle, latest
        self.factor = self.attended = unshuffle * 2 ** (len(multipliers) - 1)
        widths, timed, channels = [width * each for each in multipliers], 4 * width, 3 * unshuffle**2
        self.time = nn.Sequential(nn.Linear(width, timed), nn.SiLU(), nn.Linear(timed, timed), nn.SiLU())
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, kept = width, [width]
        for level, after in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                kept.append(now)
            for _ in range(blocks):
                self.down.append(TimedBlock(now, after, timed))
                now = after
                kept.append(now)
        self.middle = nn.ModuleList([TimedBlock(now, now, timed), PixelAttention(now), TimedBlock(now, now, timed)])
        for level, after in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(TimedBlock(now + kept.pop(), after, timed))
                now = after
            if level:
                self.up.append(nn.Conv2d(now, now, 3, padding=1))
        self.norm, self.tail = nn.GroupNorm(GROUPS, now), nn.Conv2d(now, channels, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, u: Tensor, times: Tensor) -> Tensor:
        """u: [N, 3, H, W], about [-1, 1]; times: [N]. Returns u's shape."""
        time = self.time(sinusoids(TIME_SCALE * times, self.width))
        x = self.head(F.pixel_unshuffle(u, self.unshuffle))
        skips = [x]
        for part in self.down:
            x = part(x, time) if isinstance(part, TimedBlock) else part(x)
            skips.append(x)
        first, attention, second = self.middle
        x = second(attention(first(x, time)), time)
        for part in self.up:
            if isinstance(part, TimedBlock):
                x = part(torch.cat([x, skips.pop()], 1), time)
            else:
                x = part(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.tail(F.silu(self.norm(x))), self.unshuffle)
