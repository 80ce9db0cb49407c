"""Exponential moving average of the trained weights; under ZeRO-3 each rank averages its own part."""

import torch
from torch import Tensor, nn

from maep.training.checkpointing.partition import local_part


class Average:
    """`average = decay * average + (1 - decay) * weights` after each step, with the usual warm-up of the decay."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay, self._parameters = decay, parameters
        self.parts: dict[str, Tensor] = {name: local_part(p).detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a 0-based step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parts = [local_part(self._parameters[name]).detach() for name in self.parts]
        torch._foreach_lerp_(list(self.parts.values()), parts, 1 - decay)
