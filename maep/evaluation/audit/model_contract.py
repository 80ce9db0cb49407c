"""How a model was handed over, asked in the first minute: what cannot be evaluated is refused in one line."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from maep.evaluation.answers import EXPECTED, Autocast, Handling, JudgedModel, described, logits_of
from maep.runtime.errors import EarlyEnd, UserError, fail

# By how much probabilities may miss a sum of 1, rounded in fp32 and in 16 bits (bf16 has 8 bits of mantissa); logits
# that are all positive miss it by more.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
OUT_OF_MEMORY = "out of memory"


def check_module(model: nn.Module) -> None:
    """Raise UserError if `model` is no module with weights, or not in eval mode."""
    if not isinstance(model, nn.Module):
        fail(f"model: is {type(model).__name__}; expected an nn.Module from images [N, 3, H, W] in [0, 1] to logits")
    for name in _in_training(model):
        fail(f"model: {name or 'the model itself'} is in training mode; call .eval() before handing it over")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor) or tensor.is_meta:
            fail(f"model: {name} has no values yet; load its weights before handing it over")
        if tensor.is_inference():
            fail(
                f"model: {name} was made in torch.inference_mode, so nothing has a gradient; hand over a copy.deepcopy"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()) and isinstance(tensor, nn.Parameter):
            fail(f"model: {name} holds values that are not finite; load other weights")


def _in_training(model: nn.Module) -> Iterator[str]:
    """Names of the modules in training mode.

    Modules of torch.export have an `eval` of their own, which refuses: their mode is in the graph, not in the flag.
    """
    exported: list[str] = []
    for name, module in model.named_modules():
        if "eval" in vars(module):
            exported.append(name)
        is_inside = any(not outer or name == outer or name.startswith(f"{outer}.") for outer in exported)
        if getattr(module, "training", False) and not is_inside:
            yield name


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first tensor is."""
    return next((each.device for tensors in (model.parameters(), model.buffers()) for each in tensors), CPU)


CPU = torch.device("cpu")


def handling_of(model: nn.Module, images: Tensor, autocast: Autocast) -> Handling:
    """How the model is asked: with images of the type it takes, and by logits or the logarithms of probabilities.

    images: [N, 3, H, W] in [0, 1], fp32. Raises UserError for a model that takes no such images or gives no logits.
    """
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    candidates = [Handling(autocast, dtype) for dtype in dict.fromkeys([torch.float32, *types])]
    for handling in candidates:
        answer, error = _asked(model, images, handling)
        if error is None:
            logits = _checked(answer, len(images))
            return Handling(autocast, handling.dtype, are_probabilities(logits))
    _, error = _asked(model, images, candidates[0])
    if _asked(model, (images * 255).round(), Handling(autocast, torch.uint8))[1] is None:
        fail("model: wants uint8 images from 0 to 255; put the conversion from float in [0, 1] inside the model")
    if _asked(model, images.permute(0, 2, 3, 1).contiguous(), candidates[0])[1] is None:
        fail("model: wants images [N, H, W, 3]; put images.permute(0, 2, 3, 1) of [N, 3, H, W] inside the model")
    raise UserError(_refusal(images, error)) from error


@torch.no_grad()
def _asked(model: nn.Module, images: Tensor, handling: Handling) -> tuple[object, Exception | None]:
    """The model's own answer, or what it raised."""
    try:
        with handling.autocast.on(images.device.type):
            return model(handling.given(images)), None
    except EarlyEnd:
        raise
    except Exception as error:  # noqa: BLE001 - a stranger's forward may raise anything
        return None, error


def _refusal(images: Tensor, error: Exception | None) -> str:
    if OUT_OF_MEMORY in str(error).lower():
        return f"model: {len(images)} images need more memory than there is; set evaluation.batch_size lower"
    text = f"{type(error).__name__}: {error}" if not str(error) or isinstance(error, KeyError) else error
    return " ".join(f"model: does not take images {tuple(images.shape)}: {text}".split())


def _checked(answer: object, count: int) -> Tensor:
    """The logits of an answer to `count` images. Raises UserError for any other answer."""
    logits = logits_of(answer)
    images = f"{count} image{'s' if count > 1 else ''}"
    if logits.ndim != 2 or len(logits) != count or logits.shape[1] < 2:
        mend = {1: "one number an image is no logit a class", 2: "", 4: "flatten it to [N, classes]"}.get(
            logits.ndim, ""
        )
        if logits.ndim == 2 and len(logits) == count:
            mend = "of two classes, give two logits"
        fail(f"model: gives {tuple(logits.shape)} for {images}; {EXPECTED}{'; ' + mend if mend else ''}")
    if not logits.is_floating_point():
        fail(f"model: gives {logits.dtype} for {images}, no logits: class numbers have no gradient; {EXPECTED}")
    return logits


def are_probabilities(logits: Tensor) -> bool:
    """Whether every row of [N, C] is a distribution."""
    tolerance = TOLERANCE.get(logits.dtype, 1e-4)
    values = logits.float()
    return bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < tolerance).all())


@torch.no_grad()
def answers(model: JudgedModel, images: Tensor) -> Tensor:
    """The model's logits, fp32, on images [N, 3, H, W] in [0,1]. Raises UserError if it gives none for such images."""
    try:
        return _checked(model.logits(images), len(images))
    except EarlyEnd:
        raise
    except Exception as error:
        raise UserError(_refusal(images, error)) from error


def check_answers(model: JudgedModel, images: Tensor, classes: int) -> Tensor:
    """The logits, [N, classes]. Raises UserError if `model` is not a classifier of `images` in [0, 1] that gives them.

    images: [N, 3, H, W] in [0,1]; classes: how many there are.
    """
    logits = answers(model, images)
    if logits.shape[1] != classes:
        fail(f"model: gives {logits.shape[1]} logits, the images have {classes} classes; they must be equal")
    if not bool(logits.isfinite().all()):
        index = int((~logits.isfinite()).any(1).nonzero()[0])
        fail(f"model: gives logits that are not finite, for image {index} of those it was asked about")
    return logits


def notes_on_answers(answer: object, handling: Handling) -> Iterator[str]:
    """What a reader must know of how an answer is taken."""
    if not isinstance(answer, Tensor):
        yield f"the model answers with {described(answer)}; its logits {tuple(logits_of(answer).shape)} are taken"
    if handling.gives_probabilities:
        yield "the model gives probabilities; their logarithms are attacked, and small ones are rounded away"
    if handling.dtype != torch.float32 or handling.autocast.dtypes:
        types = [str(handling.dtype)] if handling.dtype != torch.float32 else []
        yield f"the model computes in {', '.join([*types, *handling.autocast.facts()])}; its answers are taken as fp32"


def answer_of(model: nn.Module, images: Tensor, handling: Handling) -> object:
    """The model's own answer, as it gives it. images: [N, 3, H, W] in [0, 1]."""
    return _asked(model, images, handling)[0]
