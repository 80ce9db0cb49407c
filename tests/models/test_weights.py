"""Weights files are read without executing anything and loaded only if every key and shape fits."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from maep.models.weights import build_with_weights, load_weights, read_weights
from maep.runtime.errors import UserError

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


class _Malicious:
    """Its pickle runs a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_reads_torch_files_bare_or_wrapped(tmp_path: Path, wrap: Any, prefix: str) -> None:
    """The usual wrappings of a state dict are taken off."""
    torch.save(wrap({prefix + name: tensor for name, tensor in STATE.items()}), tmp_path / "w.pt")
    read = read_weights(tmp_path / "w.pt")
    assert set(read) == set(STATE)
    assert all(torch.equal(read[name], STATE[name]) for name in STATE)


def test_reads_safetensors_and_loads(tmp_path: Path) -> None:
    """A safetensors file arrives in the module."""
    save_file(STATE, tmp_path / "w.safetensors")
    layer = nn.Linear(3, 2)
    load_weights(layer, read_weights(tmp_path / "w.safetensors"), "w.safetensors")
    assert torch.equal(layer.weight, STATE["weight"])


def test_executes_nothing(tmp_path: Path) -> None:
    """A pickle that would run a command is refused, and the command does not run."""
    torch.save({"weight": _Malicious(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_names_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """Missing, empty and damaged files each give one line with the file's name."""
    for content in (None, b"", b"\x80garbage" * 50):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_weights(tmp_path / name)


def test_names_a_file_without_weights(tmp_path: Path) -> None:
    """A torch file of something else is not a state dict."""
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict"):
        read_weights(tmp_path / "w.pt")


def test_names_the_first_three_that_differ() -> None:
    """Missing, unexpected and mis-shaped keys are named, the rest counted, and nothing is loaded."""
    layer = nn.Linear(3, 2)
    before = layer.weight.clone()
    state = {"weight": torch.zeros(3, 2), "a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}
    with pytest.raises(UserError, match=r"here: .*bias \(missing\), a \(unexpected\), b \(unexpected\) and 2 more"):
        load_weights(layer, state, "here")
    with pytest.raises(UserError, match=r"weight \(is \(3, 2\), expected \(2, 3\)\)"):
        load_weights(layer, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "here")
    assert torch.equal(layer.weight, before)


def test_ignored_names_may_be_missing_or_unknown() -> None:
    """`ignore` lets a name be absent on either side; one that is on both sides is loaded."""
    layer = nn.Linear(3, 2)
    before = layer.bias.clone()
    load_weights(layer, {"weight": STATE["weight"], "fc": torch.zeros(1)}, "here", ignore=("bias", "fc"))
    assert torch.equal(layer.weight, STATE["weight"])
    assert torch.equal(layer.bias, before)
    load_weights(layer, STATE, "here", ignore=("bias",))
    assert torch.equal(layer.bias, STATE["bias"])


def test_what_does_not_fit_is_refused_before_anything_is_allocated() -> None:
    """A network that a file describes, and does not hold, is made without memory alone; one that it holds is filled."""
    devices: list[str] = []

    def build() -> nn.Linear:
        module = nn.Linear(2, 3)
        devices.append(module.weight.device.type)
        return module

    with pytest.raises(UserError, match="weights do not fit: bias"):
        build_with_weights(build, {"weight": torch.ones(3, 2)}, "file")
    assert devices == ["meta"]
    made = build_with_weights(build, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "file")
    assert torch.equal(made.weight, torch.ones(3, 2))
