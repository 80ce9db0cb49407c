"""A record of attacks beside certificates: one chunk of images, attacked within ever larger L2 radii.

Below run.dir/certificates/{purifier}/attacked/: without-noise/chunk-0000.json, … of purifier and classifier as they
are, and sigma-{σ}/chunk-0000.json, … of the smoothed classifier, which is what the certificates are of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from maep.config.evaluation_settings import CertifySettings
from maep.evaluation.certification.certificate_record import CertifyIdentity, read_record, require_record
from maep.runtime.digests import digest
from maep.storage.documents import Document

CONTENT = 1  # what a record says, as part of its identity: raising it makes all of them again
SMOOTHED_ATTACK = "pgd-20"  # on the smoothed classifier, over the draws below
GRADIENT_DRAWS = 16  # of the noise, over which its probabilities are averaged: SmoothAdv's at test time (Salman 2019)


@dataclass(frozen=True)
class AttackedImage:
    """fell_at: the smallest of the radii within which the answer was turned, 0 where it was wrong before any attack;
    None where the image stood against all. id, label, key: as a certificate's.
    """

    id: int
    label: int
    fell_at: float | None
    key: str = ""

    def stands_at(self, radius: float) -> bool:
        """Whether it stood within one of the radii that were tried: what fell within a smaller one, fell in this."""
        return self.fell_at is None or self.fell_at > radius


@dataclass(frozen=True)
class AttackTask:
    """A chunk of images to be attacked. sigma: of the noise of the smoothed classifier; None: without noise."""

    sigma: float | None
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
        noise = "without-noise" if self.sigma is None else f"sigma-{self.sigma:g}"
        return Path("attacked") / noise / f"chunk-{self.chunk:04d}.json"

    def __str__(self) -> str:
        return "attacked without noise" if self.sigma is None else f"attacked · σ = {self.sigma:g}"


@dataclass(frozen=True, kw_only=True)
class AttackedRecord(Document):
    """What became of a chunk. identity: digest of depends_on. attack: its name; sigma: as the task's. seconds: all
    told.
    """

    SELF_CHECKED: ClassVar[bool] = True

    identity: str
    depends_on: Mapping[str, object]
    attack: str
    sigma: float | None
    radii: tuple[float, ...]
    chunk: int
    attacked: tuple[AttackedImage, ...]
    seconds: float

    def in_words(self) -> str:
        """How many stood within each radius."""
        stood = ", ".join(f"{sum(each.stands_at(r) for each in self.attacked)} within {r:g}" for r in self.radii)
        return f"of {len(self.attacked)} stood {stood} ({self.seconds:.1f} s)"


def radii_of(settings: CertifySettings) -> tuple[float, ...]:
    """Those of the attacks, ascending, each once."""
    return tuple(sorted(set(settings.attack_radii)))


def attack_facts(identity: CertifyIdentity, task: AttackTask) -> Mapping[str, object]:
    """All that the record of a task depends on."""
    settings = identity.settings
    facts = {
        "attacked": CONTENT, "classifier": identity.classifier, "purifier": identity.purifier,
        "images": identity.images, "seed": identity.seed, "sigma": task.sigma, "first": task.first,
        "count": task.count, "radii": list(radii_of(settings)),
    }  # fmt: skip
    if task.sigma is None:
        return {**facts, "attack": settings.attack}
    return {
        **facts, "attack": SMOOTHED_ATTACK, "gradient_draws": GRADIENT_DRAWS, "draws": settings.attack_draws,
        "alpha": settings.alpha, "sampling": settings.sampling, "batch_size": settings.batch_size,
    }  # fmt: skip


def plan_attacks(settings: CertifySettings, available: int) -> list[AttackTask]:
    """All tasks on an image set of `available` images: without noise first, then under one noise after the other."""
    if not settings.attack_radii:
        return []
    total, size = min(settings.attack_images, settings.images, available), settings.chunk_images
    return [
        AttackTask(sigma, first // size, first, min(size, total - first))
        for sigma in (None, *dict.fromkeys(settings.sigma))
        for first in range(0, total, size)
    ]


def read_attacked(path: Path, identity: str) -> AttackedRecord | None:
    """As `read_record`."""
    return read_record(AttackedRecord, path, identity)


def require_attacked(path: Path, identity: CertifyIdentity, task: AttackTask) -> AttackedRecord:
    """As `require_record`."""
    return require_record(AttackedRecord, path, digest(attack_facts(identity, task)), "attacked")
