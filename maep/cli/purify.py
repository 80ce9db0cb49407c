"""`maep purify IN OUT run.dir=…`: purify an image, a folder of images, a shard or a shard set.

OUT is of the same kind as IN, lossless, and appears only when it is whole. Images may be of any size.
"""

import argparse
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from maep.config.command_line import command_line
from maep.config.schema import Settings
from maep.data.images.archives import open_archive
from maep.data.images.sources import IMAGE_SUFFIXES, Item, Source
from maep.data.shard_manifest import PurifiedManifest, ShardEntry, ShardManifest
from maep.data.shards import ShardSet, ShardWriter, encode_image, seal_shard_set, to_float, to_uint8
from maep.purifiers import Purifier, load_purifier
from maep.runtime.console import progress_bar, say
from maep.runtime.device import prepare_device
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import atomic_file, remove_temporaries, temporary_name
from maep.storage.manifests import StampedManifest
from maep.storage.sealed import MANIFEST, atomic_directory

K = TypeVar("K")
Advance = Callable[[], None]


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Raises UserError for bad input, leaving nothing half-written."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("source", metavar="IN", nargs="?", help="image, folder, shard (.tar) or shard set")
    options.add_argument("target", metavar="OUT", nargs="?", help="what to write; must not exist")
    words, settings = command_line(__doc__ or "", arguments, options=options, default_cfg=_run_config(arguments))
    if not words.source or not words.target:
        fail("purify: give IN and OUT, such as: maep purify photo.png clean.png run.dir=runs/cifar10")
    source, target = Path(words.source), Path(words.target)
    purify_source = plan(source, target)
    remove_temporaries(target.parent)
    purify_source(_purifier(settings), source, target)
    say(f"purify: {target}")
    return 0


def _run_config(arguments: Sequence[str]) -> str:
    """The configuration that the run directory named in the arguments was made with, if it has one."""
    directories = [word.partition("=")[2] for word in arguments if word.startswith("run.dir=")]
    path = Path(directories[-1]) / "config.yaml" if directories else None
    return str(path) if path and path.is_file() else ""


def _purifier(settings: Settings) -> Purifier:
    device = prepare_device(settings.compute.device, settings.compute.threads)
    purifier = load_purifier(settings.run.dir, device=device, settings=settings.purify)
    if purifier.needs_classifier:
        fail(f"{settings.run.dir}: its purifier (kind {purifier.kind}) asks a classifier, which this command has not")
    return purifier


def plan(source: Path, target: Path) -> Callable[[Purifier, Path, Path], None]:
    """The function that purifies this kind of source into `target`. Raises UserError if there is none."""
    if not source.exists():
        fail(f"{source}: no such file; give an image, a folder, a shard (.tar) or a shard set")
    if target.exists():
        fail(f"{target}: exists already; remove it or name another")
    if source.is_dir():
        return purify_shard_set if (source / MANIFEST).is_file() and any(source.glob("shard-*")) else purify_folder
    function, suffixes = (purify_tar, (".tar",)) if source.suffix == ".tar" else (purify_image, (".png", ".webp"))
    if function is purify_image and source.suffix.lower() not in IMAGE_SUFFIXES:
        fail(f"{source}: not an image or a shard; expected {', '.join(IMAGE_SUFFIXES)} or .tar")
    if target.suffix not in suffixes:
        fail(f"{target}: the output is lossless; name it with {' or '.join(suffixes)}")
    return function


def purify_stream(
    purifier: Purifier, images: Iterable[tuple[K, np.ndarray | None]]
) -> Iterator[tuple[K, np.ndarray | None]]:
    """Purify images one batch of equal sizes after another; keeps their order.

    images: (key, uint8 [H, W, 3]); an entry with None keeps its place between them. At most one batch is held.
    """
    batch: list[tuple[K, np.ndarray | None]] = []
    shape, count = None, 0
    for key, image in images:
        if image is not None:
            if count and (image.shape != shape or count >= purifier.images_at_once(*image.shape[:2])):
                yield from _purified(purifier, batch)
                batch, count = [], 0
            shape, count = image.shape, count + 1
        batch.append((key, image))
    yield from _purified(purifier, batch)


