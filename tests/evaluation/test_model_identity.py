"""A stranger's model is its code, its tensors and its plain attributes, the same in every process."""

import dataclasses
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maep.config.evaluation_settings import PurifySettings
from maep.evaluation.model_identity import model_identity
from tests.tiny import ROOT

SCALE = """
import torch
from torch import nn
{top}
def shrink(x):
    return x * {factor}
class Net(nn.Module):
    bias = {bias}
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2).requires_grad_(False)
        nn.init.ones_(self.layer.weight), nn.init.zeros_(self.layer.bias)
        self.sizes = {{"a": 1, "b": {{"x", "y", "z"}}}}
    def forward(self, x):
        return shrink(self.layer(x)) {tail}
"""
CODE = {"top": "TOP = 1", "factor": "2", "bias": "0", "tail": "+ TOP"}


def written(**changes: str) -> nn.Module:
    space: dict[str, Any] = {"__name__": "stranger"}
    exec(SCALE.format(**{**CODE, **changes}), space)  # code that differs in one place
    model: nn.Module = space["Net"]()
    return model


@pytest.mark.parametrize("change", [{"factor": "3"}, {"bias": "1"}, {"tail": "- TOP"}, {"top": "TOP = 2"}])
def test_code_counts(change: dict[str, str]) -> None:
    """Of the forward, of a function that it calls, of a class's attribute and of a number in its module."""
    assert (
        model_identity(written(), "net") == model_identity(written(), "net") != model_identity(written(**change), "net")
    )


@dataclasses.dataclass
class Options:
    sigma: float = 0.1
    inner: Any = None


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


def scaled(images: Tensor, factor: float) -> Tensor:
    return images * factor


PAIRS: dict[str, tuple[Any, Any]] = {
    "number": (1, 2),
    "true and one": (True, 1),
    "text": ("a", "b"),
    "tuple": ((1, (2, 3)), (1, (2, 4))),
    "nested": ({"a": {"b": [1]}}, {"a": {"b": [2]}}),
    "set": ({1, 2}, {1, 3}),
    "dataclass": (Options(inner=Options(0.2)), Options(inner=Options(0.3))),
    "namespace": (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    "slots": (Slotted(1), Slotted(2)),
    "array": (np.zeros(2), np.ones(2)),
    "tensor that is no buffer": (torch.zeros(2), torch.ones(2)),
    "bfloat16": (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    "function": (torch.relu, torch.tanh),
    "lambda": (lambda x: x + 1, lambda x: x + 2),
    "partial": (partial(scaled, factor=1), partial(scaled, factor=2)),
    "own forward": (None, lambda x: x),
}


@pytest.mark.parametrize("name", PAIRS)
def test_attributes_count(name: str) -> None:
    """Whatever kind of value they have, with an underscore before them or without."""
    for attribute in ("value", "_value"):
        first, again, other = nn.ReLU(), nn.ReLU(), nn.ReLU()
        for module, value in ((first, PAIRS[name][0]), (again, PAIRS[name][0]), (other, PAIRS[name][1])):
            setattr(module, "forward" if name == "own forward" else attribute, value)
        assert model_identity(first, "net") == model_identity(again, "net") != model_identity(other, "net")


def test_settings_count_as_far_as_they_decide() -> None:
    """A purifier that is judged as any model: how much memory it may take changes nothing of what it answers."""
    first, roomy, other = nn.ReLU(), nn.ReLU(), nn.ReLU()
    first.settings, other.settings = PurifySettings(), PurifySettings(passes=2)  # type: ignore[assignment]
    roomy.settings = PurifySettings(batch_tiles=3, gradient_memory=0)  # type: ignore[assignment]
    assert model_identity(first, "net") == model_identity(roomy, "net") != model_identity(other, "net")


def test_hooks_and_circles_count_and_end() -> None:
    """A forward hook changes answers; an attribute may lead back to the module."""
    plain, hooked = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    assert model_identity(plain, "net") != model_identity(hooked, "net")
    plain.owner = [plain]  # type: ignore[assignment]
    assert len(model_identity(plain, "net")) == 64


class Answering:
    """Has an answer to whatever attribute it is asked for, as some loggers and mocks do."""

    def __getattr__(self, name: str) -> object:
        return Answering() if not name.startswith("__") or name == "__qualname__" else super().__getattribute__(name)


def test_an_object_that_has_every_attribute_is_described_by_its_class() -> None:
    """What such an object calls its own name is no text."""
    model = nn.ReLU()
    model.helper = Answering()
    assert model_identity(model, "net") != model_identity(nn.ReLU(), "net")


def test_the_same_in_every_process() -> None:
    """Nothing of it depends on addresses or on the order in which Python hashes texts."""
    line = "from tests.evaluation.test_model_identity import *; print(model_identity(written(), 'net'))"
    lines = []
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", line]
        lines.append(
            subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        )
    assert lines[0] == lines[1] == model_identity(written(), "net") + "\n"
