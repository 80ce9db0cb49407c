"""The code that the jobs of a run execute: a copy in `run.dir/code/HASH`, so that an edited checkout changes none.

A run goes on with the code it began with. Other code is refused, unless it is allowed.
"""

import os
import shutil
from pathlib import Path

from maep.evaluation.reporting.provenance import git_state
from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.storage.atomic import MANIFEST, atomic_directory, digest, manifest_of, problem_with, read_json, sha256_file

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("maep", "launch", "shards", "configs", "pyproject.toml")
SUFFIXES = (".py", ".yaml", ".html", ".toml")
SHOWN = 3


def code_files(root: Path = ROOT) -> dict[str, str]:
    """`{relative name: SHA-256}` of every file that the jobs may need."""
    found = [path for part in PARTS for path in (root / part, *(root / part).rglob("*"))]
    chosen = sorted(path for path in found if path.is_file() and path.suffix in SUFFIXES)
    return {str(path.relative_to(root)): sha256_file(path) for path in chosen}


def copy_path(run: Path, root: Path = ROOT) -> Path:
    """Where the copy of this checkout lies in the run directory, or will."""
    return run / "code" / digest(code_files(root))[:16]


def copy_code(run: Path, root: Path = ROOT) -> Path:
    """The copy of this checkout in the run directory, made unless it is there and whole."""
    files, place = code_files(root), copy_path(run, root)
    if problem_with(place) is None:
        return place
    commit, dirty = git_state(root)
    with atomic_directory(place, {"kind": "code", "commit": commit, "dirty": dirty}) as temporary:
        for name in files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, temporary / name)
        if {name: entry["sha256"] for name, entry in manifest_of(temporary).items()} != files:
            fail(f"{root}: its files change while they are copied; submit again when they do not")
    return place


def check_code(run: Path, *, allowed: bool, root: Path = ROOT) -> None:
    """Refuse code that differs from what the run's jobs were last given; say so when it is `allowed`."""
    before = last_copy(run)
    if before is None:
        return
    known = {name: entry["sha256"] for name, entry in read_json(before / MANIFEST)["files"].items()}
    now = code_files(root)
    changed = sorted(name for name in known.keys() | now.keys() if known.get(name) != now.get(name))
    if not changed:
        return
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    told = f"the code differs from what this run began with ({', '.join(changed[:SHOWN])}{more}; {before})"
    if not allowed:
        fail(f"run.dir={run}: {told}; go on with --allow-code-change, or choose another run.dir")
    say(f"{told}; goes on with the changed code (--allow-code-change)")


def last_copy(run: Path) -> Path | None:
    """The code that was last given to jobs of the run; None before the first."""
    copies = [path.parent for path in (run / "code").glob(f"*/{MANIFEST}")]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def mark_as_last(copy: Path) -> None:
    """Note that jobs were given this code."""
    os.utime(copy)
