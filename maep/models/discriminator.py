"""What tells clean images from purified ones: the second player of NRP's training, in no purifier that is saved."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

SLOPE = 0.2  # of the leaky rectifiers below zero, as ESRGAN's
HALVINGS, GROUPS = 3, 8
PREFIX = "discriminator."  # of its tensors' names among those of a training


class Discriminator(nn.Module):
    """C: images [N, 3, H, W], about [0, 1], of any size → how clean each looks, [N], without a scale.

    width: channels of the first convolution, doubled by each of the three that halve the image. The authors' is not
    described where we could read it; this one is ours. It has group norm in place of ESRGAN's batch norm, so that an
    image's answer depends on no other, and any split of a batch over processes adds up to the same.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        for channels in (width << halving for halving in range(HALVINGS)):
            halved = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
            layers += [halved, nn.GroupNorm(GROUPS, 2 * channels), nn.LeakyReLU(SLOPE)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width << HALVINGS, 1, bias=False)  # differences alone are asked for

    def forward(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W]. Returns [N]."""
        return cast(Tensor, self.head(self.features(images).mean((2, 3)))).squeeze(1)


def relativistic_losses(discriminator: nn.Module, purified: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """-log σ(C(P(x_a)) - C(x)) and -log σ(C(x) - C(P(x_a))), [N] each: a relativistic GAN (Jolicoeur-Martineau 2019).

    C is asked, image by image, which of the two is the clean one. The first moves the purifier alone, the second C
    alone. purified, clean: [N, 3, H, W].
    """
    constant = {name: tensor.detach() for name, tensor in discriminator.named_parameters()}
    seen = functional_call(discriminator, constant, purified).float()
    of_clean, of_purified = discriminator(torch.cat([clean, purified.detach()])).float().chunk(2)
    return F.softplus(of_clean.detach() - seen), F.softplus(of_purified - of_clean)
