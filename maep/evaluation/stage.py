"""The evaluate stage of a run: its purifiers, or one from elsewhere, before its classifier."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from maep.attacks.attack_state import tensors_sha256
from maep.config.identity import decisive_fields
from maep.config.implementations import FINETUNING, OBJECTIVES
from maep.config.load import load_settings
from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import class_names, clean_split
from maep.data.shards import ShardSet, to_float
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.gradients import check_purifier, settle_gradients
from maep.evaluation.workers import evaluate_all
from maep.models.classifiers import classifier_identity, load_classifier
from maep.purifiers import Purifier, load_purifier, save_purifier
from maep.purifiers.given import function_identity, use_facts, used_identity
from maep.purifiers.registry import purifier_class
from maep.purifiers.serialization import CONFIG, PurifierConfig
from maep.runtime.console import say
from maep.runtime.device import prepare_device
from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import sha256_file
from maep.storage.locks import one_at_a_time
from maep.storage.sealed import problem_with


def purifiers_of(settings: Settings) -> dict[str, Path]:
    """`{label: what load_purifier takes}` of the purifiers that are judged.

    The one that is given (evaluation.purifier), by its own name; or the run's: `pretrained` is the paper's MAEP, the
    method's name, such as `lora`, the finetuned one (Table 13). One that no stage trains is known by its kind.
    """
    if settings.evaluation.purifier:
        path = Path(settings.evaluation.purifier)
        return {given_name(path): path}
    run, choice = Path(settings.run.dir), settings.evaluation.purifiers
    if not is_trained(settings):
        return {settings.purifier.kind: run / "purifier"} if choice != "finetuned" else {}
    purifiers = {"pretrained": run / "purifier"}
    if is_finetuned(settings):
        purifiers[settings.finetune.method] = run
    return {
        label: path
        for label, path in purifiers.items()
        if choice == "both" or (label == "pretrained") == (choice == "pretrained")
    }


def is_trained(settings: Settings) -> bool:
    """Whether a stage of the run trains its purifier; if not, the settings are all there is to it."""
    return purifier_class(settings.purifier.kind).is_trained()


def is_finetuned(settings: Settings) -> bool:
    """Whether a stage of the run finetunes its purifier."""
    return "finetune" in purifier_class(settings.purifier.kind).stages and settings.finetune.method != "none"


def given_name(path: Path) -> str:
    """A purifier from elsewhere by the name of its run: `cifar10`, `cifar10-step-000200`."""
    *_, run, folder, name = ("", "", *path.resolve().parts)
    if name.startswith("step-"):
        return f"{run}-{name}"
    return folder if name in ("purifier", "finetuned") else name


def purifier_identity(settings: Settings, label: str) -> str:
    """Digest of everything the purifier's output depends on."""
    if settings.evaluation.purifier:
        return used_identity(settings, settings.evaluation.purifier)
    if not is_trained(settings):
        return digest([function_identity(purifier_class(settings.purifier.kind).from_settings(settings))])
    run = Path(settings.run.dir)
    names = filter(None, ("purifier/model.safetensors", FINETUNING.get(label)))
    weights, kind = [sha256_file(run / name) for name in names], purifier_class(settings.purifier.kind)
    if kind.network_name and kind.Settings is not None:  # its own section is how the network is used
        return digest([weights, decisive_fields(settings.purify, "records"), asdict(getattr(settings, kind.kind))])
    return digest([weights, use_facts(settings)])


def write_untrained(settings: Settings) -> None:
    """Write run.dir/purifier/ of a kind that no stage trains, so that it ships like any other; any worker may.

    Raises UserError where the run directory holds a purifier of another kind: it may have taken days to train.
    """
    directory = Path(settings.run.dir) / "purifier"
    purifier = purifier_class(settings.purifier.kind).from_settings(settings)
    with one_at_a_time(Path(settings.run.dir) / "evaluation"):
        if (directory / CONFIG).is_file():
            config = PurifierConfig.read(directory / CONFIG)
            if config.kind != purifier.kind:
                fail(f"{directory}: holds one of kind {config.kind}, not {purifier.kind}; choose another run.dir")
            if config.entries == purifier.config() and problem_with(directory) is None:
                return
        save_purifier(purifier, directory)


def evaluate_run(settings: Settings, worker: tuple[int, int] = (0, 1)) -> bool:
    """Evaluate the run's purifiers on the test images, or a worker's share of that; no finished chunk is done again.

    worker: (i, n), one of n that share the chunks out as they go; any number more may join and any may die.
    Returns whether all chunks are finished now; the rest, if not, is in the hands of living workers.
    Raises UserError if the test shards are damaged or a purifier is missing.
    """
    test, defenses = subjects_of(settings)
    folder = Path(settings.run.dir) / "evaluation"
    evaluations = [Evaluation(settings, each, test, folder / label) for label, each in defenses.items()]
    for evaluation in evaluations:
        settle_gradients(evaluation)
    return evaluate_all(evaluations, worker)


