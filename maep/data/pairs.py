"""Training pairs (x, x_a): what a step consumes is a pure function of (seed, samples consumed).

Order, flips, crops and masks are keyed by (seed, epoch, sample index), so they do not depend on the number of
processes or loader workers, nor on where a run was resumed.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from maep.data.order import batch_at, slice_of
from maep.data.shards import ShardSet
from maep.keyed import keyed_rng
from maep.settings import TrainSettings


@dataclass(frozen=True)
class Request:
    """One sample of one epoch, and how much of it to hide."""

    epoch: int
    index: int
    mask_ratio: float


@dataclass
class PairBatch:
    """A micro-batch on one rank.

    clean, adversarial: uint8 [n, 3, s, s]; visible: bool [n, T], True = shown; labels, epochs, indices: int64 [n].
    `adversarial` is None when the trainer attacks online.
    """

    clean: Tensor
    adversarial: Tensor | None
    visible: Tensor
    labels: Tensor
    epochs: Tensor
    indices: Tensor


def visible_patches(patches: int, ratio: float, seed: int, epoch: int, index: int) -> np.ndarray:
    """The random mask M of one sample in one epoch: bool [patches], `round(ratio * patches)` of them False."""
    visible = np.ones(patches, dtype=bool)
    hidden = round(ratio * patches)
    if hidden:
        visible[keyed_rng("mask", seed, epoch, index).permutation(patches)[:hidden]] = False
    return visible


class PairDataset(Dataset):
    """Pairs by (epoch, index): the same crop and flip for both images of a pair."""

    def __init__(
        self,
        clean: ShardSet,
        adversarial: ShardSet | None,
        settings: TrainSettings,
        size: int,
        patch: int,
        seed: int,
    ) -> None:
        self.clean, self.adversarial = clean, adversarial
        self.settings, self.size, self.seed = settings, size, seed
        self.patches = (size // patch) ** 2

    def __getitem__(self, request: Request) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, int, Request]:
        rng = keyed_rng("augment", self.seed, request.epoch, request.index)
        flip, use_clean, top, left = rng.random(4)
        clean = self._view(self.clean.image(request.index), self.settings.flip and flip < 0.5, top, left)
        adversarial = None
        if self.adversarial is not None:
            image = self.adversarial.image(request.index)
            adversarial = self._view(image, self.settings.flip and flip < 0.5, top, left)
            if use_clean < self.settings.clean_share:
                adversarial = clean
        visible = visible_patches(self.patches, request.mask_ratio, self.seed, request.epoch, request.index)
        return clean, adversarial, visible, self.clean.label(request.index), request

    def _view(self, image: np.ndarray, flip: bool, top: float, left: float) -> np.ndarray:
        rows, columns = (int(u * (n - self.size + 1)) for u, n in zip((top, left), image.shape[:2], strict=True))
        image = image[rows : rows + self.size, columns : columns + self.size]
        return np.ascontiguousarray((image[:, ::-1] if flip else image).transpose(2, 0, 1))


def _collate(samples: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray, int, Request]]) -> PairBatch:
    clean, adversarial, visible, labels, requests = zip(*samples, strict=True)
    return PairBatch(
        clean=torch.from_numpy(np.stack(clean)),
        adversarial=None if adversarial[0] is None else torch.from_numpy(np.stack(adversarial)),
        visible=torch.from_numpy(np.stack(visible)),
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
        self, count: int, settings: TrainSettings, seed: int, first: int, last: int, rank: int, world: int
    ) -> None:
        self.count, self.settings, self.seed = count, settings, seed
        self.first, self.last, self.rank, self.world = first, last, rank, world

    def __iter__(self) -> Iterator[list[Request]]:
        size = self.settings.batch_size
        for step in range(self.first, self.last):
            ratio = mask_ratio_at(step, self.last, self.settings)
            batch = batch_at(step * size, size, self.count, self.seed)
            mine = slice_of(batch, self.rank, self.world)
            for micro in range(self.settings.accumulation):
                chosen = slice_of(mine, micro, self.settings.accumulation)
                yield [Request(epoch, index, ratio) for epoch, index in chosen]

    def __len__(self) -> int:
        return (self.last - self.first) * self.settings.accumulation


def ignore_signals(_worker: int) -> None:
    """Loader workers outlive the signals that ask the trainer to save."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)


def pair_loader(
    dataset: PairDataset,
    settings: TrainSettings,
    *,
    first: int,
    last: int,
    rank: int,
    world: int,
    workers: int,
) -> DataLoader:
    """Micro-batches (`PairBatch`) of the steps [first, last) for one rank; `workers` processes, 0 = in this one."""
    sampler = StepSampler(len(dataset.clean), settings, dataset.seed, first, last, rank, world)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_collate,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def end_workers(batches: Iterator[PairBatch]) -> None:
    """End the worker processes of `iter(pair_loader(…))`; they ignore SIGTERM, so leaving without this would hang."""
    end = getattr(batches, "_shutdown_workers", None)
    if end is not None:
        end()
