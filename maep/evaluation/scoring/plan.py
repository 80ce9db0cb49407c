"""What an evaluation consists of, and where each part of it is written.

Below run.dir/evaluation/{purifier}/:

    plan.json                                                   what belongs to this evaluation
    checks.json                                                 what the defence itself answered when checked
    purifying.json                                              what purifying costs, and the borders of tiles
    {threat model}/{attack}-{norm}-{eps}/
        chunk-0000.json                                         a record: one chunk of images, judged
        chunk-0000.safetensors                                  its adversarial images (adaptive attacks)
        samples.safetensors                                     a few images for the report
    {run.cache}/attacked/{hash}/chunk-0000.safetensors          adversarial images made without the purifier
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maep.attacks.catalog import SQUARE, NamedAttack
from maep.attacks.threat_models import BlackBox, threat_model
from maep.config.schema import EvaluationSettings, PurifySettings, Settings
from maep.evaluation.scoring.reduced_model import Speed
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng
from maep.storage.atomic import digest, read_json

PLAN, CHECKS, PURIFYING = "plan.json", "checks.json", "purifying.json"
SAMPLES = "samples.safetensors"
# Of adversarial images, and of what a record holds: raising the second keeps the images.
VERSION, RECORD_VERSION = 1, 3

NOT_DECIDING = ("figure_images", "check_images", "purifiers", "purifier", "precision", "compile")


@dataclass(frozen=True)
class Task:
    """One chunk of images under one attack in one threat model: the unit of work and of resume.

    The chunk holds the samples first … first + count - 1 of the test set.
    """

    threat_model: str
    attack: str
    norm: str
    eps: float
    chunk: int
    first: int
    count: int

    @property
    def folder(self) -> Path:
        """Where its files are, below the evaluation's directory."""
        return Path(self.threat_model) / f"{self.attack.replace(':', '-')}-{self.norm}-{self.eps:.6g}"

    @property
    def stem(self) -> str:
        """The name of its files, without the ending."""
        return f"chunk-{self.chunk:04d}"

    @property
    def ids(self) -> range:
        """Its sample indices."""
        return range(self.first, self.first + self.count)

    @property
    def named_attack(self) -> NamedAttack:
        """The attack itself."""
        return NamedAttack(self.attack, self.norm, self.eps)

    def seed(self, run_seed: int) -> int:
        """The chunk's own seed: a function of the run's seed and the chunk alone."""
        return int(keyed_rng("chunk", run_seed, self.chunk).integers(2**31))

    def __str__(self) -> str:
        return f"{self.threat_model} · {self.attack} · {self.norm} {eps_text(self.eps)}"


def eps_text(eps: float) -> str:
    """8/255 where the budget is up to 64 whole 8-bit steps, as L∞ budgets are, else the number."""
    levels = eps * 255
    whole = abs(levels - round(levels)) < 1e-6 and 0 < round(levels) <= 64
    return f"{round(levels)}/255" if whole else f"{eps:.4g}"


def images_of(settings: EvaluationSettings, threat: str, available: int) -> int:
    """How many images a threat model is judged on: the first ones of the test set."""
    images = min(settings.images, available)
    return min(settings.adaptive_images, images) if threat_model(threat).uses_purifier else images


def attacks_of(settings: EvaluationSettings, threat: str) -> list[str]:
    """Names of the attacks of a threat model: one that has no gradients has its own."""
    return settings.blackbox_attacks if threat == BlackBox.name else settings.attacks


def chunk_size(settings: EvaluationSettings, available: int) -> int:
    """Images of a whole chunk. Equal in all threat models, so that chunks of the same number start alike."""
    return min(settings.chunk_images, settings.images, available)


