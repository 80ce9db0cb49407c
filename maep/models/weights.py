"""Weights as people save them: found in whatever file they lie in, and loaded only if every name and value fits.

Files are in `weight_files.py`. What one holds is a tree: `{"state_dict": {"model.conv1.weight": …}, "epoch": 3}`. Of
its branches, and the prefixes of the names in them, that is taken under which the names of the network are.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from maep.models.weight_files import Foreign, read_content
from maep.runtime.console import say
from maep.runtime.errors import fail

M = TypeVar("M", bound=nn.Module)

# Added to names by torch.compile, FSDP and activation checkpointing, wherever the module that they wrap stands.
WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
AVERAGED = re.compile(r"(?i)(^|[._])(ema|swa|averaged?|shadow)([._]|$|model)")
# Branches and prefixes of the network that was trained, the first of several counts; that order is timm's.
WRAPPERS = (
    "",
    "state_dict",
    "model",
    "module",
    "model_state_dict",
    "state",
    "net",
    "network",
    "classifier",
    "backbone",
    "last",
)
DEEPEST = 4  # levels of a file that are looked through: Lightning in DeepSpeed has 2


@dataclass(frozen=True)
class Branch:
    """Named tensors somewhere in a file. place: keys, and the prefix that was taken off the names, from the top."""

    place: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @property
    def rank(self) -> tuple[int, int]:
        """Averaged weights go before others, as in timm; then the usual wrappers in their order."""
        words = [word for part in self.place for word in part.strip(".").split(".") if not word.isdigit()]
        if any(AVERAGED.search(part) for part in self.place):
            return 0, 0
        positions = [WRAPPERS.index(word) if word in WRAPPERS else len(WRAPPERS) for word in words] or [0]
        return 1, max(positions)

    def __str__(self) -> str:
        return " → ".join(self.place) or "the top level"

    def score(self, expected: Mapping[str, Tensor]) -> tuple[int, int]:
        """How many names are there, and how many of them in the right shape."""
        names = [name for name in expected if name in self.tensors]
        return len(names), sum(self.tensors[name].shape == expected[name].shape for name in names)


def read_weights(path: str | Path, expected: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Named tensors of a safetensors or torch file, or a sharded set of them, without executing anything.

    expected: the network's own `state_dict`; the branch and the prefix under which its names are is taken, which is
    said where there are several (averaged weights first, as timm does). Without it, the usual wrappers are taken off.
    Raises UserError, naming the file and listing what is in it, when it is missing, cannot be read, holds no tensors,
    or several networks that fit.
    """
    return weights_in(read_content(Path(path)), path, expected)


