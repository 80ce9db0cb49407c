"""ComDefend's networks (Jia et al., CVPR 2019): an image becomes a code of a few bits a pixel, and an image again."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn


def _convolutions(channels: Sequence[int]) -> nn.Sequential:
    """3 x 3 convolutions of the same size, with ELU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ELU()]
    return nn.Sequential(*layers[:-1])


class CodeNetwork(nn.Module):
    """ComCNN (`encoder`, images to the logits of bits) and RecCNN (`decoder`, bits to images).

    widths: channels of the encoder's layers before the code; the decoder has the same, in the other order.
    bits: of the code, a pixel. noise: deviation of the noise on the logits that a training adds. offset: what is taken
    from every pixel before it is encoded.
    """

    def __init__(self, widths: Sequence[int], bits: int, noise: float, offset: float = 0.0) -> None:
        super().__init__()
        self.bits, self.noise, self.offset = bits, noise, offset
        self.encoder = _convolutions([3, *widths, bits])
        self.decoder = nn.Sequential(_convolutions([bits, *reversed(widths), 3]), nn.Sigmoid())

    def forward(
        self, images: Tensor, shift: Tensor | None = None, *, soft: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Decoded images of [0, 1], of the images' shape [N, 3, H, W].

        shift: [N, bits, H, W], is taken from the logits. soft: the code is their sigmoid, and is returned beside the
        images, for a training; otherwise it is 1 where they are above 0, and there is no gradient.
        """
        logits = self.encoder(images - self.offset)
        if shift is not None:
            logits = logits - shift
        code = logits.sigmoid() if soft else (logits > 0).to(logits.dtype)
        decoded = cast(Tensor, self.decoder(code))
        return (decoded, code) if soft else decoded
