"""What a stranger's model is: a digest of its code, its tensors and its plain attributes, equal in every process."""

import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maep.attacks.attack_state import tensors_sha256
from maep.config.identity import decisive_fields
from maep.runtime.digests import digest

# Code that has a version of its own, known by names alone. What a model has from elsewhere is read, installed or not.
VERSIONED = frozenset({"torch", "torchvision", "numpy", "maep", "builtins"}) | sys.stdlib_module_names
# Machinery of torch around a model, whose parts hold addresses and caches; the model inside is a module of its own.
MACHINERY = ("torch._dynamo", "torch.fx", "torch._inductor", "torch.utils.hooks")
# Attributes of nn.Module itself that are read otherwise or say nothing of what a model answers.
INTERNAL = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
DEPTH = 12  # of nested attributes that are looked at: deeper ones are a library's own graphs, not settings
# What Python writes into every class: places, texts and types, some of them in no fixed order.
WORDS_OF_CLASSES = frozenset({
    "__dict__", "__weakref__", "__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__",
    "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__conditional_annotations__",
    "_abc_impl", "__parameters__", "__orig_bases__",
})  # fmt: skip
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def model_identity(model: nn.Module, name: str) -> str:
    """Digest of a module's name, code, structure, tensors and attributes; the same in every process of one Python."""
    return digest([name, *Description().of_model(model)])


def is_versioned(module: str | None) -> bool:
    """Whether code of this module is known by its name."""
    return (module or "builtins").partition(".")[0] in VERSIONED


@dataclass
class Description:
    """Walks through a model. digests: by id, the digest of each object that was met; path: ids of those that it is in,
    which ends circles. kept: the objects themselves, so that no id is used twice.
    """

    digests: dict[int, str] = field(default_factory=dict)
    path: list[int] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)

    def of_model(self, model: nn.Module) -> Iterator[object]:
        """Every module's place, class and attributes, and every tensor."""
        for place, module in model.named_modules(remove_duplicate=False):
            yield [place, self.of_value(type(module))]
            if not _is_machinery(type(module)):
                yield self._attributes(module)
        tensors = dict(model.named_parameters(remove_duplicate=False))
        yield tensors_sha256(tensors | dict(model.named_buffers(remove_duplicate=False)))

    def _attributes(self, module: nn.Module) -> object:
        if isinstance(module, torch.jit.ScriptModule):
            return [module.original_name, str(getattr(module, "code", ""))]
        own = {name: value for name, value in vars(module).items() if name not in INTERNAL}
        hooks = [self.of_value(hook) for name in HOOKS for hook in vars(module).get(name, {}).values()]
        return [self.of_value(own), hooks]

    def of_value(self, value: object) -> object:
        """An attribute as something JSON-able that is equal for equal values."""
        if isinstance(value, Enum):
            return [type(value).__qualname__, value.name]
        if isinstance(value, PLAIN):
            return [type(value).__name__, repr(value)]
        if isinstance(value, Tensor):
            return tensors_sha256({"": value})
        if isinstance(value, np.ndarray | np.generic):
            array = np.ascontiguousarray(value)
            return [str(array.dtype), list(array.shape), _array_sha256(array)]
        if isinstance(value, torch.dtype | torch.device | torch.Size | range | slice | PurePath):
            return str(value)
        if id(value) in self.path or len(self.path) > DEPTH:
            return type(value).__qualname__
        if id(value) not in self.digests:
            self.path.append(id(value))
            self.kept.append(value)
            self.digests[id(value)] = digest(self._of_object(value))
            self.path.pop()
        return self.digests[id(value)]

    def _of_object(self, value: object) -> object:
        if isinstance(value, Mapping):
            return sorted(([self.of_value(key), self.of_value(item)] for key, item in value.items()), key=str)
        if _is_section(value):
            return [type(value).__qualname__, self.of_value(decisive_fields(value, "records"))]
        if isinstance(value, list | tuple):
            return [type(value).__name__, [self.of_value(item) for item in value]]
        if isinstance(value, set | frozenset):
            return sorted(digest(self.of_value(item)) for item in value)
        if isinstance(value, torch.Generator):
            return value.initial_seed()
        if isinstance(value, nn.Module):  # one that hides in a list or an object, where torch does not see it
            return list(self.of_model(value))
        if isinstance(value, ModuleType):
            return value.__name__
        return self._of_callable(value)

    def _of_callable(self, value: object) -> object:
        if isinstance(value, functools.partial):
            return [self.of_value(part) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, MethodType):
            return [self.of_value(value.__func__), self.of_value(value.__self__)]
        if isinstance(value, FunctionType):
            return self.of_function(value)
        if isinstance(value, type):
            return self.of_class(value)
        # Some objects answer every attribute that they are asked for, with whatever they make up.
        name = getattr(value, "__qualname__", None)
        return [name if isinstance(name, str) else self.of_value(type(value)), self.of_value(_attributes_of(value))]

    def of_class(self, cls: type) -> object:
        """A class by its name, and where it is a stranger's by the code of all its methods and its plain attributes."""
        name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("__main__.")
        if is_versioned(cls.__module__):
            return [name, *self._generated(cls)]
        members = {
            member: self._of_member(value) for member, value in vars(cls).items() if member not in WORDS_OF_CLASSES
        }
        return [name, members, [self.of_value(base) for base in cls.__bases__]]

    def _generated(self, cls: type) -> list[object]:
        """torch.fx gives each graph a class of its own, whose forward is the model."""
        forward = vars(cls).get("forward")
        is_generated = cls.__module__.startswith("torch.fx") and isinstance(forward, FunctionType)
        return [_code(forward.__code__)] if is_generated else []  # type: ignore[union-attr]

    def _of_member(self, value: Any) -> object:
        if isinstance(value, staticmethod | classmethod):
            return self.of_value(value.__func__)
        if isinstance(value, property):
            return [self.of_value(part) for part in (value.fget, value.fset) if part]
        return self.of_value(value)

    def of_function(self, function: FunctionType) -> object:
        """A function by its name, and where it is a stranger's by its code and all it refers to."""
        if is_versioned(function.__module__) and not hasattr(function, "__wrapped__"):
            return f"{function.__module__}.{function.__qualname__}"
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        return [
            _code(function.__code__),
            self.of_value(function.__defaults__),
            self.of_value(function.__kwdefaults__),
            [self.of_value(value) for value in cells],
            {name: self.of_value(value) for name, value in _globals(function)},
        ]


