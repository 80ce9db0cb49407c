"""Running stages: which have to run again, why, and the books that are kept of it.

The same identity is not run again; another one moves the old outputs in the run directory aside, says which setting
changed, and runs. A stage that is killed anywhere goes on from there: its record says that it has begun.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

from maep.config.identity import decisive_settings
from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.data.images.build import describe_source
from maep.evaluation.reporting.provenance import write_environment
from maep.pipeline.stage_records import (
    Reason,
    StageRecord,
    Why,
    changes,
    in_words,
    read_stage_record,
    record_path,
    unproven_files,
)
from maep.pipeline.stages import (
    JUDGING,
    SHARED,
    STAGES,
    Launcher,
    Stage,
    identity_of_given,
    needs_of,
    stages_of,
    wanted_stages,
)
from maep.pipeline.superseded import (
    copy_aside,
    drop_result,
    earlier_result,
    is_of_another_length,
    put_back,
    set_aside,
    step_to_go_on_from,
    steps_of,
)
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import atomic_file
from maep.storage.locks import Lock, one_at_a_time, run_lock

REASONS_SHOWN = 4  # so that a line stays a line; the rest of a changed section follows from these


def _record(settings: Settings, name: str) -> StageRecord | None:
    return read_stage_record(Path(settings.run.dir), name)


def _present(stage: Stage, settings: Settings, seconds: float = 0.0, *, finished: bool = False) -> StageRecord:
    """The stage's record for the settings and inputs of this run."""
    inputs = {}
    for name in needs_of(stage, settings):
        record = _record(settings, name)
        inputs[name] = record.identity if record else ""
    if stage.name in JUDGING and settings.evaluation.purifier:
        inputs["evaluation.purifier"] = identity_of_given(settings.evaluation.purifier)
    if stage.name == "evaluate" and settings.evaluation.twin:
        inputs["evaluation.twin"] = identity_of_given(settings.evaluation.twin)
    identity = stage.identity(settings) if finished else ""
    files = stage.digests(Path(settings.run.dir)) if finished else {}
    return StageRecord(decisive_settings(settings, stage.name), inputs, finished, identity, seconds, files)


def _changes(stage: Stage, settings: Settings, record: StageRecord) -> list[Reason]:
    return changes(record, _present(stage, settings), settings, stage.name)


def _is_whole(stage: Stage, settings: Settings, record: StageRecord) -> bool:
    """Whether the stage's result is still there, and still the one recorded."""
    try:
        files = stage.digests(Path(settings.run.dir))
        altered = [name for name, sha256 in record.files.items() if files.get(name) != sha256]
        if altered:
            say(f"{stage.name}: {altered[0]} is missing or altered")
        return not altered and stage.identity(settings) == record.identity
    except (UserError, OSError) as error:
        _say_once(f"{stage.name}: its result cannot be read ({error})")
        return False


@cache
def _say_once(line: str) -> None:
    """For what a hundred points of a sweep have in common."""
    say(line)


def _refuse_altered(stage: Stage, settings: Settings, record: StageRecord | None) -> None:
    """Raise UserError if what a finished stage would take over is not what it left and nothing else can tell.

    Which file it is, its digest in the stage's record says; a record from before there were any has one of them all.
    """
    if record is None or not record.finished:
        return
    run = Path(settings.run.dir)
    names = list(unproven_files(run, record, stage.kept))
    if altered := [name for name in names if name in record.files]:
        fail(
            f"{run / altered[0]}: altered since stage {stage.name} finished (its SHA-256 is not the recorded one); put "
            "it back, or remove it, and the same command makes it again"
        )
    if names and stage.identity(settings) != record.identity:
        fail(
            f"{run / names[0].split('/')[0]}: not all as it was when stage {stage.name} finished, and files without a "
            f"digest of their own, such as {names[0]}, may be what was altered; put them back, or remove the folder: "
            "the same command makes it again"
        )


def why_unfinished(stage: Stage, settings: Settings) -> list[Reason]:
    """Why a stage would run now; [] if it is finished for these settings and inputs, and whole."""
    record = _record(settings, stage.name)
    if record is None:
        return [Reason(Why.NOT_RUN)]
    reasons = _changes(stage, settings, record)
    if reasons or not record.finished:
        return reasons or [Reason(Why.STOPPED)]
    return [] if _is_whole(stage, settings, record) else [Reason(Why.RESULT_ALTERED)]


def unfinished_stages(settings: Settings) -> dict[str, list[Reason]]:
    """`{name: why}` of the stages that a run of the whole pipeline would run, in order."""
    unfinished: dict[str, list[Reason]] = {}
    for name in stages_of(settings):
        stage = STAGES[name]
        reasons = [Reason(Why.STAGE_BEFORE, need) for need in needs_of(stage, settings) if need in unfinished]
        reasons = reasons or why_unfinished(stage, settings)
        if reasons:
            unfinished[name] = reasons
    return unfinished


