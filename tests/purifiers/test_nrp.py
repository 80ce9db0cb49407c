"""NRP: the published networks by name, size and cost, what their file becomes, the dynamic variant, its training."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu
from torch.utils.flop_counter import FlopCounterMode

from maep import load_purifier
from maep.cli.checkpoint import main as checkpoint_command
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.data.shards import to_float
from maep.models.nrp_networks import DenseNetwork, PlainNetwork
from maep.pipeline.execution import run_pipeline
from maep.purifiers import save_purifier
from maep.purifiers.nrp import NrpPurifier, NrpSettings
from maep.runtime.errors import UserError
from maep.training.inputs import own_pairs
from maep.training.pretrain import pretrain
from tests.tiny import Problem

TINY = {"plain": NrpSettings("plain", 2, 6), "dense": NrpSettings("dense", 2, 6, 4)}


def purifier(network: str = "plain", **options: float) -> NrpPurifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NrpPurifier.build(TINY[network])
    model.requires_grad_(False)
    return NrpPurifier(model, TINY[network], PurifySettings(**options)).eval()  # type: ignore[arg-type]


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("network", "tensors", "parameters", "cost"),
    [(DenseNetwork, 694, 16_550_275, 16.9e9), (PlainNetwork, 96, 1_702_211, 1.74e9)],
)
def test_the_published_sizes(network: type[nn.Module], tensors: int, parameters: int, cost: float) -> None:
    """Numbers of tensors and parameters; operations of a CIFAR-10 image within 1 % of the specification."""
    with torch.device("meta"):
        model, image = network(), torch.empty(1, 3, 32, 32)
    assert len(model.state_dict()) == tensors
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert counter.get_total_flops() / 2 == pytest.approx(cost, rel=0.01)


def written_out(network: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The networks from their tensors by name, convolution after convolution."""

    def convolved(name: str, inputs: Tensor) -> Tensor:
        return conv2d(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    x = convolved("conv_first", x)
    if network == "plain":
        x = leaky_relu(x, 0.1)
        for block in range(2):
            name = f"recon_trunk.{block}.conv"
            x = x + convolved(f"{name}2", convolved(f"{name}1", x).relu())
        return convolved("conv_last", x)
    for block in range(2):
        inner = x
        for number in (1, 2, 3):
            name, seen = f"RRDB_trunk.{block}.RDB{number}.conv", inner
            for convolution in range(1, 5):
                seen = torch.cat([seen, leaky_relu(convolved(f"{name}{convolution}", seen), 0.2)], 1)
            inner = inner + 0.2 * convolved(f"{name}5", seen)
        x = x + 0.2 * inner
    return convolved("trunk_conv", x)


@pytest.mark.parametrize("network", ["plain", "dense"])
def test_the_networks_are_those_written_out(network: str) -> None:
    """Without a path around the trunk; clipped; two passes are P(P(x)); gradients go through."""
    defense, twice = purifier(network), purifier(network, passes=2)
    expected = written_out(network, defense.model.state_dict(), pictures())
    torch.testing.assert_close(defense.model(pictures()), expected)
    assert torch.equal(defense(pictures()), defense.model(pictures()).clamp(0, 1))
    assert torch.equal(twice(pictures()), defense(defense(pictures())))


@pytest.mark.parametrize("network", ["plain", "dense"])
def test_a_published_file_is_taken_in(network: str, tmp_path: Path) -> None:
    """Its depth and widths are read from the tensors; prefixes of several devices are dropped; the same bits."""
    weights = {f"module.{name}": tensor for name, tensor in purifier(network).model.state_dict().items()}
    torch.save(weights, tmp_path / "NRP.pth")
    words = ["import", str(tmp_path / "NRP.pth"), "--kind", "nrp", "--to", str(tmp_path / "purifier")]
    checkpoint_command(words)
    loaded = load_purifier(tmp_path)
    assert isinstance(loaded, NrpPurifier)
    assert loaded.model.state_dict().keys() == purifier(network).model.state_dict().keys()
    assert torch.equal(loaded(pictures()), purifier(network)(pictures()))
    torch.save({**weights, "module.conv_first.weight": torch.zeros(5, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth"):
        NrpPurifier.from_published(tmp_path / "other.pth")


def test_the_dynamic_variant_adds_bounded_noise(tmp_path: Path) -> None:
    """Of the asked deviation, at most 16/255, before every pass; images draw in turn; saved with its options."""
    dynamic = purifier(noise=0.05, passes=2)
    seen: list[Tensor] = []
    dynamic.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = torch.full((40, 3, 12, 12), 0.5)
    dynamic.reseed(1)
    together = dynamic(grey)
    noise = seen[0] - 0.5
    assert noise.abs().max() <= 16 / 255 + 1e-6
    inside = math.erf(16 / 255 / 0.05 / math.sqrt(2))
    assert (noise.abs() < 16 / 255 - 1e-6).float().mean() == pytest.approx(inside, abs=0.01)
    assert noise[noise.abs() < 0.03].std() == pytest.approx(0.0166, abs=0.0005)  # a normal one's within 0.6 deviations
    assert len(seen) == 2
    dynamic.reseed(1)
    singly = torch.cat([dynamic(image) for image in grey[:3].split(1)])
    torch.testing.assert_close(singly, together[:3], rtol=0, atol=1e-6)
    save_purifier(dynamic, tmp_path / "purifier")
    assert load_purifier(tmp_path).is_random
    assert not purifier().is_random


def test_settings_that_do_not_fit_are_refused() -> None:
    """By name."""
    with pytest.raises(UserError, match=r"nrp\.network=deep.*choose one of plain, dense"):
        load_settings(None, ["purifier.kind=nrp", "pretrain.mask_ratio=0", "nrp.network=deep"])
    with pytest.raises(UserError, match=r"pretrain\.mask_ratio=0\.5: nrp sees whole images"):
        load_settings(None, ["purifier.kind=nrp", "pretrain.mask_ratio=0.5"])


def test_it_is_trained_on_moved_features(problem: Problem, run_dir: Path) -> None:
    """Images are moved in the classifier's features, the loss in those falls, and they are what it is trained on."""
    words = ["purifier.kind=nrp", "nrp.blocks=1", "nrp.features=8", "pretrain.mask_ratio=0", "attack.method=ssp",
             "objective.name=feature", "objective.pixel_weight=0.01", "pretrain.steps=12", "pretrain.lr=0.01",
             "pretrain.log_every=1"]  # fmt: skip
    settings = load_settings("digits", problem.arguments(run_dir, *words)[1:])
    for stage in ("attack", "pretrain"):
        run_pipeline(settings, stage, lambda _, given: pretrain(given))
    losses = [json.loads(line)["l_feature"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    pairs = own_pairs(settings, settings.pretrain)
    assert pairs.adversarial is not None
    images = [to_float(each.batch(range(20))[0]) for each in (pairs.clean, pairs.adversarial)]
    distance = (images[0] - images[1]).abs()
    assert distance.amax((1, 2, 3)).max() <= settings.attack.eps + 1e-6
    assert distance.amax((1, 2, 3)).min() > 0
