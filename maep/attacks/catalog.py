"""Attacks by the names that reports use (`maep.config.attack_names`)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.attack_state import AttackState, OnState
from maep.attacks.autoattack import LIBRARY, AttackSuite, autoattack
from maep.attacks.gradient import attack
from maep.attacks.reseeding import reseeded
from maep.attacks.surrogate import perturb_batch, with_surrogate
from maep.attacks.verdict import decided
from maep.config.attack_names import AUTOATTACK, ITERATED, PARTS, SQUARE, check_attack, custom_parts, version_of


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


def suite_of(name: str) -> AttackSuite | None:
    """pyautoattack's attacks of that name, or None."""
    if version := version_of(name):
        return AttackSuite(version)
    if attacks := custom_parts(name):
        return AttackSuite("custom", attacks)
    if match := SQUARE.fullmatch(name):
        return AttackSuite(single="square", queries=int(match[1] or AttackSuite.queries))
    return AttackSuite(single=name) if name in PARTS else None


def is_autoattack(name: str) -> bool:
    """Whether a name stands for several of pyautoattack's attacks together."""
    return name.startswith("autoattack-")


def title_of(name: str) -> str:
    """A name as tables and figures show it: the standard suite is what the field calls AutoAttack."""
    return name.replace(AUTOATTACK, "AutoAttack")


@dataclass(frozen=True)
class NamedAttack:
    """One attack at one budget. norm: Linf or L2; eps: [0,1] pixels. Raises UserError for an unknown name."""

    name: str
    norm: str
    eps: float

    def __post_init__(self) -> None:
        check_attack(self.name, "evaluation.attacks")

    def facts(self) -> Mapping[str, object]:
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
        on_state: OnState = lambda state: None,
        surrogate: nn.Module | None = None,
        decision_draws: int = 1,
    ) -> AttackState:
        """Attack `images` ([N, 3, H, W] in [0,1], labels int64 [N]) in batches of `batch_size`.

        keys: the images' sample indices. state, on_state: where to continue and what to do with a state in between;
        the gradient attacks are short and have none in between. surrogate: an inexact copy of the model that the
        attack follows; the model decides (`maep.attacks.surrogate`), if it is random by the commonest answer of
        `decision_draws`.
        """
        suite = suite_of(self.name)
        if suite is not None:
            return autoattack(
                model, images, labels, norm=self.norm, eps=self.eps, seed=seed, batch_size=batch_size, suite=suite,
                state=state, on_state=on_state, surrogate=surrogate, decision_draws=decision_draws,
            )  # fmt: skip
        spec = gradient_spec(self.name, self.norm, self.eps)
        assert spec is not None
        with reseeded(with_surrogate(model, surrogate), seed):
            return self._run_gradient(spec, model, surrogate, images, labels, keys, seed, batch_size, decision_draws)

    def _run_gradient(
        self,
        spec: AttackSpec,
        model: nn.Module,
        surrogate: nn.Module | None,
        images: Tensor,
        labels: Tensor,
        keys: Sequence[int],
        seed: int,
        batch_size: int,
        decision_draws: int,
    ) -> AttackState:
        started = time.perf_counter()
        adversarial, clean, answers = [], [], []
        for first in range(0, len(images), batch_size):
            part = range(first, min(first + batch_size, len(images)))

            def perturb(target: nn.Module, positions: Tensor, part: range = part) -> Tensor:
                index = [part[position] for position in positions.tolist()]
                return attack(target, images[index], labels[index], spec, [keys[i] for i in index], seed)

            batch, predictions = perturb_batch(
                perturb, model, surrogate, labels[part.start : part.stop], decision_draws
            )  # fmt: skip
            adversarial.append(batch)
            answers.append(predictions)
            clean.append(decided(model, images[part.start : part.stop], decision_draws))
        predictions = torch.cat(answers)
        robust = predictions == labels
        survivors = {"clean": int((torch.cat(clean) == labels).sum()), self.name: int(robust.sum())}
        seconds = time.perf_counter() - started
        return AttackState(torch.cat(adversarial).detach(), predictions, robust, survivors, seconds)
