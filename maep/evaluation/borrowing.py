"""A caller's model, as it was: what an evaluation changes of it is put back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))
# What nn.Module itself keeps: parameters and modules are put back by their own means, hooks as copies.
INTERNAL = frozenset(vars(nn.Module()))
HOOKS = tuple(name for name in INTERNAL if name.endswith("_hooks"))


@dataclass(frozen=True)
class ModuleState:
    """What one module was. training: None where it has no mode, as after torch.jit.freeze; attributes: its plain ones
    (numbers, texts); hooks: by the name of their table; buffers: the tensors themselves, in whose place a forward may
    have put others.
    """

    module: nn.Module
    training: bool | None
    attributes: Mapping[str, Any]
    hooks: Mapping[str, Mapping[int, Any]]
    buffers: Mapping[str, Tensor | None]

    @classmethod
    def of(cls, module: nn.Module) -> "ModuleState":
        """As it is now."""
        attributes = {
            name: value for name, value in vars(module).items() if name not in INTERNAL and isinstance(value, PLAIN)
        }
        hooks = {name: dict(vars(module)[name]) for name in HOOKS if vars(module).get(name) is not None}
        held = vars(module).get("_buffers")
        # A scripted module keeps its buffers elsewhere, and gives out another tensor at each look.
        buffers = dict(held) if isinstance(held, dict) else {}
        return cls(module, getattr(module, "training", None), attributes, hooks, buffers)

    def restore(self) -> None:
        """Put it back."""
        if self.training is not None:
            self.module.training = self.training
        for name, value in self.attributes.items():
            if vars(self.module).get(name) is not value:
                setattr(self.module, name, value)
        for name, hooks in self.hooks.items():
            table = vars(self.module)[name]
            if dict(table) != hooks:
                table.clear()
                table.update(hooks)
        if self.buffers:
            vars(self.module)["_buffers"].update(self.buffers)


@dataclass(frozen=True)
class ParameterState:
    """What one parameter was. grad: its gradient, the tensor itself, or None."""

    parameter: nn.Parameter
    requires_grad: bool
    grad: Tensor | None

    def restore(self) -> None:
        """Put it back."""
        if self.parameter.requires_grad != self.requires_grad:
            self.parameter.requires_grad_(self.requires_grad)
        if self.parameter.grad is not self.grad:
            self.parameter.grad = self.grad


@dataclass(frozen=True)
class BufferState:
    """What one buffer held; a model may count its calls in one. Parameters are frozen and need no copy."""

    buffer: Tensor
    values: Tensor

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back."""
        if not torch.equal(self.buffer, self.values):
            self.buffer.copy_(self.values)


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """After it, whatever happened within, the model is as it was.

    That is each module's mode, hooks, buffers and plain attributes, and each parameter's requires_grad and gradient.
    """
    states: list[ModuleState | ParameterState | BufferState] = [ModuleState.of(module) for module in model.modules()]
    states += [ParameterState(each, each.requires_grad, each.grad) for each in model.parameters() if each.is_leaf]
    states += [BufferState(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for state in states:
            state.restore()
