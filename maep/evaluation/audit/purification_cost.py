"""What purifying costs and leaves behind, on a few images: memory, and the seams of each way to lay tiles."""

import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maep.attacks.reseeding import reseeded
from maep.config.schema import PurifySettings
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.metrics import psnr
from maep.evaluation.scoring.plan import PURIFYING
from maep.purifiers import MAEPurifier
from maep.storage.atomic import digest, read_json, write_json

VERSION = 1


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
        given = {StorageWeakRef(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if StorageWeakRef(storage) not in given:
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def grids(used: PurifySettings, size: int) -> dict[str, PurifySettings]:
    """Ways to lay tiles of side `size` over an image: the three there are, and the one in use if it is another."""
    plain = replace(used, overlap=0, shifts=1)
    found = {
        "plain": plain,
        "overlapping, blended": replace(plain, overlap=size // 4),
        "shifted, averaged": replace(plain, shifts=4),
    }
    return found if used in found.values() else {**found, "as used": used}


class Purifying:
    """The questions to one evaluation's purifier; `purifying.json` in its directory holds the answers."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        settings = evaluation.settings.evaluation
        self.count = min(settings.check_images, len(evaluation.test))
        self.at_once = min(settings.batch_size, settings.images, len(evaluation.test))

    @property
    def identity(self) -> str:
        """Digest of all that the answers depend on."""
        evaluation = self.evaluation
        facts = [VERSION, evaluation.purifier_identity, evaluation.test.identity, evaluation.settings.run.seed]
        return digest([*facts, self.count, self.at_once])

    def is_done(self) -> bool:
        """Whether the answers are there."""
        path = self.evaluation.directory / PURIFYING
        return path.is_file() and read_json(path).get("identity") == self.identity

    @torch.no_grad()
    def run(self) -> None:
        """Ask and write the answers down."""
        images, _ = self.evaluation.images(range(self.at_once))
        with reseeded(self.evaluation.purifier, self.evaluation.settings.run.seed), PeakMemory() as memory:
            self.evaluation.purifier(images)
        answers = {
            "identity": self.identity,
            "purifier": self.evaluation.purifier_identity,
            "images": self.count,
            "images_at_once": self.at_once,
            "peak_bytes": memory.peak,
            "grids": list(self._seams()),
        }
        write_json(self.evaluation.directory / PURIFYING, answers)

    def _seams(self) -> Iterator[dict[str, Any]]:
        """For each grid: steps across borders and elsewhere (None: nowhere), in [0,1] pixels; PSNR clean; seconds."""
        purifier = self.evaluation.purifier
        if not isinstance(purifier, MAEPurifier):
            return
        images, _ = self.evaluation.images(range(self.count))
        if purifier.seam_error(images[:1], images[:1]) is None:
            return
        for name, settings in grids(purifier.settings, purifier.model.config.image_size).items():
            variant = MAEPurifier(purifier.model, settings).eval()
            started = time.perf_counter()
            with reseeded(variant, self.evaluation.settings.run.seed):
                purified = torch.cat([variant(image) for image in images.split(1)])
            seconds = (time.perf_counter() - started) / len(images)
            seams = variant.seam_error(images, purified)
            assert seams is not None
            across, inside = (float(steps.mean()) if steps.isfinite().all() else None for steps in seams)
            yield {
                "grid": name,
                "overlap": settings.overlap,
                "shifts": settings.shifts,
                "used": settings == purifier.settings,
                "across": across,
                "inside": inside,
                "psnr_clean": fmean(psnr(purified, images).tolist()),
                "seconds_per_image": seconds,
            }
