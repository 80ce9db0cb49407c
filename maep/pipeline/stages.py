"""The pipeline: which stages there are, what each depends on, and when one has to run again.

A stage is identified by the settings it reads and by the identities of what the stages before it made. Its record
`run.dir/stages/NAME.json` says for which identity it ran and whether it finished. The same identity is not run
again; another one moves the old outputs in the run directory aside, says which setting changed, and runs.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maep.config.load import LEAVES, setting_value, to_yaml
from maep.config.schema import Settings, TrainSettings
from maep.data.adversarial import adversarial_path, make_adversarial_shards
from maep.data.images.build import SPLITS, build_shards, clean_shards, clean_split
from maep.data.shards import ShardSet
from maep.evaluation.reporting.report import build_report, write_environment
from maep.evaluation.stage import evaluate_run, given_identity
from maep.models.classifiers import classifier_identity
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import MANIFEST, atomic_file, digest, read_json, sha256_file, write_json
from maep.storage.locks import Lock, one_at_a_time, run_lock
from maep.storage.remote import Reading, open_storage
from maep.training.classifier import classifier_weights, train_classifier
from maep.training.inputs import finetuning_pairs, own_pairs, verify_pairs
from maep.training.source import source_facts, source_settings

Launcher = Callable[[str, Settings], None]
Share = Callable[[Settings, tuple[int, int]], bool]
LOOK_AGAIN = 2.0  # seconds
HOW_NOT_WHAT = (
    ".workers", ".log_every", ".save_every", ".keep_last", ".device", ".threads", ".on_error", ".claim_timeout",
    ".zero_stage", ".join_timeout", ".stall_timeout", ".grace", ".keep_every", ".keep_best", ".log_samples",
    ".pause_at", ".read_timeout", ".read_attempts", ".read_backoff", ".cache_dir", ".cache_bytes", ".cache_block",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    reads: sections or keys of the settings that determine its result. needs: stages before it.
    outputs: what it leaves in run.dir. run: does the work, or what is left of it. identity: of its result.
    idle: why there is nothing to do for these settings, or "". share: does a share of the work beside other
    workers and tells whether the whole is finished; None where the work is not shared out.
    """

    name: str
    reads: tuple[str, ...]
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[Settings, Launcher], None]
    identity: Callable[[Settings], str]
    idle: Callable[[Settings], str] = lambda _settings: ""
    share: Share | None = None


def _shards(settings: Settings, _launch: Launcher) -> None:
    build_shards(settings)


def _shards_identity(settings: Settings) -> str:
    return digest([shards.identity for shards in clean_shards(settings).values()])


def _classifier(settings: Settings, _launch: Launcher) -> None:
    train, test = (clean_split(settings, split) for split in SPLITS)
    train_classifier(settings, train, test)


def _classifier_idle(settings: Settings) -> str:
    return "its weights are given (classifier.weights)" if settings.classifier.weights else ""


def _classifier_identity(settings: Settings) -> str:
    return classifier_identity(settings.classifier, classifier_weights(settings))


def _to_the_end(share: Share, settings: Settings) -> None:
    """Do all of a stage whose pieces other runs may need, and be making, too; waits for theirs."""
    while not share(settings, (0, 1)):
        time.sleep(LOOK_AGAIN)


def _attack(settings: Settings, _launch: Launcher) -> None:
    _to_the_end(_attack_share, settings)


def _attack_share(settings: Settings, worker: tuple[int, int]) -> bool:
    place = make_adversarial_shards(settings, worker, shared=True)
    return open_storage(place, Reading.of(settings)).exists(MANIFEST)


def _attack_idle(settings: Settings) -> str:
    return "the trainer makes the adversarial images itself (attack.online)" if settings.attack.online else ""


def _attack_identity(settings: Settings) -> str:
    if settings.attack.online:
        return "online"
    clean = clean_split(settings, "train")
    path = adversarial_path(settings, clean, _classifier_identity(settings))
    return ShardSet(path, Reading.of(settings)).identity


def _make_source(settings: Settings, launch: Launcher, train: TrainSettings) -> None:
    """Make the pairs of another data set, where a training names one."""
    source = source_settings(settings, train)
    if source is not settings:
        for name in ("shards", "classifier", "attack"):
            if not STAGES[name].idle(source):
                STAGES[name].run(source, launch)


