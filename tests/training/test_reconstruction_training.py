"""SOAP's decoder: its shapes, its joint loss, the loss that purifying descends, and who has no decoder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maep.config.data_settings import ClassifierSettings
from maep.config.load import load_settings
from maep.models.classifiers import Normalized, build_classifier
from maep.purifiers.soap import SoapPurifier, SoapSettings
from maep.runtime.errors import UserError
from maep.training.batch_loss import Progress
from maep.training.reconstruction_training import ReconstructionTraining
from tests.small import digits, train_small
from tests.training.test_classifier import interrupt, settings_of, shards, train

assert shards  # a fixture, used by name
AT = Progress(seed=1, step=5, epoch=0, epochs=2)
OPTIONS = ClassifierSettings(arch="cifar_resnet8_autoencoder", training="soap_reconstruction", soap_weight=3.0)


def classifier() -> Normalized:
    torch.manual_seed(0)
    return build_classifier(OPTIONS, 4).eval()


def batch(height: int = 16, width: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 3, height, width, generator=generator), torch.randint(4, (5,), generator=generator)


def soap(**values: object) -> SoapPurifier:
    return SoapPurifier(SoapSettings(loss="reconstruction", **values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 9)])
def test_it_has_the_networks_logits_and_images_of_any_size(height: int, width: int) -> None:
    """The decoder changes no logit; what it draws has the image's shape and range."""
    network, (images, _) = classifier(), batch(height, width)
    plain = build_classifier(ClassifierSettings(arch="cifar_resnet8"), 4).eval()
    state = network.network.state_dict()
    plain.network.load_state_dict({name[7:]: state[name] for name in state if name.startswith("resnet.")})
    logits, drawn = network.network.both(network.normalize(images))
    torch.testing.assert_close(logits, plain(images))
    torch.testing.assert_close(network(images), plain(images))
    assert drawn.shape == images.shape
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_the_joint_loss_is_its_formula() -> None:
    """The class of the noisy image, and the weight times its distance, drawn without noise; drawn by the step."""
    network, (images, labels) = classifier(), batch()
    method = ReconstructionTraining(network, OPTIONS)
    inputs = method.inputs(images, AT)
    assert 0 <= inputs.min() <= inputs.max() <= 1
    middle = method.inputs(torch.full_like(images, 0.5), AT)
    inside = (middle > 0) & (middle < 1)
    assert inside.float().mean() == pytest.approx(0.683, abs=0.03)  # a deviation of half the range
    assert not torch.equal(inputs, method.inputs(images, replace(AT, step=6)))
    logits, drawn = network.network.both(network.normalize(inputs))
    expected = F.cross_entropy(logits, labels) + 3 * ((drawn - images) ** 2).mean()
    torch.testing.assert_close(method.begin(images, labels, AT), expected)
    assert method.tensors() == {}


def test_purifying_descends_the_distance_of_what_is_drawn() -> None:
    """Of each image, the mean over its values, without noise; a batch does not change it."""
    network, (images, _) = classifier(), batch()
    purifier = soap(radii=3)
    purifier.attach(network)
    _, drawn = network.network.both(network.normalize(images))
    expected = ((drawn - images) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(purifier.auxiliary_loss(images), expected)
    purified = purifier(images)
    assert purifier.auxiliary_loss(purified).sum() < 0.95 * expected.sum()
    assert (purifier.auxiliary_loss(purified) <= expected + 1e-6).all()
    singly = torch.cat([purifier(image) for image in images.split(1)])
    torch.testing.assert_close(purified, singly, rtol=0, atol=1e-6)


def test_a_decoder_learns_the_digits() -> None:
    """It draws them better than their mean image would, from noisy ones."""
    images, labels = digits()
    torch.manual_seed(0)
    network = build_classifier(OPTIONS, 10)
    method = ReconstructionTraining(network, OPTIONS)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    for step in range(80):
        index = torch.randint(len(images), (32,))
        optimizer.zero_grad()
        method.begin(images[index], labels[index], replace(AT, step=step)).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        _, drawn = network.network.both(network.normalize(images[:200]))
    assert F.mse_loss(drawn, images[:200]) < 0.7 * F.mse_loss(images.mean(0).expand(200, -1, -1, -1), images[:200])


def test_stopped_halfway_it_ends_with_the_same_bits(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn is a function of the step, and the decoder is saved as the rest is."""
    words = ["classifier.training=soap_reconstruction", "classifier.arch=cifar_resnet8_autoencoder"]
    words += ["classifier.epochs=2"]
    whole = train(settings_of(shards, tmp_path / "a", *words))
    settings = settings_of(shards, tmp_path / "b", *words)
    interrupt(monkeypatch, settings, 6)
    assert train(settings).read_bytes() == whole.read_bytes()


def test_who_has_no_decoder_is_refused() -> None:
    """By the settings, by the training, by the purifier; other architectures cannot have one."""
    words = ["purifier.kind=soap", "soap.loss=reconstruction"]
    with pytest.raises(UserError, match=r"soap\.loss=reconstruction: cifar_resnet20 has no decoder; .*_autoencoder"):
        load_settings(None, words)
    with pytest.raises(UserError, match=r"soap\.loss=reconstruction: soap_resnet_rotation has no decoder"):
        load_settings(None, [*words, "classifier.arch=soap_resnet_rotation"])
    words.append("classifier.arch=soap_resnet_autoencoder")
    with pytest.raises(UserError, match=r"training=soap leaves its decoder untrained; set it to soap_reconstruction"):
        load_settings(None, [*words, "classifier.training=soap"])
    load_settings(None, [*words, "classifier.training=soap_reconstruction"])
    with pytest.raises(UserError, match=r"training=soap_reconstruction: cifar_resnet20 has not what it trains"):
        load_settings(None, ["classifier.training=soap_reconstruction"])
    plain = ClassifierSettings(arch="cifar_resnet8")
    with pytest.raises(UserError, match=r"training=soap_reconstruction: cifar_resnet8 has no decoder"):
        ReconstructionTraining(build_classifier(plain, 4), plain)
    with pytest.raises(UserError, match=r"classifier\.arch=wrn10_1_autoencoder: only cifar_resnetN and soap_resnet"):
        build_classifier(ClassifierSettings(arch="wrn10_1_autoencoder"), 10)
    purifier = soap()
    purifier.attach(train_small())
    with pytest.raises(UserError, match=r"soap\.loss=reconstruction: the classifier has no decoder"):
        purifier(batch()[0])
