"""Evaluate any classifier or defense: a module from images in [0, 1] to logits, on a shard set or tensors."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep.attacks.attack_state import tensors_sha256
from maep.attacks.threat_models import Bpda, Oblivious
from maep.config.load import load_settings, to_yaml
from maep.config.schema import Settings
from maep.data.shards import ShardSet
from maep.evaluation.audit.model_contract import answers, check_answers, check_module
from maep.evaluation.reporting.provenance import write_environment
from maep.evaluation.reporting.report import build_report
from maep.evaluation.reporting.robustbench import write_model_info
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import PLAN, Plan
from maep.evaluation.workers import evaluate_all
from maep.models.defended import DefendedClassifier
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file
from maep.storage.locks import run_lock

# Enough to tell a model that is right by chance from one that is not, in one batch on any machine.
PROBES = 64
# Threat models that say nothing of a classifier alone: its attackers know all there is.
NEED_DEFENSE = (Oblivious.name, Bpda.name)


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, in the place of a shard set.

    images: [N, 3, H, W] in [0, 1], float; labels: int64 [N]; classes: names.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]

    @property
    def identity(self) -> str:
        """64 hex digits that name the images and their labels."""
        return tensors_sha256({"images": self.images, "labels": self.labels})

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images and labels of some indices, in their order."""
        index = torch.as_tensor(list(indices))
        return self.images[index], self.labels[index]


def evaluate(
    model: nn.Module,
    data: str | Path | ShardSet | tuple[Tensor, Tensor],
    *,
    name: str = "model",
    run_dir: str | Path | None = None,
    settings: Settings | None = None,
    **evaluation: Any,
) -> dict[str, Any]:
    """Evaluate a model; return what report.json in `run_dir` holds. Finished chunks are not done again.

    model: images [N, 3, H, W] in [0,1] → logits [N, C], in eval mode. If it is a `PurifiedClassifier`, or has modules
    `purifier` and `classifier` as that has, or is a `maep.models.defended.DefendedClassifier`, every threat model
    applies; else all of it is attacked, by an attacker who knows it and by one who only asks it. data: a shard set,
    or (images, labels). name: of the model in reports. run_dir: default `runs/NAME`. settings: a whole configuration;
    evaluation: settings of its section `evaluation`, such as `images=100, attacks=["pgd-20"], eps=[8/255]`.
    Raises UserError, naming what is wrong, for a model or data that cannot be evaluated, or for a directory of another
    model.
    """
    settings = settings or load_settings(None, [f"run.name={name}"])
    for key, value in evaluation.items():
        if not hasattr(settings.evaluation, key):
            fail(f"evaluate: unknown setting {key}; choose one of evaluation's: {', '.join(vars(settings.evaluation))}")
        setattr(settings.evaluation, key, value)
    settings.run.dir = str(run_dir or settings.run.dir)
    check_module(model)
    test = _image_set(data, model)
    settings.data.name = (test.manifest.dataset or "images") if isinstance(test, ShardSet) else "images"
    settings.classifier.arch = name
    check_answers(model, *_probes(test, model), len(test.classes))
    return _evaluate(model, test, name, settings)


def _evaluate(model: nn.Module, test: ShardSet | ImageSet, name: str, settings: Settings) -> dict[str, Any]:
    directory = Path(settings.run.dir)
    defense, label = defense_of(model, name)
    if defense.is_undefended:
        threats = [threat for threat in settings.evaluation.threat_models if threat not in NEED_DEFENSE]
        settings.evaluation.threat_models = threats
        settings.evaluation.adaptive_images = settings.evaluation.images
    with run_lock(directory):
        evaluation = Evaluation(settings, defense, test, directory / "evaluation" / label)
        _refuse_another(evaluation)
        with atomic_file(directory / "config.yaml") as temporary:
            temporary.write_text(to_yaml(settings))
        write_environment(directory, sys.argv)
        evaluate_all([evaluation])
        report = build_report(settings, directory, {label: label})
        write_model_info(report, directory / "robustbench.json")
    return report.to_json()


