"""DISCO's network: the shortcut against the published module written out, its size, its cost, its names."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from maep.models.local_implicit import LocalImplicitNetwork


def network(blocks: int = 2, features: int = 6, hidden: tuple[int, ...] = (10, 9)) -> LocalImplicitNetwork:
    torch.manual_seed(0)
    return LocalImplicitNetwork(blocks, features, hidden)


def centres(count: int) -> Tensor:
    """Of the pixels of an axis, from -1 to 1."""
    return -1 + (2 * torch.arange(count) + 1) / count


def nearest(points: Tensor, count: int) -> Tensor:
    """The pixels that points of an axis lie in, as torch's grid_sample rounds."""
    return (((points + 1) * count - 1) / 2).round().long().clamp(0, count - 1)


def four_ways(model: LocalImplicitNetwork, images: Tensor) -> Tensor:
    """LIIF's query of every pixel's centre, literally: four features, each answer weighed by the opposite area."""
    height, width = images.shape[2:]
    features = F.unfold(model.encoder((images - 0.5) / 0.5), 3, padding=1)
    features = features.unflatten(2, (height, width)).permute(0, 2, 3, 1)
    row, column = torch.meshgrid(centres(height), centres(width), indexing="ij")
    cell = torch.tensor([2 / height * height, 2 / width * width]).expand(len(images), height, width, 2)
    answers, areas = [], []
    for up in (-1, 1):
        for left in (-1, 1):
            at_row = (row + up / height + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
            at_column = (column + left / width + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
            i, j = nearest(at_row, height), nearest(at_column, width)
            offset = torch.stack([(row - centres(height)[i]) * height, (column - centres(width)[j]) * width], -1)
            offset = offset.expand(len(images), -1, -1, -1)
            answers.append(model.imnet(torch.cat([features[:, i, j], offset, cell], -1)))
            areas.append((offset[..., 0] * offset[..., 1]).abs() + 1e-9)
    total = sum(areas)
    opposite = reversed(areas)  # the areas of the four corners, in the order of the opposite ones
    colours = sum(answer * (area / total)[..., None] for answer, area in zip(answers, opposite, strict=True))
    assert isinstance(colours, Tensor)
    return colours.permute(0, 3, 1, 2) * 0.5 + 0.5


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (5, 28), (28, 6), (1, 7), (7, 1), (1, 1)])
def test_the_shortcut_is_the_published_module(size: tuple[int, int]) -> None:
    """At any size, borders included, values and gradients."""
    model = network()
    images = torch.rand(2, 3, *size, requires_grad=True)
    weights = torch.rand(images.shape)
    results = [model(images), four_ways(model, images)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad((result * weights).sum(), images)[0] for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_it_has_the_published_size_and_names() -> None:
    """1,220,416 parameters of the encoder and 346,883 of the perceptron, under the names of the files."""
    with torch.device("meta"):
        model = LocalImplicitNetwork()
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.imnet)]
    assert counts == [1_220_416, 346_883]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {
        "encoder.head.0.weight": (64, 3, 3, 3),
        "encoder.body.16.weight": (64, 64, 3, 3),
    }
    expected |= {f"encoder.body.{i}.body.{j}.weight": (64, 64, 3, 3) for i in range(16) for j in (0, 2)}
    expected |= {"imnet.layers.0.weight": (256, 580), "imnet.layers.8.weight": (3, 256)}
    expected |= {f"imnet.layers.{i}.weight": (256, 256) for i in (2, 4, 6)}
    expected |= {name.replace("weight", "bias"): shape[:1] for name, shape in expected.items()}
    assert shapes == expected


def test_it_costs_what_the_specification_says() -> None:
    """1.61 billion multiplications a 32 x 32 image, within 1 %: one answer a pixel, not four."""
    with torch.device("meta"):
        model, images = LocalImplicitNetwork(), torch.empty(1, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            model(images)
    assert counter.get_total_flops() / 2 == pytest.approx(1.61e9, rel=0.01)


def test_masks_are_refused() -> None:
    """It has no patches."""
    with pytest.raises(ValueError, match="whole images"):
        network()(torch.rand(1, 3, 8, 8), torch.ones(1, 4, dtype=torch.bool))