def _purified(purifier: Purifier, batch: list[tuple[K, np.ndarray | None]]) -> Iterator[tuple[K, np.ndarray | None]]:
    images = [image for _, image in batch if image is not None]
    if not images:
        yield from batch
        return
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(purifier.device)
    with torch.inference_mode():
        purified = iter(to_uint8(purifier.purify(to_float(pixels))).permute(0, 2, 3, 1).cpu().numpy())
    for key, image in batch:
        yield key, None if image is None else np.ascontiguousarray(next(purified))


def purify_image(purifier: Purifier, source: Path, target: Path) -> None:
    """One image file to a .png or lossless .webp."""
    ((_, image),) = purify_stream(purifier, [(0, _read(source.parent, source.name))])
    assert image is not None
    with atomic_file(target) as temporary:
        temporary.write_bytes(encode_image(image, target.suffix[1:]))


def purify_folder(purifier: Purifier, source: Path, target: Path) -> None:
    """All images below a folder, to the same names as .png, with a manifest."""
    files = open_archive(source).files
    names = [name for name in files if _is_image(name)]
    if not names:
        fail(f"{source}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    outputs = {str(Path(name).with_suffix(".png")): name for name in names}
    for name in names:
        other = outputs[str(Path(name).with_suffix(".png"))]
        if other != name:
            fail(f"{source}: {name} and {other} would have the same output; rename one")
    if len(names) < len(files):
        say(f"purify: {len(files) - len(names)} files that are not images are left out")
    images = ((name, _read(source, name)) for name in names)
    with (
        _progress(len(names)) as advance,
        atomic_directory(target, StampedManifest(kind="purified images")) as directory,
    ):
        for name, image in purify_stream(purifier, images):
            assert image is not None
            path = (directory / name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_image(image, "png"))
            advance()


def purify_tar(purifier: Purifier, source: Path, target: Path) -> None:
    """The images of a tar file to PNG members; all other members, and their order, stay as they are."""
    try:
        with tarfile.open(source) as tar:
            names = [member.name for member in tar if member.isfile()]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{source}: cannot be read as tar: {error}") from error
    total = sum(map(_is_image, names))
    if not total:
        fail(f"{source}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    members = ((name, _read(source, name) if _is_image(name) else None) for name in names)
    with _progress(total) as advance, atomic_file(target) as temporary, tarfile.open(temporary, "w") as out:
        for name, image in purify_stream(purifier, members):
            if image is None:
                _add(out, name, open_archive(source).read(os.path.normpath(name)))
            else:
                _add(out, str(Path(name).with_suffix(".png")), encode_image(image, "png"))
                advance()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def purify_shard_set(purifier: Purifier, source: Path, target: Path) -> None:
    """A shard set to a shard set of the same keys, labels and layout, sealed."""
    shards = ShardSet(source)
    problems = shards.verify()
    if problems:
        fail(problems[0])
    manifest = _purified_manifest(shards.manifest)
    with _progress(len(shards)) as advance, _working_directory(target) as directory:
        for shard in shards.manifest.shards:
            _purify_shard(purifier, shards, shard, directory, advance)
        seal_shard_set(directory, manifest, target)


def _purified_manifest(source: ShardManifest) -> PurifiedManifest:
    """Of a set whose samples are those of `source`, purified."""
    return PurifiedManifest(
        dataset=source.dataset, split=source.split, image_size=source.image_size, classes=source.classes,
        clean_identity=source.clean_identity, purified_from=source.identity,
        source={name: value for name, value in source.to_json().items() if name != "files"},
    )  # fmt: skip


def _purify_shard(purifier: Purifier, shards: ShardSet, shard: ShardEntry, directory: Path, advance: Advance) -> None:
    indices = range(shard.first, shard.first + shard.count)
    images = ((index, shards.image(index)) for index in indices)
    with ShardWriter(directory / shard.name, shards.manifest.encoding) as writer:
        for index, image in purify_stream(purifier, images):
            assert image is not None
            writer.write(index, image, shards.label(index))
            advance()


@contextmanager
def _working_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`; what has not been renamed at the end is removed."""
    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _progress(total: int) -> Iterator[Advance]:
    with progress_bar() as bar:
        task = bar.add_task("purify", total=total, note="")
        yield lambda: bar.advance(task)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _read(root: Path, name: str) -> np.ndarray:
    """An image below a folder or in a tar, as uint8 [H, W, 3]. Raises UserError, naming it, if it is corrupt."""
    return np.asarray(Source(root, "files", ()).image(Item(os.path.normpath(name), 0)))
