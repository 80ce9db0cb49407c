"""What a model says of an image: a class, or nothing."""

import torch
from torch import Tensor

NO_CLASS = -1  # no label: an answer that is no number is right of no image


def predicted(logits: Tensor) -> Tensor:
    """The likeliest class, int64 [N]; NO_CLASS where a logit is NaN, which argmax would take for the largest.

    logits: [N, C]. So whoever drives a defense out of all numbers has broken it, whatever the label is.
    """
    return torch.where(logits.isnan().any(1), NO_CLASS, logits.argmax(1))
