"""The attack on one chunk of images: a unit of work whose result several purifiers and threat models may share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep.attacks.attack_state import AttackState, identity_of
from maep.config.schema import Settings
from maep.evaluation.scoring.metrics import distances
from maep.evaluation.scoring.plan import Task
from maep.storage.atomic import digest, remove_temporaries

Saved = Callable[[AttackState], None]


@dataclass(frozen=True)
class ChunkAttack:
    """One chunk, attacked through one model.

    task: the attack and the chunk. model: what is attacked. fast: its double that is followed, if any. folder: where
    the adversarial images go. facts: all that they depend on, except which chunk it is. Equal attacks have equal
    identities.
    """

    settings: Settings
    task: Task
    model: nn.Module
    fast: nn.Module | None
    folder: Path
    facts: dict[str, Any]

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

    def is_made(self) -> bool:
        """Whether the images are there; that they are whole is checked when they are read."""
        return identity_of(self.path) == self.identity

    def load(self, device: torch.device) -> AttackState | None:
        """The finished attack, or None if it is missing, of something else, or damaged."""
        return AttackState.load(self.path, self.identity, device)

    def make(self, images: Tensor, labels: Tensor, saved: Saved) -> AttackState:
        """Attack, going on from the state that a killed worker left, and commit the images.

        images: [N, 3, H, W] in [0,1] of the chunk; labels: [N]. saved: called after each state is on disk.
        Raises RuntimeError if the attack left its budget.
        """

        def save(state: AttackState) -> None:
            state.save(self.partial, self.identity)
            saved(state)

        remove_temporaries(self.folder)
        state = self.task.named_attack.run(
            self.model,
            images,
            labels,
            keys=self.task.ids,
            seed=self.task.seed(self.settings.run.seed),
            batch_size=self.settings.evaluation.batch_size,
            state=AttackState.load(self.partial, self.identity, images.device),
            saved=save,
            fast=self.fast,
        )
        check_budget(self.task, state.images, images)
        state.save(self.path, self.identity)
        self.partial.unlink(missing_ok=True)
        return state


def check_budget(task: Task, adversarial: Tensor, images: Tensor) -> None:
    """Raises RuntimeError if an attack left its budget or the range of pixels: its result would be worthless."""
    linf, l2 = distances(adversarial, images)
    used = float((linf if task.norm == "Linf" else l2).max())
    low, high = float(adversarial.min()), float(adversarial.max())
    if not (used <= task.eps * (1 + 1e-4) + 1e-6 and low >= 0 and high <= 1):
        raise RuntimeError(f"{task}: the attack used {used} of {task.eps}, pixels in [{low}, {high}]")
