"""Random models under attack: what they draw is a function of a key, so that results can be had again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maep.runtime.device import fork_rng
from maep.runtime.randomness import keyed_rng


def reseed(model: nn.Module, *key: int) -> None:
    """Start the random numbers of every part of `model` that has its own (a `reseed` method) at `key`."""
    for module in model.modules():
        start = getattr(module, "reseed", None)
        if start is not None:
            start(*key)


def reseed_each(model: nn.Module, keys: Sequence[tuple[int, ...]]) -> None:
    """As `reseed`, for images that are len(keys) equal batches, one after the other: each with a key of its own."""
    for module in model.modules():
        start = getattr(module, "reseed_each", None)
        if start is not None:
            start(keys)


def can_reseed_each(model: nn.Module) -> bool:
    """Whether every part of `model` with random numbers of its own can; a part that draws from torch has none."""
    drawing = [module for module in model.modules() if hasattr(module, "reseed")]
    return bool(drawing) and all(hasattr(module, "reseed_each") for module in drawing)


@contextmanager
def reseeded(model: nn.Module, *key: int) -> Iterator[None]:
    """Within it, `model` draws from `key`: its parts' own random numbers, and torch's, which is as before after it."""
    with fork_rng(model):
        torch.manual_seed(int(keyed_rng("model", *key).integers(2**63)))
        reseed(model, *key)
        yield


@torch.no_grad()
def is_random(model: nn.Module, images: Tensor) -> bool:
    """Whether `model` answers differently when asked twice. images: [N, 3, H, W] in [0,1].

    The tolerances let pass what parallel sums differ by in fp32; noise that defends moves logits far more.
    """
    with reseeded(model, 0):
        first, second = model(images), model(images)
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-5)
