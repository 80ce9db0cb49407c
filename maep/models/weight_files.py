"""What a file of weights holds: safetensors, torch's own, and sets of them with an index. Nothing in it is run.

Python objects beside the tensors (arguments, hyperparameters, numpy's numbers) become `Foreign`, which does nothing.
"""

import zipfile
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail
from maep.runtime.plain_files import open_regular
from maep.storage.atomic import sha256_file
from maep.storage.json_files import read_json
from maep.storage.manifests import problem_with_name

INDEX = ".index.json"
TORCH = (b"PK", b"\x80")  # how torch's files begin: a zip of pickles, and before 1.6 a pickle
# Looked for in a directory, in this order: Hugging Face's names and DeepSpeed's.
IN_DIRECTORY = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "mp_rank_00_model_states.pt",
)  # fmt: skip


class Foreign:
    """Stands for a Python object in a torch file."""

    def __new__(cls, *_: object, **__: object) -> "Foreign":
        """Of whatever it was made from."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Take what it was made from and keep nothing of it."""

    def __setstate__(self, state: object) -> None:
        """Keep nothing of it."""


def read_content(path: Path) -> Any:
    """What a file holds: a tree of mappings with tensors in it. A directory, or an index, stands for its parts.

    Raises UserError, naming the file, when it is missing, cannot be read, or its index does not agree with its parts.
    """
    path = weights_file(path)
    if path.name.endswith(INDEX):
        return _read_parts(path)
    return _read_file(path)


def weights_file(path: Path) -> Path:
    """The file that a path means: itself, or the first of `IN_DIRECTORY` in a directory."""
    if not path.is_dir():
        return path
    if (path / "mp_rank_01_model_states.pt").exists():
        fail(f"{path}: holds the parts of a model-parallel network; convert them with DeepSpeed's zero_to_fp32.py")
    names = [name for name in IN_DIRECTORY if (path / name).is_file()]
    if not names:
        fail(f"{path}: holds no weights; expected a file, or a directory with one of {', '.join(IN_DIRECTORY)}")
    return path / names[0]


def weights_sha256(path: Path) -> str:
    """64 hex digits that name the content of a file of weights, or of an index with all its parts."""
    path = weights_file(path)
    if not path.name.endswith(INDEX):
        return sha256_file(path)
    return digest({part: sha256_file(path.parent / part) for part in sorted(set(_weight_map(path).values()))})


def _read_file(path: Path) -> Any:
    from safetensors.torch import load_file  # not for who only hashes the file

    try:
        return load_file(path) if _is_safetensors(path) else _read_torch(path)
    except UserError:
        raise
    except Exception as error:  # the unpickler raises whatever damaged bytes lead it to
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(" This file can still be loaded")[0]
        raise UserError(f"{path}: cannot be read as weights: {reason}") from error


def check_weights(path: Path) -> None:
    """Raises as `read_content` for what is no file of weights, by its first bytes."""
    path = weights_file(path)
    if not path.name.endswith(INDEX):
        _is_safetensors(path)


def _is_safetensors(path: Path) -> bool:
    """Whether a file is of safetensors rather than of torch. Raises UserError for one that is neither."""
    try:
        with open_regular(path) as file:
            head = file.read(64)
    except FileNotFoundError:
        fail(f"{path}: no such file")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if head.lstrip()[:1] == b"<":
        fail(f"{path}: is a web page, not weights: open the address that it came from in a browser")
    if head.startswith(TORCH):
        return False
    # 8 bytes with the length of the JSON that follows.
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return True
    fail(f"{path}: cannot be read as weights: by its first bytes it is neither a safetensors nor a torch file")


def _read_torch(path: Path) -> Any:
    """With `weights_only`: what else there is becomes `Foreign`, or a plain dict where it was one."""
    import torch

    unknown: list[str] = []
    if zipfile.is_zipfile(path):
        _check_stored(path)
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    for stand_in in (Foreign, OrderedDict) if unknown else ():
        try:
            return _load(path, [(stand_in, name) for name in unknown])
        except Exception as error:  # noqa: BLE001  (tried with the next; torch's own reason is given below)
            del error
    return _load(path, [])


def _load(path: Path, stand_ins: list[Any]) -> Any:
    import torch

    with torch.serialization.safe_globals(stand_ins) if stand_ins else nullcontext():
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_stored(path: Path) -> None:
    """torch never compresses tensors: a file of a few bytes that becomes gigabytes is not one of its own."""
    with zipfile.ZipFile(path) as archive:
        if any("/code/__torch__/" in name for name in archive.namelist()):
            fail(f"{path}: is a TorchScript program, not weights: save torch.jit.load(…).state_dict() instead")
        packed = [entry.filename for entry in archive.infolist() if entry.file_size > max(entry.compress_size, 0)]
    if packed:
        fail(f"{path}: cannot be read as weights: {packed[0][:60]} is compressed, which torch never does")


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(part, str) for part in names.values()):
        fail(f"{index}: expected an object weight_map, from names of tensors to names of files")
    for part in names.values():
        if problem := problem_with_name(part):
            fail(f"{index}: weight_map: {part[:80]!r} {problem}; expected a file beside the index")
    return names


def _read_parts(index: Path) -> dict[str, Any]:
    """All tensors that an index lists, each from the part that it says."""
    names = _weight_map(index)
    parts = {part: _read_file(index.parent / part) for part in sorted(set(names.values()))}
    missing = [name for name, part in names.items() if name not in parts[part]]
    if missing:
        fail(f"{index}: weight_map: {missing[0]} is not in {names[missing[0]]}")
    return {name: parts[part][name] for name, part in names.items()}
