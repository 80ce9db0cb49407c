"""Preemption: a signal only sets a flag; the loop looks at it between steps.

A process has one handler a signal, which Python keeps; the flag that it sets is asked from there (`_installed_flag`),
so no second record of it can disagree.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds: a terminal sends Ctrl-C to every process of a command, and the launcher passes its own on to the others. What
# comes so soon is the same Ctrl-C; a person who wants no save presses it again later.
AT_ONCE = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Keep back SIGTERM, SIGUSR2 and SIGINT meanwhile; processes started meanwhile get theirs when they `arm`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unwind_on_signals() -> None:
    """From now on signals end the work at once: what is finished is on disk, claims are given back on the way out.

    For a process of a stage whose work is shared out. Signals that were blocked at its start arrive now.
    """

    def unwind(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    for signum in SIGNALS:
        signal.signal(signum, unwind)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class StopFlag:
    """Remembers SIGTERM, SIGUSR2 or SIGINT while in context; a SIGINT some time after one of them interrupts at once.

    `signum` is 0 until a signal comes. Where the process has a flag already, as after `arm`, the context gives that.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._since: float | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopFlag":
        flag = _installed_flag() or self
        if flag is self:
            self._install()
        return flag

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _install(self) -> None:
        for signum in SIGNALS:
            self._previous[signum] = signal.signal(signum, self._receive)

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT and self.remaining(AT_ONCE) == 0:
            raise KeyboardInterrupt
        self.signum = signum
        self.remaining(0)

    def remaining(self, grace: float) -> float:
        """Seconds left of `grace` since the signal came, or since this was first asked where another rank got it."""
        if self._since is None:
            self._since = time.monotonic()
        return max(0.0, self._since + grace - time.monotonic())


def _installed_flag() -> StopFlag | None:
    """The flag that this process's handler of SIGTERM sets; None where another handler is installed."""
    flag = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return flag if isinstance(flag, StopFlag) else None


def arm() -> StopFlag:
    """From now to the end of the process, signals only set the flag that this returns and every context gives.

    A rank of a job calls it first, so that a signal during imports or joining is not lost: the ranks agree on it
    before their first step. Signals that the launcher blocked at the start (`hold_signals`) arrive now.
    """
    flag = _installed_flag()
    if flag is None:
        flag = StopFlag()
        flag._install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return flag
