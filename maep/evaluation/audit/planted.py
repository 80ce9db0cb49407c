"""Adversarial images that are known to be there: an attack that misses them is too weak (Zimmermann et al. 2022).

For each image a linear readout of the defense's logits is fitted so that the image and some points on the border of its
ball are of class 0, and one point there, the planted one, is of class 1. Whether other images of class 1 lie nearby is
left open; that one does is certain. Readout and defense are one model, which the attack is given as any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack

# Points of class 0 beside the image: as many as a random direction must avoid, and fewer than logits can be told apart.
MOST_OTHERS = 6


@dataclass(frozen=True)
class PlantedImages:
    """Of `planted` images, those that an attack has found."""

    planted: int
    found: int


class Readout(nn.Module):
    """Two classes read off a model's logits, another readout for each place in the batch.

    weights: [N, C + 1], the last of them the bias; float64, since planted differences may be small beside the logits.
    """

    def __init__(self, model: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 2] of N images [N, 3, H, W] in [0,1]."""
        margins = (self.model(images).double() * self.weights[:, :-1]).sum(1) + self.weights[:, -1]
        return torch.stack([-margins, margins], 1).float()


@torch.no_grad()
def fitted(model: nn.Module, points: Sequence[Tensor]) -> Readout:
    """The readout that says 1 of the second points alone. points: of each place in the batch, [N, 3, H, W]."""
    logits = torch.stack([model(each) for each in points], 1).double()
    rows = torch.cat([logits, torch.ones_like(logits[..., :1])], 2)  # [N, points, C + 1]
    wanted = torch.full((len(points),), -1.0, dtype=torch.float64, device=logits.device)
    wanted[1] = 1
    return Readout(model, torch.linalg.pinv(rows) @ wanted)


def planted_images(model: nn.Module, images: Tensor, spec: AttackSpec, seed: int) -> PlantedImages:
    """Plant one in the ball of each image, and attack.

    model: [N, 3, H, W] in [0,1] → logits; it must answer the same every time. images: [N, 3, H, W]. seed: of the points
    and of the attack's start. Where no readout tells the points apart, as of a model that answers the same everywhere,
    nothing is planted.
    """
    with torch.no_grad():
        others = min(MOST_OTHERS, model(images[:1]).shape[1] - 1)
    points = [images, *border_points(images, spec, 1 + others, seed)]
    readout = fitted(model, points).eval().requires_grad_(False)
    with torch.no_grad():
        answers = torch.stack([readout(each).argmax(1) for each in points])
    is_planted = (answers[1] == 1) & (answers.sum(0) == 1)
    zeros = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    adversarial = attack(readout, images, zeros, spec, range(len(images)), seed)
    with torch.no_grad():
        is_found = readout(adversarial).argmax(1) == 1
    return PlantedImages(int(is_planted.sum()), int((is_planted & is_found).sum()))


def border_points(images: Tensor, spec: AttackSpec, count: int, seed: int) -> list[Tensor]:
    """Points at distance eps from images [N, 3, H, W] in random directions, clipped to [0, 1]: `count` of each."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, *images.shape, generator=generator).to(images)
    if spec.norm == "Linf":
        steps = directions.sign()
    else:
        steps = directions / directions.flatten(2).norm(dim=2).view(count, -1, 1, 1, 1)
    return list((images + spec.eps * steps).clamp(0, 1))
