"""The anti-adversary layer: each image is moved towards the label that it has already (Alfarra et al., AAAI 2022).

No training. It answers an attacker who follows it with the gradients of another point than the one attacked, which is
all that it gains: whoever attacks the classifier alone finds it as robust as the classifier (Croce et al. 2022).
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config.setting import setting
from maep.models.defended import DefendedClassifier
from maep.purifiers.base import Filter, derivable, require_eager, require_images
from maep.runtime.errors import fail


@dataclass
class AntiAdversarySettings:
    """Section `anti_adversary`; the defaults are the authors', and 2 steps of 0.15 are far outside any budget."""

    steps: int = setting(2, "steps towards the predicted label; 0: none", low=0, high=1000)
    step: float = setting(0.15, "size of a step, in the unit of anti_adversary.scale", low=0.0, high=10.0)
    scale: str = setting(
        "pixels", "a step is in [0,1] pixels, or in the normalised input of the classifier",
        choices=("pixels", "normalized"),
    )  # fmt: skip
    clamp: bool = setting(False, "clip what the classifier is given to [0, 1] (ours; the authors do not)")


class AntiAdversary(DefendedClassifier):
    """f(x + γ), γ = the sum of `steps` steps -step·sign ∇ CE(f(x + γ), ŷ), ŷ what f says of x.

    γ is a constant to autograd: its own derivative is zero almost everywhere, so the gradient is f's at x + γ, and the
    adaptive attacker is BPDA's. Raises UserError for scale=normalized before a classifier without deviations.
    """

    def __init__(self, classifier: nn.Module, settings: AntiAdversarySettings) -> None:
        super().__init__(classifier)
        self.settings = settings
        self.moves = self._move()

    def _move(self) -> float | Tensor:
        """The size of a step in pixels, of each channel where they differ."""
        if self.settings.scale == "pixels":
            return self.settings.step
        deviation = getattr(self.classifier, "std", None)
        if not isinstance(deviation, Tensor):
            fail("anti_adversary.scale=normalized: the classifier says no `std` of its input; set scale to pixels")
        return self.settings.step * deviation

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return cast(Tensor, self.classifier(self.moved(images)))

    def moved(self, images: Tensor) -> Tensor:
        """x + γ, [N, 3, H, W]; outside of [0, 1] too, unless clamp is set. The gradient is the identity's."""
        with derivable():
            moved = images + self._shift(images.detach())
        return moved.clamp(0, 1) if self.settings.clamp else moved

    def _shift(self, x: Tensor) -> Tensor:
        """γ, same shape as the images."""
        with torch.no_grad():
            labels = self.classifier(x).argmax(1)
        shift = torch.zeros_like(x)
        for _ in range(self.settings.steps):
            with torch.enable_grad():
                at = (x + shift).requires_grad_()
                # Summed, so that an image's gradient does not depend on how many others there are.
                loss = F.cross_entropy(self.classifier(at).float(), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, at)
            shift = shift - self.moves * gradient.sign()
        return shift


class AntiAdversaryPurifier(Filter):
    """The kind `anti_adversary` of the pipeline: judged as the `AntiAdversary` before the run's classifier."""

    kind = "anti_adversary"
    is_iterative = True
    Settings = AntiAdversarySettings
    settings: AntiAdversarySettings
    needs_classifier = True

    def __init__(self, settings: AntiAdversarySettings) -> None:
        super().__init__(settings)
        # In a list: no module of its own, or the classifier would be saved and seeded with it.
        self._defended: list[AntiAdversary] = []

    def attach(self, classifier: nn.Module) -> None:
        """Take the classifier whose label it asks for. Raises UserError as `AntiAdversary`."""
        self._defended = [AntiAdversary(classifier, self.settings)]

    def defended(self, classifier: nn.Module) -> DefendedClassifier:
        """The defense before a classifier. Raises UserError as `AntiAdversary`."""
        return AntiAdversary(classifier, self.settings).eval()

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns them moved, same shape, as a picture: clipped to [0, 1].

        Raises ValueError for another shape, where it is exported, and UserError before `attach`.
        """
        require_images(images)
        require_eager(self)
        if not self._defended:
            fail("a purifier of kind anti_adversary asks a classifier: attach one")
        return self._defended[0].moved(images).clamp(0, 1)
