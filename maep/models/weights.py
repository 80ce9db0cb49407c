"""Reading weights from outside without executing anything, and loading them only if they fit."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maep.runtime.errors import UserError, fail

WRAPPERS = ("model", "state_dict")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, or of a torch file read with `weights_only`.

    A torch file's `{"model": …}` or `{"state_dict": …}` and a leading `module.` of all names are taken off.
    Raises UserError, naming the file, when it is missing, cannot be read, or holds no tensors.
    """
    path = Path(path)
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except FileNotFoundError:
        fail(f"{path}: no such file")
    except Exception as error:  # the unpickler raises whatever damaged bytes lead it to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as weights: {reason}") from error
    return _bare(content, path)


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _bare(content: Any, path: Path) -> dict[str, Tensor]:
    """The mapping from names to tensors inside what a file holds."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    values = list(content.values()) if isinstance(content, Mapping) else []
    if not values or not all(isinstance(value, Tensor) for value in values):
        fail(f"{path}: holds no state dict; expected named tensors, alone or under {' or '.join(WRAPPERS)}")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def require_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise UserError, naming the first three, if names or shapes of `state` differ from those expected."""
    problems = [f"{name} (missing)" for name in expected if name not in state]
    problems += [f"{name} (unexpected)" for name in state if name not in expected]
    problems += [
        f"{name} (is {tuple(state[name].shape)}, expected {tuple(tensor.shape)})"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        others = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        fail(f"{source}: weights do not fit: {', '.join(problems[:3])}{others}")


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, ignore: Collection[str] = ()
) -> None:
    """Copy `state` into a module; every name and shape has to agree.

    source: the file, for messages. ignore: names that may be missing from either side; those absent keep the
    module's values, those unknown are left out. Raises UserError naming the first three that differ.
    """
    current = module.state_dict()
    expected = {name: tensor for name, tensor in current.items() if name not in ignore or name in state}
    update = {name: tensor for name, tensor in state.items() if name not in ignore or name in current}
    require_fit(expected, update, source)
    module.load_state_dict(update, strict=False)
