"""Adversarial shards: the clean training shards attacked, shard by shard, with the same keys and labels.

    <attack.shards, or run.cache/adversarial/NAME-IDENTITY>/
      shard-00000.tar, shard-00000.index.json     as in maep.data.shards, 8-bit and lossless
      shard-00000.attack.json                     how the attack went there; written last, so the shard is whole
      manifest.json                               the whole set; written when all shards are there

A shard is the unit of work. Which worker makes it, and how many there are, changes no byte. Workers that share the
work out as they go claim their shards in `.claims-NAME-IDENTITY` beside the directory (maep.storage.claims).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep.attacks.gradient import AttackSpec, attack, random_targets
from maep.config.schema import AttackSettings, Settings
from maep.data.images.build import clean_split
from maep.data.shards import ShardSet, ShardWriter, index_of, seal_shard_set, to_float
from maep.models.classifiers import classifier_identity, load_classifier
from maep.runtime.console import progress_bar, say
from maep.runtime.device import prepare_device
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import MANIFEST, digest, read_json, remove_temporaries, sha256_file, write_json
from maep.storage.claims import Claims
from maep.storage.locks import one_at_a_time
from maep.storage.remote import Location, Reading, location
from maep.training.classifier import classifier_weights

HALVINGS = 12
TOLERANCE = 1e-9


def attack_identity(settings: Settings, clean: ShardSet, classifier_identity: str) -> str:
    """64 hex digits of all that the adversarial images depend on."""
    return digest(
        {
            "classifier": classifier_identity,
            "images": clean.identity,
            "shards": [shard["count"] for shard in clean.manifest["shards"]],
            "attack": asdict(AttackSpec.of(settings.attack)),
            "seed": settings.run.seed,
            "batch_size": settings.attack.batch_size,
        }
    )


def adversarial_path(settings: Settings, clean: ShardSet, classifier_identity: str) -> Location:
    """Where the adversarial shards of a configuration are or will be."""
    if settings.attack.shards:
        return location(settings.attack.shards)
    return _made_path(settings, clean, classifier_identity)


def _made_path(settings: Settings, clean: ShardSet, classifier_identity: str) -> Path:
    identity = attack_identity(settings, clean, classifier_identity)
    return Path(settings.run.cache) / "adversarial" / f"{settings.data.name}-{identity[:8]}"


def check_adversarial(adversarial: ShardSet, clean: ShardSet, classifier_identity: str, settings: Settings) -> None:
    """Raise UserError if the shards were made for another classifier, attack or image set than configured."""
    known, path = adversarial.manifest, adversarial.path
    remedy = "unset attack.shards or name others"
    if known.get("kind") != "adversarial":
        fail(f"{path}: not adversarial shards; {remedy}")
    if known["clean_identity"] != clean.identity:
        fail(f"{path}: made from another image set than {clean.path}; {remedy}")
    if known["classifier_identity"] != classifier_identity:
        fail(f"{path}: made for another classifier than classifier.arch={settings.classifier.arch}; {remedy}")
    for name, value in asdict(AttackSpec.of(settings.attack)).items():
        if known["attack"].get(name) != value:
            told = f"made with attack.{name}={known['attack'].get(name)}, configured is {value}"
            fail(f"{path}: made for another attack: {told}; {remedy}")


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
    path = _made_path(settings, clean, identity)
    if settings.attack.shards or (path / MANIFEST).is_file():
        found = ShardSet(adversarial_path(settings, clean, identity), Reading.of(settings))
        check_adversarial(found, clean, identity, settings)
        say(f"adversarial shards: {found.path}")
        return found.path
    _check_budget(settings.attack)
    for problem in clean.verify() if worker[0] == 0 else ():  # the others notice what is altered when they read it
        fail(problem)
    device = torch.device(prepare_device(settings.compute))
    model = load_classifier(settings.classifier, len(clean.classes), weights).to(device)
    _ShardAttack(settings, clean, identity, model, device, path).run(worker, shared)
    return path


def _check_budget(settings: AttackSettings) -> None:
    """A budget below what 8 bits can store would silently leave every image as it is."""
    if 0 < settings.eps * 255 < 1 - 1e-6:
        fail(f"attack.eps={settings.eps}: below one level of the 8-bit images, 1/255; choose 0 or at least 1/255")


# --- 8-bit storage within the budget ---


def quantise(adversarial: Tensor, clean: Tensor, norm: str, eps: float) -> Tensor:
    """The 8-bit images near `adversarial` whose distance from `clean` is at most eps; uint8 [N, 3, H, W].

    adversarial: float in [0,1]; clean: uint8; eps: [0,1] pixels in `norm`. Rounding may add half a level to every
    pixel: for Linf it is cut to the levels that fit into eps, for L2 the perturbation is shrunk until it fits.
    """
    delta = adversarial * 255 - clean
    if norm == "Linf":
        levels = math.floor(eps * 255 + 1e-6)
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


@dataclass
class _Outcome:
    """How an attack went on some images, counted; see `facts`."""

    count: int = 0
    clean_right: int = 0
    adversarial_right: int = 0
    succeeded: int = 0
    attackable: int = 0
    eps_used: float = 0.0

    def add(self, other: "_Outcome") -> None:
        for name in ("count", "clean_right", "adversarial_right", "succeeded", "attackable"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.eps_used = max(self.eps_used, other.eps_used)

    def facts(self) -> dict[str, Any]:
        """For the manifest: success_rate in percent, untargeted of the images that the classifier had right,
        targeted of all images, where success is the target's label; accuracies in percent; all on 8-bit images."""
        return {
            "success_rate": 100 * self.succeeded / max(1, self.attackable),
            "clean_accuracy": 100 * self.clean_right / max(1, self.count),
            "adversarial_accuracy": 100 * self.adversarial_right / max(1, self.count),
            "eps_used": self.eps_used,
        }


