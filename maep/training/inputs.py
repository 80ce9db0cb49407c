"""What a training reads: checked pairs from shards, or the attack or the noise that makes them as it goes."""

from dataclasses import replace

from torch import nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.config.implementations import OBJECTIVES, implementation
from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.config.training_settings import FinetuneSettings, ObjectiveSettings, TrainSettings
from maep.data.adversarial_set import adversarial_path, check_adversarial
from maep.data.classifier_weights import classifier_weights, further_classifiers
from maep.data.images.build import clean_split
from maep.data.pairs import PairDataset
from maep.data.shards import ShardSet
from maep.data.soft_labels import SoftLabels
from maep.models.classifiers import classifier_identity, load_classifier
from maep.runtime.device import prepare_device
from maep.runtime.errors import fail
from maep.storage.remote import Reading
from maep.training.noise import noisy
from maep.training.robust import Adversary, AgainstWhole
from maep.training.schedule import check_held_out, held_out_images


def own_pairs(settings: Settings, train: TrainSettings) -> PairDataset:
    """Pairs of the run's own data set, or of train.source, checked to be of its classifier, attack and images."""
    settings = source_settings(settings, train)
    clean = clean_split(settings, "train")
    if settings.attack.online or not OBJECTIVES[settings.objective.name].attacks:
        return _dataset(settings, train, clean, None)
    identity = classifier_identity(settings.classifier, classifier_weights(settings))
    adversarial = ShardSet(adversarial_path(settings, clean, identity), Reading.of(settings.data))
    check_adversarial(adversarial, clean, identity, settings)
    return _dataset(settings, train, clean, adversarial)


def finetuning_pairs(settings: Settings) -> PairDataset:
    """Pairs of the finetuning: of the data set that settings.finetune names, or of the run's own."""
    train = settings.finetune
    if train.clean_shards and train.adversarial_shards:
        return _other_pairs(settings, train, train.clean_shards, train.adversarial_shards)
    return own_pairs(settings, train)


def verify_pairs(pairs: PairDataset) -> None:
    """Check local shard sets before a training starts, once for all of its processes, in the time a start has.

    Raises UserError, naming the file, if one is seen to differ from its manifest. Samples are checked as they are read.
    The indexes of large sets are then kept in one file for all processes.
    """
    for shards in filter(None, (pairs.clean, pairs.adversarial)):
        for problem in shards.check():
            fail(problem)
        shards.prepare()


def verify_soft_labels(settings: Settings, train: TrainSettings) -> None:
    """The same of a teacher's answers, where a training learns from them."""
    settings = source_settings(settings, train)
    if _is_taught(settings, train):
        SoftLabels.of(settings).check()


def _is_taught(settings: Settings, train: TrainSettings) -> bool:
    return settings.robust.teacher is not None and objective_of(settings, train).name == "robust"


def _other_pairs(settings: Settings, train: TrainSettings, clean: str, adversarial: str) -> PairDataset:
    """Pairs of another data set, named by its two shard sets (Sec. 4.4, transfer)."""
    images, attacked = (ShardSet(address, Reading.of(settings.data)) for address in (clean, adversarial))
    if not OBJECTIVES[settings.objective.name].attacks:
        return _dataset(settings, train, images, None)
    if attacked.manifest.clean_identity != images.identity:
        fail(f"{adversarial}: was not made from the images of {clean}; name the clean set it was made from")
    return _dataset(settings, train, images, attacked)


def _dataset(settings: Settings, train: TrainSettings, clean: ShardSet, adversarial: ShardSet | None) -> PairDataset:
    model = settings.model
    held_out = held_out_images(train, settings.robust)
    check_held_out(held_out, len(clean))
    return PairDataset(clean, adversarial, train, model.image_size, model.patch_size, settings.run.seed, held_out)


def objective_of(settings: Settings, train: TrainSettings) -> ObjectiveSettings:
    """The objective of a training: the run's, or the finetuning's own."""
    own = train.objective if isinstance(train, FinetuneSettings) else None
    return replace(settings.objective, name=own) if own else settings.objective


def adversary(settings: Settings, train: TrainSettings, classes: int) -> Adversary:
    """Who attacks, or adds noise, while a training goes on, and whom its objective asks: classifiers, and a teacher."""
    settings = source_settings(settings, train)
    soft = SoftLabels.of(settings) if _is_taught(settings, train) else None
    return replace(_untaught(settings, train, classes), soft=soft)


def _untaught(settings: Settings, train: TrainSettings, classes: int) -> Adversary:
    """The same without a teacher. settings: of the pairs' source."""
    objective = objective_of(settings, train)
    if not asks_classifiers(settings, objective):
        return adversary_of(settings, train, objective, ())
    device = prepare_device(settings.compute, trains=True)
    classifiers = tuple(
        load_classifier(each.classifier, classes, classifier_weights(each)).to(device)
        for each in asked_settings(settings, train)
    )
    return adversary_of(settings, train, objective, classifiers)


def asks_classifiers(settings: Settings, objective: ObjectiveSettings) -> bool:
    """Whether a training asks classifiers: in its losses, or in an attack that goes on with it."""
    kind = OBJECTIVES[objective.name]
    return kind.classifies or (settings.attack.online and kind.attacks)


def asked_settings(settings: Settings, train: TrainSettings) -> list[Settings]:
    """The settings once for each classifier that it asks, the run's own first."""
    return [settings, *(further_classifiers(settings) if train.attacked == "whole" else ())]


def adversary_of(
    settings: Settings, train: TrainSettings, objective: ObjectiveSettings, classifiers: tuple[nn.Module, ...]
) -> Adversary:
    """Who attacks or adds noise in a training that asks these frozen classifiers, none where it asks none."""
    kind, seed = OBJECTIVES[objective.name], settings.run.seed
    judges = classifiers if kind.classifies else ()
    if kind.clean_images:
        return Adversary(lambda images, _labels, _keys: images)
    if kind.noises:
        return Adversary(lambda images, _labels, keys: noisy(images, keys, seed, objective), None, judges)
    if not settings.attack.online:
        if classifiers and train.attacked == "whole":
            fail(f"{train.source}: its attack is not online; add attack.online=true to the source_set of the training")
        return Adversary(classifiers=judges)
    if train.attacked == "whole":
        estimate = implementation(kind.attacked) if kind.attacked else None
        return Adversary(
            against=AgainstWhole(classifiers, settings.attack, settings.robust, seed, estimate), classifiers=judges
        )
    spec, (own,) = AttackSpec.of(settings.attack), classifiers
    return Adversary(lambda images, labels, keys: attack(own, images, labels, spec, keys, seed), None, judges)
