"""Training on purified images: the draws of a step, resumed to the bit, what names the result, and what it is for."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data.classifier_weights import WEIGHTS, classifier_directory
from maep.data.shards import ShardSet, to_float
from maep.models.classifiers import load_classifier
from maep.pipeline.preconditions import check_classifiers
from maep.purifiers import Purifier, save_purifier
from maep.purifiers.registry import purifier_class
from maep.runtime.errors import UserError
from maep.training.batch_loss import Progress
from maep.training.purified_training import PurifiedTraining
from tests.training.test_classifier import interrupt, settings_of, shards, train

assert shards  # a fixture, used by name
AT = Progress(seed=1, step=5, epoch=0, epochs=2)
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
CPU = torch.device("cpu")
AUTOENCODER = [
    "model.image_size=16", "model.patch_size=4", "model.encoder_width=12", "model.encoder_heads=2",
    "model.encoder_depth=1", "model.decoder_width=12", "model.decoder_heads=2", "model.decoder_depth=1",
    "model.refine_width=0",
]  # fmt: skip


def purifier_at(directory: Path, kind: str, *words: str) -> Path:
    """An untrained purifier of a kind, in a directory."""
    settings = load_settings("digits", [f"purifier.kind={kind}", *AUTOENCODER, *words])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_purifier(purifier_class(kind).from_settings(settings), directory)
    return directory


def method_of(path: Path, *more: str) -> PurifiedTraining:
    words = ["classifier.training=purified", f"classifier.purifier={path}", *more]
    return PurifiedTraining(NETWORK, load_settings("digits", words), CPU)


def images() -> Tensor:
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_cross_entropy_of_what_the_purifier_makes(tmp_path: Path) -> None:
    """With the draws of the step: the same bits for the same step, others for another. The purifier learns nothing."""
    method = method_of(purifier_at(tmp_path, "maep"), "purify.noise=0.2")
    labels = torch.arange(8)
    method.purifier.reseed(AT.seed, AT.step)
    seen = method.purifier.purify(images())
    loss = method.begin(images(), labels, AT)
    assert torch.equal(loss, F.cross_entropy(NETWORK(seen), labels))
    assert not torch.equal(loss, method.begin(images(), labels, replace(AT, step=6)))
    loss.backward()
    assert all(parameter.grad is None for parameter in method.purifier.parameters())


def test_a_batch_gets_noise_of_its_own_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0 to the greatest one, evenly, in place of purify.noise."""
    method = method_of(purifier_at(tmp_path, "maep"), "purify.noise=0.9", "classifier.purified_noise=0.4")
    used: list[PurifySettings] = []
    with_options = type(method.purifier).with_options

    def noting(self: Purifier, options: PurifySettings, *source: str) -> Purifier:
        used.append(options)
        return with_options(self, options, *source)

    monkeypatch.setattr(type(method.purifier), "with_options", noting)
    for step in range(200):
        method.purified(images()[:1], replace(AT, step=step))
    deviations = torch.tensor([options.noise for options in used])
    assert (deviations.min() < 0.02, 0.38 < deviations.max() <= 0.4) == (True, True)
    assert float(deviations.mean()) == pytest.approx(0.2, abs=0.02)
    assert torch.equal(method.purified(images(), AT), method.purified(images(), AT))


def test_killed_training_ends_with_the_same_weights(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise of a step is that of an undisturbed training."""
    noise = purifier_at(tmp_path / "noise", "gaussian_noise")
    words = ["classifier.training=purified", f"classifier.purifier={noise}"]
    whole = train(settings_of(shards, tmp_path / "whole", *words))
    settings = settings_of(shards, tmp_path / "stopped", *words)
    interrupt(monkeypatch, settings, 17)
    assert train(settings).read_bytes() == whole.read_bytes()


def accuracy(weights: Path, settings: Settings, purifier: Purifier) -> float:
    test = ShardSet(Path(str(settings.data.shards)) / "test")
    stored, labels = test.batch(range(len(test)))
    purifier.reseed(0)
    classifier = load_classifier(settings.classifier, len(test.classes), weights)
    return float((classifier(purifier.purify(to_float(stored))).argmax(1) == labels).float().mean())


def test_it_learns_to_read_purified_images(shards: Path, tmp_path: Path) -> None:
    """Begun with a classifier that clean images trained, which can not."""
    blur = purifier_at(tmp_path / "blur", "gaussian_blur", "gaussian_blur.sigma=3")
    long = "classifier.epochs=40"
    settings = settings_of(shards, tmp_path, long)
    clean = train(settings)
    words = ["classifier.training=purified", f"classifier.purifier={blur}", f"classifier.initial={clean}"]
    adapted = train(settings_of(shards, tmp_path, "classifier.epochs=20", *words))
    purifier = method_of(blur).purifier
    before, after = (accuracy(weights, settings, purifier) for weights in (clean, adapted))
    assert before < 0.5
    assert after > before + 0.2


def test_what_names_the_result(shards: Path, tmp_path: Path) -> None:
    """The purifier and the first weights by what they are, not by where they lie; how the purifier is used, too."""
    train_set = ShardSet(shards / "train")

    def name(*words: str) -> str:
        return classifier_directory(settings_of(shards, tmp_path, *words), train_set).name

    one, two = (purifier_at(tmp_path / kind, kind) for kind in ("maep", "gaussian_blur"))
    words = ["classifier.training=purified", f"classifier.purifier={one}"]
    moved = shutil.copytree(one, tmp_path / "moved")
    assert name(*words) == name(words[0], f"classifier.purifier={moved}")
    names = [
        name(), name("classifier.training=purified", f"classifier.purifier={two}"), name(*words),
        name(*words, "purify.noise=0.1"), name(*words, "classifier.purified_noise=0.1"),
    ]  # fmt: skip
    weights = train(settings_of(shards, tmp_path, "classifier.epochs=1"))
    copied = Path(shutil.copy(weights, tmp_path / WEIGHTS))
    names.append(name(f"classifier.initial={weights}"))
    assert names[-1] == name(f"classifier.initial={copied}")
    assert len(set(names)) == len(names)
    # Its own noise is in the place of the purifier's.
    ours = [*words, "classifier.purified_noise=0.1"]
    assert name(*ours) == name(*ours, "purify.noise=0.3")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["classifier.training=purified"], "classifier.training=purified: set classifier.purifier"),
        (["classifier.initial={here}/none"], "classifier.initial=.*none: no such file"),
        (["classifier.initial={here}/text"], "text"),
        (["classifier.training=purified", "classifier.purifier={here}/none"], "none"),
        (["classifier.training=purified", "classifier.purifier={here}/soap"], "soap asks the classifier"),
        (
            ["classifier.training=purified", "classifier.purifier={here}/blur", "classifier.purified_noise=0.1"],
            "gaussian_blur .*adds no noise",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_made(words: list[str], problem: str, tmp_path: Path) -> None:
    """In one line, by the setting."""
    purifier_at(tmp_path / "soap", "soap")
    purifier_at(tmp_path / "blur", "gaussian_blur")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(UserError, match=problem) as caught:
        check_classifiers(load_settings("digits", [word.format(here=tmp_path) for word in words]))
    assert "\n" not in str(caught.value)