def subjects_of(settings: Settings) -> tuple[ShardSet, dict[str, Defense]]:
    """The test images, and `{label: defense}` of what is judged: each purifier before the classifier, on its device.

    Raises UserError as `evaluate_run`.
    """
    test = clean_split(settings, "test")
    problems = test.check()
    if problems:
        fail(problems[0])
    weights = classifier_weights(settings)
    device = prepare_device(settings.compute)
    classifier = load_classifier(settings.classifier, len(test.classes), weights).to(device)
    identity = classifier_identity(settings.classifier, weights)
    if not (settings.evaluation.purifier or is_trained(settings)):
        write_untrained(settings)
    defenses = {}
    for label, path in purifiers_of(settings).items():
        purifier = load_purifier(path, device=device).used_as(settings, path)
        defense = Defense.of(purifier, classifier, purifier_identity(settings, label), identity)
        defenses[label] = with_twin(defense, purifier, settings, test) if settings.evaluation.twin else defense
    if not defenses:
        choice, reason = settings.evaluation.purifiers, "finetune.method=none"
        kind = settings.purifier.kind
        reason = reason if "finetune" in purifier_class(kind).stages else f"purifier.kind={kind}"
        fail(f"evaluation.purifiers={choice}: this run has none ({reason}); choose pretrained")
    return test, defenses


def check_gradients(settings: Settings) -> None:
    """Raise UserError, before anything is made, where `evaluation.exact_gradients` asks for what is not there."""
    given = settings.evaluation.purifier
    check_purifier(_judged_untrained(settings), given or f"purifier.kind={settings.purifier.kind}", settings.evaluation)


def _judged_untrained(settings: Settings) -> Purifier:
    """What the settings judge: the given purifier, or the run's own as it is before its training."""
    judged = settings.evaluation.purifier
    with torch.random.fork_rng(devices=[]):  # what trains afterwards draws as if nobody had asked
        if judged:
            return load_purifier(judged).used_as(settings, judged)
        return purifier_class(settings.purifier.kind).from_settings(settings)


# the twin that an attacker follows who does not know the weights that are judged


def with_twin(defense: Defense, purifier: Purifier, settings: Settings, test: ShardSet) -> Defense:
    """The defense with the twin of `evaluation.twin`. Raises UserError where that is none of the purifier, and where it
    cannot stand before the classifier: asked here, and not when the attacks before its own have been paid for.
    """
    path = str(settings.evaluation.twin)
    twin = _twin_of(purifier, settings)
    require_classes(path, len(test.classes))
    twin.attach(defense.classifier)
    try:
        with torch.no_grad():
            twin.eval()(to_float(test.batch(range(1))[0]).to(defense.device))
    except UserError as error:
        fail(f"evaluation.twin={path}: {error}")
    return replace(defense, twin=twin, twin_identity=used_identity(settings, path))


def require_classes(path: str, classes: int) -> None:
    """Raise UserError where a twin is known to have learnt to be told apart into other classes.

    A purifier whose objective asks a classifier is a code for the classes of that one: no attacker would train a twin
    for others. Others learn images, of which a twin may have seen any.
    """
    run = run_of(Path(path).resolve())
    if run is None:
        return
    try:
        own = load_settings(str(run / "config.yaml"))
        theirs = source_settings(own, own.pretrain)
        seen = len(clean_split(theirs, "train").classes) if OBJECTIVES[theirs.objective.name].classifies else classes
    except UserError as error:  # its images are gone, or lie elsewhere
        say(f"evaluation.twin={path}: whether it was trained for {classes} classes is not known ({error})")
        return
    if seen != classes:
        fail(f"evaluation.twin={path}: was trained to tell {seen} classes apart, and these are {classes}; name another")


def run_of(purifier: Path) -> Path | None:
    """The run directory that a purifier's path is, or lies in as its purifier/ or a checkpoint; None if it is of none.

    purifier: resolved.
    """
    return next((each for each in (purifier, *purifier.parents[:2]) if (each / "config.yaml").is_file()), None)


def _twin_of(purifier: Purifier, settings: Settings) -> Purifier:
    """The twin, used as the settings say. Raises UserError as `with_twin`."""
    path = str(settings.evaluation.twin)
    twin = load_purifier(path, device=purifier.device)
    # Kinds that ask one network each in its own way are made one by the settings; others' settings say nothing of it.
    networks = {getattr(each, "network_kind", "images") for each in (twin, purifier)}
    if twin.kind == purifier.kind or (len(networks) == 1 and "images" not in networks):
        twin = twin.used_as(settings, path)
    _require_twin(twin, purifier, path)
    return twin


def check_twin(settings: Settings) -> None:
    """Raise UserError, before anything is made, where `evaluation.twin` is no twin of what the settings judge."""
    _twin_of(_judged_untrained(settings), settings)
    require_classes(str(settings.evaluation.twin), len(class_names(settings)))


def _require_twin(twin: Purifier, purifier: Purifier, path: str) -> None:
    """Raise UserError unless a purifier could be another training of the one that is judged."""
    if twin.kind != purifier.kind:
        fail(f"evaluation.twin={path}: is of kind {twin.kind}, and {purifier.kind} is judged; name one of that kind")
    if not twin.is_trained():
        fail(f"evaluation.twin={path}: {twin.kind} has no weights of its own, and so no twin; leave it out")
    sides = [getattr(getattr(each, "network", None), "image_size", None) for each in (twin, purifier)]
    if sides[0] != sides[1]:
        fail(f"evaluation.twin={path}: is of images of {sides[0]} pixels, and the judged one of {sides[1]}")
    if tensors_sha256(twin.state_dict()) == tensors_sha256(purifier.state_dict()):
        fail(f"evaluation.twin={path}: has the weights of the judged purifier; name one of another run.seed")
