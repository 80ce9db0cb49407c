"""The same image twice: in the training and in the test split, or with two labels, as links and careless copies leave.

Only equal pixels count, after resizing and cropping. Of a training image that is tested, accuracy says nothing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from maep.data.shard_manifest import ShardIndex
from maep.data.shards import ShardSet, index_of


def repetition_warnings(splits: Mapping[str, ShardSet]) -> list[str]:
    """A line for training images among the test images, and for images with several labels; none for neither.

    splits: local sets by name, of one encoding and the same classes.
    """
    groups = list(_equal_images(splits))
    tested = sum(sum(split == "test" for split, _ in group) for group in groups if len({s for s, _ in group}) > 1)
    labelled = [(group, {splits[split].label(index) for split, index in group}) for group in groups]
    contradictions = [(group, labels) for group, labels in labelled if len(labels) > 1]
    lines = []
    if tested:
        leak = next(group for group in groups if len({split for split, _ in group}) > 1)
        lines.append(
            f"warning: {tested} of {len(splits['test'])} test images are training images too ({_example(leak)}):"
            " what is measured on them is no accuracy on new images"
        )
    if contradictions:
        group, labels = contradictions[0]
        classes = next(iter(splits.values())).classes
        names = " and ".join(classes[label] for label in sorted(labels)[:2])
        lines.append(
            f"warning: {sum(len(group) for group, _ in contradictions)} images are there with several labels"
            f" ({_example(group)}: {names}); leave one of each"
        )
    return lines


def _example(group: list[tuple[str, int]]) -> str:
    """The first and the last of equal images: of two splits, where they are in two."""
    return " = ".join(f"{split} sample {index}" for split, index in (group[0], group[-1]))


def _equal_images(splits: Mapping[str, ShardSet]) -> Iterator[list[tuple[str, int]]]:
    """Groups of two images or more with the same pixels, as (split, sample), training images first.

    Size and checksum of what is encoded find them; checksums of different images are the same now and then.
    """
    order = sorted(splits, reverse=True)  # train, test
    first = len(splits[order[0]])  # its rows come first
    keys = np.concatenate([_keys(splits[split]) for split in order])
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[inverse] > 1)
    by_key = candidates[np.argsort(inverse[candidates], kind="stable")]
    for alike in np.split(by_key, np.flatnonzero(np.diff(inverse[by_key])) + 1):
        by_pixels: dict[bytes, list[tuple[str, int]]] = {}
        for split, index in ((order[0], row) if row < first else (order[1], row - first) for row in alike.tolist()):
            by_pixels.setdefault(splits[split].image(index).tobytes(), []).append((split, index))
        yield from (group for group in by_pixels.values() if len(group) > 1)


def _keys(shards: ShardSet) -> np.ndarray:
    """Of each sample one number from the size and the checksum of its encoded image, int64 [N]."""
    directory = shards.path
    assert isinstance(directory, Path), "of sets that were built here"
    indexes = [ShardIndex.read(index_of(directory / entry.name)) for entry in shards.manifest.shards]
    return np.concatenate([(index.bytes << 32) | index.crc32 for index in indexes])