def _is_section(value: object) -> bool:
    """Whether it is a section of this project's settings, which say themselves what they decide."""
    if isinstance(value, type) or not is_dataclass(value):
        return False
    return any("affects_result" in item.metadata for item in fields(value))


def _is_machinery(cls: type) -> bool:
    return cls.__module__.startswith(MACHINERY)


def _attributes_of(value: object) -> Mapping[str, object]:
    """Of an object that is no module, also one with slots; of the standard library's, such as loggers, none."""
    cls = type(value)
    if _is_machinery(cls) or (
        cls.__module__.partition(".")[0] in sys.stdlib_module_names and cls is not SimpleNamespace
    ):
        return {}
    slots = {name for each in cls.__mro__ for name in _slots(each) if hasattr(value, name)}
    return {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in slots}}


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that is assigned later
        return False


def _array_sha256(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()).hexdigest()


def _code(code: CodeType) -> object:
    """What a code object does: instructions, names and constants, without places and lines."""
    constants = [_code(each) if isinstance(each, CodeType) else _constant(each) for each in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), list(code.co_freevars), constants]


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _names(code: CodeType) -> set[str]:
    """Names that a code object and those inside of it ask for."""
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def _globals(function: FunctionType) -> Iterator[tuple[str, object]]:
    """What a function refers to in its module, and in modules of a stranger's that it uses."""
    names = sorted(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and not is_versioned(value.__name__):
            yield from ((f"{name}.{each}", vars(value)[each]) for each in names if _counts(vars(value).get(each)))
        elif _counts(value):
            yield name, value


def _counts(value: object) -> bool:
    """Functions, classes and plain values; other objects of a module, such as loggers and caches, decide nothing."""
    if isinstance(value, FunctionType | type | functools.partial):
        return True
    if isinstance(value, Mapping):
        return all(map(_counts, value.values()))
    return (
        all(map(_counts, value))
        if isinstance(value, list | tuple)
        else value is not None and isinstance(value, (*PLAIN, Tensor, np.ndarray))
    )
