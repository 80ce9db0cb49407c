"""What a training step is counted to take, against sums done by hand."""

from collections.abc import Sequence

import pytest
import torch

from maep.benchmarks.compute_rates import flops_of
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.launch.estimate.scaling_table import workload
from maep.launch.estimate.training_count import StepCount, count_training
from maep.models.classifiers import load_classifier
from maep.models.discriminator import Discriminator
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers.base import TrainedPurifier
from maep.purifiers.registry import purifier_class

SMALL = ["data.image_size=16", "model.image_size=16", "classifier.arch=cifar_resnet8"]


def settings_of(name: str, words: Sequence[str] = ()) -> Settings:
    """A configuration on images of 16 pixels."""
    return load_settings(name, [*SMALL, *words])


def counted(name: str, words: Sequence[str] = ()) -> StepCount:
    """A step of its pretraining."""
    settings = settings_of(name, words)
    return count_training(settings, settings.pretrain)


def asked(settings: Settings) -> float:
    """Operations of one image through the classifier."""
    return flops_of(load_classifier(settings.classifier, 10, None), torch.rand(1, 3, 16, 16))


def network(settings: Settings) -> float:
    """Operations of one image through the purifier's network, of a kind that takes images alone."""
    kind = purifier_class(settings.purifier.kind)
    assert issubclass(kind, TrainedPurifier)
    return flops_of(kind.from_settings(settings).model, torch.rand(1, 3, *[settings.model.image_size] * 2))


@pytest.mark.parametrize(("until", "share"), [(1.0, 1.0), (0.6, 0.6), (0.0, 0.0)])
def test_maep_takes_three_forward_passes(until: float, share: float) -> None:
    """Its own formula, of the steps that hide patches and of those that do not, within 3 %; and so says the plan."""
    words = [f"pretrain.mask_until={until}"]
    settings = settings_of("digits", words)
    model = MaskedAutoencoder(settings.model)
    masked, whole = (model.flops(16, ratio) for ratio in (settings.pretrain.mask_ratio, 0.0))
    expected = 3 * (share * masked + (1 - share) * whole)
    step = counted("digits", words)
    assert step.flops == pytest.approx(expected, rel=0.03)
    assert step.parameters == sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert workload(settings).step_flops == pytest.approx(expected)


def test_an_objective_that_asks_twice_costs_twice() -> None:
    """`reconstruction` purifies the clean image as well."""
    words = ["pretrain.mask_ratio=0", "pretrain.mask_until=0"]
    once, twice = (counted("digits", [*words, f"objective.name={name}"]) for name in ("purification", "reconstruction"))
    assert twice.flops == pytest.approx(2 * once.flops)
    assert twice.activations > 1.9 * once.activations


def test_a_discriminator_is_in_it() -> None:
    """It sees three images, learns of two, and is followed back to one; its weights are trained as well."""
    words = ["pretrain.mask_ratio=0", "objective.name=feature", "objective.gan_weight="]
    without, beside = (counted("digits", [*words[:2], words[2] + weight]) for weight in ("0", "0.01"))
    network = Discriminator()
    once, first = flops_of(network, torch.rand(1, 3, 16, 16)), 2 * 16 * 16 * 9 * 3 * 32
    # Back, one for the weights and one for the input, which the images that it learns of are not asked for.
    assert beside.flops - without.flops == pytest.approx(3 * once + once + 2 * 2 * once - 2 * first, rel=1e-3)
    assert beside.parameters - without.parameters == sum(each.numel() for each in network.parameters())


def test_residual_cnn_takes_three_forward_passes() -> None:
    """But for the gradient of its first layer's input, which nobody asks for."""
    settings = settings_of("residual_cnn/digits")
    first = 2 * 16 * 16 * 9 * 3 * settings.residual_cnn.width  # type: ignore[attr-defined]
    whole = network(settings)
    step = counted("residual_cnn/digits")
    assert 3 * whole - first <= step.flops <= 3 * whole


def test_an_attack_on_the_classifier_is_in_it() -> None:
    """Made as the training goes, seven steps take seven forward and backward passes of the classifier."""
    words = ["attack.steps=7", "attack.method=pgd"]
    alone, attacked = (counted("digits", [*words, f"attack.online={online}"]) for online in ("false", "true"))
    settings = settings_of("digits")
    assert attacked.flops - alone.flops == pytest.approx(7 * 2 * asked(settings), rel=0.05)


def test_an_attack_on_the_whole_is_in_it() -> None:
    """Two more steps are two more passes through purifier and classifier, forward, and back to the image."""
    words = ["robust.late_steps=0", "robust.clean_until=0", "attack.method=pgd"]
    few, more = (counted("robust/digits", [*words, f"attack.steps={steps}"]) for steps in (1, 3))
    settings = settings_of("robust/digits", words)
    once = asked(settings) + MaskedAutoencoder(settings.model).flops(16, 0.0)
    assert more.flops - few.flops == pytest.approx(2 * 2 * once, rel=0.06)


def test_a_beginning_without_attack_saves_its_share() -> None:
    """Half of the training without one: half as many steps of it in the mean."""
    words = ["robust.late_steps=0", "attack.method=pgd", "attack.steps=4"]
    whole, none, half = (counted("robust/digits", [*words, f"robust.clean_until={share}"]) for share in (0, 1, 0.5))
    assert half.flops - none.flops == pytest.approx((whole.flops - none.flops) / 2)


def test_chains_are_in_it() -> None:
    """An energy's chains walk on at every step, each step of theirs a forward and a backward pass to the picture."""
    larger = ["data.image_size=32", "model.image_size=32"]  # the least that an energy takes
    few, more = (counted("ebm/digits", [*larger, f"ebm.chain_steps={steps}"]) for steps in (2, 6))
    settings = settings_of("ebm/digits", larger)
    assert more.flops - few.flops == pytest.approx(4 * 2 * network(settings), rel=0.02)
