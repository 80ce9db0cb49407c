"""What a model says of an image: a class, or nothing."""

import torch
from torch import Tensor, nn

NO_CLASS = -1  # no label: an answer that is no number is right of no image


def predicted(logits: Tensor) -> Tensor:
    """The likeliest class, int64 [N]; NO_CLASS where a logit is NaN, which argmax would take for the largest.

    logits: [N, C]. So whoever drives a defense out of all numbers has broken it, whatever the label is.
    """
    return torch.where(logits.isnan().any(1), NO_CLASS, logits.argmax(1))


@torch.no_grad()
def decided(model: nn.Module, images: Tensor, draws: int = 1) -> Tensor:
    """A model's answers as an attack takes them: of several draws the commonest, of equally common ones the first.

    model: [N, 3, H, W] in [0,1] → logits. draws: how often a random model is asked; it draws on from where it is.
    Returns int64 [N], NO_CLASS as `predicted` has it.
    """
    answers = torch.stack([predicted(model(images)) for _ in range(draws)])
    votes = (answers[:, None] == answers).sum(1)
    return answers.gather(0, votes.argmax(0, keepdim=True))[0]
