"""AutoAttack, driven attack by attack, so that its state can be saved in between.

The attacks are pyautoattack's own code. What is here is the loop of its `run_standard_evaluation`: the same
images in the same batches with the same seed give the same adversarial images, bit for bit, whether or not the
run was killed and resumed between two attacks.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyautoattack
import torch
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn

from maep.attacks.attack_state import AttackState, OnState
from maep.attacks.reseeding import reseeded
from maep.attacks.surrogate import perturb_batch, with_surrogate
from maep.attacks.threat_models import Expectation
from maep.attacks.verdict import decided
from maep.config.attack_names import MIN_CLASSES, PARTS
from maep.runtime.errors import fail

LOGGER = logging.getLogger("auto-attack")
LIBRARY = f"pyautoattack {pyautoattack.__version__}"


@dataclass(frozen=True)
class AttackSuite:
    """Which of pyautoattack's attacks are run, in which order and with whose parameters.

    version: `standard`, `plus`, `rand` or `custom`, as pyautoattack calls them. attacks: of `custom`, some of
    `PARTS`. single: one attack, with the parameters that it has in `standard`. queries: of Square; 5000 are
    AutoAttack's own.
    """

    version: str = "standard"
    attacks: tuple[str, ...] = ()
    single: str | None = None
    queries: int = 5000

    def attacker(self, model: nn.Module, **how: Any) -> AutoAttack:
        """pyautoattack's own object, set up. how: norm, eps, seed, device."""
        attacks = list(self.attacks) if self.version == "custom" else None
        attacker = AutoAttack(model, version=self.version, attacks=attacks, **how)
        if self.single:
            attacker.attacks_to_run = [self.single]
            attacker.square.n_queries = self.queries
        if isinstance(model, Expectation) and model.is_asked_draw_by_draw:
            attacker.square.margin_and_loss = partial(margin_and_mean_margin, model)
        return attacker


