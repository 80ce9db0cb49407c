"""What is known of a point: `point.json` beside its run, written by whoever runs it, read by every sweep.

A point may run in several sweeps, or in tasks of an array, at different times; so a sweep collects these files
rather than remembering anything itself.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maep.ablation.spec.points import Point
from maep.config.schema import Settings
from maep.pipeline.stages import unfinished_stages
from maep.storage.atomic import read_json, write_json

RECORD = "point.json"


@dataclass
class PointRecord:
    """state: running, paused at a rung, interrupted, failed or finished; reason: of a failure.

    seconds: over all its lives. attacked: `{path in run.cache: time}` of the shards of training images and the chunks
    of test images that were attacked while it ran, under `training` and `test`.
    """

    state: str = "waiting"
    reason: str = ""
    seconds: float = 0.0
    attacked: dict[str, dict[str, int]] = field(default_factory=lambda: {"training": {}, "test": {}})

    def write(self, point: Point) -> None:
        """Commit it beside the point's run."""
        write_json(point.directory / RECORD, asdict(self))


def read_record(point: Point) -> PointRecord:
    """A point's record; a point that never ran is waiting."""
    path = point.directory / RECORD
    return PointRecord(**read_json(path)) if path.is_file() else PointRecord()


def has_failed(point: Point, since: float = 0.0) -> bool:
    """Whether the point's last run ended in an error, after that time."""
    return read_record(point).state == "failed" and (point.directory / RECORD).stat().st_mtime >= since


def is_finished(point: Point) -> bool:
    """Whether every stage of the point is finished and whole, whichever sweep or command ran it."""
    return (point.directory / "report.json").is_file() and not unfinished_stages(point.settings)


def attacked_files(settings: Settings) -> dict[str, dict[str, int]]:
    """`{path in run.cache: time in ns}` of every finished piece of attack work, by training and test."""
    cache = Path(settings.run.cache)
    patterns = {"training": "adversarial/*/*.attack.json", "test": "attacked/*/*.safetensors"}
    return {
        kind: {
            str(path.relative_to(cache)): path.stat().st_mtime_ns
            for path in sorted(cache.glob(pattern))
            if not path.name.endswith(".partial.safetensors") and not path.name.startswith(".")
        }
        for kind, pattern in patterns.items()
    }


def attacks_since(before: dict[str, dict[str, int]], settings: Settings) -> dict[str, dict[str, int]]:
    """The pieces made, or made again, since `attacked_files` gave `before`."""
    return {
        kind: {path: time for path, time in now.items() if before[kind].get(path) != time}
        for kind, now in attacked_files(settings).items()
    }


def stage_seconds(point: Point) -> dict[str, float]:
    """`{stage: seconds}` of a point's finished stages."""
    return {name: record["seconds"] for name, record in _stage_records(point).items() if record["finished"]}


def recorded_seconds(point: Point) -> dict[str, float]:
    """`{stage: seconds}` of a point's stages as far as they are, over all their lives, and of its rungs'."""
    own = {name: record["seconds"] for name, record in _stage_records(point).items()}
    rungs = point.directory.glob("rungs/*/stages/*.json")
    return own | {f"{path.parts[-3]}/{path.stem}": read_json(path)["seconds"] for path in rungs}


def _stage_records(point: Point) -> dict[str, Any]:
    return {path.stem: read_json(path) for path in (point.directory / "stages").glob("*.json")}
