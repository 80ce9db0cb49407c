"""How far a stage is, read from the run directory: steps, shards or chunks, and the time left."""

from dataclasses import dataclass
from pathlib import Path

from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.data.adversarial_set import adversarial_path
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import SPLITS, clean_shards, clean_shards_path, clean_split
from maep.data.shards import ShardSet
from maep.evaluation.certification.attacked_record import AttackTask, plan_attacks
from maep.evaluation.certification.certificate_record import CERTIFICATES, CertifyTask, plan_chunks
from maep.evaluation.scoring.chunk_record import record_path
from maep.evaluation.scoring.plan import PLAN, Plan
from maep.models.classifiers import classifier_identity
from maep.runtime.errors import UserError
from maep.runtime.plain_files import open_regular
from maep.storage.json_files import parse_json
from maep.storage.remote import Reading
from maep.training.schedule import held_out_images, total_steps

TAIL = 65536  # bytes: hundreds of lines of metrics, however long the training
PACE = ("step", "step_seconds")  # what is read of a line
RECENT = 20  # steps, or files, that say how fast it goes now: a run may have gone on on other nodes


@dataclass(frozen=True)
class Progress:
    """done of total units, None where the total is not known yet; remaining: seconds, None where nothing tells."""

    done: int
    total: int | None
    unit: str
    remaining: float | None = None

    def __str__(self) -> str:
        share = f"{self.done} of {self.total}" if self.total is not None else str(self.done)
        return f"{share} {self.unit}"


def progress_of(stage: str, settings: Settings) -> Progress | None:
    """How far a stage is; None where it leaves no trace, or what it builds on is not there yet."""
    look = {
        "shards": _shards, "attack": _attack, "pretrain": _training, "finetune": _training, "evaluate": _evaluate,
        "certify": _certify,
    }.get(stage)  # fmt: skip
    try:
        return look(stage, settings) if look else None
    except UserError:
        return None


def _shards(_stage: str, settings: Settings) -> Progress:
    root = clean_shards_path(settings)
    sealed = clean_shards(settings)
    complete = sum(len(shards.manifest.shards) for shards in sealed.values())
    count = sum(1 for _ in root.rglob("*.tar")) if isinstance(root, Path) else complete
    return Progress(count, complete if len(sealed) == len(SPLITS) else None, "shards")


def _attack(_stage: str, settings: Settings) -> Progress:
    clean = clean_split(settings, "train")
    identity = classifier_identity(settings.classifier, classifier_weights(settings))
    directory, total = adversarial_path(settings, clean, identity), len(clean.manifest.shards)
    if not isinstance(directory, Path):
        return Progress(total, total, "shards")
    return _counted(list(directory.glob("*.attack.json")), total, "shards")


def _training(stage: str, settings: Settings) -> Progress:
    is_pretraining = stage == "pretrain"
    name, train = (
        ("metrics.jsonl", settings.pretrain) if is_pretraining else ("metrics-finetune.jsonl", settings.finetune)
    )
    other = settings.finetune.clean_shards if stage == "finetune" else None
    images = (
        ShardSet(other, Reading.of(settings.data)) if other else clean_split(source_settings(settings, train), "train")
    )
    steps = total_steps(train, len(images) - held_out_images(train, settings.robust))
    lines = last_lines(Path(settings.run.dir) / name)
    if not lines:
        return Progress(0, steps, "steps")
    step = int(lines[-1]["step"])
    recent = sorted(line["step_seconds"] for line in lines[-RECENT:])
    return Progress(step, steps, "steps", (steps - step) * recent[len(recent) // 2])


def _evaluate(_stage: str, settings: Settings) -> Progress:
    records = [
        record_path(plan.parent, planned.task)
        for plan in (Path(settings.run.dir) / "evaluation").glob(f"*/{PLAN}")
        for planned in Plan.read(plan).tasks
    ]
    return _counted([path for path in records if path.is_file()], len(records) or None, "chunks")


def _certify(_stage: str, settings: Settings) -> Progress:
    """Of the purifiers that were begun: their folders are made with their first records."""
    folders = list((Path(settings.run.dir) / CERTIFICATES).glob("*/"))
    certify, count = settings.certify, len(clean_split(settings, "test"))
    tasks: list[CertifyTask | AttackTask] = [*plan_chunks(certify, count), *plan_attacks(certify, count)]
    paths = [folder / task.path for folder in folders for task in tasks]
    return _counted([path for path in paths if path.is_file()], len(paths) or None, "chunks")


def _counted(done: list[Path], total: int | None, unit: str) -> Progress:
    """Files that are made one by one: the time left follows from when the last ones were."""
    times = sorted(path.stat().st_mtime for path in done)[-RECENT:]
    pace = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    remaining = (total - len(done)) * pace if pace is not None and total is not None else None
    return Progress(len(done), total, unit, remaining)


def last_lines(path: Path) -> list[dict[str, float]]:
    """The last objects of a metrics file, read from its end; a line that is being written is left out."""
    if not path.is_file():
        return []
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read(TAIL).split(b"\n")
    return [values for line in lines[:-1] if (values := _values_of(line, path))]


def _values_of(line: bytes, path: Path) -> dict[str, float]:
    """A line's object; {} for the first, which may be cut, and for one that tells no pace: the others do."""
    try:
        values = parse_json(line, path)
    except UserError:
        return {}
    is_paced = isinstance(values, dict) and all(type(values.get(name)) in (int, float) for name in PACE)
    return values if is_paced else {}
