"""Numbers of a stranger's purifier: each is held to the settings' own range before memory or time is spent on it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from maep import load_purifier
from maep.config.evaluation_settings import PurifySettings
from maep.purifiers import MAEPurifier, save_purifier
from maep.purifiers.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, merge_adapter
from maep.runtime.errors import UserError
from maep.storage.sealed import MANIFEST
from tests.purifiers.test_export import network


def saved(directory: Path, section: str, **changes: Any) -> Path:
    """A purifier whose config was changed, without a manifest, as one from elsewhere."""
    save_purifier(MAEPurifier(network(), PurifySettings()), directory)
    (directory / MANIFEST).unlink()
    config = json.loads((directory / "config.json").read_text())
    config[section] |= changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"image_size": 10**9}, "image_size=1000000000: must be at most"),
        ("model", {"image_size": 65536, "patch_size": 1}, "patches; at most"),
        ("model", {"image_size": 10**30}, "image_size=.*must be at most"),
        ("model", {"image_size": 0}, "image_size=0: must be at least 1"),
        ("model", {"image_size": 18}, "does not divide"),
        ("model", {"patch_size": 0}, "patch_size=0: choose one of"),
        ("model", {"patch_size": 3}, "patch_size=3: choose one of"),
        ("model", {"encoder_width": 65536}, r"model\.safetensors: weights do not fit"),
        ("model", {"encoder_width": -4}, "encoder_width=-4: must be at least"),
        ("model", {"encoder_depth": 10**7}, "encoder_depth=10000000: must be at most"),
        ("model", {"encoder_heads": 0}, "encoder_heads=0: must be at least"),
        ("model", {"encoder_heads": 3}, "must be a multiple of"),
        ("model", {"mlp_ratio": 1e30}, "mlp_ratio=.*must be at most"),
        ("model", {"residual_scale": 0.0}, "residual_scale=0.0: must be above"),
        ("model", {"prediction": "no"}, "prediction=no: choose one of"),
        ("model", {"refine_depth": 10**6}, "refine_depth=1000000: must be at most"),
        ("purify", {"batch_tiles": 10**12}, "batch_tiles=.*must be at most"),
        ("purify", {"passes": 10**9}, "passes=.*must be at most"),
        ("purify", {"overlap": 16}, "overlap=16: must be below"),
        ("purify", {"noise": -1.0}, "noise=-1.0: must be at least"),
        ("purify", {"noise": float("nan")}, "noise=NaN: expected a finite number"),
        ("purify", {"shifts": True}, "shifts=true: expected a whole number"),
    ],
)
def test_a_config_is_held_to_the_ranges_of_the_settings(
    tmp_path: Path, section: str, changes: dict[str, Any], message: str
) -> None:
    """One line that names the entry."""
    with pytest.raises(UserError, match=message):
        load_purifier(saved(tmp_path / "purifier", section, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 10**9}, "r=1000000000: expected a whole number from 1 to 16"),
        ({"r": 0}, "r=0"),
        ({"rank_pattern": {"x": 10**8}}, "r=100000000"),
        ({"lora_alpha": 1e30}, "lora_alpha"),
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"init_lora_weights": "eva"}, "init_lora_weights"),
        ({"init_lora_weights": 1}, "init_lora_weights=1: expected one of True, False, gaussian"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type"),
        ({"peft_type": []}, "peft_type"),
        ({"target_modules": ["(a+)+$"]}, "target_modules"),
        ({"target_modules": ["x"] * 10_001}, "target_modules: 10001 entries"),
        ({"rank_pattern": []}, "rank_pattern"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "alpha_pattern"),
        ({"alpha_pattern": {"decoder_embed": 1e30}}, "alpha_pattern"),
        ({"bias": {}}, "bias"),
        ({"use_dora": "no"}, "use_dora"),
        ({"monteclora_config": {"x": 1}}, "monteclora_config=.*not supported"),
        ({"use_something_newer": True}, "use_something_newer=True: not supported"),
    ],
)
def test_an_adapter_asks_for_no_more_than_it_has(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Rank, scale, patterns and imports are checked before peft acts on them."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["decoder_embed"], **changes}
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config))
    save_file({"a": torch.zeros(2, 16)}, tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(UserError, match=rf"adapter_config\.json: {message}"):
        merge_adapter(network(), tmp_path)
