"""Errors that are the user's to mend: one clear line, exit code 2, nothing half-written."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Bad input. The message is one line that names the thing, the place and the valid choice."""


def fail(message: str) -> NoReturn:
    """Raise a `UserError`; reads well at the end of a condition."""
    raise UserError(" ".join(message.split()))


def _terminate(signum: int, _frame: object) -> NoReturn:
    """Unwind, so that pools end their workers and temporary files go."""
    raise SystemExit(128 + signum)


def exit_code(main: Callable[[], int | None]) -> int:
    """Run a command; turn a `UserError` into one line on stderr and exit code 2.

    Ctrl-C ends with 130 and SIGTERM with 143, as shells expect, after cleaning up. Every other exception keeps its
    traceback: it is ours to mend.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
