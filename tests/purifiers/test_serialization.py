"""Purifiers are saved whole, loaded from every place they may be, and refused where they do not fit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maep import load_purifier
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.config.training_settings import ModelSettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier, read_purifier, save_purifier
from maep.purifiers.registry import purifier_class
from maep.runtime.errors import UserError
from maep.storage.manifests import CheckpointManifest
from maep.storage.sealed import atomic_directory

MODEL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=16,
    decoder_depth=1, decoder_heads=2, refine_width=4, refine_depth=1,
)  # fmt: skip
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def model(seed: int = 0) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    network = MaskedAutoencoder(MODEL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def run_directory(path: Path, seed: int = 0) -> MaskedAutoencoder:
    network = model(seed)
    save_purifier(MAEPurifier(network, PurifySettings(overlap=2, batch_tiles=7)), path / "purifier")
    return network


def adapted(base: MaskedAutoencoder) -> PeftModel:
    """LoRA with random weights on every linear and convolution layer of the decoder and after it."""
    kinds = (nn.Linear, nn.Conv2d)
    names = [n for n, m in base.named_modules() if isinstance(m, kinds) and n.startswith(("decoder", "refine"))]
    lora = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=names))  # type: ignore[arg-type]
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return lora.eval()


def write_checkpoint(path: Path, facts: dict[str, Any], parts: list[dict[str, Tensor]]) -> None:
    with atomic_directory(path, CheckpointManifest(**facts)) as directory:
        for rank, part in enumerate(parts):
            save_file(part, directory / f"rank-{rank:02d}-of-{len(parts):02d}.safetensors")


def same(purifier: nn.Module, expected: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(purifier(IMAGES), expected(IMAGES).clamp(0, 1))


def test_loads_from_a_run_and_from_its_purifier_directory(tmp_path: Path) -> None:
    """The same output to the last bit, eval mode, frozen, with the settings it was saved with."""
    network = run_directory(tmp_path)
    for path in (tmp_path, str(tmp_path / "purifier")):
        purifier = load_purifier(path)
        assert isinstance(purifier, MAEPurifier)
        assert same(purifier, network)
        assert not purifier.training
        assert not any(parameter.requires_grad for parameter in purifier.parameters())
        assert purifier.settings == PurifySettings(overlap=2, batch_tiles=7)
    assert load_purifier(tmp_path, settings=PurifySettings(passes=3)).settings.passes == 3


def test_config_holds_the_models_settings(tmp_path: Path) -> None:
    """config.json is the contract's: format and kind, the model's settings and how to purify."""
    run_directory(tmp_path)
    config = json.loads((tmp_path / "purifier/config.json").read_text())
    sections = {"model": asdict(MODEL), "purify": asdict(PurifySettings(overlap=2, batch_tiles=7))}
    assert config == {"format": 1, "kind": "maep", **sections}


def test_adapter_is_merged_and_equals_unmerged(tmp_path: Path) -> None:
    """A run with adapter/ gives base + LoRA, merged, within 1e-5 of peft's unmerged model; purifier/ the base."""
    base = run_directory(tmp_path)
    lora = adapted(model())
    lora.save_pretrained(str(tmp_path / "adapter"))
    purifier = load_purifier(tmp_path)
    with torch.no_grad():
        unmerged = lora(IMAGES).clamp(0, 1)
        assert (unmerged - base(IMAGES).clamp(0, 1)).abs().max() > 1e-3
        torch.testing.assert_close(purifier(IMAGES), unmerged, rtol=0, atol=1e-5)
    assert not any("lora" in name for name, _ in purifier.named_modules())
    assert same(load_purifier(tmp_path / "purifier"), base)


def test_adapter_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """Missing tensors, other ranks and layers that the model has not: a UserError with file and key."""
    run_directory(tmp_path)
    adapted(model()).save_pretrained(str(tmp_path / "adapter"))
    weights, config = tmp_path / "adapter/adapter_model.safetensors", tmp_path / "adapter/adapter_config.json"
    state = load_file(weights)
    first = min(state)
    save_file({name: tensor for name, tensor in state.items() if name != first}, weights)
    with pytest.raises(UserError, match=rf"adapter_model\.safetensors: .*{first} \(missing\)"):
        load_purifier(tmp_path)
    save_file({**state, first: torch.zeros(5, 5)}, weights)
    with pytest.raises(UserError, match=rf"{first} \(is \(5, 5\)"):
        load_purifier(tmp_path)
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": ["nowhere"]}))
    with pytest.raises(UserError, match=r"adapter_config\.json: does not fit"):
        load_purifier(tmp_path)


def test_fully_finetuned_weights_take_the_place(tmp_path: Path) -> None:
    """finetuned/ is used before purifier/; with an adapter beside it the choice is the user's."""
    run_directory(tmp_path)
    other = model(1)
    save_purifier(MAEPurifier(other, PurifySettings()), tmp_path / "finetuned")
    assert same(load_purifier(tmp_path), other)
    adapted(model()).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="both adapter/ and finetuned/"):
        load_purifier(tmp_path)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("averaged", [True, False])
