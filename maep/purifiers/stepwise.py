"""Exact gradients through a purifier of many steps, at the memory of one, or of as many as a budget allows.

    forward    x ─ start ─▶ s₀ ─ step₀ ─▶ s₁ ─ … ─▶ s_K        every state is kept, and the last steps' graphs
    backward                g₀ ◀── … ◀── g_{K-1} ◀── g_K        the other steps are computed again, with their graphs

A step is a pure function of its state and of the pictures: what it draws, it draws by seeds. So the step that is
computed again is the one that was taken, which is checked to the bit. The price is a further forward pass of it. This
is not the adjoint method, which integrates backward another path than was taken, and makes a defense look stronger.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from maep.runtime.recomputation import is_computed_twice

Step = Callable[[Tensor, Tensor], Tensor]  # (state, pictures) -> state


class Taken(NamedTuple):
    """A step with its graph, from leaves before and pictures to after. size: bytes that only the graph keeps."""

    before: Tensor
    pictures: Tensor
    after: Tensor
    size: int = 0

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Of what follows, with respect to the state before the step and to the pictures; the graph is used up."""
        leaves = (self.before, self.pictures)
        parts = torch.autograd.grad(self.after, leaves, gradient, materialize_grads=True)
        return parts[0], parts[1]


class GraphMemory:
    """Bytes that graphs of steps may keep until the backward pass, of all walks together that are given it.

    left: of the budget. beside: tensors that are there anyway, such as the weights, and so count for nothing.
    """

    def __init__(self, budget: int, beside: Iterable[Tensor] = ()) -> None:
        self.left = budget
        self._beside = {StorageWeakRef(tensor.untyped_storage()) for tensor in beside}

    def taken(self, step: Step, before: Tensor, pictures: Tensor) -> Taken:
        """A step with its graph, which is taken off what is left, also where it is more than that."""
        sizes: dict[StorageWeakRef, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[StorageWeakRef(storage)] = storage.nbytes()
            return tensor.detach()  # with a graph of its own, what an operation gave would hold itself for ever

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            found = _taken(step, before, pictures)
        stored = self._beside | {StorageWeakRef(each.untyped_storage()) for each in (before, pictures)}
        # What a step needed for a derivative within it, and let go of, is not there any more.
        size = sum(size for kept, size in sizes.items() if kept not in stored and not kept.expired())
        self.left -= size
        return found._replace(size=size)


def walk(start: Tensor, pictures: Tensor, steps: Sequence[Step]) -> Tensor:
    """The state after all steps, with plain autograd's graph of all of them, if there is a graph."""
    for step in steps:
        start = step(start, pictures)
    return start


def stepwise(start: Tensor, pictures: Tensor, steps: Sequence[Step], memory: GraphMemory | None = None) -> Tensor:
    """`walk`, whose gradient for `start` and `pictures` is exact and kept in the memory of one step and all states.

    start: of pictures; pictures: what steps are guided by. memory: for the graphs of as many of the last steps as fit
    into it, which need not be computed again; by default, and where all of this is checkpointed
    (`maep.runtime.recomputation`), none. The gradient is the same to the bit. Nothing else gets one: not the weights of
    a network that the steps ask. Raises RuntimeError in the backward pass where a step gives other bits when it is
    computed again, and where a second derivative is asked for.
    """
    if not torch.is_grad_enabled() or not (start.requires_grad or pictures.requires_grad):
        return walk(start, pictures, steps)
    if memory is None or is_computed_twice():
        memory = GraphMemory(0)
    result: Tensor = _Stepwise.apply(start, pictures, tuple(steps), memory)
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
    def forward(context: Any, start: Tensor, pictures: Tensor, steps: tuple[Step, ...], memory: GraphMemory) -> Tensor:
        states, kept, largest = [start], dict[int, Taken](), 0
        for number, step in enumerate(steps):
            # Only the last steps' graphs are of use: those before them would have to go again. So one is kept where all
            # that follow seem to fit, too; of the first, it is not known how large one is.
            if memory.left > 0 and largest * (len(steps) - number) <= memory.left:
                kept[number] = memory.taken(step, states[-1], pictures)
                largest = max(largest, kept[number].size)
                states.append(kept[number].after.detach())
                while memory.left < 0:
                    memory.left += kept.pop(min(kept)).size
            else:
                memory.left += sum(each.size for each in kept.values())
                kept.clear()
                states.append(step(states[-1], pictures))
        context.save_for_backward(pictures, *states)
        context.steps, context.kept, context.arithmetic = steps, kept, _arithmetic(start.device.type)
        return states[-1].clone()  # or what is done to the result in place would be done to the state

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if torch.is_grad_enabled():  # by create_graph; a second derivative would lack what is computed here
            raise RuntimeError("a purifier of many steps has a first derivative alone: leave create_graph out")
        pictures, *states = context.saved_tensors
        guided = torch.zeros_like(pictures)
        for number in reversed(range(len(context.steps))):
            taken = context.kept.pop(number, None)
            if taken is None:
                with context.arithmetic():
                    taken = _taken_again(context.steps[number], states[number], states[number + 1], pictures)
            gradient, guiding = taken.gradients(gradient)
            del taken  # its graph, before there is another
            guided += guiding
        return gradient, guided, None, None


def _arithmetic(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """The autocast that is on now, for the backward pass, where it is off."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)


def _taken(step: Step, before: Tensor, pictures: Tensor) -> Taken:
    """A step with its graph."""
    with torch.enable_grad():
        before, pictures = before.detach().requires_grad_(), pictures.detach().requires_grad_()
        return Taken(before, pictures, step(before, pictures))


def _taken_again(step: Step, before: Tensor, after: Tensor, pictures: Tensor) -> Taken:
    """A step with its graph that led from one state to the next before."""
    taken = _taken(step, before, pictures)
    if not torch.equal(taken.after, after):
        raise RuntimeError(
            "a step of the purifier gave other bits when it was computed again: its gradient would be another step's"
        )
    return taken
