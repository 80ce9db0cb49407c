"""Work that a process of its own does for as long as it is asked to: measured beside others in turn, or at once."""

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from maep.runtime.errors import fail
from maep.runtime.exits import ExitCode

ANSWER = "bench: "  # begins the lines that are meant for the parent
READY = "ready"
WARM_UP = 4  # rounds that are not counted: glibc's malloc takes tens of steps to learn which freed blocks to keep
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class MeasuredProcess:
    """A process that answers requests as `answer` does. As a context it ends when the context does.

    command: the process. It loads what it needs, and says when it is ready.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its input, upon which it ends

    def wait_until_ready(self) -> None:
        """Return when it has loaded what it needs. Raises RuntimeError if it ended instead."""
        self._answer()

    def ask(self, seconds: float, clock: str) -> None:
        """Let it work for `seconds`, once at least. clock: `wall`, or `cpu` for its own seconds of CPU."""
        assert self._process.stdin
        self._process.stdin.write(f"{seconds} {clock}\n")
        self._process.stdin.flush()

    def rate(self) -> float:
        """Items a second of what it was last asked."""
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return line.removeprefix(ANSWER).strip()
        code = self._process.wait()
        if code == ExitCode.BAD_INPUT:
            fail("bench: a process to be measured refused its input; its message is above")
        raise RuntimeError(f"a process to be measured ended with {code}; its message is above")


def answer(work: Callable[[], object], items: int, requests: Iterable[str]) -> None:
    """Be a measured process: do `work` once, say that all is ready; then for each request say how fast it went.

    items: done by one call of `work`. requests: lines of seconds and clock, until there are no more.
    """
    work()
    print(f"{ANSWER}{READY}", flush=True)
    for request in requests:
        seconds, clock = request.split()
        now, times = CLOCKS[clock], 0
        started = now()
        while now() - started < float(seconds) or not times:
            work()
            times += 1
        print(f"{ANSWER}{times * items / (now() - started)}", flush=True)


def in_turn(processes: Sequence[MeasuredProcess], seconds: float, rounds: int) -> list[list[float]]:
    """Rates of each process by round, in items per second of its own CPU, each measured while the others rest.

    What else runs on the machine then hits all of them alike. The first rounds (WARM_UP) are not counted.
    """
    for process in processes:
        process.wait_until_ready()
    rates: list[list[float]] = [[] for _ in processes]
    for _ in range(WARM_UP + rounds):
        for process, own in zip(processes, rates, strict=True):
            process.ask(seconds, "cpu")
            own.append(process.rate())
    return [own[WARM_UP:] for own in rates]
