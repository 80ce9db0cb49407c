"""Exact gradients step by step: equal to plain autograd's, in the memory of one step, and never another step's."""

import gc
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from maep.evaluation.audit.purification_cost import PeakMemory
from maep.models.denoiser import Denoiser
from maep.purifiers.stepwise import GraphMemory, Step, gradient_within, stepwise, walk
from maep.runtime.keyed_noise import normal_of
from maep.runtime.recomputation import ComputedTwice

SEEDS = torch.tensor([5, 6])


def network() -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(16, [1, 2], 1, 1, 0.2).requires_grad_(False)
    nn.init.normal_(denoiser.tail.weight, std=0.1)
    return denoiser


def taken(denoiser: Denoiser, number: int, state: Tensor, pictures: Tensor) -> Tensor:
    """Away from the predicted noise, with a draw, and towards the pictures."""
    told = denoiser(state, torch.full((len(state),), 0.1))
    return state - 0.1 * told - 0.02 * (state - pictures).tanh() + 0.05 * normal_of(SEEDS, number, state.shape[1:])


def steps(count: int) -> list[Step]:
    denoiser = network()
    return [partial(taken, denoiser, number) for number in range(count)]


def pictures(side: int = 16) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def gradient(follow: Callable[..., Tensor], count: int, side: int = 16) -> tuple[Tensor, Tensor]:
    """What comes out, and the gradient of a loss of it with respect to the pictures, by both of their ways into it."""
    at = pictures(side).requires_grad_()
    result = follow(0.9 * at, at, steps(count))
    (found,) = torch.autograd.grad((result * pictures(side).flip(0)).sum() + result.square().sum(), at)
    return result.detach(), found


def test_equals_plain_autograd() -> None:
    """The same numbers to the bit forward, and the same gradient; without the way through `pictures` it is another."""
    plain, exact = gradient(walk, 3), gradient(stepwise, 3)
    assert torch.equal(plain[0], exact[0])
    torch.testing.assert_close(exact[1], plain[1], rtol=1e-5, atol=1e-6)
    unguided = gradient(lambda start, at, taken: stepwise(start, at.detach(), taken), 3)[1]
    assert (unguided - plain[1]).abs().max() > 1e-3


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16])
def test_graphs_of_the_last_steps_are_kept_as_a_budget_allows(arithmetic: torch.dtype) -> None:
    """None, some, all: as many as fit, the last ones, and what they keep is no more than the budget. The gradient is
    the same to the bit, also of a second backward pass, which has no graph left; beside weights nothing counts twice.
    """

    def found(budget: int, count: int = 6) -> tuple[list[int], int, Tensor]:
        denoiser, at = network(), pictures().requires_grad_()
        memory = GraphMemory(budget, denoiser.parameters())
        with torch.autocast("cpu", dtype=arithmetic, enabled=arithmetic != torch.float32):
            result = stepwise(0.9 * at, at, [partial(taken, denoiser, number) for number in range(count)], memory)
        kept = sorted(result.grad_fn.kept)  # type: ignore[union-attr]
        gradients = [torch.autograd.grad(result.square().sum(), at, retain_graph=True)[0] for _ in range(2)]
        assert torch.equal(*gradients)
        assert result.grad_fn.kept == {}  # type: ignore[union-attr]
        return kept, budget - memory.left, gradients[0]

    none, whole = found(0), found(10**9)
    size = whole[1] // 6
    some = found(5 * size // 2)
    assert (none[:2], whole[0]) == (([], 0), list(range(6)))
    assert some[0] in ([4, 5], [5])  # the first step, by which others are judged, may keep more than they
    assert 0 < some[1] <= 5 * size // 2
    assert torch.equal(some[2], none[2])
    assert torch.equal(whole[2], none[2])
    assert found(size // 2)[:2] == ([], 0)


def test_what_a_step_lets_go_counts_for_nothing() -> None:
    """A derivative within a step needs a graph of its own, of which nothing is left where the step does not follow it;
    weights are there anyway.
    """
    energy = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 1, 3)).requires_grad_(False)

    def descended(state: Tensor, at: Tensor) -> Tensor:
        return state - gradient_within(lambda v: energy(v).sum(), state.detach(), energy)

    memory = GraphMemory(10**9, energy.parameters())
    kept = memory.taken(descended, pictures(), pictures())
    assert (kept.size, memory.left) == (0, 10**9)
    followed = memory.taken(lambda state, _: energy(state), pictures(), pictures()).size
    assert followed >= 2 * 8 * 14 * 14 * 4
    assert GraphMemory(10**9).taken(lambda state, _: energy(state), pictures(), pictures()).size > followed