def defense_of(model: nn.Module, name: str) -> tuple[Defense, str]:
    """What is evaluated of a model, and its label in reports.

    A `DefendedClassifier` says itself what its attackers are given; a model that is made of a purifier and a classifier
    is taken apart; any other is a classifier alone.
    """
    if isinstance(model, DefendedClassifier):
        label, classifier = type(model).__name__, model.target(Oblivious.name)
        identity = digest([model_identity(model, label), plain_values(model)])
        return Defense(nn.Identity(), classifier, identity, model_identity(classifier, name), model), label
    purifier, classifier = parts_of(model)
    label = "none" if isinstance(purifier, nn.Identity) else type(purifier).__name__
    return Defense(purifier, classifier, model_identity(purifier, label), model_identity(classifier, name)), label


def parts_of(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(purifier, classifier) of a model that is made of them; else the identity and the model."""
    purifier, classifier = getattr(model, "purifier", None), getattr(model, "classifier", None)
    if isinstance(purifier, nn.Module) and isinstance(classifier, nn.Module) and not list(model.parameters(False)):
        return purifier, classifier
    return nn.Identity(), model


def model_identity(model: nn.Module, name: str) -> str:
    """Digest of a module's name, structure and every tensor in it."""
    return digest([name, repr(model), tensors_sha256(model.state_dict())])


def plain_values(model: nn.Module) -> dict[str, object]:
    """Numbers and texts among the attributes of a module and its parts: a defense's strength is often one of these."""
    return {
        f"{part}.{name}": value
        for part, module in model.named_modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
    }


def _refuse_another(evaluation: Evaluation) -> None:
    """Records of another model are not mixed with this one's, nor overwritten."""
    path = evaluation.directory / PLAN
    if not path.is_file():
        return
    plan, defense = Plan.read(path), evaluation.defense
    for what, before, current in (
        ("model", plan.classifier, defense.classifier_identity),
        ("purifier", plan.purifier, defense.purifier_identity),
        ("images", plan.images, evaluation.test.identity),
    ):
        if before != current:
            fail(f"{path}: was written for another {what}; choose another run.dir")


def _image_set(data: str | Path | ShardSet | tuple[Tensor, Tensor], model: nn.Module) -> ShardSet | ImageSet:
    """The data as something that gives batches. Raises UserError for what cannot be evaluated on."""
    if isinstance(data, (str, Path)):
        data = ShardSet(Path(data))
    if isinstance(data, ShardSet):
        problems = data.verify()
        if problems:
            fail(problems[0])
        _check_labels([data.label(index) for index in range(len(data))], len(data.classes), str(data.path))
        return data
    images, labels = data
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(labels) or not len(images):
        fail(f"data: images {tuple(images.shape)} and labels {tuple(labels.shape)}; expected [N, 3, H, W] and [N]")
    if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        low, high = float(images.min()), float(images.max())
        fail(f"data: images are {images.dtype} from {low:.4g} to {high:.4g}; expected float in [0, 1], not normalised")
    count = answers(model, images[:1].to(_device(model))).shape[-1]
    _check_labels(labels.tolist(), count, "data")
    return ImageSet(images, labels.to(torch.int64), [str(number) for number in range(count)])


def _check_labels(labels: list[int], count: int, where: str) -> None:
    for index, label in enumerate(labels):
        if not 0 <= label < count:
            fail(f"{where}: sample {index} has label {label}; expected 0 to {count - 1}")


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _probes(test: ShardSet | ImageSet, model: nn.Module) -> tuple[Tensor, Tensor]:
    """The first images, float in [0, 1], and labels, on the model's device."""
    images, labels = test.batch(range(min(PROBES, len(test))))
    images = images if images.is_floating_point() else images.float() / 255
    return images.to(_device(model)), labels.to(_device(model))
