"""The training module gives every objective what it needs, whatever the model is wrapped in."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from maep.config.implementations import OBJECTIVES
from maep.config.schema import ComputeSettings
from maep.config.training_settings import FinetuneSettings, ObjectiveSettings
from maep.models.masked_autoencoder import MaskedAutoencoder, patchify, visible_index
from maep.models.normalized_patches import normalized_patches
from maep.runtime.errors import UserError
from maep.training.finetune import with_adapter
from maep.training.module import TrainingModule, compile_options
from tests.training.networks import SMALL, classifier, network_of


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_trains_an_adapted_model(name: str) -> None:
    """Finite losses, one an image, and a gradient for the adapter's weights, through peft's wrapper in bf16; for the
    network's own where the objective trains another than a purifier.
    """
    torch.manual_seed(0)
    network = network_of(name)
    model: nn.Module = with_adapter(network, FinetuneSettings(), 0) if OBJECTIVES[name].network == "images" else network
    judged = ([classifier()], torch.tensor([0, 4, 2])) if OBJECTIVES[name].classifies else ([], None)
    seeds = torch.tensor([3, 4, 5]) if OBJECTIVES[name].draws else None
    module = TrainingModule(model, ObjectiveSettings(name=name), "bf16", judged[0])
    clean = torch.rand(3, 3, 16, 16)
    visible = None if OBJECTIVES[name].whole_images else torch.arange(16).expand(3, 16) % 2 == 0
    total, _parts = module(clean, (clean + 0.03).clamp(0, 1), visible, labels=judged[1], seeds=seeds)
    total.sum().backward()
    assert total.shape == (3,)
    assert total.isfinite().all()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(("name", "shown"), [("nim", None), ("mae", torch.arange(16).expand(3, 16) % 2 == 0)])
def test_normalized_patches_are_compared_where_they_are_predicted(name: str, shown: Tensor | None) -> None:
    """Mean squares of patches of mean 0 and deviation 1, of hidden ones where there are any; through peft's wrapper and
    with an index as well.
    """
    torch.manual_seed(0)
    network, settings = (
        MaskedAutoencoder(replace(SMALL, prediction="normalized")),
        ObjectiveSettings(name, distance="mse"),
    )
    clean = torch.rand(3, 3, 16, 16)
    given = clean if name == "mae" else clean + 0.1 * torch.randn_like(clean)
    target = patchify(normalized_patches(clean, 4), 4)
    errors = (patchify(network(given, shown, normalized=True), 4) - target).square().mean(2)
    expected = errors.mean(1) if shown is None else errors[~shown].view(3, 8).mean(1)
    index = None if shown is None else visible_index(shown)
    for model in (network, with_adapter(network, FinetuneSettings(), 0)):
        total, _parts = TrainingModule(model, settings, "fp32")(clean, given, shown, index)
        torch.testing.assert_close(total, expected)


def test_objectives_of_pixels_compare_pixels_of_any_network() -> None:
    """Of a network that predicts normalized patches they see what it purifies."""
    torch.manual_seed(0)
    network = MaskedAutoencoder(replace(SMALL, prediction="normalized"))
    clean, attacked = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    total, _parts = TrainingModule(network, ObjectiveSettings("purification"), "fp32")(clean, attacked, None)
    torch.testing.assert_close(total, (network(attacked) - clean).abs().mean((1, 2, 3)))


def test_the_classifier_of_an_objective_stays_as_it_is() -> None:
    """It is no part of the module: not in training mode, not among the parameters, without gradients."""
    classifier = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 16**2), nn.Linear(3 * 16**2, 5))
    classifier.eval().requires_grad_(False)
    module = TrainingModule(MaskedAutoencoder(SMALL), ObjectiveSettings(name="robust"), "fp32", [classifier]).train()
    total, _parts = module(torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16), None, labels=torch.tensor([0, 4, 2]))
    total.sum().backward()
    assert not any(part.training for part in classifier.modules())
    assert not classifier[1].running_mean.any()
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert {id(p) for p in module.parameters()}.isdisjoint(id(p) for p in classifier.parameters())


def test_a_discriminator_is_part_of_the_module_where_it_is_weighed_in() -> None:
    """Its gradients are there beside the network's; an objective without one has none, whatever its weight."""
    torch.manual_seed(0)
    settings, pair = ObjectiveSettings(name="feature", gan_weight=0.1), torch.rand(2, 3, 3, 16, 16)
    module = TrainingModule(MaskedAutoencoder(SMALL), settings, "bf16", [classifier()])
    total, parts = module(*pair, torch.arange(16).expand(3, 16) % 2 == 0, labels=torch.tensor([0, 4, 2]))
    total.sum().backward()
    assert module.discriminator is not None
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in module.parameters())
    assert {"l_gan", "l_discriminator"} < set(parts)
    for other in (replace(settings, gan_weight=0.0), replace(settings, name="robust")):
        assert TrainingModule(MaskedAutoencoder(SMALL), other, "bf16", [classifier()]).discriminator is None


def test_of_several_classifiers_the_named_one_is_asked() -> None:
    """The losses are those of a module that has this one alone."""
    torch.manual_seed(0)
    model, settings = MaskedAutoencoder(SMALL), ObjectiveSettings(name="robust")
    several = [nn.Sequential(nn.Flatten(), nn.Linear(3 * 16**2, 5)).eval().requires_grad_(False) for _ in range(2)]
    pair, labels = (torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)), torch.tensor([0, 4, 2])
    both = TrainingModule(model, settings, "fp32", several)
    for which, one in enumerate(several):
        alone, _parts = TrainingModule(model, settings, "fp32", [one])(*pair, None, labels=labels)
        assert torch.equal(both(*pair, None, labels=labels, which=which)[0], alone)
    assert not torch.equal(both(*pair, None, labels=labels)[0], alone)


def test_cuda_graphs_are_asked_for_where_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    """Of torch, in its own word, on one CUDA device; elsewhere it is said, or refused."""
    graphs, cuda = ComputeSettings(compile=True, cuda_graphs=True), torch.device("cuda", 1)
    assert compile_options(graphs, cuda, 1) == {"mode": "reduce-overhead"}
    assert compile_options(ComputeSettings(compile=True), cuda, 8) == {}
    with pytest.raises(UserError, match=r"compute\.cuda_graphs=true: for one process, and these are 8"):
        compile_options(graphs, cuda, 8)
    assert compile_options(graphs, torch.device("cpu"), 1) == {}
    assert "compute.cuda_graphs=true: there are none on cpu" in capsys.readouterr().out
