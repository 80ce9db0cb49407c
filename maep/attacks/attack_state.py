"""Where an attack on a set of images stands, in memory and in one file that verifies itself."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maep.runtime.console import say
from maep.runtime.errors import UserError
from maep.storage.atomic import atomic_file
from maep.storage.json_files import parse_json
from maep.storage.tensor_files import save_file

Facts = dict[str, Any]  # what was written beside the tensors, as JSON gave it back


@dataclass
class AttackState:
    """An attack on N images, finished or part of the way.

    images: [N, 3, H, W] in [0,1], adversarial where the attack succeeded (an attack that keeps only successes
    leaves the clean image elsewhere). predictions: int64 [N], the attacked model's answer on them.
    robust: bool [N], True = the attacked model still answers rightly.
    survivors: how many images were robust after `clean` and after each attack that was run, in order.
    seconds: time spent attacking. warnings: what the attacks warned of, e.g. zero gradients.
    """

    images: Tensor
    predictions: Tensor
    robust: Tensor
    survivors: dict[str, int]
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def save(self, path: Path, identity: str) -> None:
        """Commit to `path` (safetensors, float32), marked with the identity of what it was made from."""
        tensors = {"images": self.images.float(), "predictions": self.predictions, "robust": self.robust}
        facts = {"survivors": self.survivors, "seconds": self.seconds, "warnings": self.warnings}
        save_tensors(path, tensors, facts, identity)

    @classmethod
    def load(cls, path: Path, identity: str, device: torch.device) -> "AttackState | None":
        """The state in `path`, or None if there is none that is whole and was made from the same things."""
        contents = load_tensors(path, identity)
        if contents is None:
            return None
        tensors, facts = contents
        images, predictions, robust = (tensors[name].to(device) for name in ("images", "predictions", "robust"))
        return cls(images, predictions, robust, **facts)


OnState = Callable[[AttackState], None]  # what is to be done with a state between two attacks


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names, as 64 hex digits."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)}".encode())
        hasher.update(_bytes(tensors[name]))
    return hasher.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """The values as they lie in memory, of any type of number: NumPy has no bfloat16."""
    dense = tensor.detach().cpu()
    dense = (dense.to_dense() if dense.layout != torch.strided else dense).resolve_conj().resolve_neg().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().tobytes()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object], identity: str) -> None:
    """Commit tensors and JSON-able facts as one safetensors file that carries its own checksum."""
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"identity": identity, "facts": json.dumps(dict(facts)), "sha256": tensors_sha256(host)}
    with atomic_file(path) as temporary:
        save_file(host, temporary, metadata=metadata)


def identity_of(path: Path) -> str | None:
    """What a file of `save_tensors` was made from, read from its head alone; None if there is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("identity")
    except (SafetensorError, OSError):
        return None


def load_tensors(path: Path, identity: str | None = None) -> tuple[dict[str, Tensor], Facts] | None:
    """Tensors and facts of `path`; None where it is missing, of another identity, or (which is reported) damaged.

    identity: what the file must have been made from; None takes it as it is.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if identity is not None and metadata.get("identity") != identity:
                return None
            # Copied out of the file, where they begin anywhere: on CPUs without AVX-512 a matrix product's last bit
            # depends on whether its operands are aligned, and what is resumed is to be as what was never interrupted.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] != tensors_sha256(tensors):
            raise ValueError("its SHA-256 differs")
        facts = parse_json(metadata["facts"], "its facts")
        if not isinstance(facts, dict):
            raise ValueError("its facts are no JSON object")
        return tensors, facts
    except (SafetensorError, OSError, ValueError, KeyError, UserError) as error:
        say(f"{path}: damaged ({error}); ignored")
        return None
