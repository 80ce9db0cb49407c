"""Attacks that follow a fast, inexact surrogate of the model they attack. It decides nothing: the model itself does."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maep.attacks.verdict import decided, predicted

Perturb = Callable[[nn.Module, Tensor], Tensor]


def with_surrogate(model: nn.Module, surrogate: nn.Module | None) -> nn.ModuleList:
    """The surrogate, where there is one, and the model: for what must reach every part of either."""
    return nn.ModuleList([model] if surrogate is None else [surrogate, model])


@torch.no_grad()
def perturb_batch(
    perturb: Perturb, model: nn.Module, surrogate: nn.Module | None, labels: Tensor, decision_draws: int = 1
) -> tuple[Tensor, Tensor]:
    """A batch attacked by following `surrogate`, or `model` if that is None: adversarial images, and `model`'s answers.

    perturb: (model to follow, positions in the batch) → adversarial images there. labels: int64 [N] of the batch.
    decision_draws: how often a random model is asked for its answers, see `decided`.
    An image that fooled the surrogate alone, perhaps before it was attacked, is attacked again by following the model;
    so no image counts as robust without having been attacked.
    Returns [N, 3, H, W] in [0,1] and int64 [N].
    """
    adversarial = perturb(surrogate or model, torch.arange(len(labels), device=labels.device))
    predictions = decided(model, adversarial, decision_draws)
    if surrogate is None:
        return adversarial, predictions
    fooled_alone = (predictions == labels) & (predicted(surrogate(adversarial)) != labels)
    again = fooled_alone.nonzero().flatten()
    if len(again):
        adversarial[again] = perturb(model, again)
        predictions[again] = decided(model, adversarial[again], decision_draws)
    return adversarial, predictions
