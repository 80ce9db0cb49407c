"""A record: what came out for one chunk of images, image by image. One file a chunk, written once it is complete."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from maep.data.verification import stamp_of
from maep.evaluation.scoring.plan import PLAN, Plan
from maep.evaluation.scoring.tasks import Task
from maep.runtime.errors import fail
from maep.runtime.plain_files import read_bytes
from maep.storage.documents import Document
from maep.storage.json_files import LIMIT, parse_json

# What a record says, as part of its identity: raising it makes all records again, from the same adversarial images.
CONTENT = 3
PerImage = tuple[float | None, ...]  # null where a number is not defined, such as the direction of no change


@dataclass(frozen=True)
class RecordHead(Document):
    """What tells a record of this evaluation from one of another, whatever else is in it.

    identity: digest of depends_on, which is all that the record depends on.
    """

    FORMAT: ClassVar[int] = 2

    identity: str = ""
    depends_on: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ChunkRecord(Document):
    """The answers on a chunk of N images, and how far each image was moved.

    predictions, confidences: by kind of answer, such as `defended_adversarial`; N classes and N shares in [0, 1].
    linf, l2, linf_8bit, l2_8bit: of the attack, in [0,1] pixels, as made and after rounding to 8 bits.
    psnr_*, ssim_*, distance_*, direction_cosine, energy_*: of purifying, as in `maep.evaluation.scoring.metrics`.
    survivors: images that the attacked model still got right, after each attack. seconds: to attack, purify, classify.
    draws, clean_draws: of a random purifier, further predictions on the adversarial and on the clean images, one list a
    draw. keys: `image_keys`. detected: of a purifier that judges which images are attacked, its verdicts on `clean` and
    `adversarial` images.
    """

    FORMAT: ClassVar[int] = RecordHead.FORMAT  # 1 may lack its digest
    SELF_CHECKED: ClassVar[bool] = True
    COMPACT: ClassVar[bool] = True
    DIGEST_SINCE: ClassVar[int | None] = 2
    DIGEST_WITH: ClassVar[str] = "keys"

    identity: str
    depends_on: Mapping[str, object]
    threat_model: str
    attack: str
    norm: str
    eps: float
    chunk: int
    first: int
    count: int
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    predictions: Mapping[str, tuple[int, ...]]
    confidences: Mapping[str, PerImage]
    linf: PerImage
    l2: PerImage
    linf_8bit: PerImage
    l2_8bit: PerImage
    psnr_clean: PerImage
    psnr_adversarial: PerImage
    ssim_clean: PerImage
    ssim_adversarial: PerImage
    distance_clean: PerImage
    distance_adversarial: PerImage
    direction_cosine: PerImage
    energy_removed: PerImage
    energy_added: PerImage
    survivors: Mapping[str, int]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    draws: tuple[tuple[int, ...], ...] | None = None
    clean_draws: tuple[tuple[int, ...], ...] | None = None  # records of before had those of adversarial images alone
    keys: tuple[str, ...] = ()  # the first records had none
    detected: Mapping[str, tuple[bool, ...]] | None = None  # neither had earlier ones

    def to_json(self) -> dict[str, Any]:
        """As in its file; a purifier that draws nothing has no draws, and one that judges nothing no verdicts."""
        entries = super().to_json()
        if not self.keys:
            del entries["keys"]
        for name in ("draws", "clean_draws", "detected"):
            if entries[name] is None:
                del entries[name]
        return entries

    def correct(self, answer: str) -> list[bool]:
        """Image by image, whether the predictions of a kind are the labels."""
        return [p == label for p, label in zip(self.predictions[answer], self.labels, strict=True)]


def record_path(directory: Path, task: Task) -> Path:
    """Where the record of a task is, below an evaluation's directory."""
    return directory / task.folder / f"{task.stem}.json"


def read_record(directory: Path, task: Task, identity: str) -> ChunkRecord | None:
    """The record of a task, or None if it is missing or was made for something else.

    Raises UserError, naming file and entry, for one that is damaged or of a newer format.
    """
    path = record_path(directory, task)
    if not path.is_file():
        return None
    content = read_bytes(path, LIMIT)
    entries = parse_json(content, path)
    if RecordHead.from_json(entries, path).identity != identity:
        return None
    return ChunkRecord.parsed(entries, content, path)


def is_recorded(directory: Path, task: Task, identity: str) -> bool:
    """Whether `read_record` would give a record; of a file that this process has read and nobody touched, unread.

    Raises as `read_record`.
    """
    path = record_path(directory, task)
    try:
        stamp = stamp_of(path.stat())
    except OSError:
        return read_record(directory, task, identity) is not None
    return _is_whole(directory, task, identity, stamp)


@cache
def _is_whole(directory: Path, task: Task, identity: str, _stamp: str) -> bool:
    return read_record(directory, task, identity) is not None


def read_row(directory: Path, row: str) -> list[ChunkRecord]:
    """The records behind a row of a report, chunks in order. directory: run.dir/evaluation; row: its entry `records`.

    Those that the plan names, where there is one: of a larger evaluation that was run there before, others may be left
    beside them.
    """
    folder = directory / row
    paths, plan = sorted(folder.glob("chunk-*.json")), folder.parents[1] / PLAN
    if plan.is_file():
        planned = {record_path(plan.parent, each.task) for each in Plan.read(plan).tasks}
        paths = [path for path in paths if path in planned]
    return [ChunkRecord.read(path) for path in paths]


def read_records(plan: Plan, directory: Path) -> dict[Path, list[ChunkRecord]]:
    """All records of a plan by folder, chunks in order. directory: of the evaluation.

    Raises UserError that names the first record of something else, and of what, or the first chunk without one: no
    total is made of a part.
    """
    folders: dict[Path, list[ChunkRecord]] = {}
    missing: list[Path] = []
    for planned in plan.tasks:
        record = read_record(directory, planned.task, planned.identity)
        if record is None:
            _refuse_another(plan, directory, planned.task)
            missing.append(record_path(directory, planned.task))
        else:
            folders.setdefault(planned.task.folder, []).append(record)
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        fail(f"{missing[0]}{others}: this chunk has not been evaluated; run stage=evaluate to complete it")
    return folders


def _refuse_another(plan: Plan, directory: Path, task: Task) -> None:
    """Raises UserError if there is a record in a task's place that was written for something else."""
    path = record_path(directory, task)
    if path.is_file():
        differences = " and ".join(_differences(RecordHead.read(path).depends_on, plan, task)) or "setting"
        fail(
            f"{path}: was written for another {differences}, not for this evaluation; run stage=evaluate to replace it"
        )


def _differences(facts: Mapping[str, object], plan: Plan, task: Task) -> Iterator[str]:
    """What a record depends on and a plan has otherwise, in words."""
    for key, word in {"classifier": "model", "purifier": "purifier", "images": "image set", "seed": "seed"}.items():
        expected = getattr(plan, key)
        if expected not in ("", None) and facts.get(key) != expected:
            yield word
    if (facts.get("task"), facts.get("attack")) != (asdict(task), task.named_attack.facts()):
        yield "attack"
    if facts.get("record") != CONTENT:
        yield "version of this program"


def joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """The values of all chunks, in order."""
    return [value for part in parts for value in part]
