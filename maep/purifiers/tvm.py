"""Total-variation minimisation as a purifier: a few pixels are kept, and the smoothest image through them is taken.

Guo et al. 2018 ("Countering Adversarial Images using Input Transformations"), solved by split Bregman iterations
(Goldstein and Osher 2009). Each iteration is differentiable, so gradients are exact for each draw; averaged over draws
(EOT), or with the identity's (BPDA), they break it (Athalye et al. 2018).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import RandomFilter, require_eager, require_images
from maep.purifiers.parts import in_fp32
from maep.purifiers.stepwise import stepwise

# Iterations whose activations (about 40 images each) are computed again backward from the 5 images before them: the
# memory of a hundred iterations is least near this.
TOGETHER = 4
TINY = 1e-12  # below the square of any slope that matters; keeps the gradient of a length finite where that is zero


@dataclass
class TotalVariationSettings:
    """Section `tvm`. Guo et al. weigh the distance from the kept pixels by 2/0.03, and stop after 100 iterations."""

    keep: float = setting(0.5, "share of pixels that are kept, drawn for each image", above=0.0, high=1.0)
    weight: float = setting(2 / 0.03, "weight of half the squared distance from the kept pixels", above=0.0)
    iterations: int = setting(
        100, "split Bregman iterations: so many for every image, so that none depends on its batch", low=1, high=10_000
    )


class TotalVariationPurifier(RandomFilter):
    """min_u TV(u) + weight/2 · Σ over kept pixels of (u - x)², TV isotropic, channels apart.

    A pixel is kept or dropped in all channels; dropped ones start at the mean of the kept.
    """

    kind = "tvm"
    is_iterative = True
    Settings = TotalVariationSettings
    settings: TotalVariationSettings

    @property
    def is_random(self) -> bool:
        """Whether pixels are dropped."""
        return self.settings.keep < 1

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: state and slopes."""
        return 550 * height * width

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range.

        Raises ValueError for another shape, and where one that drops pixels is exported.
        """
        require_images(images)
        kind, images = images.dtype, in_fp32(images)
        kept = self._kept(images)
        mean = (images * kept).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).clamp(min=1)
        u = torch.where(kept > 0, images, mean.expand_as(images))
        start = torch.stack([u, *(torch.zeros_like(u) for _ in range(4))])
        solver = _Bregman(kept, self.settings.weight)
        total = self.settings.iterations
        steps = [partial(solver.run, min(TOGETHER, total - first)) for first in range(0, total, TOGETHER)]
        # Not torch's checkpoint: what it keeps of every operation leaves holes in the heap that fit no tensor any more,
        # and a process grows to ten times what it holds.
        state = stepwise(start, solver.weight * images, steps)
        return state[0].clamp(0, 1).to(kind)

    def _kept(self, images: Tensor) -> Tensor:
        """1 where a pixel is kept, 0 elsewhere, [N, 1, H, W]."""
        shape = (len(images), 1, *images.shape[2:])
        if not self.is_random:
            return torch.ones(shape).to(images)
        require_eager(self)
        return torch.from_numpy((self.rng.random(shape) < self.settings.keep).astype(np.float32)).to(images)


class _Bregman:
    """Iterations of split Bregman for one batch: u, then its slopes d, then the multipliers b, down and right.

    kept: [N, 1, H, W], 1 where a pixel is kept. weight: of the distance there; as an attribute, at each pixel.
    """

    def __init__(self, kept: Tensor, weight: float) -> None:
        self.penalty = weight  # of slopes that differ from d; any value ends at the same image, this one soon
        self.weight = weight * kept
        rows, columns = (torch.arange(length, device=kept.device) for length in kept.shape[2:])
        inner = [(line > 0).to(kept) + (line < line.numel() - 1).to(kept) for line in (rows, columns)]
        self.neighbours = inner[0][:, None] + inner[1][None, :]
        self.parity = (rows[:, None] + columns[None, :]) % 2

    def run(self, count: int, state: Tensor, known: Tensor) -> Tensor:
        """The state [5, N, 3, H, W] after `count` iterations. known: the images times the weight, [N, 3, H, W]."""
        parts: tuple[Tensor, ...] = state.unbind()
        for _ in range(count):
            parts = self.iterate(known, *parts)
        return torch.stack(parts)

    def iterate(self, known: Tensor, u: Tensor, *slopes: Tensor) -> tuple[Tensor, ...]:
        """The next (u, d down, d right, b down, b right)."""
        d, b = slopes[:2], slopes[2:]
        pull = sum(self.penalty * _adjoint(d[i] - b[i], axis) for i, axis in enumerate((2, 3)))
        weight = self.weight + self.penalty * self.neighbours
        for parity in (0, 1):  # Gauss-Seidel: each half of a chessboard given the other
            around = self.penalty * (self.neighbours * u - sum(_adjoint(_slope(u, axis), axis) for axis in (2, 3)))
            solved = (known + pull + around) / weight.clamp(min=TINY)
            u = torch.where((self.parity == parity) & (weight > 0), solved, u)
        moved = [_slope(u, axis) + b[i] for i, axis in enumerate((2, 3))]
        length = (moved[0].square() + moved[1].square() + TINY).sqrt()
        shrunk = (1 - 1 / (self.penalty * length)).clamp(min=0)
        d = tuple(part * shrunk for part in moved)
        return (u, *d, *(part - slope for part, slope in zip(moved, d, strict=True)))


def _slope(u: Tensor, axis: int) -> Tensor:
    """Differences to the next pixel along an axis; 0 at its end."""
    return torch.diff(u, dim=axis, append=u.narrow(axis, u.shape[axis] - 1, 1))


def _adjoint(p: Tensor, axis: int) -> Tensor:
    """The adjoint of `_slope`, for p that is 0 at the end of the axis."""
    first = torch.zeros_like(p.narrow(axis, 0, 1))
    return -torch.diff(p, dim=axis, prepend=first)
