"""Training against an attacker who knows the purifier: the whole f∘P is attacked as it stands at each step.

The attack follows a twin of P that shares its weights and has no gradients of its own, so the losses' own backward,
DDP's and ZeRO's hooks see nothing of it. Starts are keyed by (seed, epoch, sample) and drawn on the device. Every
few steps PGD attacks held-out images: that chooses the weights to keep, and notices catastrophic overfitting, where
a purifier withstands the attack of its training and no other (Wong et al. 2020).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import ascend, attack, moved_by
from maep.config.data_settings import AttackSettings
from maep.config.training_settings import RobustSettings
from maep.data.order import slice_of
from maep.data.pairs import PairDataset
from maep.data.shards import to_float
from maep.data.soft_labels import SoftLabels
from maep.runtime.compiling import compile_in_place
from maep.runtime.errors import fail
from maep.runtime.keyed_noise import keyed_uniform
from maep.runtime.randomness import keyed_rng
from maep.storage.manifests import Retreat, RobustProgress
from maep.training.distributed.world import agree, world

CHECK_STEPS = (
    10  # of the PGD on held-out images, each of eps/4: AutoAttack's order of purifiers at a tenth of its price
)
REACH = 1.25  # times eps that the steps of a late or lengthened attack cover together (robust.late_steps)
OnlineAttack = Callable[[Tensor, Tensor, list[int]], Tensor]
Estimate = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (network, clean, attacked, seeds) -> images
MOST_RETREATS = 4  # what is lost five times, under ever longer attacks, is not lost to the attack


# --- the attack ---


class AttackedWhole(nn.Module):
    """f∘P as the attack of a training sees it: P's own weights, none of which gets a gradient.

    purifier: (images, visible) -> images; classifiers: frozen. Call `follow` when the weights may lie elsewhere.
    estimate: what purifies by that network, where one call of it does not (`Objective.attacked`).
    """

    def __init__(
        self,
        purifier: nn.Module,
        classifiers: Sequence[nn.Module],
        dtype: torch.dtype,
        estimate: Estimate | None = None,
    ) -> None:
        super().__init__()
        self.estimate = estimate
        self.purifier = copy.deepcopy(purifier).requires_grad_(False)
        self.classifiers, self.dtype = nn.ModuleList(classifiers), dtype
        self.eval()

    def follow(self, weights: dict[str, Tensor]) -> None:
        """Use these weights, by parameter name, where they lie: later changes of them are seen."""
        for name, parameter in self.purifier.named_parameters():
            if name in weights:
                parameter.data = weights[name].detach()

    def forward(
        self, images: Tensor, visible: Tensor | None = None, shown: Tensor | None = None, which: int = 0,
        origin: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits in fp32, differentiable with respect to the images.

        shown: int64 [N, K], the index of `visible`. which: of the classifiers, that whose logits they are. origin: the
        images as they were before the attack, and a seed of each, int64 [N], for an estimate.
        """
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            purified = self._purified(images, visible, shown, origin)
            return self.classifiers[which](purified.clamp(0, 1)).float()

    def _purified(
        self, images: Tensor, visible: Tensor | None, shown: Tensor | None, origin: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        if self.estimate is not None and origin is not None:
            clean, seeds = origin
            return self.estimate(self.purifier, clean, images, seeds)
        index = {} if shown is None else {"index": shown}
        purified: Tensor = self.purifier(images, visible, **index)
        return purified


def attack_at(base: AttackSpec, settings: RobustSettings, progress: float, retreats: int) -> AttackSpec:
    """The attack of a step. progress: share of the training done after it. retreats: steps that it is longer by."""
    if progress <= settings.clean_until:
        return replace(base, eps=0.0, step=0.0, steps=0, random_start=False)
    share = min(1.0, (progress - settings.clean_until) / settings.eps_ramp) if settings.eps_ramp else 1.0
    spec = replace(base, eps=base.eps * share, step=base.step * share)
    late = settings.late_steps if progress > settings.late_from else 0
    if not (late or retreats):
        return spec
    # Longer than what it was lost under, also late: the same attack again would be the same training, to the bit.
    steps = max(late, base.steps) + retreats if retreats else late
    return replace(spec, method="pgd", random_start=True, steps=steps, step=REACH * spec.eps / steps)


@dataclass(frozen=True)
class AgainstWhole:
    """What a training against the whole needs besides.

    classifiers: frozen; the first, the run's own, is the one of the checks. attack: its budget is that of the checks.
    estimate: as `AttackedWhole`'s.
    """

    classifiers: tuple[nn.Module, ...]
    attack: AttackSettings
    settings: RobustSettings
    seed: int
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Adversary:
    """Who makes the adversarial images of a training, where no shards have them, and who judges the purified ones.

    online: (images, labels, keys) -> adversarial images, or noisy ones. against: the attack on the whole, in its place.
    classifiers: frozen, in eval mode, for objectives that classify, of which each step asks one; none for others.
    soft: a teacher's answers, in the labels' place.
    """

    online: OnlineAttack | None = None
    against: AgainstWhole | None = None
    classifiers: tuple[nn.Module, ...] = ()
    soft: SoftLabels | None = None


class RobustTraining:
    """Attacks the whole for every step, and on held-out images; remembers how that went (`progress`)."""

    def __init__(
        self, against: AgainstWhole, model: nn.Module, device: torch.device, dtype: torch.dtype, *, compiled: bool
    ) -> None:
        """model: P as it is trained, which is copied once. dtype: of the attack's arithmetic; checks are in fp32."""
        self.against, self.spec, self.device = against, AttackSpec.of(against.attack), device
        self.whole = AttackedWhole(model, against.classifiers, dtype, against.estimate).to(device)
        self.exact = AttackedWhole(model, against.classifiers[:1], torch.float32).to(device)
        self.compiled = compile_in_place(self.whole, "compute.compile") if compiled else None
        self.progress = RobustProgress()

    def at(self, progress: float) -> AttackSpec:
        """The attack of a step; see `attack_at`."""
        return attack_at(self.spec, self.against.settings, progress, len(self.progress.retreats))

    @property
    def is_of_several(self) -> bool:
        """Whether there are several classifiers to draw from."""
        return len(self.against.classifiers) > 1

    def drawn(self, step: int) -> int:
        """Which of the classifiers a 0-based step attacks and asks: the same on every rank, and after a resume."""
        rng = keyed_rng("classifier-drawn", self.against.seed, step)
        return int(rng.integers(len(self.against.classifiers))) if self.is_of_several else 0

    def attack(
        self, weights: dict[str, Tensor], images: Tensor, labels: Tensor, visible: Tensor | None, spec: AttackSpec,
        keys: Sequence[int], shown: Tensor | None = None, which: int = 0, seeds: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Adversarial images of f∘P with these weights of P; arguments otherwise as `maep.attacks.gradient.attack`'s.

        visible: what P sees of them, the same for the attack as for the losses. shown: int64 [N, K], its index. which:
        of the classifiers, the attacked one. seeds: int64 [N], of what the losses draw, which an estimate draws alike.
        """
        origin = None if seeds is None else (images, seeds)
        self.whole.follow(weights)
        noise = keyed_uniform("whole", self.against.seed, keys, tuple(images.shape[1:]), images.device)
        start = moved_by(images, noise, spec) if spec.random_start else images
        return ascend(lambda moved: self.whole(moved, visible, shown, which, origin), images, labels, spec, start)

    def is_due(self, step: int, steps: int) -> bool:
        """Whether held-out images are attacked after a step."""
        every = self.against.settings.check_every
        return bool(every) and (step % every == 0 or step == steps)

    def check(
        self, pairs: PairDataset, weights: dict[str, Tensor], averaged: dict[str, Tensor], batch: int,
        alive: Callable[[], object],
    ) -> RobustProgress:  # fmt: skip
        """Attack the held-out images of all ranks together; the progress that follows, the same on every rank.

        batch: images at a time. alive: called before each.
        """
        pgd = replace(
            self.spec, method="pgd", step=self.spec.eps / 4, steps=CHECK_STEPS, random_start=True, targeted=False
        )
        fgsm = replace(pgd, method="fgsm", step=pgd.eps, steps=1, random_start=False)
        now = self._accuracies(pairs, weights, (pgd, fgsm), batch, alive)
        kept = self._accuracies(pairs, averaged, (pgd,), batch, alive) if averaged is not weights else now
        return replace(self.progress, accuracy=now[1], checked=True, averaged=kept[1], clean=kept[0], fgsm=now[2])

    def has_collapsed(self, now: RobustProgress, spec: AttackSpec) -> bool:
        """Whether robustness was lost since the check before. spec: of the step's attack; without one there is nothing
        to overfit to, and going back would change nothing.
        """
        before = self.progress.accuracy if spec.steps else None
        lost = 0.0 if before is None or now.accuracy is None else before - now.accuracy
        return lost > self.against.settings.overfit_drop

    def with_retreat(self, retreat: Retreat) -> tuple[Retreat, ...]:
        """All retreats so far, and this one. Raises UserError where it is one too many."""
        retreats = (*self.progress.retreats, retreat)
        if len(retreats) > MOST_RETREATS:
            fail(
                f"robust accuracy on held-out images fell by more than robust.overfit_drop at step {retreat.step}, for "
                f"the {len(retreats)}th time and under {self.at(1.0).name}: lower the learning rate, or raise "
                "attack.steps"
            )
        return retreats

    @torch.no_grad()
    def _accuracies(
        self, pairs: PairDataset, weights: dict[str, Tensor], specs: Sequence[AttackSpec], batch: int,
        alive: Callable[[], object],
    ) -> list[float]:  # fmt: skip
        """Accuracy in percent on the held-out images, in fp32: on clean ones, then under each attack."""
        self.exact.follow(weights)
        share = slice_of(pairs.held, world().rank, world().size)
        right = torch.zeros(1 + len(specs), device=self.device)
        for first in range(0, len(share), batch):
            alive()
            indices = share[first : first + batch]
            stored, labels = (tensor.to(self.device) for tensor in pairs.clean.batch(indices))
            images = to_float(stored)
            attacked = (attack(self.exact, images, labels, spec, indices, self.against.seed) for spec in specs)
            right += torch.stack([(self.exact(each).argmax(1) == labels).sum() for each in (images, *attacked)])
        return [100 * count / len(pairs.held) for count in agree(right.tolist(), self.device)]


def accuracies(progress: RobustProgress) -> dict[str, float]:
    """What a check has measured, by name, in percent; nothing before the first one."""
    values = {
        "accuracy": progress.accuracy, "fgsm": progress.fgsm, "averaged": progress.averaged, "clean": progress.clean
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


def describe(progress: RobustProgress) -> str:
    """The same in words."""
    fgsm = "" if progress.fgsm is None else f"FGSM {progress.fgsm:.1f} %, "  # None: by a version that had none
    return (
        f"PGD-{CHECK_STEPS} {progress.accuracy or 0.0:.1f} %, {fgsm}"
        f"averaged weights {progress.averaged or 0.0:.1f} % (clean {progress.clean or 0.0:.1f} %)"
    )
