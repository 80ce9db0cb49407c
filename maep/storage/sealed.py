"""Sealed directories: whole under their final name, with a manifest of sizes and SHA-256 of all their files.

    purifier/
        manifest.json            {"format", "kind", …, "files": {"model.safetensors": {"bytes", "sha256"}, …}}
        model.safetensors …

The manifest is written last into a temporary directory beside it, then that is renamed (see `maep.storage.atomic`).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from maep.runtime.errors import UserError
from maep.storage.atomic import fsync, sha256_file, temporary_name
from maep.storage.documents import NewerFormat
from maep.storage.manifests import FileEntry, Manifest

MANIFEST = "manifest.json"


def file_entries(directory: Path, hashed: Mapping[str, str] | None = None) -> dict[str, FileEntry]:
    """Size and SHA-256 of every file below `directory` by relative name, the manifest itself left out.

    hashed: `{name: SHA-256}` of those that need not be read, as their writers have hashed them.
    """
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST)
    names = {str(p.relative_to(directory)): p for p in files}
    known = hashed or {}
    return {name: FileEntry(p.stat().st_size, known.get(name) or sha256_file(p)) for name, p in names.items()}


def seal_directory(
    temporary: Path, final: Path, manifest: Manifest, files: Mapping[str, FileEntry] | None = None
) -> None:
    """Write the manifest of a finished temporary directory, fsync everything in it, rename it to `final`.

    files: as `file_entries`, where the writers have fsynced and hashed them; default: it is done here.
    """
    if files is None:
        for path in temporary.rglob("*"):
            if path.is_file():
                fsync(path)
        files = file_entries(temporary)
    path = temporary / MANIFEST
    path.write_text(json.dumps(manifest.sealed(files).to_file(), indent=1) + "\n", encoding="utf-8")
    fsync(path)
    fsync(temporary)
    if final.exists():
        shutil.rmtree(final)
    temporary.replace(final)
    fsync(final.parent)


@contextmanager
def atomic_directory(path: Path, manifest: Manifest) -> Iterator[Path]:
    """Yields a temporary directory; seals it under `path` when the block ends well, removes it when not.

    manifest: what it is to say; its `files` are filled in. Raises UserError when it cannot be written.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        seal_directory(temporary, path, manifest)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def problem_with(directory: Path) -> str | None:
    """What is wrong with a sealed directory, naming the file; None if every file matches its manifest.

    Raises UserError for one that a newer version of maep wrote: it may be whole, only this version cannot say so.
    """
    try:
        manifest = Manifest.read(directory / MANIFEST)
    except NewerFormat:
        raise
    except UserError as error:
        return str(error)
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != entry.bytes:
            return f"{path}: {path.stat().st_size} bytes, its manifest says {entry.bytes}"
        try:
            if sha256_file(path) != entry.sha256:
                return f"{path}: altered (SHA-256 differs from its manifest)"
        except UserError as error:
            return str(error)
    return None
