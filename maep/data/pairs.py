"""Training pairs (x, x_a): what a step consumes is a pure function of (seed, samples consumed).

Order, flips, crops and masks are keyed by (seed, epoch, sample index), so they do not depend on the number of
processes or loader workers, nor on where a run was resumed.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from maep.config.training_settings import TrainSettings
from maep.data.loader_processes import loader_processes
from maep.data.order import batch_at, held_out_indices, slice_of
from maep.data.shards import ShardSet
from maep.runtime.errors import UserError
from maep.runtime.randomness import keyed_rngs
from maep.runtime.unwinding import hold_signals


@dataclass(frozen=True)
class Request:
    """One sample of one epoch, and how much of it to hide."""

    epoch: int
    index: int
    mask_ratio: float


PREFETCH = 4  # micro-batches a worker: a slow read of one is hidden behind the others
Sample = tuple[np.ndarray, np.ndarray | None, np.ndarray, int, Request]


@dataclass
class PairBatch:
    """A micro-batch on one rank.

    clean, adversarial: uint8 [n, 3, s, s]; visible: bool [n, T], True = shown; shown: int64 [n, K], the indices of
    those patches, in order; labels, epochs, indices: int64 [n]. `adversarial` is None when the trainer attacks online.
    """

    clean: Tensor
    adversarial: Tensor | None
    visible: Tensor
    shown: Tensor
    labels: Tensor
    epochs: Tensor
    indices: Tensor

    def pin_memory(self) -> "PairBatch":
        """With what goes to the device in page-locked memory, so that its copies run beside the computation.

        The `DataLoader` calls it; epochs and indices are read on the host alone.
        """
        adversarial = None if self.adversarial is None else self.adversarial.pin_memory()
        return replace(
            self, clean=self.clean.pin_memory(), adversarial=adversarial, visible=self.visible.pin_memory(),
            shown=self.shown.pin_memory(), labels=self.labels.pin_memory(),
        )  # fmt: skip


def visible_patches(patches: int, ratio: float, seed: int, keys: Sequence[tuple[int, int]]) -> np.ndarray:
    """The random masks M of some samples, each in one epoch: bool [n, patches], `round(ratio * patches)` of each False.

    keys: (epoch, sample index) of each.
    """
    visible = np.ones((len(keys), patches), dtype=bool)
    hidden = round(ratio * patches)
    if hidden:
        for row, rng in zip(visible, keyed_rngs("mask", seed, keys), strict=True):
            row[rng.permutation(patches)[:hidden]] = False
    return visible


class PairDataset(Dataset):
    """Pairs by (epoch, index): the same crop and flip for both images of a pair.

    held_out: so many images, drawn by the seed, are not trained on; their indices, in order, are `held`.
    """

    def __init__(
        self,
        clean: ShardSet,
        adversarial: ShardSet | None,
        settings: TrainSettings,
        size: int,
        patch: int,
        seed: int,
        held_out: int = 0,
    ) -> None:
        self.clean, self.adversarial = clean, adversarial
        self.held = held_out_indices(seed, len(clean), held_out)
        self.settings, self.size, self.seed = settings, size, seed
        self.patches = (size // patch) ** 2

    @property
    def count(self) -> int:
        """Images of an epoch."""
        return len(self.clean) - len(self.held)

    def __getitem__(self, request: Request) -> Sample:
        return self._samples([request])[0]

    def __getitems__(self, requests: Sequence[Request]) -> list[Sample] | UserError:
        """What the loader asks for: a whole micro-batch; a `UserError` as a value, so that it survives the way."""
        try:
            return self._samples(requests)
        except UserError as error:
            return error

    def _samples(self, requests: Sequence[Request]) -> list[Sample]:
        """requests: of one step, so that they have one masking ratio."""
        (ratio,) = {request.mask_ratio for request in requests}
        indices = [request.index for request in requests]
        clean = self.clean.images(indices)
        adversarial = self.adversarial.images(indices) if self.adversarial else [None] * len(indices)
        keys = [(request.epoch, request.index) for request in requests]
        draws = [rng.random(6) for rng in keyed_rngs("augment", self.seed, keys)]
        visible = visible_patches(self.patches, ratio, self.seed, keys)
        labels = self.clean.labels(indices)
        return [self._sample(*each) for each in zip(requests, clean, adversarial, draws, visible, labels, strict=True)]

    def _sample(
        self,
        request: Request,
        clean: np.ndarray,
        adversarial: np.ndarray | None,
        draws: np.ndarray,
        visible: np.ndarray,
        label: int,
    ) -> Sample:
        flip, use_clean, down, across, turn, swap = draws
        enabled = (self.settings.flip, self.settings.transpose, self.settings.transpose)
        moves = [on and share < 0.5 for on, share in zip(enabled, (flip, turn, swap), strict=True)]
        clean = self._view(clean, moves, down, across)
        if adversarial is not None:
            adversarial = self._view(adversarial, moves, down, across)
            if use_clean < self.settings.clean_share:
                adversarial = clean
        return clean, adversarial, visible, label, request

    def _view(self, image: np.ndarray, moves: Sequence[bool], down: float, across: float) -> np.ndarray:
        """A crop, [3, size, size]. down, across: in [0, 1), how far into the image it starts.

        moves: whether it is mirrored left to right, turned upside down, transposed, in that order.
        """
        margin = self.settings.crop_padding
        if margin:
            image = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
        y, x = (
            int(share * (side - self.size + 1)) for share, side in zip((down, across), image.shape[:2], strict=True)
        )
        image = image[y : y + self.size, x : x + self.size]
        mirrored, turned, transposed = moves
        image = image[:: -1 if turned else 1, :: -1 if mirrored else 1]
        return np.ascontiguousarray(image.transpose(2, 1, 0) if transposed else image.transpose(2, 0, 1))


def _collate(samples: Sequence[Sample] | UserError) -> PairBatch | UserError:
    if isinstance(samples, UserError):
        return samples
    clean, adversarial, visible, labels, requests = zip(*samples, strict=True)
    return PairBatch(
        clean=torch.from_numpy(np.stack(clean)),
        adversarial=None if adversarial[0] is None else torch.from_numpy(np.stack(adversarial)),
        visible=torch.from_numpy(np.stack(visible)),
        # Found here, as a device would have to be waited for; rows with other numbers of patches do not stack.
        shown=torch.from_numpy(np.stack([np.flatnonzero(row) for row in visible])),
        labels=torch.tensor(labels),
        epochs=torch.tensor([request.epoch for request in requests]),
        indices=torch.tensor([request.index for request in requests]),
    )


def mask_ratio_at(step: int, steps: int, settings: TrainSettings) -> float:
    """The masking ratio r of a step (0-based): `mask_ratio` for the first `mask_until` of the training, then 0."""
    return settings.mask_ratio if step < settings.mask_until * steps else 0.0


class StepSampler(Sampler[list[Request]]):
    """This rank's micro-batches of the steps [first, last), in order; `accumulation` of them a step."""

    def __init__(
        self, dataset: PairDataset, settings: TrainSettings, first: int, last: int, rank: int, world: int
    ) -> None:
        self.settings, self.seed, self.count = settings, dataset.seed, dataset.count
        self.first, self.last, self.rank, self.world = first, last, rank, world
        self._before = [index - row for row, index in enumerate(dataset.held)]  # images trained on before each of these

    def __iter__(self) -> Iterator[list[Request]]:
        size = self.settings.batch_size
        for step in range(self.first, self.last):
            ratio = mask_ratio_at(step, self.last, self.settings)
            batch = batch_at(step * size, size, self.count, self.seed)
            share = slice_of(batch, self.rank, self.world)
            for micro in range(self.settings.accumulation):
                rows = slice_of(share, micro, self.settings.accumulation)
                yield [Request(epoch, row + bisect_right(self._before, row), ratio) for epoch, row in rows]

    def __len__(self) -> int:
        return (self.last - self.first) * self.settings.accumulation


