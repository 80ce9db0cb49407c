"""Gradient attacks: FGSM, N-FGSM, BIM and PGD, in the L∞ and L2 norms, targeted or not; SSP, which asks no label."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.runtime.device import keep_freed_memory, upload
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng

NOISE = 2.0  # N-FGSM's noise in units of eps (de Jorge et al. 2022, k = 2)
TINY = 1e-12  # in the place of a norm of zero; below it squares are lost in fp32


def attack(
    model: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, keys: Sequence[int], seed: int
) -> Tensor:
    """Adversarial images of a model in eval mode: the last iterate, within eps of `images` and in [0, 1].

    Those of N-FGSM may be up to 3 eps away.

    model: [N, 3, H, W] in [0,1] → logits; it may be a purifier with a classifier. images: [N, 3, H, W] in [0,1].
    labels: int64 [N]. keys: N numbers; the random start and target of an image depend on (seed, its key) alone,
    not on the images it is attacked together with. Returns [N, 3, H, W], detached.
    Raises ValueError for a model in training mode, or keys that are not one an image.

    On a CPU the process keeps the memory of freed tensors from then on, as `load_purifier`'s does: a step takes a tenth
    less.
    """
    if model.training:
        raise ValueError("attack: the model must be in eval mode")
    if len(keys) != len(images):
        raise ValueError(f"attack: {len(keys)} keys for {len(images)} images")
    if images.device.type == "cpu":
        keep_freed_memory()
    images = images.detach()
    if spec.method == "ssp":
        from maep.models.feature_maps import FeatureMap  # takes torch.compile along: a second of CPU

        return _self_supervised(FeatureMap(model), images, spec, keys, seed)
    goal = _goal(model, images, labels, spec, keys, seed)
    start = _start(images, spec, keys, seed) if spec.random_start else images
    return ascend(model, images, goal, spec, start)


def _self_supervised(features: nn.Module, images: Tensor, spec: AttackSpec, keys: Sequence[int], seed: int) -> Tensor:
    """Images whose features are as far from their own as can be (SSP, Naseer et al. 2020, NRP)."""
    with torch.no_grad():
        goal = features(images)
    return ascend(features, images, goal, spec, _start(images, spec, keys, seed), _square)


def _entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, summed over images, so that each has its own gradient."""
    return F.cross_entropy(logits.float(), classes, reduction="sum")


def _square(features: Tensor, others: Tensor) -> Tensor:
    """Squared distance, summed over images."""
    return (features - others).square().sum()


def ascend(
    model: Callable[[Tensor], Tensor], images: Tensor, goal: Tensor, spec: AttackSpec, start: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = _entropy,
) -> Tensor:  # fmt: skip
    """The steps of an attack from `start` [N, 3, H, W]; the last iterate, detached. Nothing is read back from a device.

    model, images: as `attack`'s. goal: classes int64 [N] whose loss is raised, or with a target lowered; or, for
    another loss of the model's output, what that compares it with.
    """
    sign, adversarial = -1.0 if spec.targeted else 1.0, start
    for _ in range(spec.steps):
        gradient = _gradient(lambda moved: loss(model(moved), goal), adversarial)
        adversarial = _project(adversarial + sign * spec.step * direction(gradient, spec.norm), images, spec)
    return adversarial


def _gradient(loss: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Gradient of each image's own loss, a sum over images, with respect to it."""
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        return finite(torch.autograd.grad(loss(images), images)[0])


def finite(gradient: Tensor) -> Tensor:
    """A gradient without what is no number: there the image stays where it is, and within its budget."""
    return gradient.nan_to_num(0.0)


def _norms(delta: Tensor) -> Tensor:
    """L2 norm of each image's perturbation, [N, 1, 1, 1]."""
    return delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def direction(gradient: Tensor, norm: str) -> Tensor:
    """Steepest ascent within the unit ball of the norm; an image without gradient stays where it is."""
    if norm == "Linf":
        return gradient.sign()
    norms = _norms(gradient)
    # The squares of a sure model's gradients, or of huge ones, are beyond fp32, though the gradients are not.
    largest = gradient.abs().flatten(1).amax(1).view_as(norms)
    scaled = gradient / torch.where(largest > 0, largest, 1.0)
    is_held = (norms > TINY) & norms.isfinite()
    return torch.where(is_held, gradient / norms.clamp_min(TINY), scaled / _norms(scaled).clamp_min(TINY))


def _project(moved: Tensor, images: Tensor, spec: AttackSpec) -> Tensor:
    """The point of the ball around `images` nearest to `moved`, then of [0, 1]; N-FGSM keeps to the latter alone."""
    return moved.clamp(0, 1) if spec.method == "nfgsm" else into_ball(moved, images, spec.norm, spec.eps)


def into_ball(moved: Tensor, images: Tensor, norm: str, eps: float) -> Tensor:
    """The point of the ball around `images` nearest to `moved`, then of [0, 1], where they are, too."""
    delta = moved - images
    shrunk = delta.clamp(-eps, eps) if norm == "Linf" else delta * (eps / _norms(delta).clamp_min(TINY)).clamp_max(1.0)
    return (images + shrunk).clamp(0, 1)


def _start(images: Tensor, spec: AttackSpec, keys: Sequence[int], seed: int) -> Tensor:
    """A point drawn uniformly from each image's ball, clipped to [0, 1]; SSP's is noise of deviation 1, cut to it."""
    shape = tuple(images.shape[1:])
    noise = np.stack([_noise(spec, shape, seed, key) for key in keys])
    return moved_by(images, upload(torch.from_numpy(noise), images.device).to(images.dtype), spec)


def moved_by(images: Tensor, noise: Tensor, spec: AttackSpec) -> Tensor:
    """The random start of an attack from noise in the unit ball: images moved by as much as its ball allows."""
    radius = NOISE * spec.eps if spec.method == "nfgsm" else spec.eps
    return (images + radius * noise).clamp(0, 1)


def _noise(spec: AttackSpec, shape: tuple[int, ...], seed: int, key: int) -> np.ndarray:
    """One point of the unit ball, float32."""
    rng = keyed_rng("attack", seed, key)
    if spec.method == "ssp":
        return (rng.standard_normal(shape, dtype=np.float32) / np.float32(max(spec.eps, TINY))).clip(-1, 1)
    return rng.random(shape, dtype=np.float32) * 2 - 1 if spec.norm == "Linf" else point_of_ball(rng, shape)


def point_of_ball(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A point drawn uniformly from the L2 unit ball, float32."""
    drawn = rng.standard_normal(shape, dtype=np.float32)
    radius = np.float32(rng.random() ** (1 / drawn.size))
    return drawn * (radius / np.linalg.norm(drawn))


def random_targets(labels: Tensor, classes: int, keys: Sequence[int], seed: int) -> Tensor:
    """For each image a class other than its label, int64 [N], drawn from (seed, its key).

    Raises UserError for a model of one class.
    """
    if classes < 2:
        fail("a targeted attack leads to another class, and this model has one; set attack.targeted=false")
    shifts = [int(keyed_rng("target", seed, key).integers(1, classes)) for key in keys]
    return (labels + upload(torch.tensor(shifts), labels.device)) % classes


@torch.no_grad()
def _goal(model: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, keys: Sequence[int], seed: int) -> Tensor:
    """The class whose loss is raised, or with a target lowered."""
    if not spec.targeted:
        return labels
    return random_targets(labels, model(images[:1]).shape[1], keys, seed)
