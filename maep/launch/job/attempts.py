"""How the attempts of a job ended: what ranks write when they do not end well, and what was decided about it.

    <exits>/attempt-000-rank-0002.json   a `RankExit`: rank, node, kind, code, error, traceback, time
    <exits>/attempts.jsonl               an `Attempt` a line: attempt, code, requeued, kind, reason, time

An attempt is one start of a job; each requeue begins another. In format 0, which had no version, an attempt was called
a life, and the files life-000-rank-0002.json and lives.jsonl; those are still read. Nothing but the standard library
and modules of ours that need no more: a batch script reads and writes these, in a fraction of a second.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from maep.runtime.errors import UserError
from maep.runtime.plain_files import read_bytes
from maep.runtime.slurm_job import this_job
from maep.storage.json_files import LIMIT, parse_json

FORMAT = 1
LOG, LOG_OF_FORMAT_0 = "attempts.jsonl", "lives.jsonl"
T = TypeVar("T")


class Outcome(StrEnum):
    """What kind of end an attempt, or one rank of it, came to."""

    FINISHED = "finished"
    STOPPED = "stopped"  # asked to, everything saved: requeued without limit
    PEER_LOST = "lost"  # another rank died or does not answer
    CRASHED = "crashed"  # an error of ours or the machine's: requeued a few times
    FINAL = "final"  # bad input, or a loss that is not finite: would end the same way again
    TAKEN_BY_SLURM = "taken"  # cancelled, or requeued by Slurm itself
    NODE_LOST = "node"  # requeued without limit


class DamagedRecord(ValueError):
    """A record that cannot be read; the message is one line that names the file and what is wrong."""


@dataclass(frozen=True)
class RankExit:
    """How a rank's attempt ended badly. code: its exit code. error: one line. time: seconds since 1970."""

    rank: int
    node: str
    kind: Outcome
    code: int
    error: str
    traceback: str
    time: float


@dataclass(frozen=True)
class Attempt:
    """What was decided at the end of an attempt. attempt: from 0. code: srun's. reason: in words, for people."""

    attempt: int
    code: int
    requeued: bool
    kind: Outcome
    reason: str
    time: float


def attempt_number() -> int:
    """Which attempt of the job this is, from 0."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def job_name() -> str:
    """The name of this job, which is one of Slurm's: see `this_job`."""
    return this_job() or os.environ["SLURM_JOB_ID"]


def write_exit(exits: Path, rank: int, node: str, kind: Outcome, code: int, error: str, traceback: str = "") -> Path:
    """Commit how a rank's present attempt ended. exits: the job's directory; made if it is missing."""
    path = exits / f"attempt-{attempt_number():03d}-rank-{rank:04d}.json"
    entries = {"format": FORMAT, **asdict(RankExit(rank, node, kind, code, error, traceback, time.time()))}
    temporary = path.with_name(f".tmp-{path.name}")
    exits.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(entries, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def write_attempt(exits: Path, code: int, requeued: bool, kind: Outcome, reason: str) -> None:
    """Add what was decided at the end of the present attempt; one line, written at once."""
    exits.mkdir(parents=True, exist_ok=True)
    record = Attempt(attempt_number(), code, requeued, kind, reason, time.time())
    line = json.dumps({"format": FORMAT, **asdict(record)}) + "\n"
    with (exits / LOG).open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def warn(message: str) -> None:
    """Say on stderr which record is passed over; a batch script keeps that in its log."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def read_exits(
    exits: Path, attempt: int | None = None, damaged: Callable[[str], object] = warn
) -> list[tuple[Path, RankExit]]:
    """(path, exit) of the ranks that ended badly, in one attempt or all, in order.

    damaged: called with one line for each record that cannot be read, which is then passed over.
    """
    number = "*" if attempt is None else f"{attempt:03d}"
    paths = [*exits.glob(f"attempt-{number}-rank-*.json"), *exits.glob(f"life-{number}-rank-*.json")]
    records = []
    for path in sorted(paths):
        try:
            records.append((path, _record(RankExit, _entries(read_bytes(path, LIMIT), path), path)))
        except (UserError, DamagedRecord) as error:
            damaged(str(error))
    return records


def read_attempts(exits: Path, damaged: Callable[[str], object] = warn) -> list[Attempt]:
    """Every attempt that ended with a decision, in order.

    damaged: as in `read_exits`, for a line. A last line cut short by a power loss is left out without a word.
    """
    return [attempt for name in (LOG_OF_FORMAT_0, LOG) for attempt in _attempts(exits / name, damaged)]


def _attempts(path: Path, damaged: Callable[[str], object]) -> Iterator[Attempt]:
    try:
        lines = read_bytes(path, LIMIT).splitlines(keepends=True) if path.exists() else []
    except UserError as error:
        damaged(str(error))
        return
    for number, line in enumerate(lines, 1):
        source = f"{path}, line {number}"
        try:
            entries = _entries(line, source)
            if "life" in entries:
                entries = {**entries, "attempt": entries["life"]}
            yield _record(Attempt, entries, source)
        except (UserError, DamagedRecord) as error:
            if line.endswith(b"\n"):
                damaged(str(error))


def _entries(text: bytes, source: Path | str) -> Mapping[str, object]:
    """A record's entries. Raises DamagedRecord, also for a newer format, and UserError for what is no JSON."""
    entries = parse_json(text, source)
    if not isinstance(entries, dict):
        raise DamagedRecord(f"{source}: expected a JSON object")
    version = entries.get("format", 0)
    if not isinstance(version, int) or version > FORMAT:
        raise DamagedRecord(f"{source}: format {version}; this version of maep reads up to {FORMAT}: update maep")
    return entries


def _record(record: type[T], entries: Mapping[str, object], source: Path | str) -> T:
    """A dataclass from its entries. Raises DamagedRecord naming an entry that is missing or of another type."""
    values: dict[str, object] = {}
    for item in fields(record):  # type: ignore[arg-type]
        value, kind = entries.get(item.name), item.type
        if kind is Outcome and value in list(Outcome):
            values[item.name] = Outcome(str(value))
        elif type(value) is kind or (kind is float and type(value) is int):
            values[item.name] = value
        else:
            expected = f"one of {', '.join(Outcome)}" if kind is Outcome else getattr(kind, "__name__", kind)
            raise DamagedRecord(f"{source}: {item.name}={value!r}: expected {expected}")
    return record(**values)
