"""Mistakes in how a model was handed over, found by asking it: each is one line that says what to mend."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from maep.runtime.errors import UserError, fail

Constants = tuple[tuple[float, ...], tuple[float, ...]]
# Mean and deviation a channel that models are commonly trained with, in [0, 1] pixels.
COMMON: dict[str, Constants] = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR-100's": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "0.5 and 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# How much more often the model must be right on other inputs before it is said that it wants those: on 64 images a
# fifth is over three standard errors, and wrong constants cost a trained classifier far more.
GAIN = 0.2
# By how much probabilities, rounded in fp32 or bf16, may miss a sum of 1; logits that are all positive miss it by more.
TOLERANCE = 1e-4


def check_module(model: nn.Module) -> None:
    """Raise UserError if `model` is no module or not in eval mode."""
    if not isinstance(model, nn.Module):
        fail(f"model: is {type(model).__name__}; expected an nn.Module from images [N, 3, H, W] in [0, 1] to logits")
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training:
        fail(f"model: {training[0]} is in training mode; call .eval() before handing it over")


def check_answers(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> None:
    """Raise UserError if `model` is not a classifier of `images` in [0, 1] that gives logits.

    images: [N, 3, H, W] in [0,1]; labels: int64 [N]; classes: how many there are.
    """
    logits = answers(model, images)
    if logits.ndim != 2 or len(logits) != len(images):
        fail(f"model: gives {tuple(logits.shape)} for {len(images)} images; expected logits [{len(images)}, {classes}]")
    if logits.shape[1] != classes:
        fail(f"model: gives {logits.shape[1]} logits, the images have {classes} classes; they must be equal")
    if not bool(logits.isfinite().all()):
        fail("model: gives logits that are not finite")
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < TOLERANCE).all()):
        fail("model: gives probabilities; hand over logits, without the softmax at its end")
    _check_normalisation(model, images, labels, logits)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """The model's logits on images [N, 3, H, W] in [0,1]. Raises UserError if it does not take such images."""
    try:
        return model(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(" ".join(f"model: does not take images {tuple(images.shape)}: {error}".split())) from error


def _check_normalisation(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> None:
    """A model that is right far more often on images (un)normalised once more was put together wrongly."""
    right = _share(logits, labels)
    for name, mean, std in _constants(model, images):
        if _share(answers(model, images * std + mean), labels) > right + GAIN:
            fail(f"model: normalises twice ({name} mean and deviation are undone by one of them); normalise once")
        if _share(answers(model, (images - mean) / std), labels) > right + GAIN:
            fail(f"model: wants images that are normalised ({name} mean and deviation); put that inside the model")
    if _share(answers(model, images * 255), labels) > right + GAIN:
        fail("model: wants images from 0 to 255; put the scaling from [0, 1] inside the model")


def _share(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def _constants(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The common constants, and those that the model's own parts hold as `mean` and `std`."""
    constants: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.named_modules():
        mean, std = (torch.as_tensor(getattr(module, key, ())).flatten() for key in ("mean", "std"))
        if len(mean) == len(std) == 3:
            constants[f"{name or 'its own'}'s"] = mean, std
    constants |= {name: (torch.tensor(mean), torch.tensor(std)) for name, (mean, std) in COMMON.items()}
    for name, (mean, std) in constants.items():
        yield name, mean.to(images).view(1, 3, 1, 1), std.to(images).view(1, 3, 1, 1)