def weights_in(content: Any, path: str | Path, expected: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """`read_weights` of what was read already. content: as `read_content` gives it; path: where, for messages."""
    branches = list(_branches(content))
    if not branches:
        fail(f"{path}: holds no state dict; expected named tensors, alone or in {', '.join(WRAPPERS[1:4])}, …; "
             f"it holds {inventory(content)}")  # fmt: skip
    if expected is None:
        return dict(min(branches, key=lambda branch: (len(branch.place), branch.rank)).tensors)
    branches += [view for branch in branches for view in _without_prefix(branch, expected)]
    best = _best(branches, expected, path)
    if best.score(expected)[0] == 0:
        fail(f"{path}: weights do not fit: none of the names of the network, such as {next(iter(expected), '')}, "
             f"is in it; it holds {inventory(content)}")  # fmt: skip
    return dict(best.tensors)


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Every named tensor of what `read_content` gives, whichever network it belongs to."""
    for branch in _branches(content):
        yield from branch.tensors.items()


def _branches(content: Any, place: tuple[str, ...] = ()) -> Iterator[Branch]:
    if not isinstance(content, Mapping) or len(place) > DEEPEST:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield _unwrapped(Branch(place, tensors))
    for key, value in content.items():
        if isinstance(key, str):
            yield from _branches(value, (*place, key))


def _unwrapped(branch: Branch) -> Branch:
    """Without what torch.compile and such add, and without DDP's `module.` of all names."""
    tensors = {WRAPPED.sub("", name): tensor for name, tensor in branch.tensors.items()}
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return Branch(branch.place, tensors)


def _without_prefix(branch: Branch, expected: Collection[str]) -> Iterator[Branch]:
    """The tensors of each prefix after which names of the network come; the others are left out."""
    prefixes: dict[str, None] = {}
    for name in branch.tensors:
        ends = [position + 1 for position, letter in enumerate(name) if letter == "."]
        prefixes |= {name[:end]: None for end in ends if name[end:] in expected}
    for prefix in prefixes:
        tensors = {n.removeprefix(prefix): t for n, t in branch.tensors.items() if n.startswith(prefix)}
        yield Branch((*branch.place, prefix), tensors)


def _best(branches: Sequence[Branch], expected: Mapping[str, Tensor], path: str | Path) -> Branch:
    """The branch that fits best. Raises UserError where several do and none goes before the others."""
    most = max(branch.score(expected) for branch in branches)
    fitting = sorted((branch for branch in branches if branch.score(expected) == most), key=lambda b: b.rank)
    first = fitting[0]
    equals = [branch for branch in fitting if branch.rank == first.rank and _differ(branch, first, expected)]
    if equals:
        fail(f"{path}: holds several networks that fit: {', '.join(map(str, [first, *equals]))}; save one alone")
    others = [branch for branch in fitting if _differ(branch, first, expected)]
    if others:
        say(f"{path}: the weights of {first} are taken, not those of {', '.join(map(str, others))}")
    elif first.place:
        say(f"{path}: the weights of {first} are taken")
    return first


def _differ(branch: Branch, other: Branch, expected: Collection[str]) -> bool:
    """Whether two branches that fit alike give the network other values."""
    names = [name for name in expected if name in branch.tensors]
    return any(branch.tensors[name] is not other.tensors.get(name) for name in names)


def inventory(content: Any) -> str:
    """What a file holds, in a few words: its first keys, and the first names and shapes below them."""
    if isinstance(content, Foreign):
        return "a Python object, such as a whole model, which is not read; save its state_dict() instead"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    entries = [f"{str(key)[:60]} ({_described(value)})" for key, value in list(content.items())[:6]]
    more = f" and {len(content) - 6} more" if len(content) > 6 else ""
    return (", ".join(entries) or "nothing") + more


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return "×".join(map(str, value.shape)) or "one number"
    if not isinstance(value, Mapping):
        return type(value).__name__
    names = [f"{str(key)[:60]} {tuple(item.shape)}" for key, item in value.items() if isinstance(item, Tensor)]
    return f"{len(names)} tensors: {', '.join(names[:3])}" if names else f"{len(value)} entries"


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


def require_values(
    state: Mapping[str, Tensor], source: str | Path, expected: Mapping[str, Tensor] | None = None
) -> None:
    """Raise UserError, naming the first three, for values that cannot be weights. expected: their types."""
    checked = ((name, _value_problem(tensor, (expected or {}).get(name))) for name, tensor in state.items())
    problems = [f"{name} ({problem})" for name, problem in checked if problem]
    if problems:
        others = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        fail(f"{source}: weights do not fit: {', '.join(problems[:3])}{others}")


def _value_problem(tensor: Tensor, expected: Tensor | None) -> str | None:
    """Why values cannot be weights."""
    if expected is not None and expected.is_meta:  # a checkpoint's shapes are compared before its values are read
        return None
    if tensor.device.type == "meta" or tensor.is_quantized or tensor.layout != torch.strided:
        return "is meta, quantised or sparse; expected a dense tensor"
    if (expected is None or expected.is_floating_point()) and not tensor.is_floating_point():
        return f"is {str(tensor.dtype).removeprefix('torch.')}; expected floating-point numbers"
    if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
        return "holds NaN or infinite values"
    return None


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, ignore: Collection[str] = ()
) -> None:
    """Copy `state` into a module; every name and shape has to agree.

    source: the file, for messages. ignore: names that may be missing from either side; those absent keep the
    module's values, those unknown are left out. Raises UserError naming the first three that differ, and those whose
    values cannot be weights.
    """
    current = module.state_dict()
    expected = {name: tensor for name, tensor in current.items() if name not in ignore or name in state}
    update = {name: tensor for name, tensor in state.items() if name not in ignore or name in current}
    require_fit(expected, update, source)
    require_values(update, source, expected)
    module.load_state_dict(update, strict=False)


def build_with_weights(build: Callable[[], M], state: Mapping[str, Tensor], source: str | Path) -> M:
    """What `build` makes, holding `state`, as `load_weights` puts it there.

    Names and shapes are compared before anything is allocated: a file may describe a network that it does not hold.
    """
    with torch.device("meta"):
        require_fit(build().state_dict(), state, source)
    module = build()
    load_weights(module, state, source)
    return module
