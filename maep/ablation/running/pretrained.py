"""Pretrained purifiers that several points have in common, such as those that differ in their finetuning alone.

run.cache/pretrained/KEY.json    the point that has trained it
point/pretrained_by.json         in a point that took it: from which point, and what the training took there
"""

import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maep.ablation.running.reuse import pretraining_key
from maep.ablation.spec.points import Point
from maep.config.schema import Settings
from maep.pipeline.stages import STAGES, Launcher
from maep.purifiers import read_purifier, save_purifier
from maep.runtime.console import say
from maep.storage.atomic import atomic_file, digest, problem_with, read_json, write_json

PRETRAIN = "pretrain"
TAKEN = "pretrained_by.json"
METRICS = "metrics.jsonl"


def by_pretraining(points: Iterable[Point]) -> dict[str, list[Point]]:
    """`{key: points}` of equal pretrained purifiers, in order: what one worker does, since one point trains for all."""
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        groups[pretraining_key(point.settings)[:16]].append(point)
    return dict(groups)


def sharing(launch: Launcher) -> Launcher:
    """`launch`, except that a pretraining which another point of the same cache has finished is taken from there."""

    def launch_or_take(name: str, settings: Settings) -> None:
        known, own = _known(settings), Path(settings.run.dir)
        trained = Path(settings.run.cache) / read_json(known)["point"] if known.is_file() else own
        if name != PRETRAIN or trained == own or not _is_there(trained):
            launch(name, settings)
        else:
            _take(trained, settings)
        if name == PRETRAIN and not (own / TAKEN).is_file():
            write_json(known, {"point": str(own.relative_to(settings.run.cache))})

    return launch_or_take


def _known(settings: Settings) -> Path:
    """Where it is written who has trained for these settings, images and pairs."""
    records = Path(settings.run.dir) / "stages"
    inputs = [read_json(records / f"{name}.json")["identity"] for name in STAGES[PRETRAIN].needs]
    return Path(settings.run.cache) / "pretrained" / f"{digest([pretraining_key(settings), *inputs])[:24]}.json"


def _is_there(trained: Path) -> bool:
    """Whether that point's pretraining is finished and its purifier whole."""
    record = trained / "stages" / f"{PRETRAIN}.json"
    if not record.is_file() or not read_json(record)["finished"]:
        return False
    problem = problem_with(trained / "purifier")
    if problem:
        say(f"warning: a pretrained purifier is passed over: {problem}")
    return problem is None


def _take(trained: Path, settings: Settings) -> None:
    own = Path(settings.run.dir)
    save_purifier(read_purifier(trained / "purifier"), settings.purify, own / "purifier")
    with atomic_file(own / METRICS) as temporary:
        shutil.copy(trained / METRICS, temporary)
    seconds = read_json(trained / "stages" / f"{PRETRAIN}.json")["seconds"]
    write_json(own / TAKEN, {"point": trained.name, "seconds": seconds})
    say(f"{PRETRAIN}: the same as that of {trained}, taken from there")


def pretrained_by(point: Point) -> dict[str, Any] | None:
    """From which point a point's pretrained purifier was taken, and the seconds of its training; None if its own."""
    path = point.directory / TAKEN
    return read_json(path) if path.is_file() else None
