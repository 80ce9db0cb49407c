"""Total-variation minimisation: the minimum is reached, dropped pixels play no part, gradients are exact."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maep.config.load import load_settings
from maep.purifiers.tvm import TotalVariationPurifier, TotalVariationSettings
from maep.runtime.errors import UserError
from tests.tiny import ROOT


def pictures() -> Tensor:
    """Smooth images with noise."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(2, 3, 4, 4, generator=generator), (16, 20), mode="bilinear")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def objective(u: Tensor, images: Tensor, kept: Tensor, weight: float) -> Tensor:
    """TV(u) + weight/2 · Σ kept (u - x)², written with loops in place of the solver's operators. Returns [N]."""
    u = u.double()
    down, right = (torch.zeros_like(u) for _ in range(2))
    for row in range(u.shape[2] - 1):
        down[:, :, row] = u[:, :, row + 1] - u[:, :, row]
    for column in range(u.shape[3] - 1):
        right[..., column] = u[..., column + 1] - u[..., column]
    lengths = torch.hypot(down, right).sum((1, 2, 3))
    return lengths + weight / 2 * (kept * (u - images).square()).sum((1, 2, 3))


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_the_minimum_is_reached(keep: float) -> None:
    """Within 0.5 % in 100 iterations, and no small change of the result is better than that."""
    images = pictures()
    purifier = TotalVariationPurifier(TotalVariationSettings(keep=keep))
    purifier.reseed(1)
    kept = purifier._kept(images)
    results = {}
    for iterations in (100, 2000):
        purifier.settings.iterations = iterations
        purifier.reseed(1)
        results[iterations] = purifier(images)
    values = {n: objective(result, images, kept, purifier.settings.weight) for n, result in results.items()}
    assert (values[100] < 1.005 * values[2000]).all()
    best = results[2000]
    for number in range(20):
        change = 0.01 * torch.randn(best.shape, generator=torch.Generator().manual_seed(number))
        for other in (best + change, best + F.avg_pool2d(change, 3, 1, 1), images, torch.full_like(images, 0.5)):
            assert (objective(other, images, kept, purifier.settings.weight) > values[2000]).all()


def test_dropped_pixels_play_no_part() -> None:
    """Whatever they are, the result is the same bits; about half are dropped."""
    images = pictures()
    purifier = TotalVariationPurifier(TotalVariationSettings(iterations=20))
    purifier.reseed(2)
    kept = purifier._kept(images)
    assert 0.4 < kept.mean() < 0.6
    purifier.reseed(2)
    expected = purifier(images)
    purifier.reseed(2)
    assert torch.equal(purifier(torch.where(kept > 0, images, torch.rand(images.shape))), expected)


def test_gradients_are_exact() -> None:
    """Through all iterations, activations computed again."""
    images = pictures()[:1, :, :5, :5].double().requires_grad_()
    purifier = TotalVariationPurifier(TotalVariationSettings(keep=1.0, iterations=6))
    assert torch.autograd.gradcheck(purifier, images)


GRADIENT = """
import resource, sys, torch
from maep.config.load import load_settings
from maep.purifiers.tvm import TotalVariationPurifier, TotalVariationSettings
from maep.runtime.device import prepare_device
prepare_device(load_settings(None, ["compute.device=cpu", "compute.threads=1"]).compute)
images = torch.rand(16, 3, 32, 32).requires_grad_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
TotalVariationPurifier(TotalVariationSettings())(images).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_gradient_takes_the_memory_of_its_states() -> None:
    """The process grows by at most six times the 25 states that are kept, of five images each: 23 MiB of 16 images."""
    command = [sys.executable, "-c", GRADIENT]
    taken = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert taken < 6 * 25 * 5 * 16 * 3 * 32 * 32 * 4 / 1024


def test_bad_settings_are_refused() -> None:
    """Nothing kept; an export of one that draws."""
    with pytest.raises(UserError, match=r"tvm\.keep=0\.0.*must be above 0"):
        load_settings(None, ["purifier.kind=tvm", "tvm.keep=0.0"])
    with pytest.raises(ValueError, match="tvm.*cannot be exported"):
        torch.jit.trace(TotalVariationPurifier(TotalVariationSettings()), torch.rand(1, 3, 8, 8))
