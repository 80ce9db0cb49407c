"""The feature map of a classifier: which one it is, its gradient, and a classifier that has none."""

import pytest
import torch
from torch import Tensor, nn

from maep.config.data_settings import ClassifierSettings
from maep.models.classifiers import build_classifier
from maep.models.feature_maps import FeatureMap
from maep.runtime.errors import UserError
from tests.small import train_small


def pictures(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arch", "side", "shape"),
    [("cifar_resnet8", 32, (64, 8, 8)), ("wrn10_1", 32, (64, 8, 8)), ("resnet18", 64, (64, 16, 16))],
)
def test_it_is_the_last_at_a_quarter_of_the_resolution(arch: str, side: int, shape: tuple[int, ...]) -> None:
    """Of networks for small images the end of their last stage, of those for large ones that of their first."""
    classifier = build_classifier(ClassifierSettings(arch=arch), 10).eval().requires_grad_(False)
    assert FeatureMap(classifier)(pictures(side)).shape == (2, *shape)


def test_it_is_what_the_classifier_computes() -> None:
    """Value and gradient are those of its first layers; the classifier keeps no hook, and others' modes."""
    model = train_small()
    features, images = FeatureMap(model), pictures(16).requires_grad_()
    torch.testing.assert_close(features(images), model[:4](images))
    (found,) = torch.autograd.grad(features(images).square().sum(), images)
    (expected,) = torch.autograd.grad(model[:4](images).square().sum(), images)
    torch.testing.assert_close(found, expected)
    assert not any(module._forward_hooks for module in model.modules())
    assert not model.training


def test_a_classifier_without_maps_is_refused() -> None:
    """One line that says what is wanted."""
    with pytest.raises(UserError, match="Sequential: has no map of features at a quarter of the image's resolution"):
        FeatureMap(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).eval())(pictures(16))
