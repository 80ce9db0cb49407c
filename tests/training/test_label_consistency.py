"""SOAP's joint training: its views and loss by the formula, drawn by step, resumed to the bit, and what it is for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config.data_settings import ClassifierSettings
from maep.config.load import load_settings
from maep.models.classifiers.resnet import CifarResNet
from maep.purifiers.soap import SoapPurifier, SoapSettings, second_view
from maep.runtime.errors import UserError
from maep.training.batch_loss import Progress
from maep.training.label_consistency import LabelConsistency
from tests.small import digits
from tests.training.test_classifier import interrupt, settings_of, shards, train

assert shards  # a fixture, used by name
AT = Progress(seed=1, step=5, epoch=0, epochs=2)
OPTIONS = ClassifierSettings(training="soap", soap_weight=3.0)
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(8, 3, 32, 32, generator=generator), torch.randint(4, (8,), generator=generator)


def test_both_views_are_the_published_ones() -> None:
    """Noise is only added, and both have it; the first is 24 of 32 pixels of an image or its mirror image, by one
    crop of the batch; the second is SOAP's own."""
    images, _ = batch()
    first, second = LabelConsistency(NETWORK, OPTIONS).views(images, AT)
    assert first.shape == second.shape == images.shape
    clean = second_view(images, True)
    added = second - clean
    assert added.min() == 0
    assert 0.4 < added.eq(0).float().mean() < 0.6
    assert added[added > 0].square().mean().sqrt() == pytest.approx(0.1, abs=0.01)
    crops = {
        (is_mirrored, top, left): F.interpolate(
            (images.flip(3) if is_mirrored else images)[:, :, top : top + 24, left : left + 24], (32, 32)
        )
        for is_mirrored in (False, True)
        for top in range(8)
        for left in range(8)
    }
    chosen = [
        min(crops, key=lambda crop, number=number: float((first[number] - crops[crop][number]).square().sum()))
        for number in range(len(images))
    ]
    assert {is_mirrored for is_mirrored, _, _ in chosen} == {False, True}
    assert len({(top, left) for _, top, left in chosen}) == 1


def test_views_are_a_function_of_seed_and_step() -> None:
    """The same bits for the same step, others for another; without mirrors where a mirror changes the class."""
    images, _ = batch()
    method = LabelConsistency(NETWORK, OPTIONS)
    again, other = method.views(images, AT), method.views(images, replace(AT, step=6))
    for view, same, different in zip(method.views(images, AT), again, other, strict=True):
        assert torch.equal(view, same)
        assert not torch.equal(view, different)
    left = torch.zeros(8, 3, 32, 32)
    left[..., :16] = 5
    for view in LabelConsistency(NETWORK, replace(OPTIONS, flip=False)).views(left, AT):
        assert view[..., :8].min() >= 5
        assert view[..., -8:].max() < 5


def test_the_loss_is_its_formula() -> None:
    """Cross-entropy over both views, and the weight times the mean squared difference of their logits."""
    images, labels = batch()
    method = LabelConsistency(NETWORK, OPTIONS)
    first, second = (NETWORK(view) for view in method.views(images, AT))
    natural = (F.cross_entropy(first, labels) + F.cross_entropy(second, labels)) / 2
    expected = natural + 3 * ((first - second) ** 2).mean()
    torch.testing.assert_close(method.begin(images, labels, AT), expected)
    assert method.tensors() == {}


def test_a_classifier_learns_to_agree_with_itself() -> None:
    """With the weight it disagrees less with itself about the digits than without, and still knows them."""
    images, labels = digits()
    disagreements = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        network = CifarResNet(8, 10)
        method = LabelConsistency(network, replace(OPTIONS, flip=False, soap_weight=weight))
        optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
        for step in range(60):
            index = torch.randint(len(images), (32,))
            optimizer.zero_grad()
            method.begin(images[index], labels[index], replace(AT, step=step)).backward()
            optimizer.step()
        purifier = SoapPurifier(SoapSettings(mirror=False))
        purifier.attach(network.eval())
        with torch.no_grad():
            disagreements.append(float(purifier.auxiliary_loss(images[:200]).mean()))
            assert (network(images[:200]).argmax(1) == labels[:200]).float().mean() > 0.5
    assert disagreements[1] < 0.7 * disagreements[0]


def test_stopped_halfway_it_ends_with_the_same_bits(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn is a function of the step; another weight is another classifier."""
    words = ["classifier.training=soap", "classifier.epochs=3"]
    whole = train(settings_of(shards, tmp_path / "a", *words))
    settings = settings_of(shards, tmp_path / "b", *words)
    interrupt(monkeypatch, settings, 7)
    assert train(settings).read_bytes() == whole.read_bytes()
    other = train(settings_of(shards, tmp_path / "a", *words, "classifier.soap_weight=0"))
    assert other.read_bytes() != whole.read_bytes()


def test_views_that_do_not_match_are_refused() -> None:
    """A classifier trained on one view, and a purifier that compares with another: by name."""
    words = ["purifier.kind=soap", "classifier.training=soap", "classifier.flip=false"]
    with pytest.raises(UserError, match=r"soap\.mirror=True: .*classifier\.flip=False; set both alike"):
        load_settings(None, words)
    assert load_settings(None, [*words, "soap.mirror=false"]).classifier.soap_weight == 1
