"""Standard output and error: any text goes in, in whatever encoding they are, and whoever reads them may leave."""

import os
import select
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

T = TypeVar("T")


def take_any_text() -> None:
    """What an encoding lacks is written escaped, as `\\u2026`, where it would raise UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not None, as of a closed one, nor what a test put in its place
            stream.reconfigure(errors="backslashreplace")


def written(work: Callable[[], T]) -> T:
    """What `work` returns, once all that it printed is written; also where argparse ends it after printing its help."""
    try:
        result = work()
    except SystemExit:
        _flush()
        raise
    _flush()
    return result


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def discard_unwritable() -> None:
    """Let what a stream cannot write go nowhere: the interpreter tries again as it ends, complains, and exits with 120.

    Before, whoever wrote it has been told, by `written` or as it was printed.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def has_lost_reader() -> bool:
    """Whether nobody reads the output or the errors any more; a write failed, but that may have been another pipe's."""
    return any(map(_is_unread, (sys.stdout, sys.stderr)))


def _is_unread(stream: TextIO | None) -> bool:
    try:
        descriptor = stream.fileno() if stream is not None else -1
    except (OSError, ValueError):  # of what is no file, or closed
        return False
    poll = select.poll()
    if descriptor >= 0:
        poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
