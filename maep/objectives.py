"""The losses of the paper, one function each, all with the same signature, per sample.

Losses are not averaged over the batch here, so that any split of a batch over processes adds up to the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maep.settings import ObjectiveSettings

Model = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Losses:
    """total: [N], what is minimised; parts: [N] each, by name, what is logged beside it."""

    total: Tensor
    parts: dict[str, Tensor]


def patch_distances(images: Tensor, targets: Tensor, patches: int, distance: str) -> Tensor:
    """d(images, targets) of every patch: the mean over its pixels and channels.

    images, targets: [N, 3, H, W]; patches: T, square ones, row by row; distance: `l1` or `mse` (Table 11).
    Returns [N, T].
    """
    n, channels, height, width = images.shape
    side = round((height * width / patches) ** 0.5)
    values = _distances(images, targets, distance)
    return values.reshape(n, channels, height // side, side, width // side, side).mean((1, 3, 5)).flatten(1)


def _distances(images: Tensor, targets: Tensor, distance: str) -> Tensor:
    """Of every pixel and channel."""
    difference = images - targets
    return difference.abs() if distance == "l1" else difference.square()


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of [N, T] over the chosen patches of each row; 0 for a row without any."""
    weights = chosen.to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)


def maep(
    model: Model, clean: Tensor, adversarial: Tensor, visible: Tensor | None, settings: ObjectiveSettings
) -> Losses:
    """L_pu + λ·L_rec (Eq. 11-12).

    model: P, any callable (images, visible) -> images. clean, adversarial: [N, 3, H, W] in [0, 1].
    visible: bool [N, T], True = shown; None = all, which leaves the purification loss (Eq. 2).
    settings: distance, rec_weight (λ) and target of the hidden patches.

    Each term is a mean over its own pixels, in units of the [0, 1] range: L_pu over the visible ones, L_rec
    over the hidden ones (0 if none is). So at λ = 1 and r = 0.5, with a clean target, the total is twice the
    mean distance of the whole image. At another r the two terms keep equal weight, where a sum over pixels
    (the full-image L1) would weight them by area; λ = r / (1 - r) gives that.
    """
    purified = model(adversarial, visible)
    if visible is None:
        l_pu = _distances(purified, clean, settings.distance).mean((1, 2, 3))
        return Losses(l_pu, {"l_pu": l_pu, "l_rec": torch.zeros_like(l_pu)})
    distances = patch_distances(purified, clean, visible.shape[1], settings.distance)
    hidden = distances
    if settings.target == "adversarial":
        hidden = patch_distances(purified, adversarial, visible.shape[1], settings.distance)
    l_pu, l_rec = _mean_where(distances, visible), _mean_where(hidden, ~visible)
    return Losses(l_pu + settings.rec_weight * l_rec, {"l_pu": l_pu, "l_rec": l_rec})


Objective = Callable[[Model, Tensor, Tensor, Tensor | None, ObjectiveSettings], Losses]
OBJECTIVES: dict[str, Objective] = {"maep": maep}
