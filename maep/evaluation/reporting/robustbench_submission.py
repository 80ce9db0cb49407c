"""What RobustBench asks for besides numbers: a purifier and its classifier as one module that anybody can load.

    DIRECTORY/
      model_info/cifar10/Linf/NAME.json     its entry, as in RobustBench's own folder of that name
      model.py                              `load_model()`: images [N, 3, H, W] in [0, 1] → logits
      purifier/                             as `maep.load_purifier` takes it, adapters merged
      classifier.safetensors, classifier.json
      manifest.json

RobustBench takes models with (1) in general non-zero gradients, (2) a deterministic forward and (3) no optimisation
loop in it. Purifiers that break one of these are refused by its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maep.attacks.reseeding import is_random
from maep.config.attack_names import AUTOATTACK
from maep.config.data_settings import ClassifierSettings
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_split
from maep.data.shards import to_float
from maep.evaluation.reporting.report import purifier_name, read_results
from maep.evaluation.reporting.report_document import REPORT, Report
from maep.evaluation.reporting.report_row import ReportRow
from maep.evaluation.reporting.robustbench import model_info
from maep.evaluation.scoring.tasks import eps_text
from maep.evaluation.stage import purifier_identity, purifiers_of
from maep.models.classifiers import build_classifier, classifier_identity, load_classifier
from maep.models.purified import PurifiedClassifier
from maep.models.weights import read_weights
from maep.purifiers import Purifier, load_purifier, save_purifier
from maep.runtime.errors import fail
from maep.runtime.version import __version__
from maep.storage.atomic import write_json
from maep.storage.documents import Document
from maep.storage.manifests import StampedManifest
from maep.storage.sealed import MANIFEST, atomic_directory, problem_with
from maep.storage.tensor_files import save_file

# Its leaderboards of norm-bounded attacks: the budget of each.
BOARDS = {
    ("cifar10", "Linf"): 8 / 255, ("cifar10", "L2"): 0.5, ("cifar100", "Linf"): 8 / 255, ("imagenet", "Linf"): 4 / 255,
}  # fmt: skip
RULES = {
    1: "RobustBench's rule 1, gradients that are in general not zero",
    2: "RobustBench's rule 2, a deterministic forward pass",
    3: "RobustBench's rule 3, no optimisation loop in the forward pass",
}
EXAMPLES = 2  # images that the model is asked about its gradient and its randomness
CLASSIFIER, CLASSIFIER_WEIGHTS, LOADER = "classifier.json", "classifier.safetensors", "model.py"
SOURCE = '''"""{name} as RobustBench takes a model. Written by maep {version}, which it needs, and weights beside it."""

from pathlib import Path

from torch import nn

from maep.evaluation.reporting.robustbench_submission import load_submission


def load_model() -> nn.Module:
    """Purifier and classifier: images [N, 3, H, W] in [0, 1] to logits, in eval mode, parameters frozen."""
    return load_submission(Path(__file__).resolve().parent)
'''


@dataclass(frozen=True)
class SubmittedClassifier(Document):
    """classifier.json: the classifier behind the purifier; fields as the settings of `classifier`."""

    arch: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    timm_args: Mapping[str, object]
    classes: int

    @property
    def settings(self) -> ClassifierSettings:
        """As `load_classifier` takes them."""
        return ClassifierSettings(
            arch=self.arch, mean=list(self.mean), std=list(self.std), timm_args=dict(self.timm_args)
        )


def write_submission(run: Path, target: Path) -> Path:
    """Write the submission of a run's last purifier to `target`, whole or not at all.

    Raises UserError for a run without a report of AutoAttack on a leaderboard's budget, one whose weights or records
    have changed since, a purifier that breaks one of RobustBench's rules, or a target that exists.
    """
    if not (run / REPORT).is_file():
        fail(f"--robustbench {run}: no {REPORT}; name a run directory whose report stage is finished")
    if target.exists():
        fail(f"--to {target}: exists already; remove it or choose another")
    settings, report = load_settings(str(run / "config.yaml"), [f"run.dir={run}"]), Report.read(run / REPORT)
    (label, path), name = list(purifiers_of(settings).items())[-1], settings.run.name
    purifier = load_purifier(path).used_as(settings, path)
    test, weights = clean_split(settings, "test"), classifier_weights(settings)
    entry = _entry(settings, report, purifier_name(settings, label))
    _require_judged(settings, report, label, [classifier_identity(settings.classifier, weights), test.identity])
    classifier = load_classifier(settings.classifier, len(test.classes), weights)
    require_rules(purifier, classifier, to_float(test.batch(range(min(EXAMPLES, len(test))))[0]))
    chosen = settings.classifier
    described = SubmittedClassifier(
        chosen.arch, tuple(chosen.mean), tuple(chosen.std), chosen.timm_args, len(test.classes)
    )
    network = build_classifier(chosen, len(test.classes)).network
    with atomic_directory(target, StampedManifest(kind="robustbench submission")) as temporary:
        save_purifier(purifier, temporary / "purifier")
        save_file(read_weights(weights, network.state_dict()), temporary / CLASSIFIER_WEIGHTS)
        described.write(temporary / CLASSIFIER)
        (temporary / LOADER).write_text(SOURCE.format(name=name, version=__version__), encoding="utf-8")
        folder = temporary / "model_info" / settings.data.name / settings.evaluation.norm
        folder.mkdir(parents=True)
        write_json(folder / f"{name}.json", entry)
    return target


def _entry(settings: Settings, report: Report, purifier: str) -> Mapping[str, object]:
    """RobustBench's entry, of the report's row at its leaderboard's budget."""
    board = settings.data.name, settings.evaluation.norm
    if board not in BOARDS:
        known = ", ".join(f"{name} {norm}" for name, norm in BOARDS)
        fail(f"data.name={board[0]}, evaluation.norm={board[1]}: RobustBench has no such leaderboard; it has {known}")
    entry = model_info(report, purifier, board[1], BOARDS[board])
    if entry is None:
        eps = eps_text(BOARDS[board])
        fail(
            f"{settings.run.dir}/{REPORT}: has no {AUTOATTACK} on {purifier} by an adaptive attacker at {eps}, "
            f"RobustBench's budget; run with evaluation.eps=[{eps}]"
        )
    return entry


