"""Attacks that follow a fast, inexact double of the model they attack. What it says decides nothing: the model does."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Perturb = Callable[[nn.Module, Tensor], Tensor]


def both(model: nn.Module, fast: nn.Module | None) -> nn.ModuleList:
    """The double, where there is one, and the model: for what must reach every part of either."""
    return nn.ModuleList([model] if fast is None else [fast, model])


@torch.no_grad()
def attacked(perturb: Perturb, model: nn.Module, fast: nn.Module | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A batch attacked by following `fast`, or `model` if that is None: adversarial images, and `model`'s answers.

    perturb: (model to follow, places in the batch) → adversarial images there. labels: int64 [N] of the batch.
    An image that fooled the double alone, perhaps before it was attacked, is attacked again by following the model; so
    no image stands unattacked.
    Returns [N, 3, H, W] in [0,1] and int64 [N].
    """
    adversarial = perturb(fast or model, torch.arange(len(labels), device=labels.device))
    predictions = model(adversarial).argmax(1)
    if fast is None:
        return adversarial, predictions
    again = ((predictions == labels) & (fast(adversarial).argmax(1) != labels)).nonzero().flatten()
    if len(again):
        adversarial[again] = perturb(model, again)
        predictions[again] = model(adversarial[again]).argmax(1)
    return adversarial, predictions
