"""Adversarial training of the classifier: PGD-AT, TRADES, either with AWP, and DKL.

PGD-AT: Madry et al. 2018, or by N-FGSM: de Jorge et al. 2022. TRADES: Zhang et al. 2019. AWP: Wu, Xia and Wang 2020.
DKL: Cui et al. 2024. All within an L∞ ball, which N-FGSM leaves; PGD-AT and TRADES, with AWP or without, also in an L2
ball. There an image without a gradient stays, where TRADES' code moves it at random. What is drawn is a function of
seed and step, and what lasts from step to step (DKL's table of classes) is in the checkpoints, so that a resumed
training ends with the same weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.attacks.gradient import NOISE as NFGSM_NOISE
from maep.attacks.gradient import direction, into_ball, point_of_ball
from maep.config.data_settings import ClassifierSettings
from maep.runtime.randomness import keyed_rng
from maep.training.batch_loss import BatchLoss, Progress
from maep.training.robust import REACH

WITH_AWP = ("awp", "trades_awp", "dkl")
NOISE = 1e-3  # deviation of the start of TRADES' and DKL's attacks: at the image itself their gradient is zero
DKL_ITERATIONS = 5  # of the attack of DKL's published training, each of half the budget
SMALLEST = 1e-20  # norm of a gradient that AWP divides by


@contextmanager
def untracked(network: nn.Module, mode: str) -> Iterator[None]:
    """Within it the network is in a mode, `eval` or `train`, and its buffers are as before after it, as is its mode.

    In `train` batch norms take the statistics of the batch without keeping them.
    """
    was_training = network.training
    before = [buffer.clone() for buffer in network.buffers()] if mode == "train" else []
    network.train(mode == "train")
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(network.buffers() if before else (), before, strict=True):
                buffer.copy_(value)
        network.train(was_training)


def kl(constant: Tensor, moving: Tensor) -> Tensor:
    """KL(softmax(constant) ‖ softmax(moving)) of each row, [N]; gradients go to both that have them."""
    return F.kl_div(F.log_softmax(moving, 1), F.softmax(constant, 1), reduction="none").sum(1)


class DklTable:
    """What the network says of each class on average: rows s of the weights w = s sᵀ of DKL's distances.

    rows: [C, C], the mean softmax(logits / temperature) of each class over the epoch before; 1/C at first. A class that
    an epoch did not see keeps its row.
    """

    def __init__(self, classes: int, temperature: float, device: torch.device) -> None:
        self.temperature = temperature
        self.rows = torch.full((classes, classes), 1 / classes, device=device)
        self.sums, self.counts = torch.zeros_like(self.rows), torch.zeros(classes, device=device)
        self.epoch = torch.zeros((), dtype=torch.int64)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint; they are copied into when it is restored."""
        return {"rows": self.rows, "sums": self.sums, "counts": self.counts, "epoch": self.epoch}

    def begin(self, epoch: int) -> None:
        """Take what was gathered as the rows when another epoch has begun."""
        if epoch == int(self.epoch):
            return
        seen = self.counts > 0
        self.rows[seen] = self.sums[seen] / self.counts[seen, None]
        self.sums.zero_()
        self.counts.zero_()
        self.epoch.fill_(epoch)

    @torch.no_grad()
    def gather(self, logits: Tensor, labels: Tensor) -> None:
        """Take in the answers [N, C] to clean images."""
        self.sums.index_add_(0, labels, F.softmax(logits.float() / self.temperature, 1))
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))

    def distances(self, clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """¼ Σ_jk s_j s_k ((n_j - n_k) - (a_j - a_k))², [N], for logits n, a [N, C] and s the label's row."""
        s, d = self.rows[labels], clean - adversarial
        total = s.sum(1)
        # About its mean under s: of a difference that all logits share, the squares would cancel, and digits with them.
        mean = (s * d).sum(1) / total
        return 0.5 * total * (s * (d - mean[:, None]).square()).sum(1)


class AdversarialTraining(BatchLoss):
    """The loss of one batch under `classifier.training`, and the perturbation of the weights that goes with some.

    network: images [N, 3, H, W] in [0, 1] to logits [N, classes].
    """

    def __init__(self, network: nn.Module, settings: ClassifierSettings, classes: int, device: torch.device) -> None:
        self.network, self.settings = network, settings
        self.base = {"awp": "pgd_at", "trades_awp": "trades"}.get(settings.training, settings.training)
        self.table = DklTable(classes, settings.dkl_temperature, device) if self.base == "dkl" else None
        self._added: dict[nn.Parameter, Tensor] = {}
        self._clean = torch.empty(0)

    def tensors(self) -> dict[str, Tensor]:
        """As `BatchLoss.tensors`: DKL's table."""
        return self.table.tensors() if self.table else {}

    # attacks

    def attacked(self, images: Tensor, labels: Tensor, at: Progress) -> Tensor:
        """Adversarial images, as the training makes them; the network's buffers and mode stay as they are."""
        options = self.settings
        rng = keyed_rng("classifier-attack", at.seed, at.step)
        eps, step, steps, is_projected = self._steps(at)
        if self.base == "pgd_at":
            noise = self._point_of_ball(rng, tuple(images.shape)) * eps
            start = (images + (1.0 if is_projected else NFGSM_NOISE) * noise.to(images)).clamp(0, 1)
        else:
            noise = NOISE * torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype="float32"))
            start = images + noise.to(images)
        # PGD-AT asks for no clean answer; where dropout is on, the draws of that pass stay, and with them old results.
        is_asked = self.base != "pgd_at" or options.attack_mode == "train"
        with untracked(self.network, options.attack_mode):
            with torch.no_grad():
                clean = self.network(images).float() if is_asked else torch.empty(0)
            for _ in range(steps):
                moving = start.detach().requires_grad_()
                with torch.enable_grad():
                    total = self._attack_loss(clean, self.network(moving).float(), labels).sum()
                (gradient,) = torch.autograd.grad(total, moving)
                start = start + step * direction(gradient, options.train_norm)
                if options.train_norm == "L2":
                    # As published TRADES is cut to [0, 1] first; a shorter move from the image to there stays there.
                    start = into_ball(start.clamp(0, 1) if self.base == "trades" else start, images, "L2", eps)
                elif is_projected:
                    start = torch.minimum(torch.maximum(start, images - eps), images + eps)
                start = start.clamp(0, 1)
        return start.detach()

    def _point_of_ball(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
        """A point of the unit ball for each image; in L2 one after the other, so that none depends on a later one."""
        if self.settings.train_norm == "L2":
            return torch.from_numpy(np.stack([point_of_ball(rng, shape[1:]) for _ in range(shape[0])]))
        return 2 * torch.from_numpy(rng.random(shape, dtype="float32")) - 1

    def _steps(self, at: Progress) -> tuple[float, float, int, bool]:
        """(budget, step size, iterations) of the attack at a step, and whether it is kept within the budget."""
        options = self.settings
        eps = options.train_eps
        if self.base == "dkl":
            eps = eps * (at.epoch + 1) / at.epochs
            return eps, eps / 2, DKL_ITERATIONS, True
        late = options.train_late_steps
        if late and at.epoch >= options.train_late_from * at.epochs:
            return eps, REACH * eps / late, late, True
        if self.base == "pgd_at" and options.train_attack == "nfgsm":
            return eps, eps, 1, False
        if self.base == "trades" and options.train_norm == "L2":
            return eps, 2 * eps / options.train_steps, options.train_steps, True
        return eps, options.train_step, options.train_steps, True

    def _attack_loss(self, clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """What the attack raises, [N]; clean: constant logits."""
        if self.base == "pgd_at":
            return F.cross_entropy(adversarial, labels, reduction="none")
        if self.table is None:
            return kl(clean, adversarial)
        return self._soft_cross_entropy(clean, adversarial) + self.table.distances(clean, adversarial, labels)

    @staticmethod
    def _soft_cross_entropy(clean: Tensor, adversarial: Tensor) -> Tensor:
        return -(F.softmax(clean, 1).detach() * F.log_softmax(adversarial, 1)).sum(1)

    # losses

    def loss(self, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch with the network as it is. TRADES sees each image twice, clean and then attacked."""
        if self.base == "pgd_at":
            return F.cross_entropy(self.network(adversarial), labels)
        clean = self.network(images)
        self._clean = clean.detach()
        natural = F.cross_entropy(clean, labels)
        if self.base == "trades":
            weight = self.settings.trades_weight
            # Through both arguments, as published. Without a weight there is no second forward for a batch norm to see.
            return natural + weight * kl(clean.float(), self.network(adversarial).float()).mean() if weight else natural
        assert self.table is not None
        other = self.network(adversarial).float()
        soft = self._soft_cross_entropy(clean.float(), other).mean()
        distance = self.table.distances(clean.float(), other, labels).mean()
        return natural + self.settings.dkl_alpha * soft + self.settings.dkl_beta * distance

    def begin(self, images: Tensor, labels: Tensor, at: Progress) -> Tensor:
        """The loss of a batch, to be descended; then `end` is to be called."""
        if self.table:
            self.table.begin(at.epoch)
        is_needless = self.base == "trades" and not self.settings.trades_weight
        adversarial = images if is_needless else self.attacked(images, labels, at)
        self._added = self._perturb_weights(images, adversarial, labels) if self._is_perturbing(at) else {}
        loss = self.loss(images, adversarial, labels)
        if self.table:
            self.table.gather(self._clean, labels)
        return loss

    @torch.no_grad()
    def end(self) -> None:
        """Take from the weights, after the optimizer's step, what AWP had added to them."""
        for parameter, move in self._added.items():
            parameter.sub_(move)
        self._added = {}

    def _is_perturbing(self, at: Progress) -> bool:
        has_awp = self.settings.training in WITH_AWP and self.settings.awp_gamma > 0
        return has_awp and at.epoch >= self.settings.awp_warmup

    def _perturb_weights(self, images: Tensor, adversarial: Tensor, labels: Tensor) -> dict[nn.Parameter, Tensor]:
        """Move every weight with more than one dimension to where the loss rises most; returns what was added.

        The published code takes the direction from a step of a copy of the network. It is scaled to the weight's norm,
        so the copy's learning rate cancels, and the gradient is all that is needed.
        """
        weights = [p for name, p in self.network.named_parameters() if p.ndim > 1 and "weight" in name]
        with untracked(self.network, "train"):
            gradients = torch.autograd.grad(self.loss(images, adversarial, labels), weights)
        gamma = self.settings.awp_gamma
        added = {}
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                added[weight] = gamma * weight.norm() / (gradient.norm() + SMALLEST) * gradient
                weight.add_(added[weight])
        return added
