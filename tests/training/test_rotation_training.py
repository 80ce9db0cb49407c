"""SOAP's second head: its keys, its joint loss, the loss that purifying descends, and who has no such head."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from maep.config.data_settings import ClassifierSettings
from maep.config.load import load_settings
from maep.models.classifiers import Normalized, build_classifier, load_classifier
from maep.models.classifiers.rotation import turned
from maep.purifiers.soap import SoapPurifier, SoapSettings
from maep.runtime.errors import UserError
from maep.training.batch_loss import Progress
from maep.training.rotation_training import RotationTraining
from tests.small import digits, train_small
from tests.training.test_classifier import interrupt, settings_of, shards, train

assert shards  # a fixture, used by name
AT = Progress(seed=1, step=5, epoch=0, epochs=2)
OPTIONS = ClassifierSettings(arch="cifar_resnet8_rotation", training="soap_rotation", soap_weight=3.0)


def classifier() -> Normalized:
    torch.manual_seed(0)
    return build_classifier(OPTIONS, 4).eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 3, 16, 16, generator=generator), torch.randint(4, (5,), generator=generator)


def soap(**values: object) -> SoapPurifier:
    return SoapPurifier(SoapSettings(loss="rotation", **values))  # type: ignore[arg-type]


def test_it_has_the_published_keys_and_the_networks_logits(tmp_path: Path) -> None:
    """`resnet.` and the network's keys, `fc1` of four turns; the logits are those of the network with its weights."""
    settings = ClassifierSettings(arch="soap_resnet_rotation")
    whole, plain = build_classifier(settings, 10), build_classifier(ClassifierSettings(arch="soap_resnet"), 10)
    state = whole.network.state_dict()
    names = {f"resnet.{name}" for name in plain.network.state_dict()} | {"fc1.weight", "fc1.bias"}
    assert state.keys() == names
    assert state["fc1.weight"].shape == (4, 64)
    plain.network.load_state_dict({name[7:]: state[name] for name in state if name.startswith("resnet.")})
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(whole.eval()(images), plain.eval()(images))
    save_file(state, tmp_path / "w.safetensors")
    torch.testing.assert_close(load_classifier(settings, 10, tmp_path / "w.safetensors")(images), plain(images))


def test_the_joint_loss_is_its_formula() -> None:
    """The class of all four copies and the turn, of images with noise that depends on the step."""
    network, (images, labels) = classifier(), batch()
    method = RotationTraining(network, OPTIONS)
    inputs = method.inputs(images, AT)
    assert 0 <= inputs.min() <= inputs.max() <= 1
    assert torch.equal(inputs[5:10], inputs[:5].rot90(1, (2, 3)))
    inside = (images > 0.35) & (images < 0.65)
    assert (inputs[:5] - images)[inside].std() == pytest.approx(0.1, abs=0.01)
    assert not torch.equal(inputs, method.inputs(images, replace(AT, step=6)))
    expected = torch.zeros(())
    for turn, copies in enumerate(inputs.chunk(4)):
        classes, turns = network.network.both(network.normalize(copies))
        torch.testing.assert_close(classes, network(copies))
        expected = expected + F.cross_entropy(classes, labels) / 4
        expected = expected + 3 * F.cross_entropy(turns, torch.full((5,), turn)) / 4
    torch.testing.assert_close(method.begin(images, labels, AT), expected)


def test_purifying_descends_the_published_distance() -> None:
    """Softmax less truth, squared and summed over classes and turns, of each image; a batch does not change it."""
    network, (images, _) = classifier(), batch()
    purifier = soap(radii=3)
    purifier.attach(network)
    expected = torch.zeros(5)
    for turn in range(4):
        _, turns = network.network.both(network.normalize(images.rot90(turn, (2, 3))))
        expected = expected + (turns.softmax(1) - F.one_hot(torch.tensor(turn), 4)).square().sum(1)
    torch.testing.assert_close(purifier.auxiliary_loss(images), expected)
    purified = purifier(images)
    assert (purifier.auxiliary_loss(purified) <= expected + 1e-6).all()
    assert purifier.auxiliary_loss(purified).sum() < 0.95 * expected.sum()
    singly = torch.cat([purifier(image) for image in images.split(1)])
    torch.testing.assert_close(purified, singly, rtol=0, atol=1e-6)


def test_a_classifier_learns_the_turns() -> None:
    """It tells those of digits far more often than by chance."""
    images, labels = digits()
    torch.manual_seed(0)
    network = build_classifier(OPTIONS, 10)
    method = RotationTraining(network, OPTIONS)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    for step in range(60):
        index = torch.randint(len(images), (16,))
        optimizer.zero_grad()
        method.begin(images[index], labels[index], replace(AT, step=step)).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        answers = network.network.both(network.normalize(turned(images[:100])))[1].argmax(1)
    assert (answers == torch.arange(4).repeat_interleave(100)).float().mean() > 0.6


def test_stopped_halfway_it_ends_with_the_same_bits(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn is a function of the step, and the second head is saved as the rest is."""
    words = ["classifier.training=soap_rotation", "classifier.arch=cifar_resnet8_rotation", "classifier.epochs=2"]
    whole = train(settings_of(shards, tmp_path / "a", *words))
    settings = settings_of(shards, tmp_path / "b", *words)
    interrupt(monkeypatch, settings, 6)
    assert train(settings).read_bytes() == whole.read_bytes()
    assert load_file(whole)["fc1.weight"].shape == (4, 64)


def test_who_has_no_such_head_is_refused() -> None:
    """By the settings, by the training, by the purifier; other architectures cannot have one, nor images a turn."""
    words = ["purifier.kind=soap", "soap.loss=rotation"]
    with pytest.raises(UserError, match=r"soap\.loss=rotation: cifar_resnet20 has no head for turns"):
        load_settings(None, words)
    words.append("classifier.arch=soap_resnet_rotation")
    with pytest.raises(UserError, match=r"training=standard leaves its head for turns untrained; set it to soap_rot"):
        load_settings(None, words)
    assert load_settings(None, [*words, "classifier.weights=FILE"]).classifier.training == "standard"
    assert load_settings(None, [*words, "classifier.training=soap_rotation"]).soap.loss == "rotation"
    with pytest.raises(UserError, match=r"classifier\.training=soap_rotation: cifar_resnet20 has not what it trains"):
        load_settings(None, ["classifier.training=soap_rotation"])
    with pytest.raises(UserError, match=r"classifier\.training=soap_rotation: cifar_resnet8 has no head"):
        RotationTraining(
            build_classifier(ClassifierSettings(arch="cifar_resnet8"), 4), replace(OPTIONS, arch="cifar_resnet8")
        )
    with pytest.raises(UserError, match=r"classifier\.arch=wrn10_1_rotation: only cifar_resnetN and soap_resnet"):
        build_classifier(ClassifierSettings(arch="wrn10_1_rotation"), 10)
    purifier = soap()
    purifier.attach(train_small())
    with pytest.raises(UserError, match=r"soap\.loss=rotation: the classifier has no head for turns"):
        purifier(batch()[0])
    purifier.attach(classifier())
    with pytest.raises(ValueError, match=r"only square ones"):
        purifier(torch.rand(1, 3, 16, 12))
