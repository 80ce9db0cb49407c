"""The code that the jobs of a run execute: a copy in `run.dir/code/HASH`, so that an edited checkout changes none.

    code/HASH/maep/…  configs/…  launch/…  shards/…  pyproject.toml     of a checkout
    code/HASH/maep/…  (with maep/configs/…)                            of an installed package
    code/HASH/manifest.json                                            every file's size and SHA-256, the git commit

A run goes on with the code it began with. Other code is refused, unless it is allowed.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from maep.evaluation.reporting.provenance import git_state
from maep.runtime.console import say
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.atomic import sha256_file
from maep.storage.manifests import StampedManifest
from maep.storage.sealed import MANIFEST, atomic_directory, file_entries, problem_with

# The directory that holds the package: a checkout, or site-packages, where everything else is somebody else's.
ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "maep"
PARTS_OF_CHECKOUT = (PACKAGE, "launch", "shards", "configs", "pyproject.toml")
SUFFIXES = (".py", ".yaml", ".html", ".toml")
SHOWN = 3  # changed files in a message, so that it stays a line


@dataclass(frozen=True, kw_only=True)
class CodeManifest(StampedManifest):
    """Of a copy of the code. commit: of git, None outside a checkout; dirty: whether files differed from it."""

    kind: str = "code"
    commit: str | None = None
    dirty: bool | None = None


def code_files(root: Path = ROOT) -> dict[str, str]:
    """`{relative name: SHA-256}` of every file that the jobs may need.

    root: a checkout, or the directory that the package was installed into; there the configurations lie inside it.
    """
    is_installed = (root / PACKAGE / "configs").is_dir()
    parts = (PACKAGE,) if is_installed else PARTS_OF_CHECKOUT
    paths = [path for part in parts for path in (root / part, *(root / part).rglob("*"))]
    sources = sorted(path for path in paths if path.is_file() and path.suffix in SUFFIXES)
    return {str(path.relative_to(root)): sha256_file(path) for path in sources}


def copy_path(run: Path, root: Path = ROOT) -> Path:
    """Where the copy of this code lies in the run directory, or will."""
    return run / "code" / digest(code_files(root))[:16]


def copy_code(run: Path, root: Path = ROOT) -> Path:
    """The copy of this code in the run directory, made unless it is there and whole."""
    files, copy = code_files(root), copy_path(run, root)
    if problem_with(copy) is None:
        return copy
    commit, dirty = git_state(root)
    with atomic_directory(copy, CodeManifest(commit=commit, dirty=dirty)) as temporary:
        for name in files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, temporary / name)
        if {name: entry.sha256 for name, entry in file_entries(temporary).items()} != files:
            fail(f"{root}: its files change while they are copied; submit again when they do not")
    return copy


def check_code(run: Path, *, allowed: bool, root: Path = ROOT) -> None:
    """Refuse code that differs from what the run's jobs were last given; say so when it is `allowed`."""
    last = last_copy(run)
    if last is None:
        return
    before = {name: entry.sha256 for name, entry in CodeManifest.read(last / MANIFEST).files.items()}
    after = code_files(root)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if not changed:
        return
    others = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    difference = f"the code differs from what this run began with ({', '.join(changed[:SHOWN])}{others}; {last})"
    if not allowed:
        fail(f"run.dir={run}: {difference}; go on with --allow-code-change, or choose another run.dir")
    say(f"{difference}; goes on with the changed code (--allow-code-change)")


def last_copy(run: Path) -> Path | None:
    """The code that was last given to jobs of the run; None before the first."""
    copies = [path.parent for path in (run / "code").glob(f"*/{MANIFEST}")]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def mark_as_last(copy: Path) -> None:
    """Note that jobs were given this code."""
    os.utime(copy)
