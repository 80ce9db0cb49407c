"""The evaluate stage of a run: its purifiers, or one from elsewhere, before its classifier."""

from dataclasses import asdict
from functools import cache
from pathlib import Path

from maep.attacks.attack_state import tensors_sha256
from maep.config.identity import decisive_fields
from maep.config.implementations import FINETUNING
from maep.config.schema import Settings
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_split
from maep.data.shards import ShardSet
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.workers import evaluate_all
from maep.models.classifiers import classifier_identity, load_classifier
from maep.purifiers import Purifier, load_purifier, save_purifier
from maep.purifiers.registry import purifier_class
from maep.purifiers.serialization import CONFIG, PurifierConfig
from maep.runtime.device import prepare_device
from maep.runtime.digests import digest
from maep.runtime.errors import fail
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
    kind = purifier_class(settings.purifier.kind)
    use = decisive_fields(settings.purify, "records") | kind.use_facts(settings)
    if settings.evaluation.purifier:
        return digest([given_identity(settings.evaluation.purifier), use])
    if not is_trained(settings):
        return digest([function_identity(purifier_class(settings.purifier.kind).from_settings(settings))])
    run = Path(settings.run.dir)
    names = filter(None, ("purifier/model.safetensors", FINETUNING.get(label)))
    inputs = [[sha256_file(run / name) for name in names], use]
    kind = purifier_class(settings.purifier.kind)
    if kind.network_name and kind.Settings is not None:  # its own section is how the network is used
        inputs.append(asdict(getattr(settings, kind.kind)))
    return digest(inputs)


@cache
def given_identity(path: str) -> str:
    """Digest of a purifier's model and weights, wherever it lies and however it is stored.

    Raises UserError if there is none.
    """
    return function_identity(load_purifier(path))


def function_identity(purifier: Purifier) -> str:
    """Digest of all that a purifier's output depends on, except how it is used (`PurifySettings`)."""
    return digest([purifier.identity_facts(), tensors_sha256(purifier.state_dict())])


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
    return evaluate_all([Evaluation(settings, each, test, folder / label) for label, each in defenses.items()], worker)


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
        defenses[label] = Defense.of(purifier, classifier, purifier_identity(settings, label), identity)
    if not defenses:
        choice, reason = settings.evaluation.purifiers, "finetune.method=none"
        kind = settings.purifier.kind
        reason = reason if "finetune" in purifier_class(kind).stages else f"purifier.kind={kind}"
        fail(f"evaluation.purifiers={choice}: this run has none ({reason}); choose pretrained")
    return test, defenses
