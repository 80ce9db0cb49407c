"""What is known of a stage, `run.dir/stages/NAME.json`, and why it would run now."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from maep.config.identity import decides
from maep.config.load import default_of, leaves_of, setting_value
from maep.config.schema import Settings
from maep.runtime.errors import UserError
from maep.storage.atomic import sha256_file
from maep.storage.documents import CONTENT, Document
from maep.storage.json_files import read_json


@dataclass(frozen=True)
class StageRecord(Document):
    """For which settings and inputs a stage ran, and how far.

    settings: those that decide its result. inputs: `{name: identity}` of what the stages before it made. identity: of
    its own result, "" while it is not finished. seconds: spent on it so far. files: `{name below run.dir: SHA-256}` of
    what it left there beside what the identity covers; records from before there were any have none. continued: the
    steps at which a longer schedule took over, in a training that was made longer.
    """

    FORMAT: ClassVar[int] = 2  # 1 may lack its digest
    SELF_CHECKED: ClassVar[bool] = True
    DIGEST_SINCE: ClassVar[int | None] = 2
    DIGEST_WITH: ClassVar[str] = "continued"

    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    identity: str = ""
    seconds: float = field(default=0.0, metadata={"low": 0})
    files: dict[str, str] = field(default_factory=dict)
    continued: list[int] = field(default_factory=list)


class Why(StrEnum):
    """Kinds of reason why a stage runs."""

    NOT_RUN = "it has not run"
    STOPPED = "it was stopped"
    RESULT_ALTERED = "its result is missing or altered"
    SETTING_CHANGED = "setting changed"
    SETTING_GONE = "is no longer a setting"
    INPUT_CHANGED = "made something else"
    STAGE_BEFORE = "runs before it"


@dataclass(frozen=True)
class Reason:
    """Why a stage runs. subject: the setting, input or stage it is about; before and after: a setting's values."""

    why: Why
    subject: str = ""
    before: object = None
    after: object = None

    def __str__(self) -> str:
        """In words, for the terminal."""
        if self.why == Why.SETTING_CHANGED:
            return f"{self.subject} changed from {self.before} to {self.after}"
        return f"{self.subject} {self.why}".strip()


def in_words(reasons: Sequence[Reason], at_most: int) -> str:
    """The first few reasons, on one line."""
    return "; ".join(map(str, reasons[:at_most]))


def record_path(run: Path, name: str) -> Path:
    """Where a stage's record is."""
    return run / "stages" / f"{name}.json"


def read_stage_record(run: Path, name: str) -> StageRecord | None:
    """None if the stage has not run here. Raises UserError for a record that cannot be read."""
    path = record_path(run, name)
    return StageRecord.read(path) if path.is_file() else None


def digests_of(run: Path, patterns: Sequence[str]) -> dict[str, str]:
    """`{name below run: SHA-256}` of the files that match. Raises UserError for one that cannot be read."""
    paths = sorted(path for pattern in patterns for path in run.glob(pattern) if path.is_file())
    return {str(path.relative_to(run)): sha256_file(path) for path in paths}


def unproven_files(run: Path, record: StageRecord, patterns: Sequence[str]) -> Iterator[str]:
    """Names of JSON files below run that are not as recorded and carry no digest of their own content.

    Those that carry one, or cannot be read, are left to their reader, who names them.
    """
    for path in sorted(path for pattern in patterns for path in run.glob(pattern) if path.is_file()):
        name = str(path.relative_to(run))
        try:
            entries = read_json(path)
        except UserError:
            continue
        if isinstance(entries, dict) and CONTENT not in entries and record.files.get(name) != sha256_file(path):
            yield name


def changes(before: StageRecord, now: StageRecord, settings: Settings, artefact: str) -> list[Reason]:
    """What differs between a stage's record and what it would run for now.

    A setting that the record does not know was added since, and counts as it was then: with its default.
    """
    return [
        *changed_settings(before.settings, now.settings, settings, artefact),
        *(
            Reason(Why.INPUT_CHANGED, name)
            for name, identity in now.inputs.items()
            if before.inputs.get(name) != identity
        ),
    ]


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], settings: Settings, artefact: str
) -> list[Reason]:
    """The settings that decide an artefact and differ between its record (before) and this run (now)."""
    leaves, reasons = leaves_of(settings), []
    for key in {**now, **before}:
        if key not in leaves:
            reasons.append(Reason(Why.SETTING_GONE, key))
        elif decides(leaves[key][0], artefact):
            old = before[key] if key in before else default_of(leaves[key][0])
            new = now[key] if key in now else setting_value(settings, key)
            if old != new:
                reasons.append(Reason(Why.SETTING_CHANGED, key, old, new))
    return reasons