def test_loads_checkpoints_of_any_number_of_ranks(tmp_path: Path, ranks: int, averaged: bool) -> None:
    """Tensors are gathered from all rank files; the averaged weights are used where there are any."""
    last, average = model(0), model(1)
    tensors = {f"model/{name}": tensor for name, tensor in last.state_dict().items()}
    if averaged:
        tensors |= {f"ema/{name}": tensor for name, tensor in average.state_dict().items()}
    tensors["optimizer/exp_avg/norm.weight"] = torch.zeros(16)
    parts: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        parts[i % ranks][name] = tensor.detach()
    facts = {"kind": "checkpoint", "step": 200, "model": asdict(MODEL)}
    write_checkpoint(tmp_path / "step-000200", facts, parts)
    assert same(load_purifier(tmp_path / "step-000200"), average if averaged else last)


def test_damaged_artefacts_are_named(tmp_path: Path) -> None:
    """A changed byte, a missing rank, and a checkpoint without manifest are refused, naming the file."""
    network = run_directory(tmp_path)
    weights = tmp_path / "purifier/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model\.safetensors: altered"):
        load_purifier(tmp_path)
    parts = [{f"model/{name}": tensor} for name, tensor in network.state_dict().items()]
    step = tmp_path / "checkpoints/step-000010"
    write_checkpoint(step, {"step": 10, "model": asdict(MODEL)}, parts)
    missing = next(step.glob("rank-02-*"))
    missing.unlink()
    with pytest.raises(UserError, match=rf"{missing.name}: missing"):
        load_purifier(step)
    (step / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_purifier(step)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """config.json of another model: the first differing keys are named."""
    run_directory(tmp_path)
    directory = tmp_path / "purifier"
    (directory / "manifest.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    config["model"]["encoder_width"] = 32
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.safetensors: .*cls_token \(is \(1, 1, 16\), expected \(1, 1, 32\)\)"):
        read_purifier(directory)
    config["model"]["colour"] = "red"
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: unknown settings colour"):
        read_purifier(directory)


def rewrite_config(run: Path, **entries: object) -> None:
    """Change entries of its config.json; its manifest goes, or the change would be noticed as damage."""
    (run / "purifier/manifest.json").unlink(missing_ok=True)
    path = run / "purifier/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_config_without_a_kind_is_the_papers(tmp_path: Path) -> None:
    """As it was written before there were kinds and formats."""
    network = run_directory(tmp_path)
    path = tmp_path / "purifier/config.json"
    config = json.loads(path.read_text())
    (tmp_path / "purifier/manifest.json").unlink()
    path.write_text(json.dumps({name: config[name] for name in ("model", "purify")}))
    assert same(load_purifier(tmp_path), network)


def test_unknown_kinds_and_newer_formats_are_named(tmp_path: Path) -> None:
    """One line with the file: what it says, and what this version knows. A wrong type is named, too."""
    run_directory(tmp_path)
    for entries, message in (
        ({"kind": "medain"}, r"config\.json: kind=medain: no such purifier; did you mean median\? \(there are: maep, "),
        ({"kind": "maep", "format": 2}, r"config\.json: format 2; this version of maep reads up to 1"),
        ({"format": 1, "kind": 3}, r"config\.json: kind=3: expected text"),
        ({"kind": "maep", "purify": {"passes": "two"}}, r"config\.json: passes=\"two\": expected a whole number"),
        ({"model": None}, r"config\.json: lacks the settings of the purifier \(ModelSettings\)"),
    ):
        rewrite_config(tmp_path, **entries)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            load_purifier(tmp_path)
    write_checkpoint(tmp_path / "step-000001", {"step": 1, "purifier": "medain", "model": asdict(MODEL)}, [{}])
    with pytest.raises(UserError, match=r"manifest\.json: purifier=medain: no such purifier; did you mean median"):
        load_purifier(tmp_path / "step-000001")


def test_another_kind_than_expected_is_refused(tmp_path: Path) -> None:
    """What only the paper's purifier can be used for, such as finetuning, says so."""
    save_purifier(purifier_class("median").from_settings(load_settings(None, ["purifier.kind=median"])), tmp_path)
    with pytest.raises(UserError, match=r"holds a purifier of kind median; expected maep"):
        read_purifier(tmp_path, MAEPurifier)


def test_places_without_a_purifier_are_named(tmp_path: Path) -> None:
    """An empty directory, an adapter alone, and a checkpoint of LoRA weights say what to give instead."""
    with pytest.raises(UserError, match="expected a run directory"):
        load_purifier(tmp_path)
    adapted(model()).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="name the run directory"):
        load_purifier(tmp_path / "adapter")
    facts = {"step": 1, "model": asdict(MODEL), "method": "lora"}
    write_checkpoint(tmp_path / "step-000001", facts, [{"model/x": torch.zeros(1)}])
    with pytest.raises(UserError, match="only an adapter"):
        load_purifier(tmp_path / "step-000001")
