"""Preemption: a signal only sets a flag; the loop looks at it between steps."""

import signal
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Stopped(Exception):
    """Training ended early on request, with everything saved; `signum` says which signal asked.

    step: the last one done; -1 where only the processes that were started know it.
    """

    def __init__(self, signum: int, step: int) -> None:
        where = f" after step {step}" if step >= 0 else ""
        super().__init__(f"stopped by {signal.Signals(signum).name}{where}; the same command goes on from there")
        self.signum, self.step = signum, step


class StopFlag:
    """Remembers SIGTERM, SIGUSR2 or SIGINT while in context; a second SIGINT interrupts at once.

    `signum` is 0 until a signal comes.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for signum in SIGNALS:
            self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
