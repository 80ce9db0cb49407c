"""Soft labels: what a robust teacher answers to every clean training image, in a file beside each shard's name.

    run.cache/soft_labels/NAME-IDENTITY/
      shard-00000.labels.safetensors    `logits`: float32 [count, classes], of the samples of shard-00000.tar, in order
      manifest.json                     whose answers to which images; written when all files are there

They are of the images as they are stored: a sample that is mirrored or cropped keeps its label (Shen and Xing 2022), so
that the teacher is asked once and no training needs it. A file under its final name is whole; a stage that is killed
goes on with those that are missing.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from maep.attacks.attack_state import identity_of, save_tensors
from maep.config.schema import Settings
from maep.data.classifier_weights import classifier_weights, teacher
from maep.data.images.build import clean_split
from maep.data.shards import ShardSet, to_float
from maep.models.classifiers import classifier_identity, load_classifier
from maep.runtime.console import say
from maep.runtime.device import prepare_device
from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import write_json
from maep.storage.locks import one_at_a_time
from maep.storage.manifests import Manifest
from maep.storage.sealed import MANIFEST, file_entries, problem_with

LOGITS = "logits"
BATCH = 250  # images a forward pass; a constant, since it decides the last bits


@dataclass(frozen=True, kw_only=True)
class SoftLabelManifest(Manifest):
    """identity: of all that the labels depend on. classes: names, by label. counts: samples of each shard, in order."""

    kind: str = "soft labels"
    identity: str
    teacher: str
    clean_identity: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    clean_accuracy: float


def soft_label_identity(settings: Settings, clean: ShardSet) -> str:
    """64 hex digits of the teacher and of the images. Raises UserError where its weights are missing."""
    taught = teacher(settings)
    assert taught is not None
    return digest(
        ["soft labels", classifier_identity(taught.classifier, classifier_weights(taught)), clean.identity,
         [shard.count for shard in clean.manifest.shards]]
    )  # fmt: skip


def soft_label_directory(settings: Settings, clean: ShardSet) -> Path:
    """Where they are or will be."""
    name = f"{settings.data.name}-{soft_label_identity(settings, clean)[:8]}"
    return Path(settings.run.cache) / "soft_labels" / name


def _file_name(shard: str) -> str:
    return shard.removesuffix(".tar") + ".labels.safetensors"


def make_soft_labels(settings: Settings) -> Path:
    """Ask the teacher, or what is missing of that; returns the directory.

    Raises UserError for damaged shards, and for a teacher of other classes, or whose weights do not fit.
    """
    clean = clean_split(settings, "train")
    identity, directory = soft_label_identity(settings, clean), soft_label_directory(settings, clean)
    with one_at_a_time(directory):
        if not (directory / MANIFEST).is_file() or problem_with(directory):
            _make(settings, clean, identity, directory)
    manifest = SoftLabelManifest.read(directory / MANIFEST)
    say(f"soft labels: {manifest.teacher}, {manifest.clean_accuracy:.2f} % of {len(clean)} images right, {directory}")
    return directory


def _make(settings: Settings, clean: ShardSet, identity: str, directory: Path) -> None:
    for problem in clean.check():
        fail(problem)
    model, device = _load_teacher(settings, len(clean.classes)), prepare_device(settings.compute)
    model, right = model.to(device), 0
    for shard in clean.manifest.shards:
        samples, path = range(shard.first, shard.first + shard.count), directory / _file_name(shard.name)
        labels = torch.as_tensor(clean.labels(samples))
        if identity_of(path) != identity:
            logits = _answers(model, clean, samples, device)
            save_tensors(path, {LOGITS: logits}, {}, identity)
        right += int((_tensor(path).argmax(1) == labels).sum())
    taught = teacher(settings)
    assert taught is not None
    manifest = SoftLabelManifest(
        identity=identity, teacher=taught.classifier.arch, clean_identity=clean.identity, classes=tuple(clean.classes),
        counts=tuple(shard.count for shard in clean.manifest.shards), clean_accuracy=100 * right / max(1, len(clean)),
    )  # fmt: skip
    files = {name: entry for name, entry in file_entries(directory).items() if not name.startswith(".")}
    write_json(directory / MANIFEST, manifest.sealed(files).to_file())


def _load_teacher(settings: Settings, classes: int) -> nn.Module:
    """Raises UserError, naming the setting and the classes, where its weights do not fit them."""
    taught = teacher(settings)
    assert taught is not None
    try:
        return load_classifier(taught.classifier, classes, classifier_weights(taught))
    except UserError as problem:
        fail(f"robust.teacher={settings.robust.teacher}: must answer in the {classes} classes of the images: {problem}")


@torch.no_grad()
def _answers(model: nn.Module, clean: ShardSet, samples: range, device: torch.device) -> Tensor:
    """Logits of some samples, float32 [N, classes], on the host."""
    parts = [samples[first : first + BATCH] for first in range(0, len(samples), BATCH)]
    answers = torch.cat([model(to_float(clean.batch(part)[0].to(device))).float().cpu() for part in parts])
    if not bool(answers.isfinite().all()):
        fail(f"robust.teacher: its answers to the samples from {samples.start} on are not finite; load other weights")
    return answers


def _tensor(path: Path) -> Tensor:
    with safe_open(path, "pt") as file:
        logits: Tensor = file.get_tensor(LOGITS)
        return logits


class SoftLabels:
    """The teacher's probabilities by sample index; rows are read from the mapped files as they are asked for."""

    def __init__(self, directory: Path, identity: str) -> None:
        """Raises UserError where there are none of that identity."""
        self.directory = directory
        if not (directory / MANIFEST).is_file():
            fail(f"{directory}: the teacher's labels are missing; run stage=classifier to make them")
        self.manifest = SoftLabelManifest.read(directory / MANIFEST)
        if self.manifest.identity != identity:
            fail(f"{directory}: labels of another teacher, or of other images; remove it, and run stage=classifier")
        self._firsts = [sum(self.manifest.counts[:number]) for number in range(len(self.manifest.counts))]
        self._rows: dict[int, Any] = {}

    @classmethod
    def of(cls, settings: Settings) -> "SoftLabels":
        """Those of robust.teacher for the training images."""
        clean = clean_split(settings, "train")
        return cls(soft_label_directory(settings, clean), soft_label_identity(settings, clean))

    def check(self) -> None:
        """Raise UserError, naming the file, for one that was altered."""
        if problem := problem_with(self.directory):
            fail(f"{problem}; remove it, and run stage=classifier")

    def rows(self, samples: Sequence[int]) -> Tensor:
        """Probabilities of the classes, float32 [N, classes], on the host. samples: indices in the training set."""
        return torch.stack([self._row(sample) for sample in samples]).softmax(1)

    def _row(self, sample: int) -> Tensor:
        number = bisect_right(self._firsts, sample) - 1
        row: Tensor = self._slice(number)[sample - self._firsts[number]]
        return row

    def _slice(self, number: int) -> Any:
        if number not in self._rows:
            path = self.directory / f"shard-{number:05d}.labels.safetensors"
            try:
                self._rows[number] = safe_open(path, "pt").get_slice(LOGITS)
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: cannot be read: {error}; remove it, and run stage=classifier") from error
        return self._rows[number]