def _pretrain(settings: Settings, launch: Launcher) -> None:
    _make_source(settings, launch, settings.pretrain)
    verify_pairs(own_pairs(settings, settings.pretrain))
    launch("pretrain", settings)


def _finetune(settings: Settings, launch: Launcher) -> None:
    _make_source(settings, launch, settings.finetune)
    verify_pairs(finetuning_pairs(settings))
    launch("finetune", settings)


def _finetune_idle(settings: Settings) -> str:
    return "none is wanted (finetune.method)" if settings.finetune.method == "none" else ""


def _weights_identity(*names: str) -> Callable[[Settings], str]:
    def identity(settings: Settings) -> str:
        paths = [Path(settings.run.dir) / name for name in names]
        return digest([sha256_file(path) for path in paths if path.is_file()])

    return identity


def _evaluate(settings: Settings, _launch: Launcher) -> None:
    _to_the_end(evaluate_run, settings)


def _records_identity(settings: Settings) -> str:
    records = sorted((Path(settings.run.dir) / "evaluation").rglob("*.json"))
    return digest([sha256_file(path) for path in records])


def _report(settings: Settings, _launch: Launcher) -> None:
    build_report(settings, Path(settings.run.dir))


STAGES = {
    stage.name: stage
    for stage in (
        Stage("shards", ("data",), (), (), _shards, _shards_identity),
        Stage(
            "classifier", ("classifier", "run.seed", "compute.precision"), ("shards",), (),
            _classifier, _classifier_identity, _classifier_idle,
        ),
        Stage(
            "attack", ("attack", "run.seed"), ("shards", "classifier"), (),
            _attack, _attack_identity, _attack_idle, _attack_share,
        ),
        Stage(
            "pretrain", ("model", "objective", "pretrain", "compute", "run.seed"), ("shards", "attack"),
            ("checkpoints", "metrics.jsonl", "tensorboard/pretrain", "samples", "purifier"),
            _pretrain, _weights_identity("purifier/model.safetensors"),
        ),
        Stage(
            "finetune", ("finetune", "objective", "compute", "run.seed"), ("pretrain",),
            (
                "checkpoints-finetune", "metrics-finetune.jsonl", "tensorboard/finetune", "samples-finetune",
                "adapter", "finetuned",
            ),
            _finetune, _weights_identity("adapter/adapter_model.safetensors", "finetuned/model.safetensors"),
            _finetune_idle,
        ),
        Stage(
            "evaluate", ("evaluation", "purify", "run.seed"), ("shards", "classifier", "pretrain", "finetune"),
            (), _evaluate, _records_identity, share=evaluate_run,
        ),
        Stage("report", ("run.name", "evaluation.figure_images"), ("evaluate",), (), _report, _records_identity),
    )
}  # fmt: skip


def needs_of(stage: Stage, settings: Settings) -> tuple[str, ...]:
    """The stages before one; a purifier that is given (evaluation.purifier) is judged without training one."""
    if stage.name == "evaluate" and settings.evaluation.purifier:
        return ("shards", "classifier")
    return stage.needs


def stages_of(settings: Settings) -> list[str]:
    """The stages of the whole pipeline for these settings, in order: the report and all that it needs."""
    needed, rest = set[str](), ["report"]
    while rest:
        name = rest.pop()
        needed.add(name)
        rest += needs_of(STAGES[name], settings)
    return [name for name in STAGES if name in needed]


def wanted_stages(settings: Settings, wanted: str) -> list[str]:
    """The stages that asking for one of them, or for all, means, in order.

    Evaluating a purifier that is given takes the images and the classifier with it, and ends with its report.
    Raises UserError for an unknown stage, one that judging a given purifier does not need, or a purifier that cannot be
    read.
    """
    if wanted != "all" and wanted not in STAGES:
        fail(f"stage={wanted}: choose one of {', '.join([*STAGES, 'all'])}")
    every, given = stages_of(settings), settings.evaluation.purifier
    if given:
        given_identity(given)
    if wanted == "all" or (wanted == "evaluate" and given):
        return every
    if wanted not in every:
        fail(
            f"stage={wanted}: judging a given purifier needs none (evaluation.purifier={given}); leave one of them out"
        )
    return [wanted]


