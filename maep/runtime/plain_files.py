"""Files from anywhere, opened without ever waiting and read within a limit."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from maep.runtime.errors import fail


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading without ever waiting. Raises OSError if it is missing; UserError if it is no plain file.

    A FIFO would wait for a writer, /dev/zero has no end.
    """
    return os.fdopen(descriptor_of(path), "rb")


def descriptor_of(path: Path | str) -> int:
    """As `open_regular`, the bare descriptor: for who opens a file for nearly every sample."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        fail(f"{path}: is no regular file (a directory, pipe or device); expected a file")
    return descriptor


def read_bytes(path: Path, limit: int) -> bytes:
    """All of a regular file. Raises UserError, naming it, when it is missing, unreadable or above `limit` bytes."""
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        fail(f"{path}: no such file")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        fail(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
    if len(content) > limit:
        fail(f"{path}: larger than {limit} bytes, the most that is read of such a file")
    return content
