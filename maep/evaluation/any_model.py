"""Evaluate any classifier or defense: a module from images in [0, 1] to logits, on a shard set or images in memory."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maep.attacks.threat_models import AuxiliaryAware, Bpda, BpdaIntermediate, Oblivious
from maep.config.attack_names import check_classes
from maep.config.evaluation_settings import EvaluationSettings
from maep.config.load import load_settings, to_yaml
from maep.config.schema import Settings
from maep.data.shards import ShardSet, to_float
from maep.evaluation.answers import Autocast, Handling, JudgedDefense, JudgedModel, JudgedPurifier
from maep.evaluation.audit.finding import ALARM, PASSED
from maep.evaluation.audit.first_minute import accuracy_finding, first_findings
from maep.evaluation.audit.model_contract import (
    answer_of,
    answers,
    check_answers,
    check_module,
    device_of,
    handling_of,
    notes_on_answers,
)
from maep.evaluation.borrowing import borrowed
from maep.evaluation.image_set import ImageSet, check_labels, read_images
from maep.evaluation.model_identity import model_identity
from maep.evaluation.reporting.provenance import write_environment
from maep.evaluation.reporting.report import build_report
from maep.evaluation.reporting.report_document import REPORT
from maep.evaluation.reporting.robustbench import write_model_info
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation, write_subject
from maep.evaluation.scoring.gradients import settle_gradients
from maep.evaluation.scoring.plan import PLAN, SUBJECT, Plan
from maep.evaluation.scoring.subject import Subject, subject_of
from maep.evaluation.scoring.tasks import attacks_of
from maep.evaluation.workers import evaluate_all
from maep.models.defended import DefendedClassifier
from maep.models.purified import PurifiedClassifier
from maep.purifiers import Purifier
from maep.runtime.console import say
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file, require_writable
from maep.storage.locks import run_lock

# Enough to tell a model that is right by chance from one that is not, in one batch on any machine.
PROBES = 64
# Threat models that say nothing of a classifier alone: its attackers know all there is.
NEED_DEFENSE = (Oblivious.name, Bpda.name, BpdaIntermediate.name, AuxiliaryAware.name)
# As it was written: a forward that was put in its place is not taken apart.
PURIFIED_FORWARD = PurifiedClassifier.forward
ANOTHER = "choose another run.dir, or another name (--name NAME; in Python name= or run_dir=)"
# What a run directory holds of whoever wrote there first.
OF_A_RUN = ("config.yaml", REPORT, "checkpoints", "purifier", "adapter", "finetuned")


def evaluate(
    model: nn.Module,
    data: object,
    *,
    name: str = "model",
    run_dir: str | Path | None = None,
    settings: Settings | None = None,
    **evaluation: Any,
) -> dict[str, Any]:
    """Evaluate a model; return what report.json in `run_dir` holds. Finished chunks are not done again.

    model: images [N, 3, H, W] in [0,1] → logits [N, C], or what holds them (`maep.evaluation.answers`), in eval mode.
    It is judged as its own forward, and comes back as it was. If it is a `PurifiedClassifier` or a
    `maep.models.defended.DefendedClassifier`, every threat model applies; else all of it is attacked, by an attacker
    who knows it and by one who only asks it. data: a shard set; (images, labels) as arrays, lists or tensors, uint8 or
    float in [0,1]; a torch Dataset or DataLoader, of which the first `evaluation.images` are taken. name: of the model
    in reports. run_dir: default `runs/NAME`. settings: a whole configuration; evaluation: settings of its section
    `evaluation`, such as `images=100, attacks=["pgd-20"], eps=[8/255]`, checked as on the command line.
    Raises UserError, naming what is wrong, for a model or data that cannot be evaluated, or for a directory of another
    model.
    """
    settings = settings_of(name, run_dir, settings, evaluation)
    check_module(model)
    require_writable(Path(settings.run.dir), "run.dir")
    autocast = Autocast.current()
    with borrowed(model), autocast.off(), torch.inference_mode(False):
        test = read_images(data, settings.evaluation.images)
        settings.data.name = (test.manifest.dataset or "images") if isinstance(test, ShardSet) else "images"
        settings.classifier.arch = name
        return _evaluate(model, test, name, settings, autocast)


def settings_of(
    name: str, run_dir: str | Path | None, settings: Settings | None, evaluation: Mapping[str, Any]
) -> Settings:
    """All settings of an evaluation, checked as on the command line; the caller's own stay as they are."""
    layers: list[tuple[str, Mapping[str, Any]]] = [("evaluate's name", {"run.name": name})]
    if settings is not None:
        layers = [("evaluate's settings", asdict(settings))]
    entries = {f"evaluation.{key}": _plain(value) for key, value in evaluation.items()}
    if run_dir is not None:
        entries["run.dir"] = str(run_dir)
    return load_settings(None, [], [*layers, ("argument of evaluate", entries)])