def settings_read(stage: Stage, settings: Settings) -> dict[str, Any]:
    """`{key: value}` of the settings that determine the stage's result."""
    return decisive_settings(settings, [k for k in LEAVES if k in stage.reads or k.split(".")[0] in stage.reads])


def decisive_settings(settings: Settings, keys: Sequence[str]) -> dict[str, Any]:
    """`{key: value}` of those keys that determine results; another configuration's name stands with its content."""
    values = {key: setting_value(settings, key) for key in keys if not key.endswith(HOW_NOT_WHAT)}
    for name, source in source_facts(settings).items():
        if f"{name}.source" in values:
            parts = [key for key in LEAVES if key.split(".")[0] in ("data", "classifier", "attack")]
            values[f"{name}.source"] += f" {digest(decisive_settings(source, parts))[:8]}"
    return values


def _record_path(settings: Settings, name: str) -> Path:
    return Path(settings.run.dir) / "stages" / f"{name}.json"


def _record(settings: Settings, name: str) -> dict[str, Any]:
    path = _record_path(settings, name)
    return read_json(path) if path.is_file() else {}


def _wanted(stage: Stage, settings: Settings) -> dict[str, Any]:
    """What the stage would run for now: its settings and the identities of its inputs."""
    inputs = {name: _record(settings, name).get("identity", "") for name in needs_of(stage, settings)}
    if stage.name == "evaluate" and settings.evaluation.purifier:
        inputs["evaluation.purifier"] = given_identity(settings.evaluation.purifier)
    return {"settings": settings_read(stage, settings), "inputs": inputs}


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between a stage's record and what it would run for now, in words."""
    old, new = before["settings"], now["settings"]
    told = [f"{key} changed from {old.get(key)} to {value}" for key, value in new.items() if old.get(key) != value]
    told += [f"{key} is no longer a setting" for key in old if key not in new]
    return told + [
        f"{name} made something else" for name, i in now["inputs"].items() if before["inputs"].get(name) != i
    ]


def _is_whole(stage: Stage, settings: Settings, identity: str) -> bool:
    """Whether the stage's result is still there, and still the one recorded."""
    try:
        return stage.identity(settings) == identity
    except (UserError, OSError) as error:
        say(f"{stage.name}: its result cannot be read ({error})")
        return False


def _set_aside(stage: Stage, settings: Settings, record: dict[str, Any]) -> None:
    """Move outputs of another identity to run.dir/superseded/, so that nothing is lost."""
    directory = Path(settings.run.dir)
    place = directory / "superseded" / f"{stage.name}-{digest([record['settings'], record['inputs']])[:8]}"
    for name in stage.outputs:
        if (directory / name).exists():
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                (directory / name).rename(target)
                say(f"{stage.name}: {name} moved to {target}")


def why_unfinished(stage: Stage, settings: Settings) -> list[str]:
    """Why a stage would run now, in words; [] if it is finished for these settings and inputs, and whole."""
    record = _record(settings, stage.name)
    if not record:
        return ["it has not run"]
    told = changes(record, _wanted(stage, settings))
    if told or not record["finished"]:
        return told or ["it was stopped"]
    return [] if _is_whole(stage, settings, record["identity"]) else ["its result is missing or altered"]


def unfinished_stages(settings: Settings) -> dict[str, list[str]]:
    """`{name: why}` of the stages that a run of the whole pipeline would run, in order."""
    found: dict[str, list[str]] = {}
    for name in stages_of(settings):
        stage = STAGES[name]
        before = [needed for needed in needs_of(stage, settings) if needed in found]
        told = [f"{needed} runs before it" for needed in before] or why_unfinished(stage, settings)
        if told:
            found[name] = told
    return found


def _begin(stage: Stage, settings: Settings, told: list[str]) -> None:
    """Say why a stage runs, move what it made for other settings aside, and write down that it has begun."""
    record, wanted = _record(settings, stage.name), _wanted(stage, settings)
    stopped = record and not record["finished"] and not changes(record, wanted)
    how = " on, from where it was stopped" if stopped else f" again: {'; '.join(told[:4])}" if record else ""
    idle = stage.idle(settings)
    say(f"{stage.name}: {f'nothing to do, {idle}' if idle else f'runs{how}'}")
    if record and changes(record, wanted):
        _set_aside(stage, settings, record)
        record = {}
    _write_record(stage, settings, record.get("seconds", 0.0))


