"""How often attacks are said to ask, against attacks that are run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.catalog import NamedAttack
from maep.launch.estimate.attack_queries import Queries, attack_queries

CLASSES = 4  # the fewest that every attack takes


class Unfoolable(nn.Module):
    """Says the label 0 of every image, with gradients, and counts how it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = self.graphs = self.backward = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, CLASSES]."""
        if torch.is_grad_enabled() and images.requires_grad:
            self.graphs += len(images)
            images = Counted.apply(images, self.count)
        else:
            self.plain += len(images)
        means = images.flatten(1).mean(1, keepdim=True)
        return torch.tensor([10.0, 0, 0, 0]) + means * torch.linspace(-1e-3, 1e-3, CLASSES)

    def count(self, images: int) -> None:
        """A gradient of so many is taken."""
        self.backward += images


class Counted(torch.autograd.Function):
    """The identity, which tells that a gradient is taken."""

    @staticmethod
    def forward(context: Any, images: Tensor, count: Callable[[int], None]) -> Tensor:
        context.count = count
        return images.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        context.count(len(gradient))
        return gradient, None


@pytest.mark.parametrize(
    "name", ["fgsm", "pgd-7", "apgd-ce", "apgd-t", "fab-t", "fab", "square-60", "autoattack-custom:apgd-dlr+apgd-ce"]
)
def test_attacks_ask_as_often_as_is_said(name: str) -> None:
    """Each of a robust image: exactly as said, but for the one answer that tells the number of classes."""
    model, images = Unfoolable().eval(), torch.full((1, 3, 4, 4), 0.5)
    NamedAttack(name, "Linf", 8 / 255).run(
        model, images, torch.zeros(1, dtype=torch.int64), keys=[0], seed=0, batch_size=1
    )
    said = attack_queries(name, "Linf", CLASSES)
    assert (said.graphs, said.backward) == (model.graphs, model.backward)
    assert model.plain - said.plain in (0, 1)


def test_autoattack_is_its_parts() -> None:
    """Standard on ten classes: 101 + 909 + 900 gradients, 5000 questions of Square and few more; `rand` asks twenty
    times.
    """
    standard = attack_queries("autoattack-standard", "Linf", 10)
    assert (standard.graphs, standard.backward) == (101 + 909 + 900, 101 + 909 + 900)
    assert standard.plain == 1 + 4 + 1 + (1 + 9) + (1 + 9 * 103) + (1 + 5002)
    assert attack_queries("autoattack-rand", "Linf", 10) == Queries(1 + 2 + 2, 2 * 101 * 20, 2 * 101 * 20)
