"""The attack on one chunk of images: a unit of work whose result several purifiers and threat models may share."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from maep.attacks.attack_state import AttackState, OnState, identity_of
from maep.attacks.threat_models import threat_model
from maep.evaluation.scoring.defense import Targets
from maep.evaluation.scoring.identities import EvaluationIdentity
from maep.evaluation.scoring.metrics import distances
from maep.evaluation.scoring.tasks import Task, chunk_size, undefended_task
from maep.runtime.compiling import is_uncompiled
from maep.runtime.digests import digest

# What fp32 rounds of a budget when an image is moved and measured: a relative part, and one for the smallest budgets.
BUDGET_RELATIVE, BUDGET_ABSOLUTE = 1e-4, 1e-6


@dataclass(frozen=True)
class ChunkAttack:
    """One chunk, attacked through one model.

    task: the attack and the chunk. model: what is attacked. surrogate: its inexact copy that is followed, if any.
    folder: where the adversarial images go. facts: all that they depend on, except which chunk it is. Equal attacks
    have equal identities. seed: of the run. batch_size: images that are attacked together. decision_draws:
    how often a random model is asked whether an image has fallen.
    """

    task: Task
    model: nn.Module
    surrogate: nn.Module | None
    folder: Path
    facts: Mapping[str, object]
    seed: int
    batch_size: int
    decision_draws: int = 1

    @cached_property
    def identity(self) -> str:
        """Digest of all that the adversarial images depend on."""
        return digest({**self.facts, "first": self.task.first, "count": self.task.count})

    @property
    def path(self) -> Path:
        """Where the finished adversarial images are."""
        return self.folder / f"{self.task.stem}.safetensors"

    @property
    def partial(self) -> Path:
        """Where the state between two attacks is."""
        return self.folder / f"{self.task.stem}.partial.safetensors"

    def is_finished(self) -> bool:
        """Whether the images are there; that they are whole is checked when they are read."""
        return identity_of(self.path) == self.identity

    def load(self, device: torch.device) -> AttackState | None:
        """The finished attack, or None if it is missing, of something else, or damaged."""
        return AttackState.load(self.path, self.identity, device)

    def make(self, images: Tensor, labels: Tensor, on_state: OnState) -> AttackState:
        """Attack, going on from the state that a killed worker left, and commit the images.

        images: [N, 3, H, W] in [0,1] of the chunk; labels: [N]. on_state: called after each state is on disk.
        Raises RuntimeError if the attack left its budget.
        """

        def save(state: AttackState) -> None:
            state.save(self.partial, self.identity)
            on_state(state)

        state = self.task.named_attack.run(
            self.model,
            images,
            labels,
            keys=self.task.ids,
            seed=self.task.seed(self.seed),
            batch_size=self.batch_size,
            state=AttackState.load(self.partial, self.identity, images.device),
            on_state=save,
            surrogate=self.surrogate,
            decision_draws=self.decision_draws,
        )
        if self.surrogate is not None and is_uncompiled(self.surrogate):
            state.warnings.append("torch.compile failed, so the attack followed the model uncompiled")
        check_budget(self.task, state.images, images)
        state.save(self.path, self.identity)
        self.partial.unlink(missing_ok=True)
        return state


def check_budget(task: Task, adversarial: Tensor, images: Tensor) -> None:
    """Raises RuntimeError if an attack left its budget or the range of pixels: its result would be worthless.

    adversarial, images: [N, 3, H, W].
    """
    linf, l2 = distances(adversarial, images)
    used = float((linf if task.norm == "Linf" else l2).max())
    low, high = float(adversarial.min()), float(adversarial.max())
    if not (is_within(used, task.eps) and low >= 0 and high <= 1):
        raise RuntimeError(f"{task}: the attack used {used} of {task.eps}, pixels in [{low}, {high}]")


def is_within(used: float, eps: float) -> bool:
    """Whether a perturbation keeps its budget, as far as fp32 can tell."""
    return used <= eps * (1 + BUDGET_RELATIVE) + BUDGET_ABSOLUTE


@dataclass(frozen=True)
class AttackFactory:
    """The attacks of an evaluation. cache: where those that need no purifier go; directory: the evaluation's own."""

    identity: EvaluationIdentity
    targets: Targets
    cache: Path
    directory: Path

    def undefended(self, task: Task) -> ChunkAttack:
        """The attack through the classifier alone, as of `undefended_task`: once for all purifiers, in the cache."""
        settings, available = self.identity.settings, self.identity.available
        task = undefended_task(task, settings, available)
        facts = self.identity.attack_facts(task)
        # Runs that attack more of the chunk so would overwrite it, and it theirs.
        end = min(settings.images, available, task.first + chunk_size(settings, available))
        part = {"attacked": task.count} if task.first + task.count < end else {}
        return self._attack(task, self.cache / digest({**facts, **part})[:16])

    def defended(self, task: Task) -> ChunkAttack:
        """The attack on what the threat model's attacker knows of purifier and classifier; kept in its folder."""
        task = self.identity.attack_task(task)
        return self._attack(task, self.directory / task.folder)

    def of(self, task: Task) -> list[ChunkAttack]:
        """The attacks that a task's record is made of: the one on the undefended classifier first, its own last."""
        threat = threat_model(self.identity.attack_task(task).threat_model)
        return [self.undefended(task), *([self.defended(task)] if threat.uses_purifier else [])]

    def _attack(self, task: Task, folder: Path) -> ChunkAttack:
        attacker, settings = threat_model(task.threat_model), self.identity.settings
        return ChunkAttack(
            task, self.targets.exact(attacker), self.targets.surrogate(attacker), folder,
            self.identity.attack_facts(task), self.identity.seed, settings.batch_size,
            self.identity.decision_draws(task.threat_model),
        )  # fmt: skip
