"""The second player of NRP's training: what its losses are, whom they move, and that an image's answer is its own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maep.models.discriminator import Discriminator, relativistic_losses


def discriminator() -> Discriminator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Discriminator(8)


def pair(side: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    purified, clean = torch.rand(2, 3, 3, side, side, generator=generator)
    return purified.requires_grad_(), clean


@pytest.mark.parametrize("side", [1, 8, 13, 32])
def test_an_images_answer_is_its_own(side: int) -> None:
    """Alone as in a batch, at any size; the images differ in it."""
    network, images = discriminator(), pair(side)[1]
    together = network(images)
    assert together.shape == (3,)
    torch.testing.assert_close(torch.cat([network(image) for image in images.split(1)]), together)
    assert side == 1 or together.unique().numel() == 3


def test_the_losses_are_written_out() -> None:
    """-log of the probability that the one image looks cleaner than the other."""
    network, (purified, clean) = discriminator(), pair()
    of_purified, of_clean = network(purified).double(), network(clean).double()
    fooling, telling = relativistic_losses(network, purified, clean)
    torch.testing.assert_close(fooling.double(), -(1 / (1 + (of_clean - of_purified).exp())).log())
    torch.testing.assert_close(telling.double(), -(1 / (1 + (of_purified - of_clean).exp())).log())


def test_each_loss_moves_one_player() -> None:
    """The first the image alone, by the gradient that the network has; the second the network's weights alone."""
    network, (purified, clean) = discriminator(), pair()
    weights = list(network.parameters())
    fooling, telling = (loss.sum() for loss in relativistic_losses(network, purified, clean))
    straight = F.softplus(network(clean) - network(purified)).sum()
    fooled = torch.autograd.grad(fooling, [purified, *weights], allow_unused=True)
    torch.testing.assert_close(fooled[0], torch.autograd.grad(straight, purified)[0])
    assert all(gradient is None for gradient in fooled[1:])
    straight = F.softplus(network(purified) - network(clean)).sum()
    told = torch.autograd.grad(telling, [purified, *weights], allow_unused=True)
    assert told[0] is None
    torch.testing.assert_close(told[1:], torch.autograd.grad(straight, weights))
    assert all(gradient.any() for gradient in told[1:])


def test_it_finds_a_mark_and_the_mark_is_what_is_to_go() -> None:
    """Taught, it tells images with a faint mark from those without; of images without one it is fooled as before."""
    network, (_, clean) = discriminator(), pair()
    marked = clean + torch.tensor([0.05, -0.05, 0.0])[:, None, None]
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        told = relativistic_losses(network, marked, clean)[1].mean()
        told.backward()
        optimizer.step()
    assert told.item() < math.log(2) / 4
    fooled, even = (relativistic_losses(network, images, clean)[0].mean().item() for images in (marked, clean))
    assert even == pytest.approx(math.log(2))
    assert fooled > 2 * even
