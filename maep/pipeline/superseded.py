"""Results of other settings: moved aside, put back when their settings are, and the longer training that goes on.

run.dir/superseded/pretrain-1a2b3c4d/
    stage.json                      the stage's record; older ones have none, and their name alone tells
    checkpoints/ purifier/ …        what the stage had left in run.dir
"""

import shutil
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from maep.config.schema import Settings
from maep.pipeline.stage_records import Reason, StageRecord, Why, changes
from maep.pipeline.stages import Stage
from maep.runtime.console import say
from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import link_or_copy
from maep.training.schedule import total_steps

RECORD = "stage.json"
# What a training that goes on needs of its outputs, by how their names begin; the others are its finished result.
GOES_ON_WITH = ("checkpoints", "metrics", "tensorboard", "samples")


def set_aside(stage: Stage, run: Path, record: StageRecord) -> None:
    """Move a stage's outputs to run.dir/superseded/, with their record, so that nothing is lost."""
    outputs = [name for name in stage.outputs if (run / name).exists()]
    if not outputs:
        return
    folder = _free_folder(stage, run, record, outputs)
    folder.mkdir(parents=True, exist_ok=True)
    record.write(folder / RECORD)
    for name in outputs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).rename(folder / name)
        say(f"{stage.name}: {name} moved to {folder / name}")


def copy_aside(stage: Stage, run: Path, record: StageRecord) -> None:
    """As `set_aside`, and the outputs stay; checkpoints, which nobody writes into, are linked instead of copied."""
    if any(_record_in(folder) == record for folder in _folders(stage, run)):
        return  # killed after this
    outputs = [name for name in stage.outputs if (run / name).exists()]
    folder = _free_folder(stage, run, record, outputs)
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name in outputs:
            _copy(run / name, temporary / name)
        record.write(temporary / RECORD)
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        fail(f"{folder}: the result so far cannot be kept there: {error.strerror or error}")
    say(f"{stage.name}: the result so far is kept in {folder}")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copy2(source, target)
    else:
        shutil.copytree(
            source, target, copy_function=link_or_copy if source.name.startswith("checkpoints") else shutil.copy2
        )


def drop_result(stage: Stage, run: Path) -> None:
    """Remove the finished result of a training that goes on; it has been copied aside."""
    for name in stage.outputs:
        if not name.startswith(GOES_ON_WITH):
            shutil.rmtree(run / name, ignore_errors=True)


def earlier_result(stage: Stage, settings: Settings, present: StageRecord) -> Path | None:
    """The folder in superseded/ with what the stage made for the settings and inputs that are set again.

    present: its record as it would begin. The newest finished one, else the newest.
    """
    fitting = []
    for folder in _folders(stage, Path(settings.run.dir)):
        record = _record_in(folder)
        if record is None:
            fits = not (folder / RECORD).exists() and folder.name == _folder_name(stage, present)
        else:
            fits = not changes(record, present, settings, stage.name)
        if fits:
            fitting.append((record is not None and record.finished, folder.stat().st_mtime, folder))
    return max(fitting)[-1] if fitting else None


def put_back(stage: Stage, run: Path, folder: Path) -> StageRecord | None:
    """Move what lies in a folder of superseded/ back into run.dir; returns its record, if it has one."""
    record = _record_in(folder)
    for name in stage.outputs:
        if (folder / name).exists() and not (run / name).exists():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(run / name)
            say(f"{stage.name}: {name} put back from {folder}")
    if not any((folder / name).exists() for name in stage.outputs):
        shutil.rmtree(folder)
    return record


def step_to_go_on_from(stage: Stage, settings: Settings, differences: Sequence[Reason]) -> int:
    """The step of the newest checkpoint if all that differs is that the training is longer; 0 if it cannot go on."""
    if not is_of_another_length(stage, differences):
        return 0
    from maep.training.checkpointing.directory import checkpoints, step_of

    saved = checkpoints(Path(settings.run.dir) / stage.outputs[0]) if stage.outputs else []
    return step_of(saved[-1]) if saved and step_of(saved[-1]) < steps_of(stage.name, settings) else 0


def is_of_another_length(stage: Stage, differences: Sequence[Reason]) -> bool:
    """Whether all that differs is how long the training is."""
    lengths = (f"{stage.name}.steps", f"{stage.name}.epochs")
    return all(reason.why == Why.SETTING_CHANGED and reason.subject in lengths for reason in differences)


def steps_of(training: str, settings: Settings) -> int:
    """Optimizer steps of `pretrain` or `finetune`."""
    train = settings.finetune if training == "finetune" else settings.pretrain
    if train.steps:
        return train.steps
    from maep.training.inputs import finetuning_pairs, own_pairs

    pairs = finetuning_pairs(settings) if training == "finetune" else own_pairs(settings, settings.pretrain)
    return total_steps(train, pairs.count)


def _folder_name(stage: Stage, record: StageRecord) -> str:
    return f"{stage.name}-{digest([record.settings, record.inputs])[:8]}"


def _folders(stage: Stage, run: Path) -> list[Path]:
    return [path for path in sorted((run / "superseded").glob(f"{stage.name}-*")) if path.is_dir()]


def _free_folder(stage: Stage, run: Path, record: StageRecord, outputs: Sequence[str]) -> Path:
    """Where none of the outputs lies yet: results of the same settings may differ in how they were reached."""
    name = _folder_name(stage, record)
    numbered: Iterator[str] = (name if number == 1 else f"{name}-{number}" for number in count(1))
    folders = (run / "superseded" / text for text in numbered)
    return next(folder for folder in folders if not any((folder / output).exists() for output in outputs))


def _record_in(folder: Path) -> StageRecord | None:
    try:
        return StageRecord.read(folder / RECORD) if (folder / RECORD).is_file() else None
    except UserError as error:
        say(f"warning: passed over: {error}")
        return None
