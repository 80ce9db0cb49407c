"""What a model answers, as logits: the one place where an answer is taken."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from maep.models.defended import DefendedClassifier
from maep.runtime.errors import fail

# The word that says it without a doubt, and others that classifiers give their answer under.
LOGITS = "logits"
NAMES = ("output", "outputs", "out", "scores", "score", "prediction", "predictions", "preds", "pred", "y_hat",
         "class_logits", "cls_logits", "head")  # fmt: skip
EXPECTED = "expected logits [N, classes], or a dict, object or tuple that holds them"
# Below it a probability has no logarithm in fp32; rounded to zero, it counts as this.
LEAST_PROBABILITY = torch.finfo(torch.float32).tiny


def logits_of(answer: object) -> Tensor:
    """The logits in an answer: a tensor; a dict or object with `logits`, `output`, `scores`, …; a tuple's first item.

    Their type and shape are as the model gave them. Raises UserError, naming what was answered.
    """
    if isinstance(answer, Tensor):
        return answer
    entries = _entries(answer)
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if LOGITS in tensors:
        return tensors[LOGITS]
    candidates = {name: value for name, value in tensors.items() if name in NAMES}
    if not candidates and not isinstance(answer, list | tuple):
        candidates = {name: value for name, value in tensors.items() if _is_table(value)}
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if isinstance(answer, list | tuple) and not candidates and answer and _is_table(answer[0]):
        first: Tensor = answer[0]
        return first
    fail(f"model: answers with {described(answer)}; {EXPECTED}")


def _is_table(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()


def _entries(answer: object) -> Mapping[str, object]:
    """What an answer holds by name."""
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    names = [*getattr(answer, "_fields", ()), *getattr(answer, "__dict__", {}), LOGITS, *NAMES]
    values = {name: getattr(answer, name, None) for name in dict.fromkeys(names)}
    return {name: value for name, value in values.items() if value is not None}


def described(answer: object) -> str:
    """An answer in words: its type, and the shapes in it."""
    if isinstance(answer, Tensor):
        return f"a tensor {tuple(answer.shape)} of {answer.dtype}"
    if isinstance(answer, list | tuple) and not hasattr(answer, "_fields"):
        return f"a {type(answer).__name__} of {', '.join(map(_short, answer[:6])) or 'nothing'}"
    entries = ", ".join(f"{name}: {_short(value)}" for name, value in list(_entries(answer).items())[:8])
    return type(answer).__name__ + (f" with {entries}" if entries else "")


def _short(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True)
class Autocast:
    """Autocast as the caller has it switched on, by type of device; empty where it is off.

    It is the model's alone: what is measured around the model is measured in fp32.
    """

    dtypes: Mapping[str, torch.dtype]

    @classmethod
    def current(cls) -> "Autocast":
        """As it is where this is called."""
        types = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        return cls({kind: torch.get_autocast_dtype(kind) for kind in types})

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switched off within."""
        with ExitStack() as stack:
            for kind in self.dtypes:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    def on(self, kind: str) -> AbstractContextManager[object]:
        """Switched on within, as the caller had it. kind: of device."""
        return torch.autocast(kind, dtype=self.dtypes[kind]) if kind in self.dtypes else nullcontext()

    def facts(self) -> list[str]:
        """What a model's answers depend on."""
        return [f"{kind} {dtype}" for kind, dtype in sorted(self.dtypes.items())]


@dataclass(frozen=True)
class Handling:
    """How a model is asked. dtype: of the images it takes; gives_probabilities: its answers are no logits yet."""

    autocast: Autocast
    dtype: torch.dtype = torch.float32
    gives_probabilities: bool = False

    def given(self, images: Tensor) -> Tensor:
        """The images as the model is given them: a copy, since some normalise them in place."""
        return images.to(self.dtype, copy=True)


class _AsItIs(nn.Module):
    """What is around a caller's module, whose mode stays as it is: some cannot be set (of torch.export, scripted)."""

    def train(self, mode: bool = True) -> Self:
        """Set its own mode alone."""
        self.training = mode
        return self


class JudgedModel(_AsItIs):
    """A model as attacks and scores take it: [N, 3, H, W] in [0, 1], fp32 → logits [N, C], fp32.

    Its forward is the model's own. Of probabilities the logarithm is taken, which has the same softmax. What is no
    number counts as the lowest logit: an answer that is none is never a right one.
    """

    def __init__(self, model: nn.Module, handling: Handling) -> None:
        super().__init__()
        self.model, self.handling = model, handling

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C]."""
        return self.logits(images).nan_to_num(torch.finfo(torch.float32).min, torch.inf, -torch.inf)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [N, C], also those that are no number."""
        with self.handling.autocast.on(images.device.type):
            answer = self.model(self.handling.given(images))
        logits = logits_of(answer).float()
        return logits.clamp_min(LEAST_PROBABILITY).log() if self.handling.gives_probabilities else logits


class JudgedPurifier(_AsItIs):
    """A caller's purifier, in whatever precision it computes, as attacks and scores take it: fp32 → fp32 images."""

    def __init__(self, purifier: nn.Module, handling: Handling) -> None:
        super().__init__()
        self.purifier, self.handling = purifier, handling

    def forward(self, images: Tensor) -> Tensor:
        """Purified images [N, 3, H, W]."""
        with self.handling.autocast.on(images.device.type):
            purified: Tensor = self.purifier(self.handling.given(images))
        return purified.float()


class JudgedDefense(DefendedClassifier):
    """A defended classifier whose targets are all asked as a `JudgedModel` is."""

    def __init__(self, defended: DefendedClassifier, handling: Handling) -> None:
        super().__init__(JudgedModel(defended.classifier, handling))
        self.defended, self.handling = defended, handling
        self.whole = JudgedModel(defended, handling)

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """As the defense says itself."""
        return self.defended.is_random

    @property
    def is_differentiable(self) -> bool:  # type: ignore[override]
        """As the defense says itself."""
        return self.defended.is_differentiable

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of the defended classifier."""
        logits: Tensor = self.whole(images)
        return logits

    def target(self, threat_model: str) -> nn.Module:
        """As the defense says itself."""
        target = self.defended.target(threat_model)
        if target is self.defended:
            return self
        return self.classifier if target is self.defended.classifier else JudgedModel(target, self.handling).eval()

    def compiled(self) -> DefendedClassifier:
        """A copy whose networks are compiled, as the defense says itself."""
        compiled = self.defended.compiled()
        return self if compiled is self.defended else JudgedDefense(compiled, self.handling)
