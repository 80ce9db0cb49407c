"""What a shard set says of itself: its manifest, one class a kind, and the index beside each shard.

    clean          images as they are (maep.data.images.build)
    adversarial    the same images attacked, in the same shards (maep.data.adversarial)
    purified       any other set, purified (maep purify)

None of them names the version of maep: the same images give the same bytes under every version.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from maep.runtime.errors import fail
from maep.storage.documents import Document
from maep.storage.json_files import parse_json
from maep.storage.manifests import Manifest

ENCODINGS = ("png", "webp", "raw")
# What a manifest must have to be a shard set's; named together, since without them it is some other artefact's.
REQUIRED = ("count", "shards", "files", "identity", "classes")


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its file, how many samples it holds, and the index of its first."""

    name: str
    count: int = field(metadata={"low": 0})
    first: int = field(metadata={"low": 0})

    @property
    def index_name(self) -> str:
        """File name of the index beside it."""
        return self.name.removesuffix(".tar") + ".index.json"


@dataclass(frozen=True, kw_only=True)
class ShardManifest(Manifest):
    """Of a shard set of any kind.

    image_size: pixels a side, where all images have one size. classes: names, by label. count: samples in all.
    encoding: `png`, `webp` or `raw`. identity: digest of every sample's index, label and pixels, in shards.
    clean_identity: that of the clean set whose samples these were made from, one by one. count, encoding, shards and
    identity are filled in when the set is sealed.
    """

    dataset: str = ""
    split: str = ""
    image_size: int | None = field(default=None, metadata={"low": 1})
    classes: tuple[str, ...] = ()
    clean_identity: str | None = None
    count: int = field(default=0, metadata={"low": 0})
    encoding: str = "png"
    shards: tuple[ShardEntry, ...] = ()
    identity: str = ""


@dataclass(frozen=True)
class SkippedImage:
    """An image that was left out as corrupt, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CleanManifest(ShardManifest):
    """settings: those of `data` that decide what the shards hold."""

    kind: str = "clean"
    skipped: tuple[SkippedImage, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AdversarialManifest(ShardManifest):
    """How the attack went.

    attack: the fields of an AttackSpec. attack_identity: digest of all that the images depend on. success_rate,
    clean_accuracy, adversarial_accuracy: percent; see `maep.data.adversarial.Outcome`. eps_used: the largest distance
    from a clean image, [0, 1] pixels.
    """

    kind: str = "adversarial"
    clean_identity: str = field()  # required here: a bare annotation would take the default of the base
    classifier_identity: str
    attack: Mapping[str, object]
    attack_identity: str
    seed: int
    batch_size: int = field(metadata={"low": 1})
    success_rate: float = field(metadata={"low": 0, "high": 100})
    clean_accuracy: float = field(metadata={"low": 0, "high": 100})
    adversarial_accuracy: float = field(metadata={"low": 0, "high": 100})
    eps_used: float = field(metadata={"low": 0})


@dataclass(frozen=True, kw_only=True)
class PurifiedManifest(ShardManifest):
    """purified_from: identity of the set that was purified. source: what its manifest said of it, files left out."""

    kind: str = "purified"
    purified_from: str
    source: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def upgrade(cls, entries: dict[str, Any], version: int) -> dict[str, Any]:
        """Format 0 had the source's entries among its own."""
        return {**entries, "source": {key: value for key, value in entries.items() if key != "files"}}


KINDS: dict[str, type[ShardManifest]] = {
    "clean": CleanManifest,
    "adversarial": AdversarialManifest,
    "purified": PurifiedManifest,
}


def read_shard_manifest(content: bytes, source: object) -> ShardManifest:
    """The manifest of a shard set from the bytes of its file.

    source: the file, for the message. Raises UserError naming it and the entry that is missing or wrong, and for
    another artefact's manifest.
    """
    entries = parse_json(content, source)
    missing = [key for key in REQUIRED if not isinstance(entries, dict) or key not in entries]
    if missing:
        fail(f"{source}: not a shard set's manifest (it lacks {', '.join(missing)})")
    manifest = KINDS.get(str(entries.get("kind")), ShardManifest).from_json(entries, str(source))
    _check_shards(manifest, source)
    for shard in manifest.shards:
        for name in (shard.name, shard.index_name):
            if name not in manifest.files:
                fail(f"{source}: does not list {name}")
    return manifest