class PairBatches(Iterator[PairBatch]):
    """What a pair loader yields. Raises, in this process, the UserError that a loader worker met."""

    def __init__(self, batches: Iterator[PairBatch | UserError]) -> None:
        self._batches = batches

    def __next__(self) -> PairBatch:
        batch = next(self._batches)
        if isinstance(batch, UserError):
            raise batch
        return batch

    def close(self) -> None:
        """End the worker processes; they ignore SIGTERM, so leaving without this would hang."""
        end = getattr(self._batches, "_shutdown_workers", None)
        if end is not None:
            end()


class PairLoader(DataLoader):
    """A `DataLoader` of pairs whose iterators are `PairBatches`."""

    def __iter__(self) -> PairBatches:  # type: ignore[override]
        with hold_signals():
            return PairBatches(super().__iter__())


def pair_loader(
    dataset: PairDataset,
    settings: TrainSettings,
    *,
    first: int,
    last: int,
    rank: int,
    world: int,
    workers: int,
    pin: bool = False,
) -> PairLoader:
    """Micro-batches (`PairBatch`) of the steps [first, last) for one rank.

    workers: processes that load, 0 = this one. pin: into page-locked memory, for a CUDA device to copy from.
    """
    sampler = StepSampler(dataset, settings, first, last, rank, world)
    return PairLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_collate,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin,
        **loader_processes(workers),
    )
