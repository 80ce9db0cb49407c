"""A purified classifier is f∘P, with gradients through both."""

import torch
from torch import nn

from maep import PurifiedClassifier


def test_composes_and_is_differentiable() -> None:
    """Logits are f(P(x)) and the input's gradient is the chain rule's."""
    purifier, classifier = nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    model = PurifiedClassifier(purifier, classifier)
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    logits = model(images)
    assert torch.equal(logits, classifier(purifier(images)))
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert bool((gradient != 0).any())
