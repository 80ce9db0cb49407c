"""torch.compile where it can be had: one that fails is said, and what was to be compiled runs as it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from maep.runtime.console import say

M = TypeVar("M", bound=nn.Module)


@dataclass
class CompiledCall:
    """A call that torch.compile has made, or the same uncompiled once that has failed.

    name: of the setting that asks for it, for the warning. has_failed: whether it could not be compiled, for want of a
    compiler or for an error in one, and is eager since.
    """

    compiled: Callable[..., Any]
    eager: Callable[..., Any]
    name: str
    has_failed: bool = False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """As either is called."""
        if not self.has_failed:
            from torch._dynamo.exc import TorchDynamoException  # only where something is compiled: a second of CPU

            try:
                return self.compiled(*arguments, **named)
            except TorchDynamoException as error:
                self.has_failed = True
                torch._dynamo.reset()
                reason = " ".join(str(error).split("\n\nSet TORCH")[0].split())
                say(f"warning: {self.name}=true: torch.compile failed ({reason[:200]}); it goes on uncompiled")
        return self.eager(*arguments, **named)


def compile_in_place(module: nn.Module, name: str, **options: str) -> CompiledCall:
    """Have a module of ours compiled when it is called first; its weights, hooks and state stay as they are.

    name: as of `CompiledCall`. options: of torch.compile.
    """
    module.compile(**options)
    assert module._compiled_call_impl is not None
    call = CompiledCall(module._compiled_call_impl, module._call_impl, name)
    module._compiled_call_impl = call
    return call


def compiled_copy(module: M) -> M:
    """Any module, compiled when it is called first, for attacks to follow (evaluation.compile).

    It has the weights of the given one, which stays as it is.
    """
    optimized: Any = torch.compile(module)
    optimized.forward = CompiledCall(optimized.forward, module, "evaluation.compile")
    return cast(M, optimized)


def is_uncompiled(model: nn.Module) -> bool:
    """Whether a part of it is a `compiled_copy` that could not be compiled."""
    calls = (vars(part).get("forward") for part in model.modules())
    return any(call.has_failed for call in calls if isinstance(call, CompiledCall))
