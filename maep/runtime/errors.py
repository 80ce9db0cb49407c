"""What ends a command early: an exception that carries its exit code, and one clear line instead of a traceback."""

import difflib
import errno
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from maep.runtime.exits import ExitCode
from maep.runtime.standard_streams import discard_unwritable, has_lost_reader, take_any_text, written
from maep.runtime.text import shown
from maep.runtime.unwinding import die_on_signals, request_behind, unwind_on_signals

# What is wrong with a name, wherever it is first looked at; a file that is missing in the middle of work is ours.
OF_A_NAME = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip


MOST_MEANT = 3  # choices that a mistyped word is answered with
FULL = (errno.ENOSPC, errno.EDQUOT)


class EarlyEnd(BaseException):
    """The command ends here; the message is one line for people. Subclasses say with which exit code.

    What went wrong is an Exception too, for whoever does something and takes every fault of it; a request to end is
    none, as KeyboardInterrupt: a signal's handler raises it in the middle of anything, whose fault it is not.
    """

    code: int = ExitCode.FAILED

    def line(self) -> str:
        """What the command says as it ends."""
        return f"error: {self}"

    def __str__(self) -> str:
        """The message as it may be shown: one line, nothing in it steers a terminal, what is secret is masked."""
        return " ".join(shown(super().__str__()).split())


class UserError(EarlyEnd, Exception):
    """Bad input. The message is one line that names the thing, the place and the valid choice."""

    code = ExitCode.BAD_INPUT


class NonFiniteLoss(EarlyEnd, Exception):
    """The loss became NaN or infinite; the message names step, sample keys and the last good checkpoint."""

    code = ExitCode.FAILED


class PeerLost(EarlyEnd, Exception):
    """Another process of the job never came, died or does not answer. The same command goes on from there."""

    code = ExitCode.PEER_LOST

    def line(self) -> str:
        """With what to do about it."""
        return f"error: {self}; the same command goes on from the last checkpoint"


class ProcessFailed(EarlyEnd, Exception):
    """A process that was started here ended badly, with a message of its own; this one ends with its code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class AskedToEnd(EarlyEnd):
    """Nothing went wrong: everything is saved, and the same command goes on."""

    def line(self) -> str:
        """The message alone: it is no error."""
        return str(self)


class Paused(AskedToEnd):
    """The training has come to `pause_at`, everything saved; it goes on when that is higher or unset."""

    code = ExitCode.PAUSED

    def __init__(self, label: str, step: int) -> None:
        super().__init__(f"{label}: paused at step {step}; the same command without {label}.pause_at goes on")


class Stopped(AskedToEnd):
    """A training ended early on request, with everything saved; `signum` says which signal asked.

    step: the last one done; -1 where only the processes that were started know it.
    """

    def __init__(self, signum: int, step: int) -> None:
        where = f" after step {step}" if step >= 0 else ""
        super().__init__(f"stopped by {signal.Signals(signum).name}{where}; the same command goes on from there")
        self.signum, self.step, self.code = signum, step, 128 + signum


def fail(message: str) -> NoReturn:
    """Raise a `UserError`; reads well at the end of a condition.

    It says what the exception that is being handled meant, which a traceback then does not repeat, secrets and all.
    """
    raise UserError(message) from None


def nearest(word: str, choices: Sequence[str]) -> str:
    """`; did you mean …?` for the choices that end with `.word`, or the one most like `word`, or nothing.

    Half of the letters in common, in whatever case, is as far as a typing mistake goes.
    """
    alike = {choice.casefold(): choice for choice in choices}
    ends = [choice for folded, choice in alike.items() if word and folded.endswith(f".{word.casefold()}")]
    close = ends[:MOST_MEANT] or [
        alike[name] for name in difflib.get_close_matches(word.casefold(), list(alike), n=1, cutoff=0.5)
    ]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def exit_code(main: Callable[[], int | None]) -> int:
    """Run a command; turn an `EarlyEnd` into one line on stderr and its exit code.

    So does what a file system says of a name that was given: that it may not be read, is too long, or on a full disk.
    Ctrl-C ends with 130, SIGTERM with 143 and SIGUSR2 with 140, as shells expect, after cleaning up, also where that
    fails; where nobody reads the output any more it is 141. Every other exception is ours to mend, and shows its
    traceback, in which secrets are masked too.
    """
    unwind_on_signals()
    take_any_text()
    try:
        try:
            return written(main) or ExitCode.DONE
        finally:
            die_on_signals()
    except EarlyEnd as end:
        _complain(end.line())
        signum = request_behind(end)
        return 128 + signum if signum else end.code
    except KeyboardInterrupt:
        _complain("interrupted: the same command goes on from here")
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001  (the interpreter would print it as it is, addresses and all)
        if isinstance(error, BrokenPipeError) and has_lost_reader():
            return ExitCode.READER_LEFT
        if signum := request_behind(error):
            what = f"{type(error).__name__}: {shown(str(error))}"
            _complain(f"stopped by {signal.Signals(signum).name}; not all could be cleaned up: {what}")
            return 128 + signum
        if isinstance(error, OSError) and error.errno in OF_A_NAME and error.filename:
            _complain(UserError(f"{error.filename}: {error.strerror}").line())
            return ExitCode.BAD_INPUT
        if isinstance(error, OSError) and error.errno in FULL:  # of a file that was open: the system names none
            _complain(UserError(f"{error.strerror}: make room, and the same command goes on").line())
            return ExitCode.BAD_INPUT
        _complain(shown_traceback().rstrip("\n"))
        return ExitCode.FAILED
    finally:
        discard_unwritable()


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody reads the errors, or the log is full: the exit code says it all the same
        print(text, file=sys.stderr)


def shown_traceback() -> str:
    """The traceback of the exception that is being handled, as it may be shown and written down."""
    return shown(traceback.format_exc())
