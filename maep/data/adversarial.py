"""Adversarial shards: the clean training shards attacked, shard by shard, with the same keys and labels.

    <attack.shards, or run.cache/adversarial/NAME-IDENTITY>/
      shard-00000.tar, shard-00000.index.json     as in maep.data.shards, 8-bit and lossless
      shard-00000.attack.json                     how the attack went there; written last, so the shard is whole
      manifest.json                               the whole set; written when all shards are there

A shard is the unit of work. Which worker makes it, and how many there are, changes no byte. Workers that share the
work out as they go claim their shards in `.claims-NAME-IDENTITY` beside the directory (maep.storage.claims).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack, random_targets
from maep.config.data_settings import AttackSettings
from maep.config.schema import Settings
from maep.data.adversarial_set import adversarial_path, attack_identity, check_adversarial, default_path
from maep.data.classifier_weights import classifier_weights
from maep.data.images.build import clean_split
from maep.data.overlap import in_order
from maep.data.shard_manifest import AdversarialManifest, ShardEntry
from maep.data.shards import ShardSet, ShardWriter, index_of, seal_shard_set, to_float
from maep.data.verification import HashedFiles, stamp_of
from maep.models.classifiers import classifier_identity, load_classifier
from maep.runtime.console import progress_bar, say
from maep.runtime.device import prepare_device, upload
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import remove_temporaries
from maep.storage.claims import Claims
from maep.storage.documents import Document
from maep.storage.locks import one_at_a_time
from maep.storage.remote import Location, Reading
from maep.storage.sealed import MANIFEST

HALVINGS = 12  # of the interval in which the scale of an L2 perturbation is sought: to 1/4096, below a level's worth
TOLERANCE = 1e-9  # relative; what float64 may lose in a norm over a million pixels
WHOLE_LEVEL = 1e-6  # of a level: k/255 in a configuration comes out a little below or above k


def make_adversarial_shards(settings: Settings, worker: tuple[int, int] = (0, 1), shared: bool = False) -> Location:
    """Attack one worker's share of the clean training shards, or what is missing of it.

    worker: (i, n), which takes the shards i, i + n, …; whoever finds all shards there writes the manifest.
    shared: go on with any missing shard that no other worker has claimed, so that workers, up to any number and
    also of the same (i, n), may join and die at any time; ends when all that is missing is in the hands of the living.
    Returns `adversarial_path`. With `attack.shards` set, checks those instead of making them.
    Raises UserError if clean shards or classifier weights are missing, if a clean shard is damaged, if the budget
    is below one 8-bit level, or if the directory cannot be written.
    """
    clean = clean_split(settings, "train")
    weights = classifier_weights(settings)
    identity = classifier_identity(settings.classifier, weights)
    path = default_path(settings, clean, identity)
    if settings.attack.shards or (path / MANIFEST).is_file():
        existing = ShardSet(adversarial_path(settings, clean, identity), Reading.of(settings.data))
        check_adversarial(existing, clean, identity, settings)
        stored, wanted = existing.manifest.encoding, clean.manifest.encoding
        note = f" (as {stored}, made before the clean ones were {wanted})" if stored != wanted else ""
        say(f"adversarial shards: {existing.path}{note}")
        return existing.path
    _check_budget(settings.attack)
    for problem in clean.check() if worker[0] == 0 else ():  # the others notice what is altered when they read it
        fail(problem)
    device = prepare_device(settings.compute)
    model = load_classifier(settings.classifier, len(clean.classes), weights).to(device)
    timeout = settings.compute.claim_timeout
    ShardAttack(settings.attack, settings.run.seed, timeout, clean, identity, model, device, path).run(worker, shared)
    return path


def _check_budget(settings: AttackSettings) -> None:
    """A budget below what 8 bits can store would silently leave every image as it is."""
    if 0 < settings.eps * 255 < 1 - WHOLE_LEVEL:
        fail(f"attack.eps={settings.eps}: below one level of the 8-bit images, 1/255; choose 0 or at least 1/255")


# --- 8-bit storage within the budget ---


def quantise(adversarial: Tensor, clean: Tensor, norm: str, eps: float) -> Tensor:
    """The 8-bit images near `adversarial` whose distance from `clean` is at most eps; uint8 [N, 3, H, W].

    adversarial: float in [0,1]; clean: uint8; eps: [0,1] pixels in `norm`. Rounding may add half a level to every
    pixel: for Linf it is cut to the levels that fit into eps, for L2 the perturbation is shrunk until it fits.
    """
    delta = adversarial * 255 - clean
    if norm == "Linf":
        levels = math.floor(eps * 255 + WHOLE_LEVEL)
        delta = delta.round().clamp(-levels, levels)
    else:
        delta = _shrunk(delta, eps * 255)
    return (clean + delta).clamp(0, 255).to(torch.uint8)


def _shrunk(delta: Tensor, radius: float) -> Tensor:
    """Whole levels nearest to the largest multiple, up to 1, of each `delta` that stays within the radius."""
    high = torch.ones(len(delta), 1, 1, 1, device=delta.device)
    low = torch.zeros_like(high)
    scale = high
    for _ in range(HALVINGS):
        fits = _l2((delta * scale).round()).view_as(low) <= radius * (1 + TOLERANCE)
        low, high = torch.where(fits, scale, low), torch.where(fits, high, scale)
        scale = torch.where(low == 1, low, (low + high) / 2)
    return (delta * low).round()


def _l2(delta: Tensor) -> Tensor:
    return delta.flatten(1).to(torch.float64).norm(dim=1)


def distances(stored: Tensor, clean: Tensor, norm: str) -> Tensor:
    """Distance of each stored image from its clean one, both uint8 [N, 3, H, W]; float64 [N] in [0,1] pixels."""
    delta = stored.to(torch.float64) - clean
    return (delta.abs().flatten(1).amax(1) if norm == "Linf" else _l2(delta)) / 255


# --- the work ---


@dataclass(frozen=True)
class Outcome:
    """How an attack went on some images, counted, on the stored 8-bit images; outcomes can be added.

    attackable: those that count for the success: untargeted the images that the classifier had right, targeted all,
    where success is the target's label.
    """

    count: int = field(default=0, metadata={"low": 0})
    clean_right: int = field(default=0, metadata={"low": 0})
    adversarial_right: int = field(default=0, metadata={"low": 0})
    succeeded: int = field(default=0, metadata={"low": 0})
    attackable: int = field(default=0, metadata={"low": 0})
    eps_used: float = field(default=0.0, metadata={"low": 0})

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            self.count + other.count,
            self.clean_right + other.clean_right,
            self.adversarial_right + other.adversarial_right,
            self.succeeded + other.succeeded,
            self.attackable + other.attackable,
            max(self.eps_used, other.eps_used),
        )

    @property
    def success_rate(self) -> float:
        """Percent of the attackable images."""
        return 100 * self.succeeded / max(1, self.attackable)

    @property
    def clean_accuracy(self) -> float:
        """Percent of the images that the classifier had right."""
        return 100 * self.clean_right / max(1, self.count)

    @property
    def adversarial_accuracy(self) -> float:
        """Percent of the images that it has right still."""
        return 100 * self.adversarial_right / max(1, self.count)


@dataclass(frozen=True)
class AttackRecord(Document):
    """Beside each finished shard: of which attack it is, the SHA-256 of its files by name, and how the attack went."""

    identity: str
    files: Mapping[str, str]
    outcome: Outcome


@dataclass(frozen=True)
class _Batch:
    """Clean images uint8 [N, 3, H, W] and labels int64 [N] of the sample indices."""

    indices: range
    images: Tensor
    labels: Tensor


class _Attacked:
    """What becomes of a batch, on the host: uint8 [N, 3, H, W], counts as of `_counts`, the largest distance.

    From an accelerator the copies may be under way until `checked` was called.
    """

    def __init__(self, batch: _Batch, stored: Tensor, counts: Tensor, used: Tensor) -> None:
        self.batch, self.stored, self.counts, self.used = batch, stored, counts, used
        self.copied = torch.cuda.Event() if stored.is_pinned() else None
        if self.copied is not None:
            self.copied.record()

    def checked(self, spec: AttackSpec) -> "_Attacked":
        """Itself, once it is there. Raises RuntimeError if an image lies beyond the budget."""
        if self.copied is not None:
            self.copied.synchronize()
        if float(self.used) > spec.eps * (1 + 1e-6):
            first, last = self.batch.indices[0], self.batch.indices[-1]
            raise RuntimeError(f"samples {first}…{last}: stored {float(self.used)} from clean, eps is {spec.eps}")
        return self

    @property
    def outcome(self) -> Outcome:
        """How the attack went."""
        right, still, succeeded, attackable = self.counts.tolist()
        return Outcome(len(self.stored), right, still, succeeded, attackable, float(self.used))


def _write(writer: ShardWriter, attacked: _Attacked) -> Outcome:
    """Append a batch to the shard."""
    images, labels = attacked.stored.permute(0, 2, 3, 1).numpy(), attacked.batch.labels.tolist()
    for index, image, label in zip(attacked.batch.indices, images, labels, strict=True):
        writer.write(index, image, label)
    return attacked.outcome


@dataclass
class ShardAttack:
    """One classifier and one attack on a set of clean shards. claim_timeout: seconds; see `Claims`."""

    settings: AttackSettings
    seed: int
    claim_timeout: float
    clean: ShardSet
    classifier: str
    model: nn.Module
    device: torch.device
    path: Path

    def __post_init__(self) -> None:
        self.spec = AttackSpec.of(self.settings)
        self.identity = attack_identity(self.settings, self.seed, self.clean, self.classifier)
        self.shards = self.clean.manifest.shards
        self._hashed = HashedFiles(self.path, self.identity)
        self._records: dict[str, tuple[str, AttackRecord]] = {}

    def run(self, worker: tuple[int, int], shared: bool) -> None:
        """Make what is missing of a worker's share, or of all; seal the set if it is complete then."""
        share = self.shards[worker[0] :: worker[1]]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        remove_temporaries(self.path)
        if shared:
            share = (*share, *(shard for shard in self.shards if shard not in share))
        missing = [shard for shard in share if not self._is_finished(shard)]
        if len(missing) < len(share):
            self._hashed.keep()
            say(f"attack: {len(share) - len(missing)} of {len(share)} shards were made before")
        total = Outcome()
        with progress_bar() as bar, self._claimed(missing) if shared else nullcontext(missing) as shards:
            row = bar.add_task("attack", total=sum(shard.count for shard in missing), note="")
            for shard in shards:
                for outcome in self._make(shard):
                    total += outcome
                    bar.update(row, advance=outcome.count, note=f"success {total.success_rate:.1f} %")
        self._seal_if_complete()

    @contextmanager
    def _claimed(self, shards: Sequence[ShardEntry]) -> Iterator[Iterable[ShardEntry]]:
        """Those of the shards that this worker is to make, each claimed while it makes it."""
        by_name = {shard.name: shard for shard in shards}
        directory = self.path.with_name(f".claims-{self.path.name}")
        with Claims(directory, self.claim_timeout) as claims:
            names = claims.shared(list(by_name), lambda name: self._is_finished(by_name[name]))
            yield (by_name[name] for name in names)

    def _record_path(self, shard: ShardEntry) -> Path:
        return (self.path / shard.name).with_suffix(".attack.json")

    def _record(self, shard: ShardEntry) -> AttackRecord | None:
        """The record of a shard, if there is one; read once as long as its file keeps its stamp.

        A worker asks at its start, at each claim and before the set is sealed.
        """
        path = self._record_path(shard)
        if not path.is_file():
            return None
        stamp = stamp_of(path.stat())
        before, record = self._records.get(shard.name, ("", None))
        if record is None or before != stamp:
            record = AttackRecord.read(path)
            self._records[shard.name] = stamp, record
        return record

    def _is_finished(self, shard: ShardEntry) -> bool:
        """Whether a shard exists, whole, and is of this attack."""
        record, tar = self._record(shard), self.path / shard.name
        if record is None or record.identity != self.identity:
            return False
        return all(self._hashed.has(name, record.files.get(name, "")) for name in (tar.name, index_of(tar).name))

    def _make(self, shard: ShardEntry) -> Iterator[Outcome]:
        """Attack one shard in batches; its record is written after both of its files.

        One thread reads and decodes what comes, another encodes and writes what is done, and this one attacks. Each
        takes the batches in their order, so which is how fast changes no byte.
        """
        tar, total = self.path / shard.name, Outcome()
        indices, size = range(shard.first, shard.first + shard.count), self.settings.batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        with (
            ShardWriter(tar, self.clean.manifest.encoding) as writer,
            ThreadPoolExecutor(1, "decode") as decoder,
            ThreadPoolExecutor(1, "encode") as encoder,
        ):
            attacked = self._attacked(in_order(decoder, self._decoded, batches))
            for outcome in in_order(encoder, partial(_write, writer), attacked):
                total += outcome
                yield outcome
        files = {path.name: self._hashed.sha256(path.name) for path in (tar, index_of(tar))}
        AttackRecord(self.identity, files, total).write(self._record_path(shard))
        self._hashed.keep()

    def _decoded(self, indices: range) -> "_Batch":
        return _Batch(indices, *self.clean.batch(indices))

    def _attacked(self, batches: Iterable["_Batch"]) -> Iterator["_Attacked"]:
        """Each batch is handed on once the next one has been given to the device, which so has always work."""
        launched = None
        for batch in batches:
            following = self._launch(batch)
            if launched is not None:
                yield launched.checked(self.spec)
            launched = following
        if launched is not None:
            yield launched.checked(self.spec)

    def _launch(self, batch: "_Batch") -> "_Attacked":
        """Attack a batch; on an accelerator nothing waits for it here."""
        clean, labels = (upload(tensor, self.device) for tensor in (batch.images, batch.labels))
        spec = self.spec
        adversarial = attack(self.model, to_float(clean), labels, spec, batch.indices, self.seed)
        stored = quantise(adversarial, clean, spec.norm, spec.eps)
        used = distances(stored, clean, spec.norm).max()
        counts = self._counts(clean, stored, labels, batch.indices)
        return _Attacked(batch, *(tensor.to("cpu", non_blocking=True) for tensor in (stored, counts, used)))

    @torch.no_grad()
    def _counts(self, clean: Tensor, stored: Tensor, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """As in `Outcome`: clean_right, adversarial_right, succeeded, attackable; int64 [4]."""
        before, after = (self.model(to_float(images)).argmax(1) for images in (clean, stored))
        right, still = before == labels, after == labels
        attackable, succeeded = right, right & ~still
        if self.spec.targeted:
            targets = random_targets(labels, len(self.clean.classes), indices, self.seed)
            attackable, succeeded = torch.ones_like(right), after == targets
        return torch.stack([right.sum(), still.sum(), succeeded.sum(), attackable.sum()])

    def _seal_if_complete(self) -> None:
        """Write the manifest when every shard is there; with several workers, whoever comes last does."""
        with one_at_a_time(self.path):
            missing = [shard.name for shard in self.shards if not self._is_finished(shard)]
            records = [record for shard in self.shards if (record := self._record(shard))]
            if missing or len(records) < len(self.shards):
                say(f"attack: this worker is done; {len(missing)} of {len(self.shards)} shards are left to others")
                return
            total = sum((record.outcome for record in records), Outcome())
            hashed = {name: sha256 for record in records for name, sha256 in record.files.items()}
            seal_shard_set(self.path, self._manifest(total), hashed=hashed)
        say(
            f"adversarial shards: {total.count} images, {self.spec.name} {self.spec.norm} eps {total.eps_used:.5f}: "
            f"success {total.success_rate:.1f} %, accuracy {total.clean_accuracy:.1f} % to "
            f"{total.adversarial_accuracy:.1f} %, {self.path}"
        )

    def _manifest(self, total: Outcome) -> AdversarialManifest:
        clean = self.clean.manifest
        return AdversarialManifest(
            dataset=clean.dataset, split=clean.split, image_size=clean.image_size, classes=clean.classes,
            clean_identity=clean.identity, classifier_identity=self.classifier,
            attack=asdict(self.spec), attack_identity=self.identity,
            seed=self.seed, batch_size=self.settings.batch_size,
            success_rate=total.success_rate, clean_accuracy=total.clean_accuracy,
            adversarial_accuracy=total.adversarial_accuracy, eps_used=total.eps_used,
        )  # fmt: skip