def _check_shards(manifest: ShardManifest, source: object) -> None:
    """Shards are plain .tar files beside the manifest, each once, and their samples follow one on another."""
    first, names = 0, set()
    for shard in manifest.shards:
        if "/" in shard.name or not shard.name.endswith(".tar") or shard.name.lower() in names:
            fail(f"{source}: shards: {shard.name[:80]!r}: expected another file shard-NNNNN.tar beside the manifest")
        if shard.first != first:
            fail(f"{source}: {shard.name}: starts at sample {shard.first}; expected {first}")
        names.add(shard.name.lower())
        first += shard.count
    if manifest.count != first:
        fail(f"{source}: count={manifest.count}: its shards hold {first} samples")
    if manifest.encoding not in ENCODINGS:
        fail(f"{source}: encoding={manifest.encoding[:40]!r}: choose one of {', '.join(ENCODINGS)}")


@dataclass(frozen=True, eq=False)
class ShardIndex(Document):
    """Where the samples of one shard lie in its tar, in their order.

    first: index of the first sample. content: SHA-256 of every sample's index, label and pixels. offsets, bytes:
    where each encoded image starts, and its size; crc32: its checksum; int64 [count], as labels is.
    """

    shard: str
    first: int = field(metadata={"low": 0})
    count: int = field(metadata={"low": 0})
    encoding: str
    content: str
    offsets: np.ndarray
    bytes: np.ndarray
    crc32: np.ndarray
    labels: np.ndarray

    @classmethod
    def from_json(cls, value: object, source: object) -> Self:
        """As every document; its lists become arrays at once, since an index is read for nearly every random sample.

        Raises UserError for one that was written before samples had checksums.
        """
        if not isinstance(value, dict):
            return super().from_json(value, str(source))
        if "crc32" not in value:
            fail(f"{source}: has no checksums of its samples, an earlier version made it; make the shards again")
        arrays = {name: _whole_numbers(value, name, source) for name in ("offsets", "bytes", "crc32", "labels")}
        return super().from_json({**value, **arrays}, str(source))

    def check(self, shard: ShardEntry, size: int, classes: int, source: object) -> None:
        """Raise UserError, naming `source`, where it is not of a shard of `size` bytes with `classes` classes."""
        if (self.first, self.count) != (shard.first, shard.count):
            seen = f"{self.count} samples from {self.first} on"
            fail(f"{source}: lists {seen}; its manifest says {shard.count} from {shard.first} on")
        lies = (self.offsets < 0) | (self.bytes < 0) | (self.offsets > size) | (self.bytes > size - self.offsets)
        if lies.any():
            row = int(lies.argmax())
            place = f"{self.bytes[row]} bytes at {self.offsets[row]}"
            fail(f"{source}: sample {self.first + row}: {place} lie outside of {shard.name}, which has {size}")
        unknown = (self.labels < 0) | (self.labels >= (classes or np.iinfo(np.int64).max))
        if unknown.any():
            row = int(unknown.argmax())
            fail(f"{source}: sample {self.first + row}: label {self.labels[row]}; there are {classes} classes")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, arrays as lists."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in self._entries()}

    def _entries(self) -> list[tuple[str, Any]]:
        return [(self.VERSION_KEY, self.FORMAT), *vars(self).items()]


def _whole_numbers(entries: Mapping[str, Any], name: str, source: object) -> np.ndarray:
    """One of the lists, int64 [count]."""
    try:
        values = np.asarray(entries.get(name))
    except ValueError:  # lists of different lengths in it
        values = np.empty(0)
    if values.shape != (entries.get("count"),) or (values.size and values.dtype.kind != "i"):
        fail(f"{source}: {name}: expected a list of as many whole numbers as `count` says")
    return values.astype(np.int64)
