"""Purifiers on disk: `purifier/`, LoRA adapters beside it, checkpoints, and run directories of these.

    run.dir/purifier/    model.safetensors, config.json = {"model": …, "purify": …}, manifest.json
    run.dir/finetuned/   the same, after full finetuning; replaces purifier/
    run.dir/adapter/     peft's format; merged into purifier/

A manifest that is there is checked; one is always written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file

from maep.config.schema import ModelSettings, PurifySettings
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.weights import load_weights, read_weights, require_fit
from maep.purifiers.mae import MAEPurifier, Purifier
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import MANIFEST, atomic_directory, problem_with, read_json
from maep.storage.tensor_files import ShardedTensors

WEIGHTS, CONFIG, ADAPTER = "model.safetensors", "config.json", "adapter_config.json"
S = TypeVar("S", ModelSettings, PurifySettings)


def save_purifier(model: MaskedAutoencoder, settings: PurifySettings, directory: Path) -> None:
    """Write `model` and how to use it under `directory`, whole or not at all.

    Raises UserError when it cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_directory(directory, {"kind": "purifier"}) as temporary:
        save_file(state, temporary / WEIGHTS)
        config = {"model": asdict(model.config), "purify": asdict(settings)}
        (temporary / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def load_purifier(
    path: str | Path, *, device: str | torch.device | None = None, settings: PurifySettings | None = None
) -> Purifier:
    """The purifier at `path`, ready to use: in eval mode, parameters frozen.

    path: a run directory (its finetuned/, or purifier/ with adapter/ merged if there is one), a `purifier/`
    directory, or a checkpoint directory `checkpoints/step-…` written by any number of processes (its averaged
    weights if it has them). device: where to put it. settings: how to use it; default: as it was saved.
    Raises UserError for a path that holds none of these, and for files that are altered or do not fit.
    """
    path = Path(path)
    if (path / ADAPTER).is_file():
        fail(f"{path}: is an adapter; name the run directory that holds it and its purifier/")
    if (path / CONFIG).is_file():
        model, saved = read_purifier(path), _purify_settings(path)
    elif any(path.glob("rank-*.safetensors")):
        model, saved = _read_checkpoint(path)
    else:
        model, saved = _read_run(path)
    use, size = settings or saved, model.config.image_size
    if use.overlap >= size:
        fail(f"purify.overlap={use.overlap}: must be below the side of the tiles of {path}, {size}")
    return MAEPurifier(model.requires_grad_(False), use).to(device).eval()


def read_purifier(directory: Path) -> MaskedAutoencoder:
    """The model of a `purifier/` directory, without adapter.

    Raises UserError if it is altered or does not fit.
    """
    _require_whole(directory)
    settings = _settings_of(ModelSettings, _config(directory)["model"], directory / CONFIG)
    model = MaskedAutoencoder(settings)
    load_weights(model, read_weights(directory / WEIGHTS), directory / WEIGHTS)
    return model


def merge_adapter(model: MaskedAutoencoder, directory: Path) -> MaskedAutoencoder:
    """The model with an adapter in peft's format (LoRA, DoRA or IA3) merged into its weights.

    Raises UserError if the adapter is altered or names layers or shapes that the model has not.
    """
    # Takes seconds to import, and most processes need none of it.
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    _require_whole(directory)
    try:
        adapted = get_peft_model(model, PeftConfig.from_pretrained(str(directory)))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{directory / ADAPTER}: does not fit the purifier: {error}") from error
    state = read_weights(directory / "adapter_model.safetensors")
    require_fit(get_peft_model_state_dict(adapted), state, directory / "adapter_model.safetensors")
    set_peft_model_state_dict(adapted, state)
    merged: Any = adapted.merge_and_unload()
    return merged


def _read_run(path: Path) -> tuple[MaskedAutoencoder, PurifySettings]:
    base, adapter, finetuned = path / "purifier", path / "adapter", path / "finetuned"
    if (finetuned / CONFIG).is_file():
        if (adapter / ADAPTER).is_file():
            fail(f"{path}: holds both adapter/ and finetuned/; name {finetuned} or remove one")
        return read_purifier(finetuned), _purify_settings(finetuned)
    if not (base / CONFIG).is_file():
        fail(f"{path}: no purifier; expected a run directory, its purifier/, or a checkpoint step-…")
    model = read_purifier(base)
    if (adapter / ADAPTER).is_file():
        model = merge_adapter(model, adapter)
    return model, _purify_settings(base)


def _read_checkpoint(path: Path) -> tuple[MaskedAutoencoder, PurifySettings]:
    problem = problem_with(path)
    if problem:
        fail(f"{path}: not a whole checkpoint: {problem}")
    facts = read_json(path / MANIFEST)
    if facts.get("method", "full") != "full":
        fail(f"{path}: holds only an adapter in training; name the run directory or one of its checkpoints/")
    saved = ShardedTensors(path)
    names = [name.removeprefix("model/") for name in saved.names("model/")]
    kinds = {name: "ema" if f"ema/{name}" in saved else "model" for name in names}
    state = {name: saved.tensor(f"{kind}/{name}") for name, kind in kinds.items()}
    model = MaskedAutoencoder(_settings_of(ModelSettings, facts.get("model"), path / MANIFEST))
    load_weights(model, state, path)
    return model, _settings_of(PurifySettings, facts.get("purify") or {}, path / MANIFEST)


def _require_whole(directory: Path) -> None:
    """Check a directory against its manifest; one that came without (from elsewhere) is taken as it is."""
    problem = problem_with(directory) if (directory / MANIFEST).is_file() else None
    if problem:
        fail(problem)


def _config(directory: Path) -> dict[str, Any]:
    config = read_json(directory / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        fail(f"{directory / CONFIG}: is no purifier's; expected an entry `model` with its settings")
    return config


def _purify_settings(directory: Path) -> PurifySettings:
    return _settings_of(PurifySettings, _config(directory).get("purify") or {}, directory / CONFIG)


def _settings_of(cls: type[S], values: Any, source: Path) -> S:
    """A section of the settings from JSON; settings added since then take their defaults."""
    if not isinstance(values, Mapping):
        fail(f"{source}: lacks the model's settings")
    unknown = [name for name in values if name not in {item.name for item in fields(cls)}]
    if unknown:
        fail(f"{source}: unknown settings {', '.join(unknown[:3])}; was it written by a newer version?")
    return cls(**values)
