"""Counting what is computed, against torch's own counter and sums done by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maep.runtime.operations import SavedBytes, counted

NETWORK = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 5)
)
IMAGES = torch.rand(2, 3, 16, 16)


def training_step(images: Tensor) -> Tensor:
    """A forward and a backward pass of both layers."""
    logits: Tensor = NETWORK(images)
    return torch.autograd.grad(logits.square().sum(), list(NETWORK.parameters()))[0]


@pytest.mark.parametrize("dry", [False, True])
def test_a_step_takes_what_torch_says(dry: bool) -> None:
    """Forward and backward, to the last operation, whether products are computed or not."""
    with FlopCounterMode(display=False) as torchs:
        training_step(IMAGES)
    with counted(dry=dry) as own:
        training_step(IMAGES)
    assert own.flops == torchs.get_total_flops() > 0


def test_a_dry_result_is_zeros_of_the_same_shape_and_type() -> None:
    """Of products alone: what is added to them is."""
    linear = nn.Linear(6, 4, bias=False).double()
    with counted(dry=True) as operations:
        result = linear(torch.ones(2, 6, dtype=torch.float64)) + 1
    assert torch.equal(result, torch.ones(2, 4, dtype=torch.float64))
    assert operations.flops == 2 * 2 * 6 * 4


def test_attention_is_counted() -> None:
    """Two products of [heads, tokens, tokens] by the width of a head."""
    query = torch.rand(1, 3, 7, 5)
    with counted() as operations, torch.no_grad():
        nn.functional.scaled_dot_product_attention(query, query, query)
    assert operations.flops == 2 * 2 * 3 * 7 * 7 * 5


def test_a_derivative_that_is_taken_inside_is_counted() -> None:
    """As purifiers take that descend: one forward and one backward pass to the image, at 2 operations a product."""
    weights = torch.rand(6, 4)
    with counted() as operations, torch.enable_grad():
        image = torch.rand(1, 6, requires_grad=True)
        torch.autograd.grad((image @ weights).sum(), image)
    assert operations.flops == 2 * (2 * 6 * 4)


def test_launches_are_operations_that_compute() -> None:
    """A sum and a product; no view of either, and no memory that is taken."""
    with counted() as operations:
        values = torch.empty(4, 4)
        (values.view(16)[2:] + 1).mul(2)
    assert operations.launches == 2


def test_saved_bytes_are_those_of_a_backward_pass() -> None:
    """Of x·w, squared: x and the product once each; not the weights, which are there anyway."""
    weights, image = torch.rand(6, 4, requires_grad=True), torch.rand(1, 6)
    with SavedBytes([weights]) as saved:
        ((image @ weights) ** 2).sum()
    assert saved.total == 4 * (6 + 4)
