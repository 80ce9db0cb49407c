"""What the manifests of sealed directories say: of what kind the content is, its files, and who wrote it.

Every sealed directory has one `manifest.json` (see `maep.storage.sealed`); `format` is its version, the same for all
kinds. What was written before manifests had a version is format 0. The manifests of shard sets are in
`maep.data.shard_manifest`, those of adapters and classifiers beside the code that writes them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from maep.config.training_settings import ModelSettings
from maep.runtime.errors import fail
from maep.runtime.version import __version__
from maep.storage.documents import Document

LONGEST_NAME = 4000  # bytes: Linux takes paths of 4,096


def problem_with_name(name: str) -> str | None:
    """Why a relative name of a file, from elsewhere, is not to be joined to a directory; None if it may be."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "leaves the directory"
    if "" in parts or "." in parts or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        return "is no plain relative name"
    return None


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 (64 hex digits) of one file."""

    bytes: int = field(metadata={"low": 0})
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest(Document):
    """What every sealed directory says of itself.

    kind: what it holds. files: all others in it, by relative name.
    """

    SELF_CHECKED: ClassVar[bool] = True

    kind: str = ""
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object, source: str | Path) -> Self:
        """As every document; a file outside of the directory is refused by name."""
        manifest = super().from_json(value, source)
        for name in manifest.files:
            if problem := problem_with_name(name):
                fail(f"{source}: files: {name[:80]!r} {problem}; expected a name below the directory")
        return manifest

    def sealed(self, files: Mapping[str, FileEntry]) -> Self:
        """The same, of these files."""
        return replace(self, files=files)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: the version first, the files, of which there can be thousands, last."""
        entries = super().to_json()
        entries["files"] = entries.pop("files")
        return entries


@dataclass(frozen=True, kw_only=True)
class StampedManifest(Manifest):
    """One that also names the version of maep that wrote it; empty where that was before 0.2.

    Shard sets have none: the same images give the same bytes under every version.
    """

    maep: str = ""

    def sealed(self, files: Mapping[str, FileEntry]) -> Self:
        """The same, of these files, written by this version."""
        return replace(self, files=files, maep=__version__)


@dataclass(frozen=True)
class Retreat:
    """A training went back from a step to an earlier one, since it had lost robustness to `accuracy` percent."""

    step: int = field(metadata={"low": 0})
    back_to: int = field(metadata={"low": 0})
    accuracy: float


@dataclass(frozen=True)
class RobustProgress:
    """Of a training against the whole: accuracies in percent on held-out images under PGD, and how it went.

    accuracy: of the weights at the last check. checked: whether that was at this very step. averaged, clean: of the
    averaged weights then, attacked and not. retreats: all so far; each makes the attack longer by a step. fgsm: of the
    weights then under one step alone: where it stays as `accuracy` falls, they overfit to the training's attack.
    """

    accuracy: float | None = None
    checked: bool = False
    averaged: float | None = None
    clean: float | None = None
    retreats: tuple[Retreat, ...] = ()
    fgsm: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest(StampedManifest):
    """Of a checkpoint of pretraining or finetuning.

    step, samples: consumed so far. loss: the mean since the checkpoint before. world: processes that wrote it.
    purifier: the kind of purifier that is trained. model, purify: the settings of its network, and
    of its use. method, rank,
    targets: of the finetuning; `full` trains all weights, as pretraining does. scaler: state of the gradient scaler
    under fp16. robust: of a training against the whole of purifier and classifier; None for others.
    """

    kind: str = "checkpoint"
    step: int = field(metadata={"low": 0})
    samples: int = field(default=0, metadata={"low": 0})
    loss: float | None = None
    world: int = field(default=1, metadata={"low": 1})
    zero_stage: int | None = field(default=None, metadata={"low": 0, "high": 3})
    scaler: Mapping[str, object] | None = None
    purifier: str = "maep"
    model: Mapping[str, object] = field(default_factory=dict)
    purify: Mapping[str, object] = field(default_factory=dict)
    method: str = "full"
    rank: int | None = None
    targets: str | None = None
    robust: RobustProgress | None = None

    @property
    def architecture(self) -> dict[str, object]:
        """`{setting: value}` of what decides which tensors there are, and their shapes.

        A setting of the model that came later has its default in a manifest from before.
        """
        later = asdict(ModelSettings()) if self.purifier == "maep" and self.model else {}
        model = {**later, **self.model}
        return {
            "purifier": self.purifier, "method": self.method, "rank": self.rank,
            **{f"model.{name}": value for name, value in model.items()},
        }  # fmt: skip
