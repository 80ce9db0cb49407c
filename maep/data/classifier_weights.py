"""Where a classifier's weights are: a file that is given, or the one that its stage trains on the clean shards."""

import os
from dataclasses import replace
from pathlib import Path

from maep.config.identity import decisive_fields
from maep.config.schema import Settings
from maep.data.images.build import clean_split
from maep.data.shards import ShardSet
from maep.runtime.digests import digest
from maep.runtime.errors import fail

WEIGHTS = "model.safetensors"


def classifier_directory(settings: Settings, train: ShardSet) -> Path:
    """Where the classifier trained with these settings on these images is or will be."""
    decisive = decisive_fields(settings.classifier, "classifier")
    facts = [decisive, settings.run.seed, settings.compute.precision, train.identity]
    if "tf32" in decisive_fields(settings.compute, "classifier"):  # not its default
        facts.append(settings.compute.tf32)
    return Path(settings.run.cache) / "classifiers" / f"{settings.classifier.arch}-{digest(facts)[:8]}"


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
