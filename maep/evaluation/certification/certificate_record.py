"""A record of certificates: one chunk of images, written once it is complete.

Below run.dir/certificates/{purifier}/sigma-{σ}/: chunk-0000.json, …
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from maep.config.evaluation_settings import CertifySettings
from maep.evaluation.scoring.chunk_record import RecordHead
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.atomic import read_json
from maep.storage.documents import Document

R = TypeVar("R", bound=Document)
CERTIFICATES = "certificates"  # the folder of a run directory
CONTENT = 1  # what a record says, as part of its identity: raising it makes all of them again


@dataclass(frozen=True)
class Certificate:
    """Of one image. label, prediction: class numbers, the latter that of g; count: its draws of N; key: `image_keys`.

    radius: L2, in [0,1] pixels, 0 where it abstains: where the class is too rare to be sure that it is the most
    probable one.
    """

    id: int
    label: int
    prediction: int
    count: int
    radius: float
    abstains: bool
    key: str = ""

    def holds_at(self, radius: float) -> bool:
        """Whether no image within a radius is classified wrongly."""
        return not self.abstains and self.prediction == self.label and self.radius >= radius


@dataclass(frozen=True)
class CertifyTask:
    """A chunk of images under one noise. sigma: its deviation; first, count: of the image set."""

    sigma: float
    chunk: int
    first: int
    count: int

    @property
    def ids(self) -> range:
        """The images' numbers in the set."""
        return range(self.first, self.first + self.count)

    @property
    def path(self) -> Path:
        """Of its record, below the folder of its purifier."""
        return Path(f"sigma-{self.sigma:g}") / f"chunk-{self.chunk:04d}.json"

    def __str__(self) -> str:
        return f"certified · σ = {self.sigma:g}"


@dataclass(frozen=True, kw_only=True)
class CertificateRecord(Document):
    """The certificates of a chunk. identity: digest of depends_on. draws, first_draws: N and N₀. seconds: all told."""

    SELF_CHECKED: ClassVar[bool] = True

    identity: str
    depends_on: Mapping[str, object]
    sigma: float
    draws: int
    first_draws: int
    alpha: float
    chunk: int
    certificates: tuple[Certificate, ...]
    seconds: float

    def in_words(self) -> str:
        """How many are right and how many abstained."""
        right = sum(each.holds_at(0.0) for each in self.certificates)
        abstained = sum(each.abstains for each in self.certificates)
        return f"{right} of {len(self.certificates)} right, {abstained} abstained ({self.seconds:.1f} s)"


@dataclass(frozen=True)
class CertifyIdentity:
    """All that decides what certificates say. classifier, purifier, images: identities; seed: the run's."""

    settings: CertifySettings
    seed: int
    classifier: str
    purifier: str
    images: str

    def facts(self, task: CertifyTask) -> Mapping[str, object]:
        """All that the record of a task depends on."""
        settings = self.settings
        facts = {
            "record": CONTENT, "classifier": self.classifier, "purifier": self.purifier, "images": self.images,
            "seed": self.seed, "sigma": task.sigma, "first": task.first, "count": task.count, "draws": settings.draws,
            "first_draws": settings.first_draws, "alpha": settings.alpha, "batch_size": settings.batch_size,
        }  # fmt: skip
        # Where it is as it always was, older records stay valid.
        return facts if settings.sampling == "float" else {**facts, "sampling": settings.sampling}

    def record(self, task: CertifyTask) -> str:
        """The identity of a task's record."""
        return digest(self.facts(task))


def plan_chunks(settings: CertifySettings, available: int) -> list[CertifyTask]:
    """All tasks on an image set of `available` images, one noise after the other."""
    total = min(settings.images, available)
    return [
        CertifyTask(sigma, first // settings.chunk_images, first, min(settings.chunk_images, total - first))
        for sigma in dict.fromkeys(settings.sigma)
        for first in range(0, total, settings.chunk_images)
    ]


def read_record(kind: type[R], path: Path, identity: str) -> R | None:
    """The record in a file, or None if it is missing or was made for something else.

    Raises UserError, naming file and entry, for one that is damaged, altered or of a newer format.
    """
    if not path.is_file():
        return None
    entries = read_json(path)
    if RecordHead.from_json(entries, path).identity != identity:
        return None
    return kind.from_json(entries, path)


def require_record(kind: type[R], path: Path, identity: str, undone: str) -> R:
    """The same. Raises UserError where there is none of that identity. undone: what a missing one has not been."""
    record = read_record(kind, path, identity)
    if record is None:
        why = "was made for other settings or models" if path.is_file() else f"has not been {undone}"
        fail(f"{path}: {why}; run stage=certify to complete it")
    return record


def read_certificates(path: Path, identity: str) -> CertificateRecord | None:
    """As `read_record`."""
    return read_record(CertificateRecord, path, identity)


def require_certificates(path: Path, identity: str) -> CertificateRecord:
    """As `require_record`."""
    return require_record(CertificateRecord, path, identity, "certified")
