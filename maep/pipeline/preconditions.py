"""What a stage would be given and could not use, said before hours of work: checks that read and write no result."""

from collections.abc import Sequence
from pathlib import Path

from maep.config.architectures import is_own
from maep.config.attack_names import check_classes
from maep.config.implementations import OBJECTIVES
from maep.config.pair_source import source_settings
from maep.config.published_classifiers import unsaid_normalizations
from maep.config.schema import Settings
from maep.config.training_settings import TrainSettings
from maep.data.classifier_weights import (
    PURIFIED,
    classifier_weights,
    further_classifiers,
    initial_weights,
    teacher,
)
from maep.data.images.build import check_source, clean_shards
from maep.data.order import held_out_indices, labels_held_out
from maep.models.weight_files import check_weights
from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.runtime.text import listed
from maep.storage.atomic import require_writable
from maep.storage.remote import location
from maep.storage.sealed import MANIFEST
from maep.training.schedule import check_held_out, held_out_images


def check_shards(settings: Settings) -> None:
    """Of the images, and that the cache can be written. Raises UserError."""
    require_writable(Path(settings.run.cache), "run.cache")
    check_source(settings)


def check_classifiers(settings: Settings) -> None:
    """Of every classifier that has a part: its architecture, its weights, and the size of images. Raises UserError."""
    for key, each in _named_classifiers(settings):
        path = each.classifier.weights
        if path and each is not settings and not Path(path).exists():
            remedy = "; leave the path out to train it" if key == "robust.classifiers" else ""
            fail(f"{key}={each.classifier.arch}={path}: no such file{remedy}")
        if path:
            check_weights(classifier_weights(each))
        else:
            _check_training(each)
        if not is_own(each.classifier.arch):
            from maep.models.classifiers.factory import check_image_size, require_architecture

            require_architecture(each.classifier.arch, key)
            check_image_size(each.classifier, each.data.image_size)
        if path and (not is_own(each.classifier.arch) or unsaid_normalizations(each.classifier.arch)[1]):
            from maep.models.classifiers.factory import warn_of_other_normalization

            own = each.classifier
            warn_of_other_normalization(own.arch, tuple(own.mean), tuple(own.std))


def _check_training(settings: Settings) -> None:
    """Of what a classifier's training begins with, and of the purifier whose images it sees."""
    if settings.classifier.initial:
        check_weights(initial_weights(settings.classifier))
    if settings.classifier.training == PURIFIED:
        from maep.training.purified_training import training_purifier

        training_purifier(settings)


def _named_classifiers(settings: Settings) -> list[tuple[str, Settings]]:
    """The settings, and again with each further classifier and the teacher, each with the setting that names it."""
    taught = teacher(settings)
    named = [("classifier.arch", settings), *(("robust.classifiers", each) for each in further_classifiers(settings))]
    return [*named, *([("robust.teacher", taught)] if taught else [])]


def check_attack(settings: Settings) -> None:
    """Of the attacks that a training reads. Raises UserError."""
    check_classifiers(settings)
    _check_set("attack.shards", settings.attack.shards)


def check_evaluate(settings: Settings) -> None:
    """Of what the purifiers are attacked with. Raises UserError."""
    check_classifiers(settings)
    evaluation = settings.evaluation
    knowing = {*evaluation.threat_models} - {"oblivious", "blackbox"}
    own = knowing and evaluation.adaptive_attacks
    if own:
        _require_classes(settings, evaluation.adaptive_attacks, "evaluation.adaptive_attacks")
    if "oblivious" in evaluation.threat_models or (knowing and not own):
        _require_classes(settings, evaluation.attacks, "evaluation.attacks")


def check_certify(settings: Settings) -> None:
    """Of certificates, and the attacks beside them. Raises UserError."""
    check_classifiers(settings)
    if settings.certify.sigma and settings.certify.attack_radii:
        _require_classes(settings, [settings.certify.attack], "certify.attack")


def _require_classes(settings: Settings, attacks: Sequence[str], key: str) -> None:
    """As `check_classes`, as soon as there are images: attacks may come days after them."""
    for shards in clean_shards(settings).values():
        check_classes(attacks, key, len(shards.classes))


def _check_set(key: str, address: str | None) -> None:
    """A shard set that a setting names on this machine; one elsewhere is asked for when it is read."""
    path = location(address) if address else None
    if isinstance(path, Path) and not (path / MANIFEST).is_file():
        fail(f"{key}={address}: no shard set ({MANIFEST} is missing)")


def _check_share(section: str, settings: Settings, train: TrainSettings) -> None:
    """The share of clean images is of pairs: of what a training attacks, or noises, as it goes, none stay clean."""
    if train.clean_share and (settings.attack.online or not OBJECTIVES[settings.objective.name].attacks):
        fail(
            f"{section}.clean_share={train.clean_share:g}: is of pairs in shards, and this training makes its second "
            "images as it goes; set it to 0 (objective.clean_weight is that of objective.name=robust)"
        )


def _check_held_out(settings: Settings, train: TrainSettings) -> None:
    """What is held out must leave something, as soon as there are images: a classifier may be trained before it."""
    images = clean_shards(source_settings(settings, train)).get("train")
    held_out = held_out_images(train, settings.robust)
    if images is None:
        return
    check_held_out(held_out, len(images))
    if held_out < len(images) // len(images.classes):  # fewer than a class has, if they are about equally many
        return
    held = held_out_indices(settings.run.seed, len(images), held_out)
    lost = [images.classes[label] for label in labels_held_out(images.labels(range(len(images))), held)]
    if lost:
        say(f"warning: robust.check_images={held_out}: holds out all training images of {len(lost)} of "
            f"{len(images.classes)} classes: {listed(lost)}; choose fewer")  # fmt: skip


def check_finetune(settings: Settings) -> None:
    """Of a finetuning. Raises UserError."""
    source = source_settings(settings, settings.finetune)
    if settings.finetune.method != "none":
        _check_share("finetune", source, settings.finetune)
        if not settings.finetune.clean_shards:
            _check_held_out(settings, settings.finetune)
    for name in ("clean_shards", "adversarial_shards"):
        _check_set(f"finetune.{name}", getattr(settings.finetune, name))


def check_pretrain(settings: Settings) -> None:
    """Of a pretraining. Raises UserError."""
    _check_share("pretrain", source_settings(settings, settings.pretrain), settings.pretrain)
    _check_held_out(settings, settings.pretrain)
    if settings.model.init and not Path(settings.model.init).exists():
        fail(f"model.init={settings.model.init}: no such file or directory")


def check_judging(settings: Settings) -> None:
    """Of what attackers will follow, before anything is made that they would be set on. Raises UserError."""
    if settings.evaluation.twin or settings.evaluation.exact_gradients:
        from maep.evaluation.stage import check_gradients, check_twin

        if settings.evaluation.twin:
            check_twin(settings)
        check_gradients(settings)
