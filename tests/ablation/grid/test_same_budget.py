"""The sweep at the same cost: what each point costs, by torch's counter of operations."""

from pathlib import Path

import pytest
import torch

from maep.ablation.grid.points import Point, expand
from maep.ablation.grid.sweep import read_sweep
from maep.benchmarks.compute_rates import flops_of
from maep.config.load import config_names, load_settings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers.base import Purifier, TrainedPurifier
from maep.purifiers.mae import MAEPurifier
from maep.purifiers.registry import purifier_class
from maep.runtime.operations import counted
from tests.results.committed import RESULTS, flowing

BACKWARD = 2  # of a network, in units of its forward pass
UNITS = {"TFLOP": 1e12, "PFLOP": 1e15}


def forward_costs(point: Point) -> tuple[float, float]:
    """Operations of one image's forward pass with patches hidden as in the training's first part, and with none."""
    kind = purifier_class(point.settings.purifier.kind)
    assert issubclass(kind, TrainedPurifier)
    with torch.device("meta"):
        network = kind.from_settings(point.settings).model
    if isinstance(network, MaskedAutoencoder):  # whose own count tests/models/test_masked_autoencoder.py has checked
        return network.flops(32, point.settings.pretrain.mask_ratio), network.flops(32, 0.0)
    whole = flops_of(network, torch.empty(1, 3, 32, 32, device="meta"))
    return whole, whole


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_the_cost_is_the_same(scale: str, tmp_path: Path) -> None:
    """Of purifying within 3 % of all systems' mean, of training within 1 % of the budget in the point's name."""
    sweep = read_sweep("ablation/same_budget", scale, ["seeds=[0]"])
    points = expand(sweep, [f"{name}:data.root={tmp_path}" for name in config_names() if "same_budget" in name])
    assert len({point.names[0].partition(",")[0] for point in points}) * 3 == len(points) == 12
    purifying = [forward_costs(point)[1] for point in points]
    assert purifying == pytest.approx([sum(purifying) / len(purifying)] * 12, rel=0.03)
    for point in points:
        train, (masked, whole) = point.settings.pretrain, forward_costs(point)
        share = train.mask_until if train.mask_ratio else 0.0
        number, unit = point.names[0].partition(", ")[2].split()
        cost = (1 + BACKWARD) * (train.steps or 0) * train.batch_size * (share * masked + (1 - share) * whole)
        assert cost == pytest.approx(float(number) * UNITS[unit], rel=0.01), point.label


def purifying_cost(purifier: Purifier) -> float:
    """Operations that it takes to purify one image of the digits, gradients that it follows included."""
    if isinstance(network := getattr(purifier, "model", None), MaskedAutoencoder):
        return network.flops(32, 0.0)
    with counted() as operations, torch.no_grad():
        purifier(torch.rand(1, 3, 32, 32))
    return operations.flops


@pytest.mark.parametrize("scale", ["cpu", "autoattack"])
def test_maep_costs_what_the_cheapest_generative_purifier_does(scale: str) -> None:
    """Within 10 %, of one image; the cheapest is the one that its configuration names."""
    costs = {}
    for point in expand(read_sweep("ablation/zoo_generative", scale)):
        purifier = purifier_class(point.settings.purifier.kind).from_settings(point.settings)
        costs[point.names[0]] = purifying_cost(purifier.eval().requires_grad_(False))
    ours = costs.pop("MAEP, same operations")
    assert min(costs, key=lambda name: costs[name]) == "Hill"
    assert ours == pytest.approx(costs["Hill"], rel=0.1)


def test_maep_costs_on_cifar10_what_the_cheapest_generative_purifiers_do(tmp_path: Path) -> None:
    """Within 10 %, of one image, and is judged on as many images by the same attacks."""
    root = f"data.root={tmp_path}"
    sweep = read_sweep("ablation/zoo_generative_cifar10", "cpu")
    points = expand(
        sweep, [f"{name}:{root}" for name in config_names() if name.rpartition("/")[2].startswith("cifar10_cpu")]
    )
    ours = load_settings("same_budget/maep_generative_cifar10", [root])
    costs = []
    for point in points:
        purifier = purifier_class(point.settings.purifier.kind).from_settings(point.settings)
        costs.append(purifying_cost(purifier.eval().requires_grad_(False)))
        for name in ("attacks", "adaptive_attacks", "eps", "images", "adaptive_images", "chunk_images", "batch_size"):
            assert getattr(ours.evaluation, name) == getattr(point.settings.evaluation, name), (point.label, name)
    assert len(costs) == 6
    cost = purifying_cost(MAEPurifier.from_settings(ours))
    assert cost == pytest.approx(min(costs), rel=0.1)
    assert f"take for an image ({cost / 1e9:.2f} and {min(costs) / 1e9:.2f} GFLOP)" in flowing(RESULTS)
