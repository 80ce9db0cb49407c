"""Exponential moving average of the trained weights; under ZeRO-3 each rank averages its own part."""

import torch
from torch import Tensor, nn

from maep.training.checkpointing.partition import local_part


class Average:
    """`average = decay * average + (1 - decay) * weights`, after each step (`update`) or when it is wanted (`take`)."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay, self._parameters = decay, parameters
        self.parts: dict[str, Tensor] = {name: local_part(p).detach().clone() for name, p in parameters.items()}

    def update(self, step: float) -> None:
        """Take in the weights after a 0-based step, counted from where averaging begins; the decay warms up."""
        self.take(min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def take(self, decay: float) -> None:
        """Take in the weights with this decay; with 0 the average becomes their copy."""
        parts = [local_part(self._parameters[name]).detach() for name in self.parts]
        torch._foreach_lerp_(list(self.parts.values()), parts, 1 - decay)
