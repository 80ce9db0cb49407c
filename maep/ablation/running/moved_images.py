"""Images that were moved, or lie at two places: a point that was finished with them there is taken over.

A point is named by all its settings, data.root among them. One that differs in nothing else, and whose shards are the
same, has the same results: its files are linked or copied, and its own report is made of them.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from maep.ablation.grid.points import as_point
from maep.ablation.running.pretrained import PRETRAINED_BY
from maep.config.schema import Settings
from maep.pipeline.execution import run_pipeline, unfinished_stages
from maep.pipeline.stage_records import read_stage_record
from maep.pipeline.stages import STAGES, Launcher
from maep.runtime.console import say
from maep.runtime.errors import UserError
from maep.storage.atomic import fsync, link_or_copy

OWN = ("shards", "report")  # stages that name the point and the place of its images
TAKING = ".taking"  # there while files are taken, so that what a killed process left is completed


def take_over_point(settings: Settings, launch: Launcher) -> None:
    """Put in a point's empty run directory what a finished point of the same images at another place has in its.

    settings: of the point, with its run directory. Makes its shards first, to know which images they are of.
    """
    run = Path(settings.run.dir)
    is_begun = any(path.stem != "shards" for path in run.glob("stages/*.json")) and not (run / TAKING).exists()
    others = [] if is_begun else list(_elsewhere(settings))
    if not others:
        return
    run_pipeline(settings, "shards", launch)
    for other in others:
        if _is_finished_with(_shards(run), other):
            _take(Path(other.run.dir), run)
            say(f"data.root={other.data.root}: the same images; results are taken from {other.run.dir}, finished there")
            return


def _shards(run: Path) -> str:
    """The identity of the shards that a run directory's shards stage has made."""
    record = read_stage_record(run, "shards")
    return record.identity if record else ""


def _is_finished_with(shards: str, other: Settings) -> bool:
    """Whether a point is whole and was made of these shards; one that cannot be read is passed over, with a warning."""
    try:
        return _shards(Path(other.run.dir)) == shards and not unfinished_stages(other)
    except UserError as error:
        say(f"warning: {other.run.dir} is passed over: {error}")
        return False


def _elsewhere(settings: Settings) -> Iterator[Settings]:
    """Those of points that differ from this one in data.root alone."""
    for root in _roots(Path(settings.run.dir).parent) - {settings.data.root}:
        other = as_point(replace(settings, data=replace(settings.data, root=root)))
        if (Path(other.run.dir) / "report.json").is_file():
            yield other


def _roots(points: Path) -> set[str]:
    """The places that points have taken their images from."""
    return {root for path in points.glob("*/stages/shards.json") if (root := _root(path.parents[1])) is not None}


@cache  # a sweep asks for each of its points; a point's place never changes
def _root(point: Path) -> str | None:
    try:
        record = read_stage_record(point, "shards")
    except UserError:  # it says nothing of where its images lay
        return None
    root = record.settings.get("data.root") if record else None
    return root if isinstance(root, str) else None


def _take(source: Path, run: Path) -> None:
    """Results first, then the records that tell of them."""
    (run / TAKING).touch()
    outputs = [name for stage in STAGES.values() for name in stage.outputs]
    for name in (*outputs, "evaluation", PRETRAINED_BY):
        _copy(source / name, run / name)
    for name in STAGES:
        if name not in OWN:
            _copy(source / "stages" / f"{name}.json", run / "stages" / f"{name}.json")
    (run / TAKING).unlink()


def _copy(source: Path, target: Path) -> None:
    """Tensors are linked, since they are never written over; the rest is copied, since logs are appended to."""
    if not source.exists() or target.exists():
        return
    temporary = target.with_name(f"{TAKING}-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, temporary, copy_function=_link_tensors)
    else:
        shutil.copy2(source, temporary)
    temporary.rename(target)
    fsync(target.parent)


def _link_tensors(source: str, target: str) -> None:
    (link_or_copy if source.endswith(".safetensors") else shutil.copy2)(source, target)
