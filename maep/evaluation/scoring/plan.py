"""plan.json, what an evaluation consists of, and where each part of it is written.

Below run.dir/evaluation/{purifier}/:

    subject.json                                                what is evaluated, and what was asked of it first
    plan.json                                                   what belongs to this evaluation
    checks.json                                                 what the defense itself answered when checked
    purifying.json                                              what purifying costs, and the borders of tiles
    {threat model}/{attack}-{norm}-{eps}/
        chunk-0000.json                                         a record: one chunk of images, scored
        chunk-0000.safetensors                                  its adversarial images (adaptive attacks)
        samples.safetensors                                     a few images for the report
    {run.cache}/attacked/{hash}/chunk-0000.safetensors          adversarial images made without the purifier
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from maep.config.identity import decisive_fields
from maep.config.schema import Settings
from maep.evaluation.scoring.tasks import Task
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.documents import Document

PLAN, CHECKS, PURIFYING, SUBJECT = "plan.json", "checks.json", "purifying.json", "subject.json"
SAMPLES = "samples.safetensors"


@dataclass(frozen=True)
class PlannedTask:
    """A task, and the identity that its record must have."""

    task: Task
    identity: str


@dataclass(frozen=True, kw_only=True)
class Plan(Document):
    """What belongs to an evaluation, so that a report can tell a part from all of it.

    settings: `plan_digest`. classifier, purifier, images: identities. classes: names, by label. device: where it was
    planned. warnings: AutoAttack's, of its questions to the model before it was attacked.
    """

    FORMAT: ClassVar[int] = 2  # 1 may lack its digest
    SELF_CHECKED: ClassVar[bool] = True
    DIGEST_SINCE: ClassVar[int | None] = 2

    settings: str
    classifier: str
    purifier: str
    images: str = ""  # the first plans named neither images nor seed
    seed: int | None = None
    classes: tuple[str, ...]
    device: str
    warnings: tuple[str, ...]
    tasks: tuple[PlannedTask, ...]


def plan_digest(settings: Settings) -> str:
    """Identity of the settings that decide what an evaluation consists of, as 64 hex digits."""
    from maep.evaluation.scoring.reduced_model import SurrogateSettings  # not for who only reads a plan

    evaluation = decisive_fields(settings.evaluation, "records") | SurrogateSettings.of(settings.evaluation).facts()
    purify = decisive_fields(settings.purify, "records")
    return digest({"evaluation": evaluation, "seed": settings.run.seed, "purify": purify})


def read_plan(settings: Settings, directory: Path) -> Plan:
    """plan.json of `directory`. Raises UserError when it is missing or of other settings."""
    path = directory / PLAN
    if not path.is_file():
        fail(f"{path}: missing: nothing has been evaluated here; run stage=evaluate first")
    plan = Plan.read(path)
    if plan.settings != plan_digest(settings):
        fail(f"{path}: was made with other evaluation settings; run stage=evaluate again")
    return plan
