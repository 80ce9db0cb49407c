"""Random resizing and padding before the classifier as Xie et al. 2018 published it: what it sees is larger.

Each image is enlarged to a size that is drawn, and lies at a place that is drawn on a grey canvas. That is no map of
images of one size, so the kind makes a defended classifier; `resize_pad` keeps to the image's size. Linear for each
draw: gradients are exact, and an attacker who averages over draws (EOT) breaks it (Athalye et al. 2018).
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from maep.config.setting import setting
from maep.models.defended import DefendedClassifier
from maep.purifiers.base import RandomFilter, in_own_type, require_eager, require_images
from maep.purifiers.resize_pad import bicubic
from maep.runtime.errors import fail


@dataclass
class EnlargePadSettings:
    """Section `enlarge_pad`; the defaults make 331 pixels of ImageNet's 299, as the authors."""

    enlarge: float = setting(
        32 / 299,
        "share of the side by which the canvas is larger than the image, a pixel at least",
        above=0.0,
        high=1.0,
    )
    padding: float = setting(0.5, "colour of the canvas", unit="[0,1] pixels", low=0.0, high=1.0)


class EnlargedClassifier(DefendedClassifier):
    """f of images as `purifier` enlarges and places them, drawn anew at every call and for each."""

    is_random = True

    def __init__(self, purifier: "EnlargePadPurifier", classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.purifier = purifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes]. Raises UserError where the classifier takes images of their own size alone."""
        canvas = self.purifier.enlarged(images)
        try:
            return cast(Tensor, self.classifier(canvas))
        except torch.OutOfMemoryError:  # a RuntimeError too, and no word on which sizes are taken
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            with torch.no_grad():
                self.classifier(images)  # what it does not take either is not for us to explain
            height, width = canvas.shape[2:]
            fail(f"purifier.kind=enlarge_pad: the classifier takes no images of {height} x {width}: {error}")


class EnlargePadPurifier(RandomFilter):
    """The kind `enlarge_pad` of the pipeline: judged as the `EnlargedClassifier` before the run's classifier."""

    kind = "enlarge_pad"
    Settings = EnlargePadSettings
    settings: EnlargePadSettings

    def defended(self, classifier: nn.Module) -> DefendedClassifier:
        """The defense before a classifier."""
        return EnlargedClassifier(self, classifier).eval()

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: copies of the canvas, and two matrices, each in three steps."""
        tall, wide = self._canvas(height), self._canvas(width)
        return super().bytes_taken(tall, wide) + 12 * (height * tall + width * wide)

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the canvas as a picture of their size, same shape and range.

        Raises ValueError for another shape, and where it is exported.
        """
        height, width = images.shape[-2:]
        canvas = self.enlarged(images)
        down, across = bicubic(canvas.shape[2], height).to(images), bicubic(canvas.shape[3], width).to(images)
        with in_own_type(images):
            return (down @ canvas @ across.T).clamp(0, 1)

    def enlarged(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns what the classifier sees, [N, 3, H', W'].

        At edges the cubic kernel overshoots [0, 1] a little. Clipped, black and white would have no true gradients.
        Raises ValueError as `purify`.
        """
        require_images(images)
        require_eager(self)
        height, width = images.shape[2:]
        if not len(images):
            return images.new_zeros(0, 3, self._canvas(height), self._canvas(width))
        pairs = [self._drawn(height, width) for _ in range(len(images))]
        rows, columns = (torch.stack(each).to(images)[:, None] for each in zip(*pairs, strict=True))
        with in_own_type(images):
            covered = rows.sum(3, keepdim=True) * columns.sum(3, keepdim=True).mT
            return rows @ images @ columns.mT + self.settings.padding * (1 - covered)

    def _canvas(self, length: int) -> int:
        """The side of the canvas of an image's side."""
        return max(length + 1, round(length * (1 + self.settings.enlarge)))

    def _drawn(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The two matrices that enlarge and place one image: three numbers are drawn, and both sides grow alike."""
        growth, top, left = self.rng.random(3)
        return self._placed(height, growth, top), self._placed(width, growth, left)

    def _placed(self, length: int, growth: float, place: float) -> Tensor:
        """The matrix [canvas, length] that enlarges an axis and places it; growth, place: in [0, 1), of what there is.

        Sizes are those from the image's to one below the canvas's, places all that it fits in, all equally likely.
        """
        canvas = self._canvas(length)
        size = length + int(growth * (canvas - length))
        start = int(place * (canvas - size + 1))
        matrix = torch.zeros(canvas, length)
        matrix[start : start + size] = bicubic(length, size)
        return matrix
