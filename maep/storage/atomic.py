"""The commit protocol: a file or directory under its final name is whole.

Write under a temporary name beside it, fsync, (manifest with sizes and SHA-256,) rename, fsync the parent.
Temporary names start with `.tmp-`; a crash leaves only those, and the next writer removes them.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from maep.runtime.errors import UserError, fail

MANIFEST = "manifest.json"
T = TypeVar("T")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form; the identity of settings and artefacts."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """The name under which this process writes `path` before it is whole."""
    return path.with_name(f".tmp-{path.name}-{socket.gethostname()}-{os.getpid()}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; renames it to `path` when the block ends well, removes it when not.

    Raises UserError when the directory cannot be written or the disk is full.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Commit `value` as indented JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError, naming the file, when it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        fail(f"{path}: no such file")
    except (OSError, ValueError) as error:
        fail(f"{path}: cannot be read: {error}")


def manifest_of(directory: Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {"bytes", "sha256"}}` of every file below `directory`, the manifest itself left out."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST)
    return {str(p.relative_to(directory)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}


def seal_directory(
    temporary: Path, final: Path, facts: dict[str, Any], files: dict[str, dict[str, Any]] | None = None
) -> None:
    """Write the manifest of a finished temporary directory, fsync everything in it, rename it to `final`.

    files: as `manifest_of`, where the writers have fsynced and hashed them; default: it is done here.
    """
    if files is None:
        for path in temporary.rglob("*"):
            if path.is_file():
                _fsync(path)
        files = manifest_of(temporary)
    manifest = temporary / MANIFEST
    manifest.write_text(json.dumps({**facts, "files": files}, indent=1) + "\n")
    _fsync(manifest)
    _fsync(temporary)
    if final.exists():
        shutil.rmtree(final)
    temporary.replace(final)
    _fsync(final.parent)


@contextmanager
def atomic_directory(path: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """Yields a temporary directory; seals it under `path` when the block ends well, removes it when not.

    facts: JSON-able entries that go into the manifest beside `files`.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        seal_directory(temporary, path, facts)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def problem_with(directory: Path) -> str | None:
    """What is wrong with a sealed directory, naming the file; None if every file matches its manifest."""
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{directory / MANIFEST}: {type(error).__name__}"
    for name, known in files.items():
        path = directory / name
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != known["bytes"]:
            return f"{path}: {path.stat().st_size} bytes, its manifest says {known['bytes']}"
        if sha256_file(path) != known["sha256"]:
            return f"{path}: altered (SHA-256 differs from its manifest)"
    return None


def remove_temporaries(directory: Path) -> None:
    """Remove what an earlier, killed writer on this host left half-written in `directory`."""
    for path in directory.glob(f".tmp-*-{socket.gethostname()}-*"):
        writer = int(path.name.rsplit("-", 1)[1])
        if writer != os.getpid() and Path(f"/proc/{writer}").exists():
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
