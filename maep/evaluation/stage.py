"""The evaluate stage of a run: its purifiers, as pretrained and as finetuned, before its classifier."""

from pathlib import Path

from maep.data.build import clean_split
from maep.errors import fail
from maep.evaluation.records import purify_facts
from maep.evaluation.subject import Evaluation
from maep.evaluation.work import evaluate_all
from maep.files import digest, sha256_file
from maep.host import prepare_device
from maep.models.classifiers import classifier_identity, load_classifier
from maep.purifiers import load_purifier
from maep.settings import Settings
from maep.training.classifier import classifier_weights

ADAPTER = "adapter/adapter_model.safetensors"
FINETUNED = {"lora": ADAPTER, "dora": ADAPTER, "ia3": ADAPTER, "full": "finetuned/model.safetensors"}


def purifiers_of(settings: Settings) -> dict[str, Path]:
    """`{label: what load_purifier takes}` of the purifiers that the run evaluates.

    `pretrained` is the paper's MAEP, the method's name, such as `lora`, the finetuned one (Table 13).
    """
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


def purifier_identity(settings: Settings, label: str) -> str:
    """Digest of everything the purifier's output depends on."""
    run = Path(settings.run.dir)
    names = ["purifier/model.safetensors"] + ([FINETUNED[label]] if label in FINETUNED else [])
    return digest([[sha256_file(run / name) for name in names], purify_facts(settings.purify)])


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
