"""Batches of images with their labels, in an order that is given: from memory where the set fits, else by workers."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maep.data.loader_processes import loader_processes
from maep.data.shards import ShardSet
from maep.runtime.device import upload
from maep.runtime.unwinding import hold_signals

IN_MEMORY = 8 * 2**30  # bytes; CIFAR's images, 0.2 GB, are decoded once onto the device, ImageNet's 190 GB never


def labelled_batches(
    shards: ShardSet, plan: Iterable[Sequence[int]], device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (uint8 [N, 3, H, W]) and labels (int64 [N]) of one batch after another.

    plan: the sample indices of each batch. device: where the images are kept if they fit into memory. workers:
    processes that read them if they do not, 0 = this one.
    """
    side = shards.manifest.image_size or shards.image(0).shape[0]
    if len(shards) * 3 * side * side <= IN_MEMORY:
        images = _InMemory(shards, device)
        return (images.batch(indices) for indices in plan)
    loader = DataLoader(
        _Batches(shards), sampler=plan, batch_size=None, pin_memory=device.type == "cuda", **loader_processes(workers)
    )
    with hold_signals():
        return iter(loader)


class _InMemory:
    """All images of a set, decoded once, on the device."""

    def __init__(self, shards: ShardSet, device: torch.device) -> None:
        images, labels = shards.batch(range(len(shards)))
        self.images, self.labels = images.to(device), labels.to(device)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `ShardSet.batch`."""
        rows = upload(torch.as_tensor(indices), self.images.device)
        return self.images[rows], self.labels[rows]


class _Batches(Dataset):
    """A batch of a shard set by the list of its sample indices."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.shards.batch(indices)
