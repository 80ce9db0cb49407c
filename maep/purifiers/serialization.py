"""Purifiers on disk: `purifier/`, LoRA adapters beside it, checkpoints, and run directories of these.

    run.dir/purifier/    config.json, manifest.json, and model.safetensors where its kind has weights
    run.dir/finetuned/   the same, after full finetuning; replaces purifier/
    run.dir/adapter/     peft's format; merged into purifier/

    config.json          {"format": 1, "kind": "maep", "model": {…}, "purify": {…}}   further entries are the kind's own

A manifest that is there is checked; one is always written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import torch
from torch import Tensor

from maep.config.evaluation_settings import PurifySettings
from maep.models.discriminator import PREFIX as DISCRIMINATOR
from maep.models.weights import read_weights
from maep.purifiers.adapter import ADAPTER_CONFIG
from maep.purifiers.base import Purifier, Source
from maep.purifiers.registry import DEFAULT, purifier_class
from maep.runtime.device import keep_freed_memory
from maep.runtime.errors import fail
from maep.storage.documents import Document
from maep.storage.manifests import CheckpointManifest, StampedManifest
from maep.storage.sealed import MANIFEST, atomic_directory, problem_with
from maep.storage.tensor_files import ShardedTensors, save_file

WEIGHTS, CONFIG = "model.safetensors", "config.json"
P = TypeVar("P", bound=Purifier)


@dataclass(frozen=True)
class PurifierConfig(Document):
    """config.json: the kind of a purifier (absent before there were several) and that kind's own entries."""

    kind: str = DEFAULT
    entries: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object, source: str | Path) -> Self:
        """As `Document.from_json`; the kind's entries stand beside `kind` in the file."""
        if isinstance(value, dict):
            head = {key: value[key] for key in (cls.VERSION_KEY, "kind") if key in value}
            value = {**head, "entries": {key: entry for key, entry in value.items() if key not in head}}
        return super().from_json(value, source)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, version and kind first."""
        return {self.VERSION_KEY: self.FORMAT, "kind": self.kind, **self.entries}


def save_purifier(purifier: Purifier, directory: Path) -> None:
    """Write a purifier under `directory`, whole or not at all.

    Raises UserError when it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in purifier.weights().items()}
    with atomic_directory(directory, StampedManifest(kind="purifier")) as temporary:
        if tensors:
            save_file(tensors, temporary / WEIGHTS)
        PurifierConfig(purifier.kind, purifier.config()).write(temporary / CONFIG)


def load_purifier(
    path: str | Path, *, device: str | torch.device | None = None, settings: PurifySettings | None = None
) -> Purifier:
    """The purifier at `path`, ready to use: in eval mode, parameters frozen.

    path: a run directory (its finetuned/, or purifier/ with adapter/ merged if there is one), a `purifier/`
    directory, or a checkpoint directory `checkpoints/step-…` written by any number of processes (its averaged
    weights if it has them). device: where to put it. settings: how to use it; default: as it was saved.
    Raises UserError for a path that holds none of these, and for files that are altered, of an unknown kind or a newer
    version, or do not fit.

    On a CPU the process keeps the memory of freed tensors from then on (`keep_freed_memory`), so that large images and
    attacks take as long as they do in the commands.
    """
    if "://" in str(path):
        fail(f"{path}: is an address; copy the purifier here, and name its directory")
    path = Path(path).expanduser()
    if (path / ADAPTER_CONFIG).is_file():
        fail(f"{path}: is an adapter; name the run directory that holds it and its purifier/")
    if (path / CONFIG).is_file():
        purifier = read_purifier(path)
    elif any(path.glob("rank-*.safetensors")):
        purifier = _read_checkpoint(path)
    else:
        purifier = _read_run(path)
    if settings is not None:
        purifier = purifier.with_options(settings, path)
    purifier = purifier.requires_grad_(False).to(device).eval()
    if purifier.device.type == "cpu":
        keep_freed_memory()
    return purifier


@overload
def read_purifier(directory: Path) -> Purifier: ...


@overload
def read_purifier(directory: Path, cls: type[P]) -> P: ...


def read_purifier(directory: Path, cls: type[Purifier] = Purifier) -> Purifier:
    """What a `purifier/` directory holds, without adapter; to be trained on or saved again.

    cls: the class that is expected. Raises UserError if the directory is altered, does not fit, or holds another kind.
    """
    _require_whole(directory)
    config, weights = PurifierConfig.read(directory / CONFIG), directory / WEIGHTS
    kind = purifier_class(config.kind, f"{directory / CONFIG}: kind")
    if not issubclass(kind, cls):
        fail(f"{directory}: holds a purifier of kind {config.kind}; expected {cls.kind}")
    tensors = read_weights(weights) if weights.is_file() or kind.is_trained() else {}
    return kind.from_config(config.entries, tensors, Source(str(directory / CONFIG), str(weights)))


def _read_run(path: Path) -> Purifier:
    base, adapter, finetuned = path / "purifier", path / "adapter", path / "finetuned"
    has_adapter = (adapter / ADAPTER_CONFIG).is_file()
    if (finetuned / CONFIG).is_file():
        if has_adapter:
            fail(f"{path}: holds both adapter/ and finetuned/; name {finetuned} or remove one")
        return read_purifier(finetuned)
    if not (base / CONFIG).is_file():
        fail(f"{path}: no purifier; expected a run directory, its purifier/, or a checkpoint step-…")
    if not has_adapter:
        return read_purifier(base)
    _require_whole(adapter)
    return read_purifier(base).with_adapter(adapter)


def _read_checkpoint(path: Path) -> Purifier:
    problem = problem_with(path)
    if problem:
        fail(f"{path}: not a whole checkpoint: {problem}")
    manifest = CheckpointManifest.read(path / MANIFEST)
    if manifest.method != "full":
        fail(f"{path}: holds only an adapter in training; name the run directory or one of its checkpoints/")
    kind = purifier_class(manifest.purifier, f"{path / MANIFEST}: purifier")
    config = {"model": manifest.model, "purify": manifest.purify}
    return kind.from_config(config, _averaged(ShardedTensors(path)), Source(str(path / MANIFEST), str(path)))


def _averaged(checkpoint: ShardedTensors) -> dict[str, Tensor]:
    """The weights in a checkpoint, the averaged ones where there are any."""
    names = [name.removeprefix("model/") for name in checkpoint.names("model/")]
    names = [name for name in names if not name.startswith(DISCRIMINATOR)]
    parts = {name: "ema" if f"ema/{name}" in checkpoint else "model" for name in names}
    return {name: checkpoint.tensor(f"{part}/{name}") for name, part in parts.items()}


def _require_whole(directory: Path) -> None:
    """Check a directory against its manifest; one that came without (from elsewhere) is taken as it is."""
    problem = problem_with(directory) if (directory / MANIFEST).is_file() else None
    if problem:
        fail(problem)
