"""Claims: workers on any number of nodes share units of work, and no two do the same one at a time.

    <directory>/UNIT.claim-0    a worker, named inside, has the unit; its time is refreshed as long as it lives
    <directory>/UNIT.claim-1    taken over from a worker that refreshed claim-0 no more

A claim is made with O_EXCL, and a takeover makes the next number, so of two takers one fails. The highest number
counts. Times are compared on the file system's clock, never on a host's; a claim from the future is as old as it is
far from now: that clock went back, and nobody has refreshed the claim since. A process that has ended on the same
machine is known to be dead at once; of a host of the same name nothing is known. A frozen worker that wakes up after a
takeover does its unit twice over: work that is claimed must be deterministic and committed atomically.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from maep.runtime.console import say
from maep.runtime.errors import UserError
from maep.runtime.plain_files import open_regular
from maep.runtime.process_identity import IDENTITY, has_ended, this_process
from maep.runtime.slurm_job import this_job
from maep.storage.atomic import remove_temporaries, temporary_name

REFRESHES = 4  # in a timeout: three may come late or fail before a living worker loses its unit
OWNER = re.compile(rf".*\[(?P<identity>{IDENTITY.pattern})\]", re.DOTALL)


def this_worker() -> str:
    """Host, process and job of this process, in words, and which of all processes it is."""
    job = this_job()
    named = f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")
    return f"{named} [{this_process()}]"


def _has_ended(owner: str | None) -> bool:
    """Whether an owner, as `this_worker` names it, was a process of this machine and is no more."""
    words = OWNER.fullmatch(owner or "")
    return words is not None and has_ended(words["identity"])


class Claims:
    """What one worker has claimed in a directory; a context manager that keeps its claims alive meanwhile.

    directory: on a file system that all workers share. timeout: seconds after which a claim that is not refreshed
    may be taken over, the same for all workers; it is refreshed four times as often. owner: text for `holder`.
    Raises UserError when the directory cannot be written.
    """

    def __init__(self, directory: Path, timeout: float, owner: str = "") -> None:
        self.directory, self.timeout, self.owner = directory, timeout, owner or this_worker()
        self._claimed: set[Path] = set()
        self._clock = temporary_name(directory / f"clock-{id(self)}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="claims", daemon=True)

    def __enter__(self) -> Self:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_temporaries(self.directory)
            self._clock.touch()
        except OSError as error:
            raise UserError(f"{self.directory}: cannot be written: {error.strerror}") from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for path in list(self._claimed):
            self._release(path)
        self._clock.unlink(missing_ok=True)

    @contextmanager
    def hold(self, unit: str) -> Iterator[bool]:
        """Yields whether this worker has the unit, until the block ends.

        unit: a file name. Look inside the block whether the unit is done: its last holder may have just finished.
        """
        path = self._take(unit)
        try:
            yield path is not None
        finally:
            if path is not None:
                self._release(path)

    def holder(self, unit: str) -> str | None:
        """Who has the unit, dead or alive; None if nobody has."""
        path = self._newest(unit)
        return self._text(path) if path else None

    def _text(self, claim: Path) -> str | None:
        with suppress(FileNotFoundError):
            return claim.read_text(encoding="utf-8", errors="replace")
        return None

    def shared(self, units: Sequence[str], is_done: Callable[[str], bool]) -> Iterator[str]:
        """Yields, in turn, the units that this worker is to do now; each is held until the next is asked for.

        Ends when every unit is done or held by a worker that was seen to refresh its claim, so after `timeout`
        at the latest when nothing is free. Units of dead workers are yielded too.
        """
        first_sights: dict[str, tuple[Path, float] | None] = {}
        remaining = list(units)
        while remaining:
            elsewhere = []
            for unit in remaining:
                if is_done(unit):
                    continue
                with self.hold(unit) as is_ours:
                    if not is_ours:
                        elsewhere.append(unit)
                    elif not is_done(unit):
                        yield unit
            sights = {unit: self._sight(unit) for unit in elsewhere}
            remaining = [
                u for u in elsewhere if sights[u] is None or sights[u] == first_sights.setdefault(u, sights[u])
            ]
            if remaining:
                time.sleep(self.timeout / REFRESHES / 2)  # twice a refresh: none is missed

    def _claims(self, unit: str) -> list[Path]:
        """All claims of a unit, the lowest number first."""
        prefix = f"{unit}.claim-"
        numbers = [name.removeprefix(prefix) for name in os.listdir(self.directory) if name.startswith(prefix)]
        return [self.directory / f"{prefix}{number}" for number in sorted(map(int, filter(str.isdecimal, numbers)))]

    def _newest(self, unit: str) -> Path | None:
        return next(reversed(self._claims(unit)), None)

    def _sight(self, unit: str) -> tuple[Path, float] | None:
        """The claim that counts and when it was refreshed; None if there is none."""
        path = self._newest(unit)
        if path is None:
            return None
        try:
            with open_regular(path) as file:  # opening makes a network file system ask for the file's present time
                return path, os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None

    def _take(self, unit: str) -> Path | None:
        sight = self._sight(unit)
        number = 0
        if sight is not None:
            if abs(self._file_system_time() - sight[1]) < self.timeout and not _has_ended(self._text(sight[0])):
                return None
            number = int(sight[0].name.rpartition("-")[2]) + 1
        path = self.directory / f"{unit}.claim-{number}"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self.owner)
        except FileExistsError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        if number:
            say(f"{unit}: taken over; its worker has ended or has not refreshed it for {self.timeout:.0f} s")
        self._claimed.add(path)
        if self._newest(unit) != path:  # this worker slept between looking and claiming, and others came and went
            self._release(path)
            return None
        return path

    def _release(self, path: Path) -> None:
        """Give a unit back: claims that it was taken over from go first, so that none of them counts again."""
        self._claimed.discard(path)
        unit, number = path.name.rsplit(".claim-", 1)
        for claim in self._claims(unit):
            if int(claim.name.rpartition("-")[2]) <= int(number):
                claim.unlink(missing_ok=True)

    def _file_system_time(self) -> float:
        """Now, on the clock that the claims' times are of."""
        self._clock.touch()
        return self._clock.stat().st_mtime

    def _refresh(self) -> None:
        while not self._ended.wait(self.timeout / REFRESHES):
            for path in list(self._claimed):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    self._claimed.discard(path)
                except OSError as error:
                    say(f"{path}: cannot be refreshed ({error.strerror}); others may take it over")
