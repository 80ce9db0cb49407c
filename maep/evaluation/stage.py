"""The evaluate stage of a run: its purifiers, or one from elsewhere, before its classifier."""

from dataclasses import asdict
from functools import cache
from pathlib import Path

from maep.attacks.attack_state import tensors_sha256
from maep.config.schema import Settings
from maep.data.images.build import clean_split
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import purify_facts
from maep.evaluation.workers import evaluate_all
from maep.models.classifiers import classifier_identity, load_classifier
from maep.purifiers import MAEPurifier, load_purifier
from maep.runtime.device import prepare_device
from maep.runtime.errors import fail
from maep.storage.atomic import digest, sha256_file
from maep.training.classifier import classifier_weights

ADAPTER = "adapter/adapter_model.safetensors"
FINETUNED = {"lora": ADAPTER, "dora": ADAPTER, "ia3": ADAPTER, "full": "finetuned/model.safetensors"}


def purifiers_of(settings: Settings) -> dict[str, Path]:
    """`{label: what load_purifier takes}` of the purifiers that are judged.

    The one that is given (evaluation.purifier), by its own name; or the run's: `pretrained` is the paper's MAEP, the
    method's name, such as `lora`, the finetuned one (Table 13).
    """
    if settings.evaluation.purifier:
        path = Path(settings.evaluation.purifier)
        return {given_name(path): path}
    run = Path(settings.run.dir)
    every = {"pretrained": run / "purifier"}
    if settings.finetune.method != "none":
        every[settings.finetune.method] = run
    chosen = settings.evaluation.purifiers
    return {
        label: path
        for label, path in every.items()
        if chosen == "both" or (label == "pretrained") == (chosen == "pretrained")
    }


def given_name(path: Path) -> str:
    """A purifier from elsewhere by the name of its run: `cifar10`, `cifar10-step-000200`."""
    *_, run, folder, name = ("", "", *path.resolve().parts)
    if name.startswith("step-"):
        return f"{run}-{name}"
    return folder if name in ("purifier", "finetuned") else name


def purifier_identity(settings: Settings, label: str) -> str:
    """Digest of everything the purifier's output depends on."""
    use = purify_facts(settings.purify)
    if settings.evaluation.purifier:
        return digest([given_identity(settings.evaluation.purifier), use])
    run = Path(settings.run.dir)
    names = ["purifier/model.safetensors"] + ([FINETUNED[label]] if label in FINETUNED else [])
    return digest([[sha256_file(run / name) for name in names], use])


@cache
def given_identity(path: str) -> str:
    """Digest of a purifier's model and weights, wherever it lies and however it is stored.

    Raises UserError if there is none.
    """
    purifier = load_purifier(path)
    config = asdict(purifier.model.config) if isinstance(purifier, MAEPurifier) else type(purifier).__name__
    return digest([config, tensors_sha256(purifier.state_dict())])


def evaluate_run(settings: Settings, worker: tuple[int, int] = (0, 1)) -> bool:
    """Evaluate the run's purifiers on the test images, or a worker's share of that; no finished chunk is done again.

    worker: (i, n), one of n that share the chunks out as they go; any number more may join and any may die.
    Returns whether all chunks are finished now; the rest, if not, is in the hands of living workers.
    Raises UserError if the test shards are damaged or a purifier is missing.
    """
    test = clean_split(settings, "test")
    problems = test.verify()
    if problems:
        fail(problems[0])
    weights = classifier_weights(settings)
    device = prepare_device(settings.compute)
    classifier = load_classifier(settings.classifier, len(test.classes), weights).to(device)
    identity = classifier_identity(settings.classifier, weights)
    evaluations = [
        Evaluation(
            settings, load_purifier(path, device=device, settings=settings.purify), classifier, identity,
            purifier_identity(settings, label), test, Path(settings.run.dir) / "evaluation" / label,
        )
        for label, path in purifiers_of(settings).items()
    ]  # fmt: skip
    if not evaluations:
        chosen = settings.evaluation.purifiers
        fail(f"evaluation.purifiers={chosen}: this run has none (finetune.method=none); choose pretrained")
    return evaluate_all(evaluations, worker)