def margin_and_mean_margin(model: Expectation, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Square's two questions to a random model: the margin of the mean logits, which decides whether an image has
    fallen, and the mean of the draws' margins, which is lowered; each [N], the label's logit over the highest other.

    images: [N, 3, H, W]; labels: int64 [N]. The second is never above the first: a few draws whose logits are large do
    not hide what the others answer.
    """
    logits = model.each(images)
    own = labels.expand(len(logits), -1)[..., None]
    margins = logits.gather(2, own)[..., 0] - logits.scatter(2, own, -torch.inf).amax(2)
    mean = logits.mean(0)
    label = labels[:, None]
    return mean.gather(1, label)[:, 0] - mean.scatter(1, label, -torch.inf).amax(1), margins.mean(0)


STANDARD = AttackSuite()


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    eps: float,
    seed: int,
    batch_size: int,
    suite: AttackSuite = STANDARD,
    state: AttackState | None = None,
    on_state: OnState = lambda state: None,
    surrogate: nn.Module | None = None,
    decision_draws: int = 1,
) -> AttackState:
    """AutoAttack: the attacks of a suite, each on the images that survived so far.

    model: [N, 3, H, W] in [0,1] → logits [N, C], in eval mode, parameters frozen. labels: int64 [N].
    norm: Linf or L2. eps: budget in [0,1] pixels. batch_size and the images' order are part of the result.
    state: continue from here. on_state: called with the state after the clean predictions and after each attack.
    surrogate: an inexact copy of the model that the attacks follow; see `maep.attacks.surrogate`. decision_draws: how
    often a random model is asked before and after each attack whether it still answers rightly (`decided`); within an
    attack pyautoattack asks once.
    Raises UserError for fewer classes than the DLR losses can rank.
    """
    models = with_surrogate(model, surrogate)
    attackers = {each: suite.attacker(each, norm=norm, eps=eps, seed=seed, device=images.device) for each in models}
    for attacker in attackers.values():
        _limit_targets(attacker, _classes(model, images))
    if state is None:
        with reseeded(model, seed, 0):
            state = _clean_state(model, images, labels, batch_size, decision_draws)
        on_state(state)
    for number, name in enumerate(attackers[model].attacks_to_run, 1):
        perturbs = {each: _single_attack(attacker, name) for each, attacker in attackers.items()}
        if name in state.survivors:
            continue
        started = time.perf_counter()
        with attack_warnings(state.warnings), reseeded(models, seed, number):
            for index in state.robust.nonzero().flatten().split(batch_size):
                _attack_batch(
                    perturbs, model, surrogate, images[index], labels[index], index, state, decision_draws
                )  # fmt: skip
        state.seconds += time.perf_counter() - started
        state.survivors[name] = int(state.robust.sum())
        on_state(state)
    return state


@torch.no_grad()
def _classes(model: nn.Module, images: Tensor) -> int:
    return model(images[:1]).shape[1]


def _limit_targets(attacker: AutoAttack, classes: int) -> None:
    """The targeted attacks take the nine likeliest other classes, or all there are."""
    for name in attacker.attacks_to_run:
        if classes < MIN_CLASSES.get(name, 2):
            fail(
                f"{name}: needs at least {MIN_CLASSES.get(name, 2)} classes for its loss, this model has {classes}; "
                "choose pgd-K, apgd-ce or square in evaluation.attacks"
            )
    attacker.apgd_targeted.n_target_classes = min(attacker.apgd_targeted.n_target_classes, classes - 1)
    attacker.fab.n_target_classes = min(attacker.fab.n_target_classes, classes - 1)


def _single_attack(attacker: AutoAttack, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """pyautoattack's own `perturb` of one attack. Sets it up as its loop does, also what lasts for later ones."""
    if name in ("apgd-ce", "apgd-dlr"):
        loss = name.removeprefix("apgd-")

        def apgd(images: Tensor, labels: Tensor) -> Tensor:
            attacker.apgd.loss = loss
            return attacker.apgd.perturb(images, labels)

        return apgd
    if name == "apgd-t":
        return attacker.apgd_targeted.perturb
    if name in ("fab", "fab-t"):
        targeted = name == "fab-t"
        if targeted:
            attacker.fab.n_restarts = 1

        def fab(images: Tensor, labels: Tensor) -> Tensor:
            attacker.fab.targeted = targeted
            return attacker.fab.perturb(images, labels)

        return fab
    if name == "square":
        return attacker.square.perturb
    raise ValueError(f"unknown attack {name!r}; choose from {', '.join(PARTS)}")


@torch.no_grad()
def _clean_state(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, decision_draws: int) -> AttackState:
    predictions = torch.cat([decided(model, batch, decision_draws) for batch in images.split(batch_size)])
    robust = predictions == labels
    return AttackState(images.clone(), predictions, robust, {"clean": int(robust.sum())})


def _attack_batch(
    perturbs: dict[nn.Module, Callable[[Tensor, Tensor], Tensor]],
    model: nn.Module,
    surrogate: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    state: AttackState,
    decision_draws: int,
) -> None:
    """One attack on the images at `index`; what it breaks goes into `state`."""
    if not len(index):
        return

    def perturb(target: nn.Module, positions: Tensor) -> Tensor:
        return finite_or_clean(perturbs[target](images[positions], labels[positions]), images[positions])

    adversarial, predictions = perturb_batch(perturb, model, surrogate, labels, decision_draws)
    broken = predictions != labels
    state.robust[index[broken]] = False
    state.images[index[broken]] = adversarial[broken]
    state.predictions[index[broken]] = predictions[broken]


def finite_or_clean(adversarial: Tensor, images: Tensor) -> Tensor:
    """Adversarial images, and the clean ones where a gradient that is no number led out of all numbers.

    adversarial, images: [N, 3, H, W].
    """
    is_finite = adversarial.isfinite().flatten(1).all(1)
    return torch.where(is_finite.view(-1, 1, 1, 1), adversarial, images)


class _Collector(logging.Handler):
    """Keeps the warnings of pyautoattack, each kind once, without the full stop that reports put after a note."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().replace(" See flags_doc.md for details.", "").removesuffix(".")
        if "zero gradient" in message:
            message = "some points had zero gradient: gradient-based attacks may be unreliable"
        if message not in self.messages:
            self.messages.append(message)


@contextmanager
def attack_warnings(messages: list[str]) -> Iterator[None]:
    """Collects into `messages` what pyautoattack would have logged."""
    collector, propagate = _Collector(messages), LOGGER.propagate
    LOGGER.addHandler(collector)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(collector)
        LOGGER.propagate = propagate


def check_model(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> list[str]:
    """AutoAttack's questions to a model before it is attacked, asked once: warnings in words.

    They are: is its output random, and is its output a probability distribution instead of logits.
    Raises UserError when it does not answer with one logit a class.
    """
    warnings: list[str] = []
    with attack_warnings(warnings):
        checks.check_randomized(model, images, labels, bs=len(images), logger=LOGGER)
        logits = checks.check_range_output(model, images, logger=LOGGER)
    if logits != classes:
        fail(f"the classifier gives {logits} logits, the test set has {classes} classes; they must be equal")
    return warnings


def square_warning(survivors: dict[str, int], count: int) -> list[str]:
    """AutoAttack's sign of masked gradients, [] without it: Square broke over 0.2 % of `count` images that the others
    left robust. survivors: as `AttackState.survivors`.
    """
    warnings: list[str] = []
    with attack_warnings(warnings):
        checks.check_square_sr({name: number / count for name, number in survivors.items()}, logger=LOGGER)
    return warnings