def _require_judged(settings: Settings, report: Report, label: str, others: list[str]) -> None:
    """Raise UserError unless the report is of the records that are there, and they of what is submitted.

    others: identities of classifier and images.
    """
    run, name = Path(settings.run.dir), purifier_name(settings, label)
    [result] = read_results(settings, run / "evaluation", {label: name})
    judged = [result.plan.purifier, result.plan.classifier, result.plan.images]
    now = [purifier_identity(settings, label), *others]
    if any(theirs and theirs != ours for theirs, ours in zip(judged, now, strict=True)):  # old plans name no images
        fail(f"{run}: its evaluation is of another purifier, classifier or images than it has now; run stage=evaluate "
             "and stage=report again")  # fmt: skip
    told = [_numbers(row) for row in report.results if row.purifier == name]
    if sorted(told) != sorted(_numbers(row.result) for row in result.rows):
        fail(f"{run / REPORT}: is of other records than there are now; run stage=report again")


def _numbers(row: ReportRow) -> tuple[object, ...]:
    """What a submission says of a row."""
    return row.threat_model, row.attack, row.norm, row.eps, row.n, row.clean_accuracy, row.robust_accuracy


def require_rules(purifier: Purifier, classifier: nn.Module, images: Tensor) -> None:
    """Raise UserError for a purifier that breaks one of RobustBench's rules, naming the rule.

    images: [N, 3, H, W] in [0, 1], a few to ask the model about.
    """
    kind = f"purifier.kind={purifier.kind}"
    passes = getattr(getattr(purifier, "settings", None), "passes", 1)  # of kinds with a network
    if purifier.is_iterative or passes > 1 or purifier.defended(classifier) is not None:
        fail(f"{kind}: purifies in a loop, and breaks {RULES[3]}")
    purifier.attach(classifier)
    model = PurifiedClassifier(purifier, classifier).eval()
    if purifier.is_random or is_random(model, images):
        fail(f"{kind}: draws at random (purify.noise and purify.mask_ratio are two such ways), and breaks {RULES[2]}")
    moved = images.clone().requires_grad_()
    logits = model(moved)
    gradient = torch.autograd.grad(logits.sum(), moved)[0] if logits.requires_grad else torch.zeros(1)
    if not purifier.is_differentiable or not bool(gradient.abs().max() > 0):
        fail(f"{kind}: has no gradient, and breaks {RULES[1]}")


def load_submission(directory: Path) -> nn.Module:
    """Purifier and classifier of `write_submission`: images [N, 3, H, W] in [0, 1] → logits, in eval mode, frozen.

    Raises UserError, naming the file, for one that is missing or altered.
    """
    if not (directory / MANIFEST).is_file():
        fail(f"{directory}: no submission of maep evaluate --robustbench ({MANIFEST} is missing)")
    if problem := problem_with(directory):
        fail(problem)
    described = SubmittedClassifier.read(directory / CLASSIFIER)
    classifier = load_classifier(described.settings, described.classes, directory / CLASSIFIER_WEIGHTS)
    purifier = load_purifier(directory / "purifier")
    purifier.attach(classifier)
    return PurifiedClassifier(purifier, classifier).eval().requires_grad_(False)
