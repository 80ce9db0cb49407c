"""Signals that ask a process to end: SIGTERM, SIGUSR2 and SIGINT, at whatever moment they come.

Their handler raises in the middle of anything, so that pools end their workers and temporary files go. Python drops
what is raised in a destructor or in a weak reference's callback, of which imports make thousands: the signal is then
sent again. A training sets a flag instead (`maep.training.signals`).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
CODES = {128 + signum: signum for signum in SIGNALS}
# Seconds: a terminal sends Ctrl-C to every process of a command, and the launcher passes its own on to the others. What
# comes so soon is the same request; a person who does not want to wait for its end makes it again later.
AT_ONCE = 0.5
SOON = 0.02  # seconds, after which a dropped request is made again: the callback that it came in has returned by then


@contextmanager
def hold_signals() -> Iterator[None]:
    """Block SIGTERM, SIGUSR2 and SIGINT meanwhile for processes started meanwhile, until they `unblock_signals`.

    Before, they could do nothing but die in the middle of their imports, with a traceback. This process has no
    protection: another thread of it takes the signals, and its main thread handles them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    """Signals that were blocked at the start (`hold_signals`) arrive now, and later ones at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def unwind_on_signals(interrupted: Callable[[], BaseException] = KeyboardInterrupt) -> None:
    """From now on signals end the work at once: SystemExit(128 + signum), and what `interrupted` makes for a Ctrl-C.

    A request that is repeated within AT_ONCE is one, so that it does not interrupt its own cleaning up. SIGINT stays
    ignored where it is, as in what a script runs in the background.
    """
    unwinding = _Unwinding(interrupted)
    for signum in SIGNALS:
        if signum != signal.SIGINT or signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, unwinding.receive)
    sys.unraisablehook = unwinding.send_again


def unwind_for_launcher() -> None:
    """The same in a process that a launcher started with signals blocked: the launcher says a Ctrl-C, once, for all."""
    unwind_on_signals(lambda: SystemExit(128 + signal.SIGINT))
    unblock_signals()


def die_on_signals() -> None:
    """From now on signals kill: all is cleaned up, and the interpreter's own end would complain of them."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def request_behind(error: BaseException | None) -> int:
    """The signal that an exception stands for, or that was being unwound for when it was raised; 0 if none."""
    while error is not None:
        if signum := _request(error):
            return signum
        error = error.__context__
    return 0


def _request(error: BaseException | None) -> int:
    """The signal that an exception itself stands for; 0 if none."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    if isinstance(error, SystemExit) and error.code in CODES:
        return CODES[error.code]
    return int(getattr(error, "signum", 0))  # of Stopped, in maep.runtime.errors


class _Unwinding:
    """What a process's handlers know of the last request."""

    def __init__(self, interrupted: Callable[[], BaseException]) -> None:
        self._interrupted, self._since = interrupted, -AT_ONCE
        self._hook = sys.unraisablehook

    def receive(self, signum: int, _frame: object) -> None:
        """The handler."""
        now = time.monotonic()
        if now - self._since < AT_ONCE:
            return
        self._since = now
        raise self._interrupted() if signum == signal.SIGINT else SystemExit(128 + signum)

    def send_again(self, unraisable: Any) -> None:
        """The interpreter's hook for what it drops."""
        signum = _request(unraisable.exc_value)  # itself: what fails while a request is unwound for drops none
        if not signum:
            self._hook(unraisable)
            return
        self._since = -AT_ONCE
        threading.Timer(SOON, os.kill, (os.getpid(), signum)).start()
