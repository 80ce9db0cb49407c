"""SOAP: a small change of the image makes a self-supervised loss small before it is classified (Shi et al., ICLR 2021).

The loss is label consistency: what the classifier says of an image and of its mirrored, cropped self should agree. It
is that of the run's own classifier, frozen; the published defense trains the classifier with that loss as well.
Against who attacks the purified point there is next to nothing left (3.7 % of 52.6, Croce et al. 2022).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config.schema import setting
from maep.purifiers.base import Filter, require_eager, require_images
from maep.runtime.errors import fail

# The second view leaves out 2 of CIFAR's 32 pixels at each side, as published; of other sizes the same share.
CROP_SHARE = 16


@dataclass
class SoapSettings:
    """Section `soap`; the defaults are the authors' for CIFAR."""

    radii: int = setting(10, "radii that are tried beside 0, one unit apart; 0: none", low=0, high=100)
    unit: float = setting(4 / 255, "distance between radii (L∞)", unit="[0,1] pixels", above=0.0, high=1.0)
    step: float = setting(4 / 255, "size of a step", unit="[0,1] pixels", above=0.0, high=1.0)
    steps: int = setting(5, "steps within each radius", low=1, high=1000)
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

    def __init__(self, settings: SoapSettings) -> None:
        super().__init__(settings)
        # In a list: no module of its own, or the classifier would be saved and seeded with it.
        self._classifier: list[nn.Module] = []

    def attach(self, classifier: nn.Module) -> None:
        """Take the classifier that is to agree with itself: eval mode, or images of a batch would see each other."""
        self._classifier = [classifier]

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range, without a gradient.

        Raises ValueError for another shape, where it is exported, and UserError before `attach`.
        """
        require_images(images)
        require_eager(self)
        x = images.detach()
        best = torch.zeros_like(x)
        least = self._loss_at(x, best)
        for number in range(1, self.settings.radii + 1):
            shift = self._descended(x, number * self.settings.unit)
            loss = self._loss_at(x, shift)
            best = torch.where((loss < least)[:, None, None, None], shift, best)
            least = torch.minimum(loss, least)
        return (x + best).clamp(0, 1)

    def _loss_at(self, x: Tensor, shift: Tensor) -> Tensor:
        """Of the picture that would be returned, [N]."""
        with torch.no_grad():
            return self.auxiliary_loss((x + shift).clamp(0, 1))

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
        """Mean squared difference of the logits of each image and of its second view, [N]; differentiable.

        images: [N, 3, H, W]. Raises UserError before `attach`.
        """
        if not self._classifier:
            fail("a purifier of kind soap asks a classifier: attach one")
        first, second = self._classifier[0](torch.cat([images, self.second_view(images)])).float().chunk(2)
        return (first - second).square().mean(1)

    def second_view(self, images: Tensor) -> Tensor:
        """images, [N, 3, H, W], mirrored, their borders cropped, and scaled to their size again by nearest pixels."""
        height, width = images.shape[2:]
        rows, columns = _margin(height), _margin(width)
        view = images.flip(3) if self.settings.mirror else images
        view = view[:, :, rows : height - rows, columns : width - columns]
        return F.interpolate(view, (height, width), mode="nearest")


def _margin(side: int) -> int:
    """Pixels that are cropped at each end of a side: at least one, if that leaves any."""
    return min(max(1, side // CROP_SHARE), (side - 1) // 2)
