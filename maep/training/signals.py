"""Preemption: a signal only sets a flag; the loop looks at it between steps.

A process has one handler a signal, which Python keeps; the flag that it sets is asked from there (`_installed_flag`),
so no second record of it can disagree.
"""

import signal
import time
from types import FrameType

from maep.runtime.unwinding import AT_ONCE, SIGNALS, unblock_signals


class StopFlag:
    """Remembers SIGTERM, SIGUSR2 or SIGINT while in context; a SIGINT some time after one of them interrupts at once.

    `signum` is 0 until a signal comes. Where the process has a flag already, as after `arm`, the context gives that.
    A signal that nobody acted on, as in the last step, is made again for the handler before, when the context ends.
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

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        if self._previous and self.signum and error is None:
            signal.raise_signal(self.signum)

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
        unblock_signals()
    return flag
