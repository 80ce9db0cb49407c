"""How the lives of a job ended: what ranks write when they do not end well, and what was decided about it.

    <directory>/life-000-rank-0002.json   {"rank", "node", "kind", "code", "error", "traceback", "time"}
    <directory>/lives.jsonl               one object a life: {"life", "code", "requeued", "kind", "reason", "time"}

A life is one start of a job; each requeue begins another. Only the standard library: a batch script reads and
writes these where nothing else may be imported.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

STOPPED = "stopped"  # asked to, everything saved: begins again without limit
LOST = "lost"  # another rank died or does not answer
CRASHED = "crashed"  # an error of ours or the machine's: begins again a few times
FINAL = "final"  # bad input, or a loss that is not finite: would end the same way again
WELL = "finished"
TAKEN = "taken"  # cancelled, or requeued by Slurm itself
NODE = "node"  # a node was lost: begins again without limit


def life_now() -> int:
    """Which life of the job this is, from 0."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def job_now() -> str:
    """The job's id as people write it: 123, or 123_4 for a worker of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def write_end(directory: Path, rank: int, node: str, kind: str, code: int, error: str, traceback: str = "") -> Path:
    """Commit how a rank's present life ended."""
    path = directory / f"life-{life_now():03d}-rank-{rank:04d}.json"
    facts = {"rank": rank, "node": node, "kind": kind, "code": code, "error": error, "traceback": traceback}
    temporary = path.with_name(f".tmp-{path.name}")
    directory.mkdir(parents=True, exist_ok=True)
    with temporary.open("w") as file:
        json.dump({**facts, "time": time.time()}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def read_ends(directory: Path, life: int | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """(path, facts) of the ranks that ended badly, in one life or all, in order."""
    pattern = "life-*-rank-*.json" if life is None else f"life-{life:03d}-rank-*.json"
    return [(path, json.loads(path.read_text())) for path in sorted(directory.glob(pattern))]


def write_life(directory: Path, facts: dict[str, Any]) -> None:
    """Add what was decided at the end of a life; one line, written at once."""
    directory.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"life": life_now(), **facts, "time": time.time()}) + "\n"
    with (directory / "lives.jsonl").open("a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_lives(directory: Path) -> list[dict[str, Any]]:
    """Every life that ended with a decision, in order. A line cut short by a power loss is left out."""
    path, lives = directory / "lives.jsonl", []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lives.append(json.loads(line))
        except ValueError:
            continue
    return lives