def _write_record(stage: Stage, settings: Settings, seconds: float, *, finished: bool = False) -> None:
    identity = stage.identity(settings) if finished else ""
    record = {**_wanted(stage, settings), "finished": finished, "identity": identity, "seconds": seconds}
    write_json(_record_path(settings, stage.name), record)


def run_stage(stage: Stage, settings: Settings, launch: Launcher, lock: Lock | None = None) -> None:
    """Run a stage unless it is finished for these settings and inputs; says what it does and why.

    lock: of the run directory; once a later life of the job has it, this one leaves the stage's record alone.
    """
    told = why_unfinished(stage, settings)
    if not told:
        say(f"{stage.name}: finished before ({_record(settings, stage.name)['seconds']:.0f} s)")
        return
    _begin(stage, settings, told)
    started, spent = time.time(), _record(settings, stage.name)["seconds"]
    try:
        if not stage.idle(settings):
            stage.run(settings, launch)
    finally:
        seconds = spent + time.time() - started
        if lock is None or lock.is_held():
            _write_record(stage, settings, seconds)
    _write_record(stage, settings, seconds, finished=True)
    say(f"{stage.name}: finished ({seconds:.0f} s)")


def _nothing_to_launch(name: str, _settings: Settings) -> None:
    raise RuntimeError(f"{name}: an idle stage launches nothing")


def _require_needs(name: str, settings: Settings) -> None:
    """Raise UserError unless all that a stage needs is finished; needs without work to do are recorded here."""
    for needed in needs_of(STAGES[name], settings):
        _require_needs(needed, settings)
        stage, record = STAGES[needed], _record(settings, needed)
        told = changes(record, _wanted(stage, settings)) if record else ["it has not run"]
        if not told and record["finished"]:
            continue
        if stage.idle(settings):
            run_stage(stage, settings, _nothing_to_launch)
        else:
            why = "; ".join(told[:2]) or "it was stopped"
            fail(f"stage={name}: needs stage {needed}, not finished ({why}); run stage={needed} or stage=all")


def work_on_stage(name: str, settings: Settings, worker: tuple[int, int] = (0, 1)) -> bool:
    """Do a share of a stage that any number of workers may work on; the run directory is not locked meanwhile.

    worker: (i, n), one of n. Whoever finds everything finished writes the stage's record. Returns whether it is
    finished. Raises UserError if what it needs is not finished, or if its work is not shared out.
    """
    stage = STAGES[name]
    if stage.share is None:
        fail(f"stage={name}: its work is not shared out; choose {' or '.join(n for n, s in STAGES.items() if s.share)}")
    records = Path(settings.run.dir) / "stages"
    with one_at_a_time(records):
        _require_needs(name, settings)
        told = why_unfinished(stage, settings)
        if not told:
            say(f"{name}: finished before")
            return True
        if told != ["it was stopped"]:
            _begin(stage, settings, told)
    started = time.time()
    whole = stage.idle(settings) != "" or stage.share(settings, worker)
    with one_at_a_time(records):
        finished = whole or _record(settings, name)["finished"]
        _write_record(stage, settings, _record(settings, name)["seconds"] + time.time() - started, finished=finished)
    say(f"{name}: worker {worker[0]} of {worker[1]} is done; {'all is finished' if finished else 'others go on'}")
    return finished


def run_pipeline(settings: Settings, wanted: str, launch: Launcher) -> None:
    """Run what `wanted_stages` names, in order, in a run directory that is locked meanwhile.

    launch: runs the function of a training stage on the processes asked for.
    Raises UserError for an unknown stage, a stage whose needs are not finished, or a run directory in use.
    """
    names = wanted_stages(settings, wanted)
    directory = Path(settings.run.dir)
    with run_lock(directory) as lock:
        _require_needs(names[0], settings)
        with atomic_file(directory / "config.yaml") as temporary:
            temporary.write_text(to_yaml(settings))
        write_environment(directory, sys.argv)
        for name in names:
            run_stage(STAGES[name], settings, launch, lock)
