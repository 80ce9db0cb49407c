"""The certify stage of a run: certificates of its purifiers, shared by any number of workers.

A worker claims one chunk of images at a time (maep.storage.claims). What a record holds depends on its own images
alone, since every draw has a key of its own: so it is the same however the work was shared or interrupted.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from maep.config.schema import Settings
from maep.data.shards import to_float
from maep.evaluation.certification.attacked_record import plan_attacks
from maep.evaluation.certification.attacking import AttackUnit
from maep.evaluation.certification.certificate_record import (
    CERTIFICATES,
    CertificateRecord,
    CertifyIdentity,
    CertifyTask,
    plan_chunks,
    read_certificates,
)
from maep.evaluation.certification.smoothing import Smoothed
from maep.evaluation.certification.subjects import certified_defenses
from maep.evaluation.certification.trained_noise import check_noise, warn_of_untrained
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Images
from maep.evaluation.scoring.score import image_keys
from maep.evaluation.stage import subjects_of
from maep.evaluation.workers import stopped_at_once
from maep.runtime.console import progress_bar, say
from maep.runtime.device import keep_freed_memory
from maep.runtime.digests import digest
from maep.storage.claims import Claims


@dataclass(frozen=True)
class CertifyUnit:
    """One record to be made. directory: of the purifier's records."""

    defense: Defense
    test: Images
    identity: CertifyIdentity
    directory: Path
    task: CertifyTask

    @property
    def path(self) -> Path:
        """Of the record."""
        return self.directory / self.task.path

    @property
    def name(self) -> str:
        """Of its claim; records of different run directories are different units."""
        return "certificates-" + digest([str(self.path.resolve()), self.identity.record(self.task)])[:24]

    def is_done(self) -> bool:
        """Whether the record is there."""
        return read_certificates(self.path, self.identity.record(self.task)) is not None

    def make(self) -> CertificateRecord:
        """Certify the chunk's images, and write that down."""
        started, settings = time.perf_counter(), self.identity.settings
        images, labels = images_of(self.defense, self.test, self.task.ids)
        smoothed = Smoothed(
            self.defense.purified_classifier, self.defense.protection, settings, self.task.sigma, self.identity.seed
        )
        parts = zip(images, labels.tolist(), self.task.ids, image_keys(images), strict=True)
        record = CertificateRecord(
            identity=self.identity.record(self.task), depends_on=self.identity.facts(self.task), sigma=self.task.sigma,
            draws=settings.draws, first_draws=settings.first_draws, alpha=settings.alpha, chunk=self.task.chunk,
            certificates=tuple(smoothed.certify(*part) for part in parts),
            seconds=round(time.perf_counter() - started, 3),
        )  # fmt: skip
        record.write(self.path)
        return record


Unit = CertifyUnit | AttackUnit


def images_of(defense: Defense, test: Images, ids: range) -> tuple[Tensor, Tensor]:
    """Test images [N, 3, H, W] in [0,1] on the defense's device, and labels [N]."""
    images, labels = test.batch(ids)
    images = images if images.is_floating_point() else to_float(images)
    return images.to(defense.device), labels


def certify_run(settings: Settings, worker: tuple[int, int] = (0, 1)) -> bool:
    """Certify the run's purifiers on the test images, or a worker's share of that; no finished chunk is done again.

    With certify.undefended the classifier alone too; within certify.attack_radii images are attacked besides.

    worker: (i, n), one of n that share the chunks out as they go; any number more may join and any may die.
    Returns whether all chunks are finished now; the rest, if not, is in the hands of living workers.
    Raises UserError for a noise that a purifier was not trained on, damaged test shards, or a missing purifier.
    """
    check_noise(settings)
    warn_of_untrained(settings)
    test, defenses = subjects_of(settings)
    directory = Path(settings.run.dir) / CERTIFICATES
    units = [
        unit
        for label, defense in certified_defenses(settings, defenses).items()
        for unit in units_of(settings, defense, test, directory / label)
    ]
    return certify_all(units, settings, worker)


def units_of(settings: Settings, defense: Defense, test: Images, directory: Path) -> list[Unit]:
    """All records of a defense: its certificates, then the attacks beside them. directory: of the records."""
    identity, certify = certify_identity(settings, defense, test), settings.certify
    certified = [CertifyUnit(defense, test, identity, directory, task) for task in plan_chunks(certify, len(test))]
    attacked = [
        AttackUnit(defense, identity, directory, task, partial(images_of, defense, test))
        for task in plan_attacks(certify, len(test))
    ]
    return [*certified, *attacked]


def certify_identity(settings: Settings, defense: Defense, test: Images) -> CertifyIdentity:
    """Of the certificates of a defense."""
    return CertifyIdentity(
        settings.certify, settings.run.seed, defense.classifier_identity, defense.purifier_identity, test.identity
    )


def certify_all(units: Sequence[Unit], settings: Settings, worker: tuple[int, int] = (0, 1)) -> bool:
    """Make the records that are missing, as far as no living worker has them. Arguments as `certify_run`'s."""
    pending = {unit.name: unit for unit in units if not unit.is_done()}
    if len(units) > len(pending):
        say(f"certify: {len(units) - len(pending)} of {len(units)} chunks were done before")
    if units and units[0].defense.device.type == "cpu":
        keep_freed_memory()
    first = len(pending) * worker[0] // worker[1]
    names = [*list(pending)[first:], *list(pending)[:first]]
    claims = Claims(Path(settings.run.cache) / CERTIFICATES / ".claims", settings.compute.claim_timeout)
    with stopped_at_once(), progress_bar() as bar, claims:
        note = bar.add_task("certify", total=sum(unit.task.count for unit in pending.values()), note="")
        for name in claims.shared(names, lambda name: pending[name].is_done()):
            unit = pending[name]
            record = unit.make()
            bar.update(note, advance=unit.task.count, note=str(unit.task))
            say(f"{unit.directory.name} · {unit.task}: chunk {unit.task.chunk}: {record.in_words()}")
    return all(unit.is_done() for unit in pending.values())
