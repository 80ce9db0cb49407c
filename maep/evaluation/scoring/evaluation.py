"""An evaluation: a defense on test images under some settings; its parts, and its plan.

Evaluation ─┬─ defense    purifier and classifier                      maep.evaluation.scoring.defense
            ├─ targets    the models that attackers are given          same
            ├─ identity   digests of all that is made of it            maep.evaluation.scoring.identities
            └─ attacks    the attacks that its records are made of     maep.evaluation.scoring.chunk_attack
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from torch import Tensor

from maep.attacks.autoattack import check_model
from maep.config.schema import Settings
from maep.data.shards import to_float
from maep.evaluation.scoring.chunk_attack import AttackFactory
from maep.evaluation.scoring.defense import Defense, Targets
from maep.evaluation.scoring.identities import EvaluationIdentity
from maep.evaluation.scoring.plan import PLAN, SUBJECT, Plan, PlannedTask, plan_digest
from maep.evaluation.scoring.subject import Subject, read_subject, subject_of
from maep.evaluation.scoring.tasks import Task, plan_tasks
from maep.runtime.console import say

# Two examples show whether a purifier draws per image or per batch, and cost next to nothing.
EXAMPLES = 2


class Images(Protocol):
    """Images to evaluate on: a shard set, or the like in memory."""

    @property
    def identity(self) -> str:
        """64 hex digits that name the samples."""
        ...

    @property
    def classes(self) -> list[str]:
        """Class names, by label."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W], uint8 or float in [0, 1], and labels int64 [N] of some samples."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """A defense to be evaluated on a test set. test: clean shards, or images like them. directory: of its records.

    subject: what is evaluated, where something was asked of it before; default: as the defense is.
    """

    settings: Settings
    defense: Defense
    test: Images
    directory: Path
    subject: Subject | None = None

    def images(self, ids: range) -> tuple[Tensor, Tensor]:
        """Test images [N, 3, H, W] in [0,1] and labels [N], on the defense's device."""
        images, labels = self.test.batch(ids)
        images = images if images.is_floating_point() else to_float(images)
        return images.to(self.defense.device), labels.to(self.defense.device)

    @cached_property
    def targets(self) -> Targets:
        """The models that attackers are given."""
        examples, _ = self.images(range(min(EXAMPLES, len(self.test))))
        return Targets(self.defense, self.settings.evaluation, examples)

    @cached_property
    def identity(self) -> EvaluationIdentity:
        """All that decides what is made of it."""
        return EvaluationIdentity(
            self.settings.evaluation, self.settings.run.seed, self.defense.classifier_identity,
            self.defense.purifier_identity, self.test.identity, len(self.test), self.targets.is_random,
            self.defense.is_undefended, self.defense.is_approximated, self.targets.has_surrogate,
            self.defense.twin_identity, self.targets.has_path, self.targets.has_auxiliary_loss,
        )  # fmt: skip

    @cached_property
    def attacks(self) -> AttackFactory:
        """The attacks that its records are made of."""
        cache = Path(self.settings.run.cache) / "attacked"
        return AttackFactory(self.identity, self.targets, cache, self.directory)


def prepare(evaluation: Evaluation) -> list[Task]:
    """The tasks, after asking the model AutoAttack's questions and writing plan.json; any worker may.

    Raises UserError when the settings, the model and the test set do not fit.
    """
    tasks = plan_tasks(evaluation.settings.evaluation, len(evaluation.test))
    path = evaluation.directory / PLAN
    before = Plan.read(path) if path.is_file() else None
    plan = _plan(evaluation, tasks, _warnings(evaluation, tasks, before))
    write_subject(evaluation)
    if plan != before:
        plan.write(path)
    return tasks


def write_subject(evaluation: Evaluation) -> None:
    """Write subject.json, if it says anything else."""
    subject = evaluation.subject or subject_of(evaluation.defense)
    if read_subject(subject.classifier, subject.purifier, evaluation.directory) != subject:
        subject.write(evaluation.directory / SUBJECT)


def _plan(evaluation: Evaluation, tasks: Sequence[Task], warnings: Sequence[str]) -> Plan:
    return Plan(
        settings=plan_digest(evaluation.settings),
        classifier=evaluation.defense.classifier_identity,
        purifier=evaluation.defense.purifier_identity,
        images=evaluation.test.identity,
        seed=evaluation.settings.run.seed,
        classes=tuple(evaluation.test.classes),
        device=str(evaluation.defense.device),
        warnings=tuple(warnings),
        tasks=tuple(PlannedTask(task, evaluation.identity.record(task)) for task in tasks),
    )


def _warnings(evaluation: Evaluation, tasks: Sequence[Task], before: Plan | None) -> Sequence[str]:
    """AutoAttack's questions to the model before it is attacked; asked once, the answers kept in plan.json."""
    defense = evaluation.defense
    inputs = (defense.classifier_identity, defense.purifier_identity, evaluation.test.identity)
    if before is not None and (before.classifier, before.purifier, before.images) == inputs:
        return before.warnings
    count = min(tasks[0].count, evaluation.settings.evaluation.batch_size)
    warnings = check_model(defense.purified_classifier, *evaluation.images(range(count)), len(evaluation.test.classes))
    for warning in warnings:
        say(f"warning: {warning}")
    return warnings
