"""What would break an evaluation after an hour, asked in its first minute; each answer is a finding of the report."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.attacks.reseeding import is_random
from maep.evaluation.answers import JudgedModel
from maep.evaluation.audit.finding import ALARM, PASSED, WARNING, Finding
from maep.evaluation.audit.model_contract import OUT_OF_MEMORY, answers
from maep.runtime.errors import EarlyEnd, UserError, fail

Constants = tuple[tuple[float, ...], tuple[float, ...]]
# Mean and deviation a channel that models are commonly trained with, in [0, 1] pixels.
COMMON: dict[str, Constants] = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR-100's": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "0.5 and 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# How much more often the model must be right on other inputs before it is said that it may want those, and how seldom
# so uneven a split may be chance: nine inputs are tried, so one in a thousand stays below one in a hundred together.
GAIN, CHANCE_OF_GAIN = 0.2, 1e-3
# An accuracy up to twice that of guessing is none where guessing reaches it in one of twenty tries.
TIMES_CHANCE, CHANCE_OF_ACCURACY = 2, 0.05
# Part of the largest logit by which an answer may change with its batch: other kernels round otherwise, TF32 and 16
# bits most. Batch statistics change an answer by its own size.
ROUNDING, ROUNDING_16BIT = 1e-2, 5e-2
# Images whose answers are compared in several batches, and those that are attacked: each is asked a few times.
COMPARED, ATTACKED, ATTACK_STEPS = 16, 8, 3


def first_findings(
    model: JudgedModel, images: Tensor, labels: Tensor, *, norm: str, eps: float, batch_size: int
) -> list[Finding]:
    """All that is asked of a model that has passed `check_answers`.

    images: [N, 3, H, W] in [0,1]; labels: int64 [N]; norm, eps, batch_size: of the evaluation. Raises UserError for a
    model that cannot be asked about one image, or whose backward pass fails.
    """
    logits = answers(model, images)
    return [
        *_batches(model, images[:COMPARED]),
        *_finite(model, images[:ATTACKED], labels[:ATTACKED], norm, eps, batch_size),
        *_normalisation(model, images, labels, logits),
    ]


def accuracy_finding(right: int, count: int, classes: int) -> Finding:
    """Whether a clean accuracy is more than guessing. right: of `count` images."""
    share, chance = right / count, 1 / classes
    is_likely = binomtest(right, count, chance, alternative="greater").pvalue > CHANCE_OF_ACCURACY
    is_chance = share <= chance or (share < 1 and share <= TIMES_CHANCE * chance and is_likely)
    text = f"{100 * share:.1f} % of {count} clean images are classified rightly, guessing gives {100 * chance:.1f} %"
    return Finding("clean accuracy", ALARM if is_chance else PASSED, text + (": not above chance" if is_chance else ""))


# the same image in several batches


def _batches(model: JudgedModel, images: Tensor) -> Iterator[Finding]:
    """One image alone, in two batches and in a partial one, as attacks will ask."""
    whole = answers(model, images)
    partial = images[: max(1, len(images) // 3)]
    culprits = ", ".join(_batch_statistics(model.model)[:3])
    first = [_alone(model, images[:1], culprits), answers(model, images.flip(0))[-1], answers(model, partial)[0]]
    if is_random(model, images):
        return
    change = float(torch.stack([answer - whole[0] for answer in first]).abs().max())
    last = float((answers(model, images[-1:])[0] - whole[-1]).abs().max())
    scale = float(whole.abs().max())
    allowed = (ROUNDING_16BIT if _is_16bit(model) else ROUNDING) * scale
    if max(change, last) <= allowed:
        yield Finding("batch", PASSED, "an image has the same answer alone, in any batch and in a partial one")
        return
    share = 100 * max(change, last) / scale
    why = f": {culprits} takes its statistics from the batch" if culprits else ""
    text = f"an image's answer depends on the batch it is in (logits change by {share:.0f} %){why}"
    yield Finding("batch", ALARM, f"{text}; no number below is one of single images")


def _alone(model: JudgedModel, image: Tensor, culprits: str) -> Tensor:
    """The answer to one image, [C]; attacks ask about single ones once all others have fallen."""
    try:
        return answers(model, image)[0]
    except UserError as error:
        if not culprits:
            raise
        raise UserError(f"model: {culprits} takes its statistics from the batch, and gives none for 1 image") from error


def _is_16bit(model: JudgedModel) -> bool:
    handling = model.handling
    types = {handling.dtype, *handling.autocast.dtypes.values(), *(p.dtype for p in model.parameters())}
    return bool(types & {torch.float16, torch.bfloat16})


def _batch_statistics(model: nn.Module) -> list[str]:
    """Names of normalisations that have no running statistics, or do not use them."""
    return [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and "Instance" not in type(module).__name__
        and (module.running_mean is None or module.training)
    ]  # fmt: skip


# under attack


def _finite(
    model: JudgedModel, images: Tensor, labels: Tensor, norm: str, eps: float, batch_size: int
) -> Iterator[Finding]:
    """A few steps of PGD: are gradients and answers numbers?"""
    if images.device.type == "cuda":  # where memory ends; a whole batch takes a second there
        _gradient(model, images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size], labels)
    gradient = _gradient(model, images, labels)
    if gradient is None:
        return
    spec = AttackSpec("pgd", norm, eps, eps / 4, ATTACK_STEPS, True, False)
    attacked = answers(model, attack(model.eval(), images, labels, spec, range(len(images)), 0))
    for what, values in (("gradients", gradient), ("logits of attacked images", attacked)):
        wrong = int((~values.isfinite()).flatten(1).any(1).sum())
        if wrong:
            text = f"{what} of {wrong} of {len(images)} images are not finite: attacks leave such images as they are"
            yield Finding("finite", ALARM, text)
            return
    yield Finding("finite", PASSED, f"gradients and logits are finite in {ATTACK_STEPS} steps of an attack")


def _gradient(model: JudgedModel, images: Tensor, labels: Tensor) -> Tensor | None:
    """Gradient of the loss, [N, 3, H, W]; None from a model that gives none."""
    labels = labels.repeat(-(-len(images) // len(labels)))[: len(images)]
    try:
        with torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            loss = F.cross_entropy(model.logits(images), labels, reduction="sum")
            return torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    except EarlyEnd:
        raise
    except Exception as error:
        if OUT_OF_MEMORY in str(error).lower():
            fail(f"model: attacking {len(images)} images needs more memory than there is; lower evaluation.batch_size")
        text = " ".join(str(error).split())
        raise UserError(f"model: its backward pass fails, so it cannot be attacked: {text}") from error


# how it was put together


def _normalisation(model: JudgedModel, images: Tensor, labels: Tensor, logits: Tensor) -> Iterator[Finding]:
    """A model that is right far more often on images (un)normalised once more may have been put together wrongly."""
    for text, changed in _other_inputs(model, images):
        if _is_better(model.logits, changed, labels, logits):
            yield Finding("normalisation", WARNING, f"the model seems to {text}: it is right more often then")
            return
    yield Finding("normalisation", PASSED, "no other scale of its images suits the model better")


def _other_inputs(model: JudgedModel, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, mean, std in _constants(model, images):
        yield f"normalise twice ({name} mean and deviation are undone by one of them)", images * std + mean
        yield f"want images that are normalised ({name} mean and deviation)", (images - mean) / std
    yield "want images from 0 to 255", images * 255


@torch.no_grad()
def _is_better(ask: object, images: Tensor, labels: Tensor, logits: Tensor) -> bool:
    """By far more images, and not by chance (sign test). A model that takes no such images is not."""
    try:
        other = ask(images)  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - a stranger's forward may raise anything
        return False
    before, after = logits.argmax(1) == labels, other.argmax(1) == labels
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    if gained - lost <= GAIN * len(labels):
        return False
    return float(binomtest(gained, gained + lost, alternative="greater").pvalue) < CHANCE_OF_GAIN


def _constants(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The common constants, and those that the model's own parts hold as `mean` and `std`."""
    constants: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.named_modules():
        values = [_numbers(getattr(module, key, None)) for key in ("mean", "std")]
        if all(value is not None and len(value) == 3 for value in values):
            constants[f"{name.removeprefix('model').lstrip('.') or 'its own'}'s"] = values[0], values[1]  # type: ignore[assignment]
    constants |= {name: (torch.tensor(mean), torch.tensor(std)) for name, (mean, std) in COMMON.items()}
    for name, (mean, std) in constants.items():
        yield name, mean.to(images).view(1, 3, 1, 1), std.to(images).view(1, 3, 1, 1)


def _numbers(value: object) -> Tensor | None:
    """An attribute as numbers, if it is a list of them; `mean` may be a method as well."""
    try:
        return torch.as_tensor(value, dtype=torch.float32).detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        return None
