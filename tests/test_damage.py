"""Files of a run, each damaged in every way: the same command repairs, makes again or names it, and no figure changes.

A deterministic sample runs always; `--slow` runs every file of a finished and of a half-finished run in every way.
"""

import json
import math
import os
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.evaluation.audit.findings import side_by_side
from maep.evaluation.reporting.report import read_results
from maep.pipeline.execution import run_pipeline
from maep.pipeline.stages import stages_of
from maep.runtime.errors import UserError
from maep.training.worker import run_training

CONFIG = "run/config.yaml"
SAMPLE = 40  # cases that run always: half a minute
NOBODY = 65534
READ_BY_REPORT = ("metrics", "environment.json", "config.yaml", "evaluation/")
# Fewer figures and chunks than the artefacts were made with, so that a case takes half a second.
SMALL = ["evaluation.attacks=[fgsm]", "evaluation.figure_images=1", "evaluation.purifiers=finetuned"]


def deleted(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(str(path.name)).randbytes(80))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """One bit of one byte; of text, in a digit, where another figure would come from."""
    data = bytearray(path.read_bytes())
    places = [place for place, byte in enumerate(data) if path.suffix != ".json" or chr(byte).isdigit()]
    if places:
        data[random.Random(str(path.name)).choice(places)] ^= 1
    path.write_bytes(bytes(data))


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def no_permission(path: Path) -> None:
    path.chmod(0)


def a_list(path: Path) -> None:
    path.write_text("[]\n")


def a_number(path: Path) -> None:
    path.write_text("7\n")


def wrong_types(path: Path) -> None:
    """Every entry of the JSON object, or of each line's, is of another type."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    path.write_text("\n".join(json.dumps(_otherwise(json.loads(line))) for line in lines) + "\n")


def _otherwise(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: (_otherwise if isinstance(item, dict) and item else _wrong)(item) for key, item in value.items()}
    return _wrong(value)


def _wrong(value: Any) -> Any:
    return {"x": None} if isinstance(value, str | list) else ["wrong"]


def newer(path: Path) -> None:
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "schema" if "schema" in entries else "format": 99}))


def older(path: Path) -> None:
    """As files were before they had a version."""
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in entries.items() if key not in ("schema", "format")}))


ANY = (deleted, empty, garbage, cut_in_half, flipped, a_directory, no_permission)
JSON = (a_list, a_number, wrong_types)


@dataclass(frozen=True)
class Case:
    """A file of a run, and what is done to it. state: of the run, `finished` or `half`."""

    state: str
    name: str
    damage: Callable[[Path], None]

    def __str__(self) -> str:
        return f"{self.state}:{self.name}:{self.damage.__name__}"


@cache
def base(state: str) -> Path:
    """A run made by this version with its cache, in a directory of its own: `run` and `cache`."""
    root = Path(tempfile.mkdtemp(prefix=f"damage-{state}-"))
    if state == "finished":
        with tarfile.open(Path(__file__).parent / "formats" / "0" / "artefacts.tar.gz") as archive:
            archive.extract(CONFIG, root, filter="data")
        run_pipeline(settings_in(root), "all", run_training)
        return root
    shutil.copytree(base("finished"), root, dirs_exist_ok=True)
    halve(root / "run")
    return root


def halve(run: Path) -> None:
    """As if the evaluation had been stopped after its first records."""
    for name in ("report", "evaluate"):
        (run / "stages" / f"{name}.json").unlink()
    shutil.rmtree(run / "figures")
    shutil.rmtree(next((run / "evaluation").glob("*/adaptive")))
    for name in ("report.json", "report.html"):
        (run / name).unlink()


def settings_in(root: Path) -> Settings:
    """Of the command that made the run; its words, not the file in the run, are the settings."""
    config = next(path for path in (root / "words.yaml", root / CONFIG) if path.exists())
    if config.name != "words.yaml":
        shutil.copy(config, root / "words.yaml")
    where = [f"run.dir={root}/run", f"run.cache={root}/cache", f"data.cache_dir={root}/cache/blocks"]
    return load_settings(str(root / "words.yaml"), [*SMALL, *where])


def damages() -> Iterator[Case]:
    """Every file of a finished and of a half-finished run in every way; what is no JSON is not given wrong types."""
    for state in ("finished", "half"):
        root = base(state)
        for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != "words.yaml"):
            name = str(path.relative_to(root))
            ways = ANY if path.suffix not in (".json", ".jsonl") else (*ANY, *JSON)
            for damage in (*ways, newer, older) if path.suffix == ".json" else ways:
                yield Case(state, name, damage)


def figures(root: Path) -> list[dict[str, Any]]:
    """The rows of the report, or those it would have, without what depends on the clock and on where it lies."""
    report, settings = root / "run" / "report.json", settings_in(root)
    if report.exists():
        rows = json.loads(report.read_text())["results"]
    else:
        results = read_results(settings, root / "run" / "evaluation")
        rows = json.loads(json.dumps([row.result.to_json() for row in side_by_side(results)]))
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def run_again(case: "Case", settings: Settings) -> None:
    """The same command; of a half-finished run, without the report's figures unless the file is one that it reads."""
    if case.state == "finished" or any(name in case.name for name in READ_BY_REPORT):
        run_pipeline(settings, "all", run_training)
        return
    for stage in stages_of(settings)[:-1]:
        run_pipeline(settings, stage, run_training)


def same(first: Any, second: Any) -> bool:
    """Equal; numbers to six digits, as another batch may add up in another order."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-6)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@contextmanager
def without_privileges(root: Path) -> Iterator[None]:
    """Root may read every file; so it becomes nobody, to whom all is given."""
    if os.geteuid() != 0:
        yield
        return
    for path in (root, *root.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _named(case: Case, message: str) -> str:
    assert "\n" not in message, case
    assert len(message) > 20, case
    return "named"


def outcome(case: Case) -> str:
    """What the same command does: `kept`, `made again` or `named`. Fails for another figure or an untidy message."""
    with tempfile.TemporaryDirectory(prefix="damaged-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        shutil.copytree(base(case.state), root, dirs_exist_ok=True)
        report = root / "run" / "report.json"
        case.damage(root / case.name)
        before = report.stat().st_mtime_ns if report.is_file() else 0
        try:
            with without_privileges(root):
                run_again(case, settings_in(root))
        except UserError as error:
            return _named(case, str(error))
        assert same(figures(root), figures(base("finished"))), case
        for name in ("report.html", "figures/accuracy.png") if report.exists() else ():
            assert (root / "run" / name).stat().st_size > 1000, case
        return "kept" if report.exists() and report.stat().st_mtime_ns == before else "made again"


def test_a_damaged_file_changes_no_figure() -> None:
    """A sample of every file and every way, the same in every run."""
    cases = list(damages())
    outcomes = {str(case): outcome(case) for case in random.Random(0).sample(cases, SAMPLE)}
    assert set(outcomes.values()) == {"kept", "made again", "named"}


@pytest.mark.slow
def test_no_damaged_file_changes_a_figure() -> None:
    """All of them."""
    for case in damages():
        outcome(case)
