"""Where a classifier's weights are: a file that is given, or the one that its stage trains on the clean shards."""

import os
from dataclasses import replace
from pathlib import Path

from maep.config.data_settings import ClassifierSettings
from maep.config.identity import decisive_fields
from maep.config.schema import Settings
from maep.data.images.build import clean_split
from maep.data.shards import ShardSet
from maep.models.weight_files import weights_sha256
from maep.runtime.digests import digest
from maep.runtime.errors import fail

WEIGHTS = "model.safetensors"
PURIFIED = "purified"  # of classifier.training


def classifier_directory(settings: Settings, train: ShardSet) -> Path:
    """Where the classifier trained with these settings on these images is or will be."""
    decisive = decisive_fields(settings.classifier, "classifier")
    facts = [decisive, settings.run.seed, settings.compute.precision, train.identity]
    if "tf32" in decisive_fields(settings.compute, "classifier"):  # not its default
        facts.append(settings.compute.tf32)
    facts += _made_elsewhere(settings)
    return Path(settings.run.cache) / "classifiers" / f"{settings.classifier.arch}-{digest(facts)[:8]}"


def _made_elsewhere(settings: Settings) -> list[str]:
    """Digests of the weights that its training begins with, and of the purifier whose images it sees; [] without."""
    classifier, digests = settings.classifier, []
    if classifier.initial:
        digests.append(weights_sha256(initial_weights(classifier)))
    if classifier.training == PURIFIED:
        from maep.purifiers.given import used_identity  # imports torch

        digests.append(used_identity(settings_of_purifier(settings), purifier_path(classifier)))
    return digests


def initial_weights(classifier: ClassifierSettings) -> Path:
    """The file of `classifier.initial`. Raises UserError if it is not there."""
    path = Path(str(classifier.initial))
    if not path.exists():
        fail(f"classifier.initial={path}: no such file; unset it to begin with random weights")
    return path


def purifier_path(classifier: ClassifierSettings) -> str:
    """Where the purifier of `classifier.training=purified` lies. Raises UserError where none is named."""
    if not classifier.purifier:
        fail("classifier.training=purified: set classifier.purifier to the directory of the purifier")
    return classifier.purifier


def settings_of_purifier(settings: Settings) -> Settings:
    """How `classifier.purifier` is used: as the section purify says, but for noise that the training has of its own."""
    if settings.classifier.purified_noise is None:
        return settings
    return replace(settings, purify=replace(settings.purify, noise=0.0))


def classifier_weights(settings: Settings) -> Path:
    """The weights file of the configured classifier: the one given, or the one that the stage trains.

    Raises UserError if the given file or the clean shards, whose images name the trained one, are missing.
    """
    if settings.classifier.weights:
        path = Path(settings.classifier.weights)
        if not path.is_file() and not path.is_dir():
            what = "not a plain file" if os.path.lexists(path) else "no such file"
            fail(f"classifier.weights={path}: {what}; unset it to train a classifier")
        return path
    return classifier_directory(settings, clean_split(settings, "train")) / WEIGHTS


def teacher(settings: Settings) -> Settings | None:
    """The settings with robust.teacher in the place of the run's own classifier; None without one.

    Its images are normalised as the run's own are.
    """
    if settings.robust.teacher is None:
        return None
    arch, _, path = settings.robust.teacher.partition("=")
    own = replace(settings.classifier, timm_args={}, robustbench=None)
    return replace(settings, classifier=replace(own, arch=arch, weights=os.path.expanduser(path)))


def further_classifiers(settings: Settings) -> list[Settings]:
    """The settings once for each of robust.classifiers, with that classifier in the place of the run's own.

    It is trained, or its images are normalised, as the run's own.
    """
    own = replace(settings.classifier, timm_args={}, robustbench=None)
    words = [word.partition("=") for word in settings.robust.classifiers]
    return [
        replace(settings, classifier=replace(own, arch=arch, weights=os.path.expanduser(path) or None))
        for arch, _, path in words
    ]
