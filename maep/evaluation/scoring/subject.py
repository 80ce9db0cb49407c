"""subject.json: what is evaluated, and what was asked of it before anything was attacked."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from maep.evaluation.audit.finding import Finding
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.plan import SUBJECT
from maep.purifiers import Purifier
from maep.storage.documents import Document


@dataclass(frozen=True)
class Subject(Document):
    """What is evaluated. classifier, purifier: identities. kind: of the purifier, `defended`, `other`, or `none`.

    parameters: numbers in what protects, the classifier's own aside. findings: of the first minute; notes: sentences.
    """

    SELF_CHECKED: ClassVar[bool] = True
    DIGEST_SINCE: ClassVar[int | None] = 1

    classifier: str
    purifier: str
    kind: str
    parameters: int
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def subject_of(defense: Defense, findings: tuple[Finding, ...] = (), notes: tuple[str, ...] = ()) -> Subject:
    """Of a defense, with what was asked of it."""
    identities = defense.classifier_identity, defense.purifier_identity
    return Subject(*identities, _kind(defense), _parameters(defense), findings, notes)


def _kind(defense: Defense) -> str:
    if defense.defended is not None:
        return "defended"
    if isinstance(defense.purifier, Purifier):
        return defense.purifier.kind
    return "none" if defense.is_undefended else "other"


def _parameters(defense: Defense) -> int:
    return _count(defense.protection) - (_count(defense.classifier) if defense.defended is not None else 0)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def read_subject(classifier: str, purifier: str, directory: Path) -> Subject | None:
    """subject.json of `directory`, or None where there is none of that classifier and purifier, as in old runs."""
    path = directory / SUBJECT
    if not path.is_file():
        return None
    subject = Subject.read(path)
    return subject if (subject.classifier, subject.purifier) == (classifier, purifier) else None
