"""What purifying costs and leaves behind, on a few images: memory, and the seams of each way to lay tiles."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maep.attacks.reseeding import reseeded
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.metrics import psnr
from maep.evaluation.scoring.plan import PURIFYING
from maep.purifiers import Purifier
from maep.runtime.device import wait_for
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.documents import Document

VERSION = 1  # of the measurement, as part of its identity: raising it measures again


@dataclass(frozen=True)
class GridCost:
    """One way to lay tiles. overlap: pixels; shifts: grids; used: whether the purifier lays them so.

    across, inside: mean step between neighbouring pixels of what was added, across borders and elsewhere, in [0,1]
    pixels; None where there are no such pixels. psnr_clean: dB.
    """

    grid: str
    overlap: int
    shifts: int
    used: bool
    across: float | None
    inside: float | None
    psnr_clean: float
    seconds_per_image: float


@dataclass(frozen=True)
class PurificationCost:
    """images: measured for the grids. peak_bytes: of tensors while purifying `images_at_once` images together."""

    images: int
    images_at_once: int
    peak_bytes: int
    grids: tuple[GridCost, ...]


@dataclass(frozen=True)
class CostRecord(Document):
    """purifying.json. identity: of the measurement; purifier: identity of the purifier."""

    FORMAT: ClassVar[int] = 2  # 1 may lack its digest
    SELF_CHECKED: ClassVar[bool] = True
    DIGEST_SINCE: ClassVar[int | None] = 2

    identity: str
    purifier: str
    cost: PurificationCost

    @classmethod
    def upgrade(cls, entries: dict[str, Any], version: int) -> dict[str, Any]:
        """Format 0 had the cost beside the identities."""
        return {**entries, "cost": entries} if version == 0 else entries


@dataclass(frozen=True)
class CostHead(Document):
    """What tells whether a purifying.json is this measurement's, whatever else is in it."""

    FORMAT: ClassVar[int] = CostRecord.FORMAT

    identity: str = ""
    purifier: str = ""


def read_cost(purifier: str, directory: Path) -> PurificationCost:
    """purifying.json of `directory`, which must be of the purifier with that identity.

    Raises UserError when it is missing or of another one.
    """
    path = directory / PURIFYING
    if not path.is_file() or CostHead.read(path).purifier != purifier:
        fail(f"{path}: memory and tiles have not been measured; run stage=evaluate to complete it")
    return CostRecord.read(path).cost


class PeakMemory(TorchDispatchMode):
    """Within it, `peak` is the most bytes of tensors made in it that were alive at once; scratch of single operations
    is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        self._alive = {reference: size for reference, size in self._alive.items() if not reference.expired()}
        inputs = {StorageWeakRef(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if StorageWeakRef(storage) not in inputs:
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


class CostMeasurement:
    """The measurement of one evaluation's purifier; `purifying.json` in its directory holds the outcome."""

    description = "memory, tiles"

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.path = evaluation.directory / PURIFYING
        settings = evaluation.settings.evaluation
        self.count = min(settings.check_images, len(evaluation.test))
        self.at_once = min(settings.batch_size, settings.images, len(evaluation.test))

    @property
    def identity(self) -> str:
        """Digest of all that the outcome depends on."""
        evaluation = self.evaluation
        inputs = [evaluation.defense.purifier_identity, evaluation.test.identity, evaluation.settings.run.seed]
        return digest([VERSION, *inputs, self.count, self.at_once])

    @property
    def claim(self) -> str:
        """The name under which workers claim it."""
        return f"purifying-{self.identity[:24]}"

    def is_done(self) -> bool:
        """Whether the outcome is there."""
        return self.path.is_file() and CostHead.read(self.path).identity == self.identity

    @torch.no_grad()
    def run(self) -> None:
        """Measure and write the outcome down."""
        defense, seed = self.evaluation.defense, self.evaluation.settings.run.seed
        images, _ = self.evaluation.images(range(self.at_once))
        with reseeded(defense.protection, seed), PeakMemory() as memory:
            defense.protection(images)
        cost = PurificationCost(self.count, self.at_once, memory.peak, tuple(self._grids()))
        CostRecord(self.identity, defense.purifier_identity, cost).write(self.path)

    def _grids(self) -> Iterator[GridCost]:
        """Each way to lay tiles, where the purifier lays any over images of this size."""
        purifier = self.evaluation.defense.purifier
        if not isinstance(purifier, Purifier):
            return
        images, _ = self.evaluation.images(range(self.count))
        if purifier.seam_error(images[:1], images[:1]) is None:
            return
        for layout in purifier.tile_layouts():
            variant = purifier.with_options(layout.options)
            started = time.perf_counter()
            with reseeded(variant, self.evaluation.settings.run.seed):
                purified = torch.cat([variant(image) for image in images.split(1)])
            wait_for(images.device)
            seconds = (time.perf_counter() - started) / len(images)
            seams = variant.seam_error(images, purified)
            assert seams is not None
            across, inside = (float(steps.mean()) if steps.isfinite().all() else None for steps in seams)
            quality = fmean(psnr(purified, images).tolist())
            options = layout.options
            yield GridCost(
                layout.name, options.overlap, options.shifts, layout.in_use, across, inside, quality, seconds
            )
