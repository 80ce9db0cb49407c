"""torch.compile where it can be had: one that fails is said, and what was to be compiled runs as it is."""

from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from maep.runtime.console import say


class Compiled:
    """A module that is compiled in place, when it is called first; its weights, hooks and state stay as they are.

    has_failed: whether it could not be compiled, for want of a compiler or for an error in one, and is eager since.
    """

    def __init__(self, module: nn.Module, name: str, **options: str) -> None:
        """name: of the setting that asks for it, for the warning. options: of torch.compile."""
        self.module, self.name, self.has_failed = module, name, False
        module.compile(**options)
        self._compiled = module._compiled_call_impl
        module._compiled_call_impl = self._call

    def _call(self, *arguments: Any, **named: Any) -> Any:
        assert self._compiled is not None
        try:
            return self._compiled(*arguments, **named)
        except TorchDynamoException as error:
            self.has_failed = True
            self.module._compiled_call_impl = None
            torch._dynamo.reset()
            reason = " ".join(str(error).split("\n\nSet TORCH")[0].split())
            say(f"warning: {self.name}=true: torch.compile failed ({reason[:200]}); it goes on uncompiled")
            return self.module(*arguments, **named)
