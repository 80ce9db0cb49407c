"""SOAP: a small change of the image makes a self-supervised loss small before it is classified (Shi et al., ICLR 2021).

The loss is label consistency: what the classifier says of an image and of its mirrored, cropped self should agree; or
rotation: a second head of the classifier should tell by which quarter turn a copy is rotated; or reconstruction: a
decoder should draw the image from the classifier's features. The classifier is the run's own;
`classifier.training=soap`, `soap_rotation` and `soap_reconstruction` train it with the loss as well, as published.
Against who attacks the purified point there is next to nothing left (3.7 % of 52.6, Croce et al. 2022).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config import schema
from maep.config.setting import setting
from maep.models.classifiers.reconstruction import ReconstructionClassifier
from maep.models.classifiers.rotation import TURNS, RotationClassifier, turn_labels, turned
from maep.purifiers.base import Filter, require_eager, require_images
from maep.runtime.errors import fail

# The second view leaves out 2 of CIFAR's 32 pixels at each side, as published; of other sizes the same share.
CROP_SHARE = 16
# What a loss asks of the classifier, and how the names of architectures end that have it.
PARTS = {"rotation": ("head for turns", "_rotation"), "reconstruction": ("decoder", "_autoencoder")}


@dataclass
class SoapSettings:
    """Section `soap`; the defaults are the authors' for CIFAR."""

    radii: int = setting(10, "radii that are tried beside 0, one unit apart; 0: none", low=0, high=100)
    unit: float = setting(4 / 255, "distance between radii (L∞)", unit="[0,1] pixels", above=0.0, high=1.0)
    step: float = setting(4 / 255, "size of a step", unit="[0,1] pixels", above=0.0, high=1.0)
    steps: int = setting(5, "steps within each radius", low=1, high=1000)
    loss: str = setting(
        "label_consistency",
        "what is descended; rotation: for a classifier with a head for turns (classifier.arch=…_rotation); "
        "reconstruction: for one with a decoder (…_autoencoder)",
        choices=("label_consistency", "rotation", "reconstruction"),
        added=True,
    )
    mirror: bool = setting(True, "mirror the second view (as published); no: for classes that a mirror changes")


