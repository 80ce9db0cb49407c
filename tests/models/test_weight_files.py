"""Checkpoints as trainers leave them: the right weights are taken, or the message says what is in the file."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maep.models.weight_files import weights_sha256
from maep.models.weights import load_weights, read_weights
from maep.runtime.errors import UserError

NETWORK = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
EXPECTED = NETWORK.state_dict()
WEIGHTS = {name: torch.full_like(tensor, 2) for name, tensor in EXPECTED.items()}
AVERAGE = {name: torch.full_like(tensor, 3) for name, tensor in EXPECTED.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def value(tensors: dict[str, Tensor]) -> float:
    """2 of the plain weights, 3 of the averaged; all names and shapes of the network."""
    assert set(tensors) == set(EXPECTED)
    load_weights(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tensors, "here")
    return float(tensors["0.weight"].mean())


LAYOUTS: dict[str, tuple[Callable[[], Any], float]] = {
    "bare": (lambda: WEIGHTS, 2),
    "lightning": (lambda: {"state_dict": under("model.", WEIGHTS), "epoch": 3, "hyper_parameters": {"lr": 0.1}}, 2),
    "lightning with its criterion": (
        lambda: {"state_dict": {**under("net.", WEIGHTS), "criterion.weight": torch.ones(2)}}, 2),
    "an attribute's name": (lambda: {"state_dict": under("my_classifier.backbone.", WEIGHTS)}, 2),
    "ddp and compile": (lambda: {"model": under("module._orig_mod.", WEIGHTS)}, 2),
    "a compiled part": (lambda: {name.replace("0.", "0._orig_mod."): t for name, t in WEIGHTS.items()}, 2),
    "deepspeed": (lambda: {"module": under("model.", WEIGHTS), "ds_version": "0.15", "optimizer": None}, 2),
    "timm": (lambda: {"state_dict": WEIGHTS, "state_dict_ema": AVERAGE, "args": Namespace(lr=1)}, 3),
    "timm's ddp": (lambda: {"state_dict": under("module.", WEIGHTS), "state_dict_ema": under("module.", AVERAGE)}, 3),
    "model_ema": (lambda: {"model": WEIGHTS, "model_ema": {"module": AVERAGE}}, 3),
    "ema alone": (lambda: {"ema": AVERAGE}, 3),
    "ema_state_dict": (lambda: {"model_state_dict": WEIGHTS, "ema_state_dict": AVERAGE}, 3),
    "lightning with an average": (
        lambda: {"state_dict": {**under("model.", WEIGHTS), **under("ema_model.module.", AVERAGE)}}, 3),
    "an optimizer beside it": (
        lambda: {"optimizer": {"state": {0: {"exp_avg": torch.ones(2, 3)}}}, "net": WEIGHTS, "acc": 93.1}, 2),
    "other objects beside it": (lambda: {"state_dict": WEIGHTS, "path": Path("x"), "kind": pytest.MonkeyPatch}, 2),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_found(tmp_path: Path, layout: str) -> None:
    """Wherever they lie; averaged ones first, as timm does."""
    content, expected = LAYOUTS[layout]
    torch.save(content(), tmp_path / "w.pt")
    assert value(read_weights(tmp_path / "w.pt", EXPECTED)) == expected


def test_which_ones_are_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And which are not."""
    torch.save(LAYOUTS["timm"][0](), tmp_path / "w.pt")
    read_weights(tmp_path / "w.pt", EXPECTED)
    assert "the weights of state_dict_ema are taken, not those of state_dict" in " ".join(
        capsys.readouterr().out.split()
    )


def test_equals_are_not_guessed_between(tmp_path: Path) -> None:
    """Two networks of which none is known to go first."""
    torch.save({"student": WEIGHTS, "teacher": AVERAGE}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt: holds several networks that fit: student, teacher; save one alone"):
        read_weights(tmp_path / "w.pt", EXPECTED)


def test_what_is_in_the_file_is_listed(tmp_path: Path) -> None:
    """Keys, names and shapes, where nothing fits."""
    torch.save({"epoch": 3, "generator": {"conv.weight": torch.zeros(4, 3, 1, 1)}}, tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"0\.weight.*it holds epoch \(int\), generator \(1 tensors: conv\.weight \(4, 3"
    ):
        read_weights(tmp_path / "w.pt", EXPECTED)


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("0.weight", torch.full((2, 3), float("nan")), "NaN or infinite"),
        ("0.bias", torch.tensor([1.0, float("inf")]), "NaN or infinite"),
        ("0.weight", torch.ones(2, 3, dtype=torch.int8), "int8; expected floating-point"),
        ("1.running_var", torch.ones(2, dtype=torch.bool), "bool; expected floating-point"),
        ("0.weight", torch.ones(2, 3).to_sparse(), "sparse"),
        ("0.weight", torch.ones(2, 3, device="meta"), "meta"),
        ("0.weight", torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8), "quantised"),
    ],
)
def test_values_that_cannot_be_weights_are_refused(name: str, tensor: Tensor, problem: str) -> None:
    """By the name of the tensor, and nothing is loaded."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = network[0].weight.clone()
    with pytest.raises(UserError, match=rf"w\.pt: weights do not fit: {name} \(.*{problem}"):
        load_weights(network, {**WEIGHTS, name: tensor}, "w.pt")
    assert torch.equal(network[0].weight, before)


def write_parts(directory: Path, **changes: str) -> None:
    directory.mkdir(exist_ok=True)
    names = list(WEIGHTS)
    parts = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for part, members in parts.items():
        save_file({name: WEIGHTS[name] for name in members}, directory / part)
    where = {name: part for part, members in parts.items() for name in members} | changes
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_parts_with_an_index(tmp_path: Path) -> None:
    """By the directory or the index; their content names them."""
    write_parts(tmp_path / "parts")
    for path in (tmp_path / "parts", tmp_path / "parts/model.safetensors.index.json"):
        assert value(read_weights(path, EXPECTED)) == 2
    before = weights_sha256(tmp_path / "parts")
    save_file({name: AVERAGE[name] for name in list(WEIGHTS)[3:]}, tmp_path / "parts/model-2.safetensors")
    assert weights_sha256(tmp_path / "parts") != before


@pytest.mark.parametrize(
    ("part", "problem"), [("../x", "leaves the directory"), ("/etc/x", "leaves"), ("none.safetensors", "no such file"),
                          ("model-2.safetensors", "0.weight is not in model-2")])  # fmt: skip
def test_an_index_that_lies_is_refused(tmp_path: Path, part: str, problem: str) -> None:
    """By the entry."""
    write_parts(tmp_path / "parts", **{"0.weight": part})
    with pytest.raises(UserError, match=problem):
        read_weights(tmp_path / "parts", EXPECTED)


def test_a_whole_model_is_named_as_such(tmp_path: Path) -> None:
    """A TorchScript program, and a pickled module, of which the weights alone are to be saved."""
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    for name, message in (
        ("script.pt", r"script\.pt: is a TorchScript program, not weights: save torch\.jit\.load\(…\)\.state_dict\(\)"),
        ("module.pt", r"module\.pt: holds no state dict; .* a whole model, which is not read; save its state_dict\(\)"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / name)