def _plain(value: Any) -> Any:
    """Numbers and lists as the command line gives them, also from NumPy and torch."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _evaluate(
    model: nn.Module, test: ShardSet | ImageSet, name: str, settings: Settings, autocast: Autocast
) -> dict[str, Any]:
    if settings.evaluation.twin:
        fail(f"evaluation.twin={settings.evaluation.twin}: is of a run's purifier; judge that by stage=evaluate")
    if settings.certify.sigma:
        fail(f"certify.sigma={settings.certify.sigma}: certificates are of a run's purifier; make them by maep certify")
    images, labels = _probes(test, device_of(model))
    identities = identities_of(model, name, autocast)
    directory, label = Path(settings.run.dir), label_of(model)
    _refuse_others(directory, label, settings.run.name)
    handling = handling_of(model, images, autocast)
    test = _with_classes(test, JudgedModel(model, handling), images)
    defense = defense_of(model, identities, handling)
    if defense.is_undefended:
        threats = [threat for threat in settings.evaluation.threat_models if threat not in NEED_DEFENSE]
        if not threats:
            fail(
                f"evaluation.threat_models=[{', '.join(settings.evaluation.threat_models)}]: of a model without a "
                "purifier its attackers know all there is; choose adaptive, adaptive-eot or blackbox"
            )
        settings.evaluation.threat_models = threats
        settings.evaluation.adaptive_images = settings.evaluation.images
    _require_classes(settings.evaluation, len(test.classes))
    evaluation = Evaluation(settings, defense, test, directory / "evaluation" / label)
    _refuse_another(evaluation)
    settle_gradients(evaluation)
    subject = _subject(model, defense, handling, images, labels, len(test.classes), settings)
    return _judged(replace(evaluation, subject=subject), label)


def _require_classes(evaluation: EvaluationSettings, classes: int) -> None:
    """Raise UserError for an attack that so many classes are too few for: it may come hours after the first one."""
    for threat in evaluation.threat_models:
        check_classes(attacks_of(evaluation, threat), f"attacks of {threat}", classes)


def _judged(evaluation: Evaluation, label: str) -> dict[str, Any]:
    """Attack, score and report."""
    settings, directory = evaluation.settings, Path(evaluation.settings.run.dir)
    with run_lock(directory):
        write_subject(evaluation)
        with atomic_file(directory / "config.yaml") as temporary:
            temporary.write_text(to_yaml(settings), encoding="utf-8")
        write_environment(directory, sys.argv, evaluation.defense.device.type)
        evaluate_all([evaluation])
        report = build_report(settings, directory, {label: label})
        write_model_info(report, directory / "robustbench.json")
    return report.to_json()


def _subject(
    model: nn.Module,
    defense: Defense,
    handling: Handling,
    images: Tensor,
    labels: Tensor,
    classes: int,
    settings: Settings,
) -> Subject:
    """What the model answers in the first minute; alarms are said at once, and go with the report."""
    judged = JudgedModel(model, handling).eval()
    logits = check_answers(judged, images, classes)
    chosen = settings.evaluation
    findings = first_findings(judged, images, labels, norm=chosen.norm, eps=max(chosen.eps, default=0.0),
                              batch_size=chosen.batch_size)  # fmt: skip
    accuracy = accuracy_finding(int((logits.argmax(1) == labels).sum()), len(labels), classes)
    notes = tuple(notes_on_answers(answer_of(model, images[:1], handling), handling))
    for finding in [*findings, accuracy]:
        if finding.level != PASSED:
            say(f"{'ALARM' if finding.level == ALARM else 'warning'}: {finding.check}: {finding.text}")
    for note in notes:
        say(f"note: {note}")
    return subject_of(defense, tuple(findings), notes)


# what a model is


def is_purified(model: nn.Module) -> bool:
    """Whether a model is a purifier before a classifier and nothing else: its forward is the two, one after the other.

    A class of another name, a forward or a hook of its own, and it is judged as a whole.
    """
    is_plain = type(model) is PurifiedClassifier and PurifiedClassifier.forward is PURIFIED_FORWARD
    hooks = (getattr(model, name) for name in ("_forward_hooks", "_forward_pre_hooks"))
    return is_plain and "forward" not in vars(model) and not any(hooks)


def label_of(model: nn.Module) -> str:
    """What a model is called in reports, as a defense: `none` for a classifier alone."""
    if isinstance(model, DefendedClassifier):
        return type(model).__name__
    return type(model.purifier).__name__ if is_purified(model) else "none"


def identities_of(model: nn.Module, name: str, autocast: Autocast) -> tuple[str, str]:
    """(purifier, classifier): digests of all that the answers of a model depend on."""
    if isinstance(model, DefendedClassifier):
        parts = model_identity(model, label_of(model)), model_identity(model.target(Oblivious.name), name)
    elif is_purified(model):
        purifier, classifier = model.purifier, model.classifier
        parts = model_identity(purifier, label_of(model)), model_identity(classifier, name)  # type: ignore[arg-type]
    else:
        parts = model_identity(nn.Identity(), "none"), model_identity(model, name)
    facts = autocast.facts()
    return (digest([parts[0], facts]), digest([parts[1], facts])) if facts else parts


def defense_of(model: nn.Module, identities: tuple[str, str], handling: Handling) -> Defense:
    """What is evaluated of a model, each part asked as the model is.

    A `DefendedClassifier` says itself what its attackers are given; a `PurifiedClassifier` is taken apart; any other
    is a classifier alone, and its own forward is all that is called. identities: of purifier and classifier.
    """
    if isinstance(model, DefendedClassifier):
        defended = JudgedDefense(model, handling)
        bare = JudgedModel(model.target(Oblivious.name), handling)
        return Defense(nn.Identity(), bare, *identities, defended)
    if not is_purified(model):
        return Defense(nn.Identity(), JudgedModel(model, handling), *identities)
    purifier, classifier = model.purifier, model.classifier
    assert isinstance(purifier, nn.Module)
    assert isinstance(classifier, nn.Module)
    judged = purifier if isinstance(purifier, Purifier | nn.Identity) else JudgedPurifier(purifier, handling)
    return Defense(judged, JudgedModel(classifier, handling), *identities)


# whose a directory is


def _refuse_others(directory: Path, label: str, name: str) -> None:
    """A directory of a run, or of a model that is no `label`, is not written into."""
    for path in sorted((directory / "evaluation").glob(f"*/{PLAN}")):
        if path.parent.name != label:
            fail(f"{path}: run {name} holds the report of another model ({path.parent.name}); {ANOTHER}")
    if any((directory / "evaluation" / label / each).is_file() for each in (PLAN, SUBJECT)):
        return
    for each in OF_A_RUN:
        if (directory / each).exists():
            fail(f"{directory / each}: run {name} is of something else; {ANOTHER}")


def _refuse_another(evaluation: Evaluation) -> None:
    """Records of another model are not mixed with this one's, nor overwritten."""
    path = evaluation.directory / PLAN
    if not path.is_file():
        return
    plan, defense = Plan.read(path), evaluation.defense
    for what, before, current in (
        ("model", plan.classifier, defense.classifier_identity),
        ("purifier", plan.purifier, defense.purifier_identity),
        ("images", plan.images, evaluation.test.identity),
    ):
        if before != current:
            fail(f"{path}: was written for another {what}; {ANOTHER} than {evaluation.settings.run.name}")


# images


def _with_classes(test: ShardSet | ImageSet, model: JudgedModel, images: Tensor) -> ShardSet | ImageSet:
    """Of images in memory, the classes are as many as the model has logits."""
    if isinstance(test, ShardSet) or test.classes:
        return test
    count = answers(model, images[:1]).shape[-1]
    check_labels(test.labels.tolist(), count, "data")
    return ImageSet(test.images, test.labels, [str(number) for number in range(count)])


def _probes(test: ShardSet | ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images over all of the set, which may be in the order of its classes: float in [0, 1], and labels."""
    count = min(PROBES, len(test))
    images, labels = test.batch([len(test) * number // count for number in range(count)])
    images = images if images.is_floating_point() else to_float(images)
    return images.to(device), labels.to(device)