def plan_tasks(settings: EvaluationSettings, available: int) -> list[Task]:
    """All tasks of an evaluation on a test set of `available` images, cheap threat models first.

    Raises UserError for an unknown attack or threat model, or an empty test set.
    """
    if not available:
        fail("the test set is empty: set data.test_fraction above 0, or name a source with test images")
    for attack in settings.attacks:
        NamedAttack(attack, settings.norm, 0.0)
    for attack in settings.blackbox_attacks:
        if not SQUARE.fullmatch(attack):
            fail(f"evaluation.blackbox_attacks: {attack}: needs gradients; choose square or square-K")
    size = chunk_size(settings, available)
    threats = sorted(settings.threat_models, key=lambda name: threat_model(name).uses_purifier)
    tasks = [
        Task(threat, attack, settings.norm, eps, first // size, first, min(size, total - first))
        for threat in threats
        for total in [images_of(settings, threat, available)]
        for attack in attacks_of(settings, threat)
        for eps in settings.eps
        for first in range(0, total, size)
    ]
    return list(dict.fromkeys(tasks))


def plan_digest(settings: Settings) -> str:
    """Identity of the settings that decide what an evaluation consists of."""
    evaluation = asdict(settings.evaluation)
    decides = {key: value for key, value in evaluation.items() if key not in NOT_DECIDING}
    decides |= Speed.of(settings.evaluation).facts()
    return digest({"evaluation": decides, "seed": settings.run.seed, "purify": purify_facts(settings.purify)})


def purify_facts(settings: PurifySettings) -> dict[str, Any]:
    """How a purifier is used, as far as its output depends on it; settings added since then only where they are set."""
    default = asdict(PurifySettings())
    chosen = {name: value for name, value in asdict(settings).items() if name != "batch_tiles"}
    return {name: value for name, value in chosen.items() if name in ("overlap", "passes") or value != default[name]}


def read_plan(settings: Settings, directory: Path) -> dict[str, Any]:
    """plan.json of `directory`. Raises UserError when it is missing or of other settings."""
    path = directory / PLAN
    if not path.is_file():
        fail(f"{path}: missing: nothing has been evaluated here; run stage=evaluate first")
    plan = read_json(path)
    if plan.get("settings") != plan_digest(settings):
        fail(f"{path}: was made with other evaluation settings; run stage=evaluate again")
    return plan


def planned_tasks(plan: dict[str, Any]) -> list[tuple[Task, str]]:
    """The tasks of a plan, each with the identity its record must have."""
    return [(Task(**entry["task"]), entry["identity"]) for entry in plan["tasks"]]


def read_record(directory: Path, task: Task, identity: str) -> dict[str, Any] | None:
    """The record of a task, or None if it is missing or was made for something else."""
    path = record_path(directory, task)
    if not path.is_file():
        return None
    record = read_json(path)
    return record if record.get("identity") == identity else None


def record_path(directory: Path, task: Task) -> Path:
    """Where the record of a task is."""
    return directory / task.folder / f"{task.stem}.json"


def read_records(plan: dict[str, Any], directory: Path) -> dict[Path, list[dict[str, Any]]]:
    """All records of a plan by folder, chunks in order.

    Raises UserError that names the first record of something else, and of what, or the first chunk without one: no
    total is made of a part.
    """
    folders: dict[Path, list[dict[str, Any]]] = {}
    missing: list[Path] = []
    for task, identity in planned_tasks(plan):
        record = read_record(directory, task, identity)
        if record is None:
            _refuse_another(plan, directory, task)
            missing.append(record_path(directory, task))
        else:
            folders.setdefault(task.folder, []).append(record)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        fail(f"{missing[0]}{more}: this chunk has not been evaluated; run stage=evaluate to complete it")
    return folders


def _refuse_another(plan: dict[str, Any], directory: Path, task: Task) -> None:
    """Raises UserError if there is a record in a task's place that was written for something else."""
    path = record_path(directory, task)
    if path.is_file():
        told = " and ".join(_differences(read_json(path).get("depends_on", {}), plan, task)) or "setting"
        fail(f"{path}: was written for another {told}, not for this evaluation; run stage=evaluate to replace it")


def _differences(facts: dict[str, Any], plan: dict[str, Any], task: Task) -> list[str]:
    """What a record depends on and a plan has otherwise, in words."""
    own = {"classifier": "model", "purifier": "purifier", "images": "image set", "seed": "seed"}
    found = [word for key, word in own.items() if key in plan and facts.get(key) != plan[key]]
    if (facts.get("task"), facts.get("attack")) != (asdict(task), task.named_attack.facts()):
        found.append("attack")
    return found if facts.get("record") == RECORD_VERSION else [*found, "version of this program"]


def read_checks(plan: dict[str, Any], directory: Path) -> dict[str, Any]:
    """checks.json of `directory`. Raises UserError when it is missing or of another classifier or purifier."""
    path = directory / CHECKS
    checks = read_json(path) if path.is_file() else {}
    if [checks.get(name) for name in ("classifier", "purifier")] != [plan["classifier"], plan["purifier"]]:
        fail(f"{path}: the defence has not been checked; run stage=evaluate to complete it")
    return dict(checks)


def read_purifying(plan: dict[str, Any], directory: Path) -> dict[str, Any]:
    """purifying.json of `directory`. Raises UserError when it is missing or of another purifier."""
    path = directory / PURIFYING
    found = read_json(path) if path.is_file() else {}
    if found.get("purifier") != plan["purifier"]:
        fail(f"{path}: memory and tiles have not been measured; run stage=evaluate to complete it")
    return {name: value for name, value in found.items() if name not in ("identity", "purifier")}
