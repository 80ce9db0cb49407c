"""The commit protocol: a file or directory under its final name is whole.

Write under a temporary name beside it, fsync, (manifest with sizes and SHA-256,) rename, fsync the parent.
Temporary names start with `.tmp-`; a crash leaves only those, and the next writer removes them. Files are here,
directories with a manifest in `maep.storage.sealed`.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maep.runtime.digests import as_read, canonical, digest
from maep.runtime.errors import UserError, fail
from maep.runtime.plain_files import open_regular
from maep.runtime.process_identity import IDENTITY, has_ended, this_process
from maep.storage.json_files import read_json as read_json

LONGEST = 160  # bytes of a name that leave room for what a temporary name adds: most file systems take 255
ABANDONED = 7 * 86400.0  # seconds: longer than any queue or clock holds a writer up between two writes
# A temporary name ends in its writer's identity; those of earlier versions in the name of its host and a number.
WRITER = re.compile(
    rf"\.tmp-.+-(?P<identity>{IDENTITY.pattern})|\.tmp-.+-{re.escape(socket.gethostname())}-\d+", re.DOTALL
)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits.

    Raises UserError for one that cannot be read, and for a pipe or device, which may have no end.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def fsync(path: Path) -> None:
    """Force a file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(directory: Path, name: str) -> None:
    """Raise UserError unless a directory can be written, or made; leaves nothing. name: of the setting or option.

    It is tried: of /proc, of a read-only mount and for root, permissions do not say it.
    """
    existing = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".tmp-", dir=existing))
    except OSError as error:
        fail(f"{name}={directory}: cannot be written: in {existing} nothing can be made: {error.strerror}")


def temporary_name(path: Path) -> Path:
    """The name under which this process, and no other on any machine, writes `path` before it is whole."""
    name = path.name if len(os.fsencode(path.name)) <= LONGEST else digest(path.name)
    return path.with_name(f".tmp-{name}-{this_process()}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; renames it to `path` when the block ends well, removes it when not.

    Raises UserError when the directory cannot be written or the disk is full, and where a pipe or a device has that
    name: a rename would put a file in the place of /dev/null.
    """
    temporary = temporary_name(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        fail(f"{path}: is no regular file (a pipe or device); name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # of a name that no file can have, which was said above
            temporary.unlink()


def write_json(path: Path, value: Any, *, compact: bool = False) -> None:
    """Commit `value` as indented JSON, or in its canonical form, on one line."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            (canonical(as_read(value)) if compact else json.dumps(value, indent=1)) + "\n", encoding="utf-8"
        )


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file that is written no more, or a copy where the file system knows only one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove_temporaries(directory: Path) -> None:
    """Remove what killed writers left half-written in `directory`.

    A writer of this machine is known to have ended. Of another one, or of this one before it was booted again, nothing
    is known: what it left goes when nobody has written to it for `ABANDONED`.
    """
    for path in directory.glob(".tmp-*"):
        writer = WRITER.fullmatch(path.name)
        if writer and (has_ended(writer["identity"] or "") or _is_abandoned(path)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Whether a temporary, and everything in it, was last written long ago."""
    try:
        written = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except FileNotFoundError:  # its writer lives, and has just finished
        return False
    return time.time() - written > ABANDONED
