"""Exact gradients through a purifier of many steps, at the memory of one.

    forward    x ─ start ─▶ s₀ ─ step₀ ─▶ s₁ ─ … ─▶ s_K        no graph; every state is kept
    backward                g₀ ◀── … ◀── g_{K-1} ◀── g_K        each step is computed again, with its graph

A step is a pure function of its state and of the pictures: what it draws, it draws by seeds. So the step that is
computed again is the one that was taken, which is checked to the bit. The price is a further forward pass. This is not
the adjoint method, which integrates backward another path than was taken, and makes a defense look stronger.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[Tensor, Tensor], Tensor]  # (state, pictures) -> state


def walk(start: Tensor, pictures: Tensor, steps: Sequence[Step]) -> Tensor:
    """The state after all steps, with plain autograd's graph of all of them, if there is a graph."""
    for step in steps:
        start = step(start, pictures)
    return start


def stepwise(start: Tensor, pictures: Tensor, steps: Sequence[Step]) -> Tensor:
    """`walk`, whose gradient for `start` and `pictures` is exact and kept in the memory of one step and all states.

    start: of pictures; pictures: what steps are guided by. Nothing else gets a gradient: not the weights of a network
    that the steps ask. Raises RuntimeError in the backward pass where a step gives other bits when it is computed
    again, and where a second derivative is asked for.
    """
    if not torch.is_grad_enabled() or not (start.requires_grad or pictures.requires_grad):
        return walk(start, pictures, steps)
    result: Tensor = _Stepwise.apply(start, pictures, tuple(steps))
    return result


def gradient_within(loss: Callable[[Tensor], Tensor], v: Tensor, network: nn.Module) -> Tensor:
    """Of a step that follows one: the gradient of `loss` at v, wherever v stands in it, with a graph where v has one.

    v: [N, …]; loss: v → one number, by `network`, whose weights get a gradient if they are trained.
    """
    # Not of v alone: in the forward pass of `stepwise` a view of what has a gradient has one by name only.
    tracked = torch.is_grad_enabled() and v.requires_grad
    with torch.enable_grad():
        at = v if tracked else v.detach().requires_grad_()
        # Always with a graph: without one the same derivative may be computed in another order, to other bits.
        (gradient,) = torch.autograd.grad(loss(at), at, create_graph=True)
    trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in network.parameters())
    return gradient if tracked or trained else gradient.detach()


class _Stepwise(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, start: Tensor, pictures: Tensor, steps: tuple[Step, ...]) -> Tensor:
        states = [start]
        for step in steps:
            states.append(step(states[-1], pictures))
        context.save_for_backward(pictures, *states)
        context.steps, context.arithmetic = steps, _arithmetic(start.device.type)
        return states[-1].clone()  # or what is done to the result in place would be done to the state

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():  # by create_graph; a second derivative would lack what is computed here
            raise RuntimeError("a purifier of many steps has a first derivative alone: leave create_graph out")
        pictures, *states = context.saved_tensors
        guided = torch.zeros_like(pictures)
        for step, before, after in reversed(list(zip(context.steps, states, states[1:], strict=False))):
            with context.arithmetic():
                gradient, guiding = _through(step, before, after, pictures, gradient)
            guided += guiding
        return gradient, guided, None


def _arithmetic(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """The autocast that is on now, for the backward pass, where it is off."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)


def _through(step: Step, before: Tensor, after: Tensor, pictures: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of what follows with respect to the state before a step, and to the pictures."""
    with torch.enable_grad():
        before, pictures = before.detach().requires_grad_(), pictures.detach().requires_grad_()
        again = step(before, pictures)
    if not torch.equal(again, after):
        raise RuntimeError(
            "a step of the purifier gave other bits when it was computed again: its gradient would be another step's"
        )
    parts = torch.autograd.grad(again, (before, pictures), gradient, materialize_grads=True)
    return parts[0], parts[1]
