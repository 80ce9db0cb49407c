"""Attacks by the names that reports use: `fgsm`, `bim-K`, `pgd-K`, `autoattack-standard`."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maep.attacks.autoattack import LIBRARY, autoattack
from maep.attacks.gradient import AttackSpec
from maep.attacks.gradient import attack as gradient_attack
from maep.attacks.state import AttackState
from maep.errors import fail

AUTOATTACK = "autoattack-standard"
ITERATED = re.compile(r"(bim|pgd)-([1-9]\d*)")
NAMES = f"fgsm, bim-K, pgd-K (K iterations, such as pgd-20), {AUTOATTACK}"


def gradient_spec(name: str, norm: str, eps: float) -> AttackSpec | None:
    """The gradient attack of that name, or None.

    An iterated attack steps by eps/4, which is the usual 2/255 at eps = 8/255; one iteration steps by eps.
    PGD starts at a random point of the ball, FGSM and BIM at the image.
    """
    match = ITERATED.fullmatch(name)
    if not match and name != "fgsm":
        return None
    method, steps = (match[1], int(match[2])) if match else ("fgsm", 1)
    step = eps if steps == 1 else eps / 4
    return AttackSpec(
        method=method,
        norm=norm,
        eps=eps,
        step=step,
        steps=steps,
        random_start=method == "pgd",
        targeted=False,
    )


@dataclass(frozen=True)
class NamedAttack:
    """One attack at one budget. norm: Linf or L2; eps: [0,1] pixels."""

    name: str
    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.name != AUTOATTACK and gradient_spec(self.name, self.norm, self.eps) is None:
            fail(f"evaluation.attacks: {self.name}: unknown attack; choose from {NAMES}")

    def facts(self) -> dict[str, Any]:
        """Everything about the attack that its result depends on, JSON-able."""
        spec = gradient_spec(self.name, self.norm, self.eps)
        details = asdict(spec) if spec else {"library": LIBRARY}
        return {"name": self.name, "norm": self.norm, "eps": self.eps, **details}

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        keys: Sequence[int],
        seed: int,
        batch_size: int,
        state: AttackState | None = None,
        saved: Callable[[AttackState], None] = lambda state: None,
    ) -> AttackState:
        """Attack `images` ([N, 3, H, W] in [0,1]) in batches of `batch_size`.

        keys: the images' sample indices. state, saved: where to continue and what to do with a state in between;
        the gradient attacks are short and have none in between.
        """
        spec = gradient_spec(self.name, self.norm, self.eps)
        if spec is None:
            how: dict[str, Any] = {"norm": self.norm, "eps": self.eps, "seed": seed, "batch_size": batch_size}
            return autoattack(model, images, labels, **how, state=state, saved=saved)
        return self._run_gradient(spec, model, images, labels, keys, seed, batch_size)

    def _run_gradient(
        self,
        spec: AttackSpec,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        keys: Sequence[int],
        seed: int,
        batch_size: int,
    ) -> AttackState:
        started = time.perf_counter()
        adversarial, clean, attacked = [], [], []
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            made = gradient_attack(model, images[part], labels[part], spec, keys[part], seed)
            adversarial.append(made)
            with torch.no_grad():
                clean.append(model(images[part]).argmax(1))
                attacked.append(model(made).argmax(1))
        predictions = torch.cat(attacked)
        robust = predictions == labels
        survivors = {"clean": int((torch.cat(clean) == labels).sum()), self.name: int(robust.sum())}
        seconds = time.perf_counter() - started
        return AttackState(torch.cat(adversarial).detach(), predictions, robust, survivors, seconds)