@dataclass
class _ShardAttack:
    """One classifier and one attack on a set of clean shards."""

    settings: Settings
    clean: ShardSet
    classifier: str
    model: nn.Module
    device: torch.device
    path: Path

    def __post_init__(self) -> None:
        self.spec = AttackSpec.of(self.settings.attack)
        self.identity = attack_identity(self.settings, self.clean, self.classifier)
        self.shards: list[dict[str, Any]] = self.clean.manifest["shards"]

    def run(self, worker: tuple[int, int], shared: bool) -> None:
        """Make what is missing of a worker's share, or of all; seal the set if it is complete then."""
        share = self.shards[worker[0] :: worker[1]]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        remove_temporaries(self.path)
        if shared:
            share = share + [shard for shard in self.shards if shard not in share]
        missing = [shard for shard in share if not self._is_made(shard)]
        if len(missing) < len(share):
            say(f"attack: {len(share) - len(missing)} of {len(share)} shards were made before")
        total = _Outcome()
        with progress_bar() as bar, self._claimed(missing) if shared else nullcontext(missing) as mine:
            row = bar.add_task("attack", total=sum(shard["count"] for shard in missing), note="")
            for shard in mine:
                for outcome in self._make(shard):
                    total.add(outcome)
                    bar.update(row, advance=outcome.count, note=f"success {total.facts()['success_rate']:.1f} %")
        self._seal_if_complete()

    @contextmanager
    def _claimed(self, shards: list[dict[str, Any]]) -> Iterator[Iterable[dict[str, Any]]]:
        """Those of the shards that this worker is to make, each claimed while it makes it."""
        by_name = {shard["name"]: shard for shard in shards}
        directory = self.path.with_name(f".claims-{self.path.name}")
        with Claims(directory, self.settings.compute.claim_timeout) as claims:
            names = claims.shared(list(by_name), lambda name: self._is_made(by_name[name]))
            yield (by_name[name] for name in names)

    def _record(self, shard: dict[str, Any]) -> Path:
        return (self.path / shard["name"]).with_suffix(".attack.json")

    def _is_made(self, shard: dict[str, Any]) -> bool:
        """Whether a shard is there, whole, and of this attack."""
        record, tar = self._record(shard), self.path / shard["name"]
        if not record.is_file():
            return False
        known = read_json(record)
        files = {path.name: path for path in (tar, index_of(tar))}
        whole = all(path.is_file() and sha256_file(path) == known["files"].get(n) for n, path in files.items())
        return whole and known["identity"] == self.identity

    def _make(self, shard: dict[str, Any]) -> list[_Outcome]:
        """Attack one shard in batches; its record is written after both of its files."""
        tar = self.path / shard["name"]
        indices = range(shard["first"], shard["first"] + shard["count"])
        outcomes = []
        with ShardWriter(tar, self.clean.manifest["encoding"]) as writer:
            for start in range(0, len(indices), self.settings.attack.batch_size):
                batch = indices[start : start + self.settings.attack.batch_size]
                stored, labels, outcome = self._attack(batch)
                for index, image, label in zip(batch, stored.permute(0, 2, 3, 1).numpy(), labels, strict=True):
                    writer.write(index, image, int(label))
                outcomes.append(outcome)
        total = _Outcome()
        for outcome in outcomes:
            total.add(outcome)
        files = {path.name: sha256_file(path) for path in (tar, index_of(tar))}
        write_json(self._record(shard), {"identity": self.identity, "files": files, "outcome": asdict(total)})
        return outcomes

    def _attack(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, _Outcome]:
        """Adversarial images (uint8 on the host), labels and outcome of one batch."""
        clean, labels = (tensor.to(self.device) for tensor in self.clean.batch(indices))
        seed, spec = self.settings.run.seed, self.spec
        made = attack(self.model, to_float(clean), labels, spec, indices, seed)
        stored = quantise(made, clean, spec.norm, spec.eps)
        used = float(distances(stored, clean, spec.norm).max())
        if used > spec.eps * (1 + 1e-6):
            raise RuntimeError(f"samples {indices[0]}…{indices[-1]}: stored {used} from clean, eps is {spec.eps}")
        return stored.cpu(), labels.cpu(), self._outcome(clean, stored, labels, indices, used)

    @torch.no_grad()
    def _outcome(self, clean: Tensor, stored: Tensor, labels: Tensor, indices: Sequence[int], used: float) -> _Outcome:
        before, after = (self.model(to_float(images)).argmax(1) for images in (clean, stored))
        right, still = before == labels, after == labels
        attackable, succeeded = right, right & ~still
        if self.spec.targeted:
            targets = random_targets(labels, len(self.clean.classes), indices, self.settings.run.seed)
            attackable, succeeded = torch.ones_like(right), after == targets
        return _Outcome(
            count=len(labels),
            clean_right=int(right.sum()),
            adversarial_right=int(still.sum()),
            succeeded=int(succeeded.sum()),
            attackable=int(attackable.sum()),
            eps_used=used,
        )

    def _seal_if_complete(self) -> None:
        """Write the manifest when every shard is there; with several workers, whoever comes last does."""
        with one_at_a_time(self.path):
            missing = [shard["name"] for shard in self.shards if not self._is_made(shard)]
            if missing:
                say(f"attack: this worker is done; {len(missing)} of {len(self.shards)} shards are left to others")
                return
            total = _Outcome()
            for shard in self.shards:
                total.add(_Outcome(**read_json(self._record(shard))["outcome"]))
            seal_shard_set(self.path, {**self._facts(), **total.facts()})
        facts = total.facts()
        say(
            f"adversarial shards: {total.count} images, {self.spec.name} {self.spec.norm} eps {facts['eps_used']:.5f}: "
            f"success {facts['success_rate']:.1f} %, accuracy {facts['clean_accuracy']:.1f} % to "
            f"{facts['adversarial_accuracy']:.1f} %, {self.path}"
        )

    def _facts(self) -> dict[str, Any]:
        copied = ("dataset", "split", "image_size", "classes")
        return {
            "kind": "adversarial",
            **{name: self.clean.manifest[name] for name in copied},
            "clean_identity": self.clean.identity,
            "classifier_identity": self.classifier,
            "attack": asdict(self.spec),
            "attack_identity": self.identity,
            "seed": self.settings.run.seed,
            "batch_size": self.settings.attack.batch_size,
        }
