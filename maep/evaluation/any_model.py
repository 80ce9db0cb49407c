"""Judge any classifier or defence: a module from images in [0, 1] to logits, on a shard set or tensors."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep.attacks.attack_state import tensors_sha256
from maep.config.load import load_settings, to_yaml
from maep.config.schema import Settings
from maep.data.shards import ShardSet
from maep.evaluation.audit.model_contract import answers, check_answers, check_module
from maep.evaluation.reporting.provenance import write_environment
from maep.evaluation.reporting.report import build_report
from maep.evaluation.reporting.robustbench import write_model_info
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import PLAN
from maep.evaluation.workers import evaluate_all
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file, digest, read_json
from maep.storage.locks import run_lock

PROBES = 64


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
        chosen = torch.as_tensor(list(indices))
        return self.images[chosen], self.labels[chosen]


def evaluate(
    model: nn.Module,
    data: str | Path | ShardSet | tuple[Tensor, Tensor],
    *,
    name: str = "model",
    run_dir: str | Path | None = None,
    settings: Settings | None = None,
    **evaluation: Any,
) -> dict[str, Any]:
    """Judge a model and return what report.json holds; the report is in `run_dir`. Finished chunks are not done again.

    model: images [N, 3, H, W] in [0,1] → logits [N, C], in eval mode. If it is a `PurifiedClassifier`, or has modules
    `purifier` and `classifier` as that has, every threat model applies; else it is attacked as a whole, by an attacker
    who knows it and by one who only asks it. data: a shard set, or (images, labels). name: of the model in reports.
    run_dir: default `runs/NAME`. settings: a whole configuration; evaluation: settings of its section `evaluation`,
    such as `images=100, attacks=["pgd-20"], eps=[8/255]`.
    Raises UserError, naming what is wrong, for a model or data that cannot be judged, or a directory of another model.
    """
    settings = settings or load_settings(None, [f"run.name={name}"])
    for key, value in evaluation.items():
        if not hasattr(settings.evaluation, key):
            fail(f"evaluate: unknown setting {key}; choose one of evaluation's: {', '.join(vars(settings.evaluation))}")
        setattr(settings.evaluation, key, value)
    settings.run.dir = str(run_dir or settings.run.dir)
    check_module(model)
    test = _image_set(data, model)
    settings.data.name = str(test.manifest.get("dataset", "images")) if isinstance(test, ShardSet) else "images"
    settings.classifier.arch = name
    check_answers(model, *_probes(test, model), len(test.classes))
    return _judge(model, test, name, settings)


def _judge(model: nn.Module, test: ShardSet | ImageSet, name: str, settings: Settings) -> dict[str, Any]:
    directory = Path(settings.run.dir)
    purifier, classifier = parts_of(model)
    whole = isinstance(purifier, nn.Identity)
    if whole:
        kept = [threat for threat in settings.evaluation.threat_models if threat not in ("oblivious", "bpda")]
        settings.evaluation.threat_models = kept
        settings.evaluation.adaptive_images = settings.evaluation.images
    label = "none" if whole else type(purifier).__name__
    with run_lock(directory):
        place = directory / "evaluation" / label
        subject = Evaluation(settings, purifier, classifier, model_identity(classifier, name),
                             model_identity(purifier, label), test, place)  # fmt: skip
        _refuse_another(subject)
        with atomic_file(directory / "config.yaml") as temporary:
            temporary.write_text(to_yaml(settings))
        write_environment(directory, sys.argv)
        evaluate_all([subject])
        report = build_report(settings, directory, {label: label})
        write_model_info(report, directory / "robustbench.json")
    return report


def parts_of(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(purifier, classifier) of a model that is made of them; else the identity and the model."""
    purifier, classifier = getattr(model, "purifier", None), getattr(model, "classifier", None)
    if isinstance(purifier, nn.Module) and isinstance(classifier, nn.Module) and not list(model.parameters(False)):
        return purifier, classifier
    return nn.Identity(), model


def model_identity(model: nn.Module, name: str) -> str:
    """Digest of a module's name, structure and every tensor in it."""
    return digest([name, repr(model), tensors_sha256(model.state_dict())])


def _refuse_another(subject: Evaluation) -> None:
    """Records of another model are not mixed with this one's, nor overwritten."""
    path = subject.directory / PLAN
    known = read_json(path) if path.is_file() else {}
    for what, own in (
        ("model", subject.classifier_identity),
        ("purifier", subject.purifier_identity),
        ("images", subject.test.identity),
    ):
        key = "classifier" if what == "model" else what
        if known and known.get(key) != own:
            fail(f"{path}: was written for another {what}; choose another run.dir")


def _image_set(data: str | Path | ShardSet | tuple[Tensor, Tensor], model: nn.Module) -> ShardSet | ImageSet:
    """The data as something that gives batches. Raises UserError for what cannot be judged on."""
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
