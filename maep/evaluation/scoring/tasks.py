"""The tasks of an evaluation: one chunk of images under one attack in one threat model each.

Attacks and threat models are imported where they are asked for: a status reads tasks, and needs no torch.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from maep.config.attack_names import check_attacks
from maep.config.evaluation_settings import EvaluationSettings
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng

if TYPE_CHECKING:
    from maep.attacks.catalog import NamedAttack

# Budgets up to a quarter of the pixel range read best as 8-bit steps; larger ones are those of L2, which are no steps.
MOST_LEVELS = 64


@dataclass(frozen=True)
class Task:
    """One chunk of images under one attack in one threat model: the unit of work and of resume.

    The chunk holds the samples first … first + count - 1 of the test set. Its fields are part of identities.
    """

    threat_model: str
    attack: str
    norm: str
    eps: float
    chunk: int
    first: int
    count: int

    @property
    def folder(self) -> Path:
        """Where its files are, below the evaluation's directory."""
        return Path(self.threat_model) / f"{self.attack.replace(':', '-')}-{self.norm}-{self.eps:.6g}"

    @property
    def stem(self) -> str:
        """The name of its files, without the ending."""
        return f"chunk-{self.chunk:04d}"

    @property
    def ids(self) -> range:
        """Its sample indices."""
        return range(self.first, self.first + self.count)

    @property
    def named_attack(self) -> "NamedAttack":
        """The attack itself."""
        from maep.attacks.catalog import NamedAttack

        return NamedAttack(self.attack, self.norm, self.eps)

    def seed(self, run_seed: int) -> int:
        """The chunk's own seed: a function of the run's seed and the chunk alone."""
        return int(keyed_rng("chunk", run_seed, self.chunk).integers(2**31))

    def __str__(self) -> str:
        return f"{self.threat_model} · {self.attack} · {self.norm} {eps_text(self.eps)}"


def eps_text(eps: float) -> str:
    """8/255 where the budget is up to 64 whole 8-bit steps, as L∞ budgets are, else the number. eps: [0,1] pixels."""
    levels = eps * 255
    is_whole = abs(levels - round(levels)) < 1e-6 and 0 < round(levels) <= MOST_LEVELS
    return f"{round(levels)}/255" if is_whole else f"{eps:.4g}"


def images_of(settings: EvaluationSettings, threat: str, available: int) -> int:
    """How many images a threat model is evaluated on: the first ones of the test set."""
    images = min(settings.images, available)
    return min(settings.adaptive_images, images) if _uses_purifier(threat) else images


def _uses_purifier(threat: str) -> bool:
    from maep.attacks.threat_models import threat_model

    return threat_model(threat).uses_purifier


def attacks_of(settings: EvaluationSettings, threat: str) -> list[str]:
    """Names of the attacks of a threat model: the one that has no gradients has its own, and those that depend on the
    purifier may have theirs.
    """
    from maep.attacks.threat_models import BlackBox

    if threat == BlackBox.name:
        return settings.blackbox_attacks
    return settings.adaptive_attacks or settings.attacks if _uses_purifier(threat) else settings.attacks


def chunk_size(settings: EvaluationSettings, available: int) -> int:
    """Images of a full chunk. Equal in all threat models, so that chunks of the same number start alike."""
    return min(settings.chunk_images, settings.images, available)


def undefended_task(task: Task, settings: EvaluationSettings, available: int) -> Task:
    """The attack on the classifier alone that a task needs too: on all of its chunk that any threat model attacks.

    A threat model that takes fewer images than another uses the first of them.
    """
    from maep.attacks.threat_models import Oblivious

    threats = [threat for threat in settings.threat_models if task.attack in attacks_of(settings, threat)]
    ends = [images_of(settings, threat, available) for threat in threats]
    count = min(chunk_size(settings, available), max([task.first + task.count, *ends]) - task.first)
    return replace(task, threat_model=Oblivious.name, count=count)


def plan_tasks(settings: EvaluationSettings, available: int) -> list[Task]:
    """All tasks of an evaluation on a test set of `available` images, cheap threat models first.

    Raises UserError for an unknown attack or threat model, or an empty test set.
    """
    if not available:
        fail("the test set is empty: set data.test_fraction above 0, or name a source with test images")
    check_attacks([*settings.attacks, *settings.adaptive_attacks], settings.blackbox_attacks)
    size = chunk_size(settings, available)
    threats = sorted(settings.threat_models, key=_uses_purifier)
    tasks = [
        Task(threat, attack, settings.norm, eps, first // size, first, min(size, total - first))
        for threat in threats
        for total in [images_of(settings, threat, available)]
        for attack in attacks_of(settings, threat)
        for eps in settings.eps
        for first in range(0, total, size)
    ]
    return list(dict.fromkeys(tasks))
