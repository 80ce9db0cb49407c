"""Shard sets of any size on little disk: one tar of images under thousands of names, each with an index."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from maep.data.shard_manifest import CleanManifest, ShardEntry, ShardManifest
from maep.data.shards import ShardWriter, index_of, shard_name
from maep.runtime.digests import digest
from maep.storage.atomic import sha256_file, write_json
from maep.storage.manifests import FileEntry
from maep.storage.sealed import MANIFEST

CLASSES = tuple(map(str, range(10)))
NOISE = 8  # levels: with it PNG takes 2,300 bytes of 3,072, as it does of CIFAR's photographs
FIRST = '"first":0,'  # in a shard's index; replaced in its text, which is a hundred times faster than to write it anew


def photographs(count: int, side: int, seed: int) -> np.ndarray:
    """Smooth random images with some noise, uint8 [count, side, side, 3]: they compress as photographs do."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side][..., None] / side
    waves, phases = rng.normal(size=(2, count, 1, 1, 3)), rng.normal(size=(count, 1, 1, 3))
    images = 128 + 60 * np.sin(3 * (waves[0] * x + waves[1] * y) + phases)
    images += rng.normal(0, NOISE, images.shape)
    return images.clip(0, 255).astype(np.uint8)


def write_linked_set(
    directory: Path, shards: int, images: np.ndarray, encoding: str, manifest: ShardManifest | None = None
) -> Path:
    """A set of `shards` shards, all with the same images under sample indices of their own; returns its directory.

    manifest: of another kind than clean; what a sealed one says of the shards is filled in.
    """
    first = directory / shard_name(0)
    with ShardWriter(first, encoding) as writer:
        for index, image in enumerate(images):
            writer.write(index, image, index % len(CLASSES))
    entry, text = FileEntry(first.stat().st_size, sha256_file(first)), index_of(first).read_text(encoding="utf-8")
    files: dict[str, FileEntry] = {}
    for number in range(shards):
        path = directory / shard_name(number)
        content = text.replace(FIRST, f'"first":{number * len(images)},').replace(first.name, path.name).encode()
        index_of(path).write_bytes(content)
        if number:
            os.link(first, path)
        files[path.name] = entry
        files[index_of(path).name] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    entries = tuple(ShardEntry(shard_name(n), len(images), n * len(images)) for n in range(shards))
    manifest = manifest or CleanManifest(dataset="linked", split="train", image_size=images.shape[1], classes=CLASSES)
    sealed = replace(
        manifest, count=shards * len(images), encoding=encoding, shards=entries, identity=digest([entry.sha256, shards])
    ).sealed(files)
    write_json(directory / MANIFEST, sealed.to_file())
    return directory