def test_graphs_stay_within_a_budget() -> None:
    """Of 12 steps, the memory is that of one, the states and the budget; where it is checkpointed no graph is kept."""
    one = peak_of_tensors(lambda: gradient(walk, 1))
    budget = 3 * one

    def limited(start: Tensor, at: Tensor, taken: list[Step]) -> Tensor:
        return stepwise(start, at, taken, GraphMemory(budget))

    states = 13 * pictures().nbytes
    assert 2 * one < peak_of_tensors(lambda: gradient(limited, 12)) <= 1.5 * one + states + budget
    with ComputedTwice():
        assert peak_of_tensors(lambda: gradient(limited, 12)) <= 1.5 * one + states


def peak_of_tensors(work: Callable[[], object]) -> int:
    """Bytes of tensors alive at once, at most."""
    with PeakMemory() as memory:
        work()
    return memory.peak


def test_a_gradient_through_the_start_alone_or_the_pictures_alone() -> None:
    """Either may be a constant; without both there is no graph, nor where gradients are off."""
    at = pictures().requires_grad_()
    for start, guide in ((at, pictures()), (pictures(), at)):
        exact, plain = (torch.autograd.grad(each(start, guide, steps(2)).sum(), at)[0] for each in (stepwise, walk))
        torch.testing.assert_close(exact, plain, rtol=1e-5, atol=1e-6)
    assert not stepwise(pictures(), pictures(), steps(1)).requires_grad
    with torch.no_grad():
        assert not stepwise(at, at, steps(1)).requires_grad


def test_is_exact_under_autocast() -> None:
    """A bf16 surrogate's steps are computed again in bf16: fp32's would be others."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = stepwise(pictures().requires_grad_(), pictures(), steps(2))
    result.sum().backward()
    plain = gradient(stepwise, 2)[0]
    assert (result.detach() - plain).abs().max() > 1e-5


def test_a_step_that_is_not_the_same_again_is_refused() -> None:
    """Noise drawn from a stream, not by a key, would give the gradient of a step that was never taken."""
    stream = torch.Generator().manual_seed(0)
    result = stepwise(pictures().requires_grad_(), pictures(), [lambda s, _: s + torch.randn(1, generator=stream)])
    with pytest.raises(RuntimeError, match="other bits when it was computed again"):
        result.sum().backward()


class Held:
    """A tensor that a graph keeps for its backward pass; `bytes` and `peak` are of all that are kept."""

    bytes = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Held.bytes += tensor.nbytes
        Held.peak = max(Held.peak, Held.bytes)

    def __del__(self) -> None:
        Held.bytes -= self.tensor.nbytes


def peak_of_graph(follow: Callable[..., Tensor], count: int) -> int:
    """Bytes that the graphs of forward and backward keep, at most, at a time."""
    Held.bytes = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        gradient(follow, count)
    gc.collect()
    assert Held.bytes == 0, "all that was kept was counted, and is let go"
    return Held.peak


def test_takes_the_memory_of_one_step() -> None:
    """20 steps keep at most 1.5 times what one does, and the states; plain autograd keeps four times that for 6."""
    one = peak_of_graph(walk, 1)
    assert peak_of_graph(stepwise, 20) <= 1.5 * one + 20 * pictures().nbytes
    assert peak_of_graph(walk, 6) > 4 * one


def test_has_no_second_derivative() -> None:
    """It says so: beside other terms it would be taken for zero."""
    at = pictures().requires_grad_()
    with pytest.raises(RuntimeError, match="first derivative alone"):
        torch.autograd.grad(stepwise(at, at, steps(1)).sum(), at, create_graph=True)