def describe(settings: Settings, wanted: str) -> list[str]:
    """What `run_pipeline` would do, a line each; writes nothing.

    Of the shards stage, what was understood of the images; of several stages, also which would run, and why. Raises
    UserError as `run_pipeline`, but for what `check_inputs` finds.
    """
    names, unfinished = wanted_stages(settings, wanted), unfinished_stages(settings)
    lines = describe_source(settings) if wanted == "shards" or "shards" in unfinished.keys() & set(names) else []
    if wanted == "shards":
        return lines
    _require_finished(names[0], settings, unfinished)
    for name in names:
        idle = STAGES[name].idle(settings)
        why = f"would run: {in_words(unfinished[name], REASONS_SHOWN)}" if name in unfinished else "finished before"
        lines.append(f"{name}: {f'nothing to do, {idle}' if idle else why}")
    return lines


def _begin(stage: Stage, settings: Settings, reasons: list[Reason]) -> None:
    """Say why a stage runs, keep what it made for other settings, and write down that it has begun.

    What it once made for these settings is put back; a training that was only made longer goes on.
    """
    run, record = Path(settings.run.dir), _record(settings, stage.name)
    _refuse_altered(stage, settings, record)
    differences = _changes(stage, settings, record) if record else []
    if record is None or not differences:
        _say_why(stage, settings, reasons, resumes=record is not None and not record.finished)
        _write(stage, settings, record.seconds if record else 0.0)
        return
    earlier = earlier_result(stage, settings, _present(stage, settings))
    step = 0 if earlier else step_to_go_on_from(stage, settings, differences)
    if step:
        say(
            f"{stage.name}: {in_words(reasons, REASONS_SHOWN)}: continues from step {step} with a schedule of "
            f"{steps_of(stage.name, settings)} steps; its learning rate jumps to that schedule's, so it is not the "
            "result of a training of that length from its start"
        )
        copy_aside(stage, run, record)
        _write(stage, settings, record.seconds, continued=[*record.continued, step])
        drop_result(stage, run)
        return
    _say_why(stage, settings, reasons)
    if stage.anew and is_of_another_length(stage, differences):
        say(f"{stage.name}: a training of another length begins anew: {stage.anew}")
    set_aside(stage, run, record)
    _write(stage, settings, 0.0, continued=[])


def _put_back(stage: Stage, settings: Settings) -> bool:
    """Put back what the stage once made for these settings, if it is in superseded/; whether that is the result."""
    run, present = Path(settings.run.dir), _present(stage, settings)
    folder = earlier_result(stage, settings, present)
    if folder is None:
        return False
    earlier = put_back(stage, run, folder)
    if earlier is None:
        return False
    _write(stage, settings, earlier.seconds, continued=earlier.continued)
    if not earlier.finished or not _is_whole(stage, settings, earlier):
        return False
    _write(stage, settings, earlier.seconds, finished=True)
    return True


def _say_why(stage: Stage, settings: Settings, reasons: list[Reason], *, resumes: bool = False) -> None:
    idle, again = stage.idle(settings), [reason for reason in reasons if reason.why != Why.NOT_RUN]
    how = " on, from where it was stopped" if resumes else f" again: {in_words(again, REASONS_SHOWN)}" if again else ""
    say(f"{stage.name}: {f'nothing to do, {idle}' if idle else f'runs{how}'}")


def _write(
    stage: Stage, settings: Settings, seconds: float, *, finished: bool = False, continued: list[int] | None = None
) -> None:
    """Commit the stage's record. continued: as in the record; None: as it was."""
    if continued is None:
        record = _record(settings, stage.name)
        continued = record.continued if record else []
    present = replace(_present(stage, settings, seconds, finished=finished), continued=continued)
    present.write(record_path(Path(settings.run.dir), stage.name))


def _seconds(settings: Settings, name: str) -> float:
    """Spent on a stage so far."""
    record = _record(settings, name)
    return record.seconds if record else 0.0