class SoapPurifier(Filter):
    """x + δ of the radius whose auxiliary loss is least, chosen for each image, clipped to [0, 1].

    For each radius, from δ = 0: δ ← clip(δ - step·sign ∇ aux(x + δ), ± radius), `steps` times; of equal losses the
    smaller radius. It has no gradient of use: between the jumps of signs and of the choice δ is constant, but some sign
    changes within a quarter of an 8-bit level of nearly every image, so differences are those of jumps. The class says
    that it has none, and adaptive attackers are BPDA's, who break it.
    """

    kind = "soap"
    Settings = SoapSettings
    settings: SoapSettings
    needs_classifier = True
    is_differentiable = False
    is_iterative = has_path = has_auxiliary_loss = True

    def __init__(self, settings: SoapSettings) -> None:
        super().__init__(settings)
        # In a list: no module of its own, or the classifier would be saved and seeded with it.
        self._classifier: list[nn.Module] = []

    @classmethod
    def check_settings(cls, settings: schema.Settings) -> None:
        """As the base's; and the classifier was trained for what purifying descends, on the same view."""
        super().check_settings(settings)
        section, arch = getattr(settings, cls.kind), settings.classifier.arch
        what, suffix = PARTS.get(section.loss, ("", ""))
        if not arch.endswith(suffix):
            fail(f"soap.loss={section.loss}: {arch} has no {what}; choose classifier.arch=…{suffix}")
        training, own = settings.classifier.training, f"soap_{section.loss}"
        if what and settings.classifier.weights is None and training != own:
            fail(
                f"soap.loss={section.loss}: classifier.training={training} leaves its {what} untrained; set it to {own}"
            )
        mirror, flip = section.mirror, settings.classifier.flip
        if settings.classifier.training == "soap" and mirror != flip:
            fail(f"soap.mirror={mirror}: the classifier's training has classifier.flip={flip}; set both alike")

    def attach(self, classifier: nn.Module) -> None:
        """Take the classifier that is to agree with itself: eval mode, or images of a batch would see each other."""
        self._classifier = [classifier]

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range, without a gradient.

        Raises ValueError for another shape, where it is exported, and UserError before `attach`.
        """
        require_images(images)
        require_eager(self)
        return self._best_of(self._candidates(images.detach()))

    def path(self, images: Tensor) -> Sequence[Tensor]:
        """As the base's: what each radius above 0 gives, and of all the best, as `purify`. Raises as that."""
        require_images(images)
        require_eager(self)
        candidates = list(self._candidates(images.detach()))
        return [*candidates[1:], self._best_of(iter(candidates))]

    def _candidates(self, x: Tensor) -> Iterator[Tensor]:
        """The image itself, and what each further radius gives."""
        yield x.clamp(0, 1)
        for number in range(1, self.settings.radii + 1):
            yield (x + self._descended(x, number * self.settings.unit)).clamp(0, 1)

    @torch.no_grad()
    def _best_of(self, candidates: Iterator[Tensor]) -> Tensor:
        """Of each image the one with the least loss; of equal ones the first."""
        best = next(candidates)
        least = self.auxiliary_loss(best)
        for candidate in candidates:
            loss = self.auxiliary_loss(candidate)
            best = torch.where((loss < least)[:, None, None, None], candidate, best)
            least = torch.minimum(loss, least)
        return best

    def _descended(self, x: Tensor, radius: float) -> Tensor:
        """The shift after all steps within a radius."""
        shift = torch.zeros_like(x)
        for _ in range(self.settings.steps):
            with torch.inference_mode(False), torch.enable_grad():
                at = (x + shift).requires_grad_()
                # Summed, so that an image's gradient does not depend on how many others there are.
                (gradient,) = torch.autograd.grad(self.auxiliary_loss(at).sum(), at)
            shift = (shift - self.settings.step * gradient.sign()).clamp(-radius, radius)
        return shift

    def auxiliary_loss(self, images: Tensor) -> Tensor:
        """Of each image, [N], as `soap.loss` says; differentiable.

        The mean squared difference of its logits and its second view's; or, for rotations, the squared distance between
        softmax and truth, summed over classes and turns; or that of the image from what is decoded, the mean over its
        values. images: [N, 3, H, W], square for rotations. Raises UserError before `attach`, or for a classifier
        without the head or the decoder.
        """
        if not self._classifier:
            fail("a purifier of kind soap asks a classifier: attach one")
        if self.settings.loss == "rotation":
            return self._rotation_loss(images)
        if self.settings.loss == "reconstruction":
            return self._reconstruction_loss(images)
        views = torch.cat([images, second_view(images, self.settings.mirror)])
        first, second = self._classifier[0](views).float().chunk(2)
        return (first - second).square().mean(1)

    def _rotation_loss(self, images: Tensor) -> Tensor:
        classifier = self._classifier[0]
        if not isinstance(network := getattr(classifier, "network", None), RotationClassifier):
            _fail_without_part("rotation")
        _, turns = network.both(classifier.normalize(turned(images)))  # type: ignore[operator]
        right = F.one_hot(turn_labels(len(images), images.device), TURNS)
        return (turns.float().softmax(1) - right).square().sum(1).view(TURNS, -1).sum(0)

    def _reconstruction_loss(self, images: Tensor) -> Tensor:
        classifier = self._classifier[0]
        if not isinstance(network := getattr(classifier, "network", None), ReconstructionClassifier):
            _fail_without_part("reconstruction")
        _, decoded = network.both(classifier.normalize(images))  # type: ignore[operator]
        return (decoded.float() - images).square().flatten(1).mean(1)


def _fail_without_part(loss: str) -> NoReturn:
    what, suffix = PARTS[loss]
    fail(f"soap.loss={loss}: the classifier has no {what}; choose classifier.arch=…{suffix}")


def second_view(images: Tensor, mirror: bool) -> Tensor:
    """images, [N, 3, H, W], mirrored or not, their borders cropped, scaled to their size again by nearest pixels."""
    height, width = images.shape[2:]
    rows, columns = _margin(height), _margin(width)
    view = images.flip(3) if mirror else images
    view = view[:, :, rows : height - rows, columns : width - columns]
    return F.interpolate(view, (height, width), mode="nearest")


def _margin(side: int) -> int:
    """Pixels that are cropped at each end of a side: at least one, if that leaves any."""
    return min(max(1, side // CROP_SHARE), (side - 1) // 2)
