"""Saved tensors with facts: what was altered is not believed, whatever is wrong with it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maep.attacks.attack_state import load_tensors, save_tensors, tensors_sha256

TENSORS = {"x": torch.arange(6.0).reshape(2, 3)}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Under its identity, and under no other."""
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"steps": 3}, "one")
    loaded = load_tensors(path, "one")
    assert loaded is not None
    assert torch.equal(loaded[0]["x"], TENSORS["x"])
    assert loaded[1] == {"steps": 3}
    assert load_tensors(path, "two") is None
    assert load_tensors(tmp_path / "none", "one") is None


def test_what_is_loaded_is_aligned_as_what_is_computed(tmp_path: Path) -> None:
    """Wherever in the file it begins, it lies in memory of torch's: products' last bits may depend on that."""
    for length in range(16):
        path = tmp_path / f"{length}.safetensors"
        save_tensors(path, TENSORS | {"y": torch.ones(3)}, {"x" * length: 1}, "one")
        loaded = load_tensors(path, "one")
        assert loaded is not None
        assert [tensor.data_ptr() % 64 for tensor in loaded[0].values()] == [0, 0]


@pytest.mark.parametrize("facts", ["[1]", "7", "{", "null", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 9999])
def test_facts_that_are_none_make_it_damaged(facts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are no part of the tensors' checksum."""
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"identity": "one", "facts": facts, "sha256": tensors_sha256(TENSORS)})
    assert load_tensors(path, "one") is None
    assert f"{path}: damaged (" in capsys.readouterr().out.replace("\n", "")


def test_an_altered_value_makes_it_damaged(tmp_path: Path) -> None:
    """Also a single one."""
    path = tmp_path / "a.safetensors"
    other = {"x": TENSORS["x"].clone()}
    other["x"][1, 2] = 7
    save_file(other, path, metadata={"identity": "one", "facts": json.dumps({}), "sha256": tensors_sha256(TENSORS)})
    assert load_tensors(path, "one") is None