def run_stage(
    stage: Stage,
    settings: Settings,
    launch: Launcher,
    lock: Lock | None = None,
    share_out: Launcher | None = None,
) -> None:
    """Run a stage unless it is finished for these settings and inputs; says what it does and why.

    lock: of the run directory; once a later attempt of the job has it, this one leaves the stage's record alone. With
    one, environment.json says what the stage runs on; it stays as it was where nothing runs. share_out: runs a stage
    whose work is shared out on several processes; what they leave is done here.
    """
    reasons = why_unfinished(stage, settings)
    if not reasons:
        say(f"{stage.name}: finished before ({_seconds(settings, stage.name):.0f} s)")
        return
    if lock is not None:
        write_environment(Path(settings.run.dir), sys.argv, settings.compute.device, settings.compute.threads)
    _begin(stage, settings, reasons)
    if _put_back(stage, settings):
        say(f"{stage.name}: finished before ({_seconds(settings, stage.name):.0f} s), with these settings")
        return
    started, before = time.monotonic(), _seconds(settings, stage.name)
    try:
        if not stage.idle(settings):
            if share_out and stage.share:
                share_out(stage.name, settings)
            stage.run(settings, launch)
    finally:
        seconds = before + time.monotonic() - started
        if lock is None or lock.is_held():
            _write(stage, settings, seconds)
    _write(stage, settings, seconds, finished=True)
    say(f"{stage.name}: finished ({seconds:.0f} s)")


def _nothing_to_launch(name: str, _settings: Settings) -> None:
    raise RuntimeError(f"{name}: an idle stage launches nothing")


def _require_needs(name: str, settings: Settings) -> None:
    """Raise UserError unless all that a stage needs is finished; needs without work to do are recorded here."""
    for need in needs_of(STAGES[name], settings):
        _require_needs(need, settings)
        stage, record = STAGES[need], _record(settings, need)
        reasons = _changes(stage, settings, record) if record else [Reason(Why.NOT_RUN)]
        if record and record.finished and not reasons:
            _refuse_altered(stage, settings, record)
            continue
        if stage.idle(settings):
            run_stage(stage, settings, _nothing_to_launch)
        else:
            _refuse(name, need, reasons or [Reason(Why.STOPPED)])


def _require_finished(name: str, settings: Settings, unfinished: Mapping[str, list[Reason]]) -> None:
    """As `_require_needs`, on paper."""
    for need in needs_of(STAGES[name], settings):
        _require_finished(need, settings, unfinished)
        if need in unfinished and not STAGES[need].idle(settings):
            _refuse(name, need, unfinished[need])


def _refuse(name: str, need: str, reasons: Sequence[Reason]) -> NoReturn:
    fail(f"stage={name}: needs stage {need}, not finished ({in_words(reasons, 2)}); run stage={need} or stage=all")


def work_on_stage(name: str, settings: Settings, worker: tuple[int, int] = (0, 1)) -> bool:
    """Do a share of a stage that any number of workers may work on; the run directory is not locked meanwhile.

    worker: (i, n), one of n. Whoever finds everything finished writes the stage's record. Returns whether it is
    finished. Raises UserError as `run_pipeline`, and if its work is not shared out.
    """
    wanted_stages(settings, name)
    stage = STAGES[name]
    if stage.share is None:
        fail(f"stage={name}: its work is not shared out; choose {' or '.join(SHARED)}")
    check_inputs([name], settings)
    records = record_path(Path(settings.run.dir), name).parent
    with one_at_a_time(records):
        _require_needs(name, settings)
        reasons = why_unfinished(stage, settings)
        if not reasons:
            say(f"{name}: finished before")
            return True
        if [reason.why for reason in reasons] != [Why.STOPPED]:
            _begin(stage, settings, reasons)
    started = time.monotonic()
    whole = stage.idle(settings) != "" or stage.share(settings, worker)
    with one_at_a_time(records):
        record = _record(settings, name)
        finished = whole or (record is not None and record.finished)
        _write(stage, settings, _seconds(settings, name) + time.monotonic() - started, finished=finished)
    say(f"{name}: worker {worker[0]} of {worker[1]} is done; {'all is finished' if finished else 'others go on'}")
    return finished


def check_inputs(names: Sequence[str], settings: Settings) -> None:
    """Raise UserError for what stages that are due would be given and could not use, before anything is written."""
    for name in names:
        stage, record = STAGES[name], _record(settings, name)
        if record is None or not record.finished or _changes(stage, settings, record):
            stage.check(settings)


def run_pipeline(settings: Settings, wanted: str, launch: Launcher, share_out: Launcher | None = None) -> None:
    """Run what `wanted_stages` names, in order, in a run directory that is locked meanwhile.

    launch: runs the function of a training stage on the processes asked for. share_out: starts the processes that share
    a stage's work, and waits for them; None: this process does it alone.
    Raises UserError for an unknown stage, a stage whose needs are not finished, or a run directory in use.
    """
    names = wanted_stages(settings, wanted)
    directory = Path(settings.run.dir)
    check_inputs(names, settings)
    with run_lock(directory) as lock:
        _require_needs(names[0], settings)
        with atomic_file(directory / "config.yaml") as temporary:
            temporary.write_text(to_yaml(settings), encoding="utf-8")
        for number, name in enumerate(names, 1):
            run_stage(STAGES[name], settings, launch, lock, share_out)
            if name == "shards":  # now that there are images, what they do not fit is said before anything is trained
                check_inputs(names[number:], settings)
