"""`maep purify IN OUT run.dir=…`: purify an image, a folder of images, a shard or a shard set.

OUT is of the same kind as IN, lossless, in 8 bits a channel, and appears only when it is whole. Images may be of any
size, are turned upright and keep their transparency and colour profile. A command that was interrupted goes on where it
ended. What cannot be read ends the command, or is, with data.on_error=skip, named and left out: exit code 5.
"""

import argparse
import io
import os
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from maep.config.command_line import command_line
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data.image_encoding import encode_image
from maep.data.images.archives import Archive, open_archive
from maep.data.images.decoding import (
    BACKGROUNDS,
    HEAD,
    IMAGE_SUFFIXES,
    USUAL_SUFFIXES,
    Decoding,
    begins_like_an_image,
    is_deep,
    over_background,
    upright,
)
from maep.data.purifying import check_memory, purify_pixels
from maep.data.shard_manifest import PurifiedManifest, ShardEntry, ShardManifest
from maep.data.shards import (
    ShardSet,
    ShardWriter,
    index_of,
    seal_shard_set,
    shard_name,
    to_float,
    to_uint8,
)
from maep.runtime.console import progress_bar, say
from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail
from maep.runtime.exits import ExitCode
from maep.runtime.text import listed
from maep.storage.atomic import atomic_file, remove_temporaries, require_writable
from maep.storage.manifests import StampedManifest
from maep.storage.sealed import MANIFEST, problem_with, seal_directory

if TYPE_CHECKING:  # help and bad input are answered without importing torch
    import PIL.Image

    from maep.purifiers import Purifier

K = TypeVar("K")
Advance = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class PurifiedImages(StampedManifest):
    """Of a folder of images. purifier: its digest. inputs: `{output: its input}`. skipped: `{name: reason}`."""

    kind: str = "purified images"
    purifier: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """A purifier, the settings of images, and what was left out so far, `{name: reason}`.

    memory: bytes that purifying an image may take. deep: names of images of more than 8 bits a channel.
    """

    purifier: "Purifier"
    decoding: Decoding
    skips: bool
    memory: int
    skipped: dict[str, str] = field(default_factory=dict)
    deep: set[str] = field(default_factory=set)

    @property
    def identity(self) -> str:
        """16 hex digits of all that an output depends on beside its image."""
        from maep.attacks.attack_state import tensors_sha256

        facts = [self.purifier.kind, self.purifier.config(), tensors_sha256(dict(self.purifier.weights()))]
        return digest([*facts, self.decoding.background])[:16]

    def picture(self, archive: Archive, name: str) -> "Picture":
        """An image. Raises UserError, naming it, if it is corrupt or takes too much memory."""
        picture = Picture.of(archive, name, self.decoding)
        height, width = picture.pixels.shape[:2]
        check_memory(self.purifier, height, width, self.memory, f"{archive.path}: {name}")
        if picture.is_deep:
            self.deep.add(name)
        return picture

    def check(self, archive: Archive, names: Sequence[str]) -> None:
        """Raise UserError, naming the first image that none may be left out for, and how many there are of them.

        All are read before the first is purified, which takes far longer: hours of it would be lost to the last one.
        """
        problems = [] if self.skips else list(filter(None, (self._problem(archive, name) for name in names)))
        if problems:
            many = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            fail(f"{problems[0]}{many}; data.on_error=skip leaves such images out")

    def _problem(self, archive: Archive, name: str) -> str:
        """Why an image cannot be purified; "" if it can."""
        try:
            self.picture(archive, name)
        except UserError as error:
            return str(error)
        return ""

    def read(self, archive: Archive, name: str) -> "Picture | None":
        """An image; None for one that is left out, which is said. Raises UserError, naming it, if none may be."""
        try:
            return self.picture(archive, name)
        except UserError as error:
            if not self.skips:
                raise
            say(f"purify: left out: {error}")
            self.skipped[name] = str(error)
            return None


@dataclass(frozen=True)
class Picture:
    """pixels: uint8 [H, W, 3]; alpha: uint8 [H, W] of an image with transparency; profile: ICC's, of its colours;
    is_deep: whether it has more than 8 bits a channel.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    profile: bytes | None
    is_deep: bool

    @classmethod
    def of(cls, archive: Archive, name: str, decoding: Decoding) -> "Picture":
        """One image of an archive, upright. Raises UserError, naming it, if it is corrupt."""
        content = archive.read(os.path.normpath(name), decoding.max_bytes)
        try:
            image = upright(content, decoding.max_pixels)
            facts = _profile(image), is_deep(content)
            if not image.has_transparency_data or image.mode.startswith(("I", "F")):
                return cls(np.asarray(over_background(image, decoding.background)), None, *facts)
            layers = np.array(image.convert("RGBA"))
        except Exception as error:  # noqa: BLE001  (Pillow lets pass whatever a parser raises)
            reason = str(error).partition(" <_io")[0] or type(error).__name__
            fail(f"{archive.path}: {name}: corrupt image: {reason}")
        # What nobody sees must not show: neither to the purifier nor in the output.
        layers[layers[..., 3] == 0, :3] = BACKGROUNDS[decoding.background]
        return cls(np.ascontiguousarray(layers[..., :3]), layers[..., 3].copy(), *facts)  # and not all four

    def encoded(self, purified: np.ndarray, encoding: str) -> bytes:
        """The file of what was purified, its transparency put back."""
        layers = purified if self.alpha is None else np.dstack([purified, self.alpha])
        return encode_image(layers, encoding, self.profile)


def _profile(image: "PIL.Image.Image") -> bytes | None:
    """The ICC profile of an image whose pixels it still describes when they are RGB: none of grey, CMYK or Lab."""
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and profile[16:20] == b"RGB " else None


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
    require_writable(target.parent, "OUT")
    remove_temporaries(target.parent)
    open_archive.cache_clear()
    decoding = Decoding(settings.data.background, settings.data.max_pixels)
    job = Job(_purifier(settings, arguments), decoding, settings.data.on_error == "skip", settings.compute.image_memory)
    purify_source(job, source, target)
    if job.deep:
        names = listed(sorted(job.deep))
        say(f"purify: of {len(job.deep)} images only 8 bits a channel are kept, they have more: {names}")
    say(f"purify: {target}" + (f"; {len(job.skipped)} images were left out" if job.skipped else ""))
    return ExitCode.SOME_SKIPPED if job.skipped else ExitCode.DONE


def _run_config(arguments: Sequence[str]) -> str:
    """The configuration that the run directory named in the arguments was made with, if it has one."""
    words = [word for word in arguments if word.startswith("run.dir=")]
    path = Path(load_settings(None, words).run.dir) / "config.yaml"  # as it is read later: with ~, and quotes around it
    return str(path) if words and path.is_file() else ""


def _purifier(settings: Settings, arguments: Sequence[str]) -> "Purifier":
    """That of purifier=PATH, or of run.dir. Raises UserError where purifier.kind asks for one of another kind."""
    from maep.purifiers import load_purifier
    from maep.runtime.device import prepare_device

    device = prepare_device(settings.compute)
    path = settings.evaluation.purifier or settings.run.dir
    purifier = load_purifier(path, device=device).used_as(settings, path)
    if any(word.startswith("purifier.kind=") for word in arguments) and purifier.kind != settings.purifier.kind:
        fail(f"purifier.kind={settings.purifier.kind}: {path} holds one of kind {purifier.kind}; leave it out")
    if purifier.needs_classifier:
        fail(f"{path}: its purifier (kind {purifier.kind}) asks a classifier, which this command has not")
    return purifier


def plan(source: Path, target: Path) -> Callable[[Job, Path, Path], None]:
    """The function that purifies this kind of source into `target`. Raises UserError if there is none."""
    if not source.exists():
        fail(f"{source}: no such file; give an image, a folder, a shard (.tar) or a shard set")
    inner, outer = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    if os.path.lexists(target) and (inner == outer or not _is_purified_folder(source, target)):
        fail(f"{target}: exists already; remove it or name another")
    if source.is_dir():
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            fail(f"{target}: one of IN and OUT lies inside the other; name a folder beside {source}")
        return purify_shard_set if (source / MANIFEST).is_file() and any(source.glob("shard-*")) else purify_folder
    if not source.is_file():
        fail(f"{source}: is no regular file (a pipe or device); give an image, a folder, a shard (.tar) or a shard set")
    is_tar = source.suffix.lower() == ".tar"
    function, suffixes = (purify_tar, (".tar",)) if is_tar else (purify_image, (".png", ".webp"))
    if function is purify_image and not _is_image(open_archive(source.parent), source.name):
        fail(f"{source}: not an image or a shard; expected {USUAL_SUFFIXES}, or .tar")
    if target.suffix.lower() not in suffixes:
        fail(f"{target}: the output is lossless; name it with {' or '.join(suffixes)}")
    return function


def _is_purified_folder(source: Path, target: Path) -> bool:
    """Whether OUT is an earlier output of this command, whole, which may be brought up to date."""
    if not source.is_dir() or target.is_symlink() or not (target / MANIFEST).is_file():
        return False
    try:
        return PurifiedImages.read(target / MANIFEST).inputs != {} and problem_with(target) is None
    except UserError:
        return False


def purify_stream(
    purifier: "Purifier", images: Iterable[tuple[K, np.ndarray | None]]
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


def _purified(purifier: "Purifier", batch: list[tuple[K, np.ndarray | None]]) -> Iterator[tuple[K, np.ndarray | None]]:
    images = [image for _, image in batch if image is not None]
    if not images:
        yield from batch
        return
    purified = iter([purify_pixels(purifier, images[0])] if len(images) == 1 else _purified_batch(purifier, images))
    for key, image in batch:
        yield key, None if image is None else np.ascontiguousarray(next(purified))


def _purified_batch(purifier: "Purifier", images: Sequence[np.ndarray]) -> np.ndarray:
    import torch

    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(purifier.device)
    with torch.no_grad():
        purified: np.ndarray = to_uint8(purifier.purify(to_float(pixels))).permute(0, 2, 3, 1).cpu().numpy()
    return purified


def _purified_pictures(job: Job, archive: Archive, names: Iterable[str]) -> Iterator[tuple[str, Picture | None, bytes]]:
    """(name, picture, its file as .png); None and b"" for what is no image or was left out."""
    pictures: dict[str, Picture | None] = {}

    def pixels() -> Iterator[tuple[str, np.ndarray | None]]:
        for name in names:
            picture = job.read(archive, name) if _is_image(archive, name) else None
            pictures[name] = picture
            yield name, picture.pixels if picture else None

    for name, purified in purify_stream(job.purifier, pixels()):
        picture = pictures.pop(name)
        yield name, picture, b"" if picture is None or purified is None else picture.encoded(purified, "png")


def purify_image(job: Job, source: Path, target: Path) -> None:
    """One image file to a .png or lossless .webp; there is nothing to skip to."""
    picture = job.picture(open_archive(source.parent), source.name)
    ((_, purified),) = purify_stream(job.purifier, [(0, picture.pixels)])
    assert purified is not None
    with atomic_file(target) as temporary:
        temporary.write_bytes(picture.encoded(purified, target.suffix[1:].lower()))


def _outputs(source: Path, names: Iterable[str], archive: Archive) -> dict[str, str]:
    """`{name: output}`: images as .png, all others as they are. Raises UserError where two would be one file.

    Compared as file systems do that know no case and one form of Unicode.
    """
    outputs: dict[str, str] = {}
    names_by_output: dict[str, str] = {}
    for name in names:
        outputs[name] = str(Path(name).with_suffix(".png")) if _is_image(archive, name) else name
        other = names_by_output.setdefault(unicodedata.normalize("NFC", outputs[name]).casefold(), name)
        if other != name:
            fail(f"{source}: {other} and {name} would have the same output; rename one")
    return outputs


def purify_folder(job: Job, source: Path, target: Path) -> None:
    """All images below a folder, to the same names as .png, with a manifest; those that are done stay as they are."""
    archive = open_archive(source)
    names = [name for name in archive.files if _is_image(archive, name)]
    if not names:
        fail(f"{source}: holds no image ({USUAL_SUFFIXES})")
    outputs = _outputs(source, names, archive)
    if len(names) < len(archive.files):
        say(f"purify: {len(archive.files) - len(names)} files that are not images are left out")
    inputs = {outputs[name]: _state(archive, name) for name in names}
    with (
        _progress(len(names)) as advance,
        _working_directory(target, digest([job.identity, inputs])) as directory,
    ):
        _reuse(target, directory, job.identity, inputs)
        remaining = [name for name in names if not (directory / outputs[name]).is_file()]
        job.check(archive, remaining)
        for name, picture, content in _purified_pictures(job, archive, remaining):
            if picture is not None:
                with atomic_file(directory / outputs[name]) as temporary:
                    temporary.write_bytes(content)
            advance()
        done = {output: state for output, state in inputs.items() if (directory / output).is_file()}
        if not done:
            fail(f"{source}: no image could be read; {next(iter(job.skipped.values()))}")
        manifest = PurifiedImages(purifier=job.identity, inputs=done, skipped=job.skipped)
        seal_directory(directory, target, manifest)


def _state(archive: Archive, name: str) -> str:
    """Name, size and time of a file: another state means that its output is made again."""
    status = archive.on_disk(name).stat()
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def _reuse(target: Path, directory: Path, identity: str, inputs: Mapping[str, str]) -> None:
    """Take over the outputs of an earlier command whose inputs and purifier are the same."""
    if not target.is_dir():
        return
    earlier = PurifiedImages.read(target / MANIFEST)
    for output, state in inputs.items():
        if earlier.purifier == identity and earlier.inputs.get(output) == state:
            with atomic_file(directory / output) as temporary:
                shutil.copyfile(target / output, temporary)


def purify_tar(job: Job, source: Path, target: Path) -> None:
    """The images of a tar file to PNG members; all other members, and their order, stay as they are.

    Of an image that is left out the other members of its sample are too: WebDataset readers expect whole samples.
    """
    try:
        with tarfile.open(source) as tar:
            names = [member.name for member in tar if member.isfile() or member.islnk()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{source}: cannot be read as tar: {error}") from error
    archive = open_archive(source)
    outputs = _outputs(source, names, archive)
    images = [name for name in names if _is_image(archive, name)]
    if not images:
        raw = "; of raw shards (.npy) purify the whole set" if any(name.endswith(".npy") for name in names) else ""
        fail(f"{source}: holds no image ({USUAL_SUFFIXES}){raw}")
    job.check(archive, images)
    with _progress(len(images)) as advance, atomic_file(target) as temporary, tarfile.open(temporary, "w") as out:
        dropped = {_sample(name) for name in images if job.skips and job.read(archive, name) is None}
        kept = [name for name in names if _sample(name) not in dropped]
        for name, picture, content in _purified_pictures(job, archive, kept):
            _add(out, outputs[name], archive.read(os.path.normpath(name)) if picture is None else content)
            if picture is not None:
                advance()


def _sample(name: str) -> str:
    """WebDataset's key: all up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def purify_shard_set(job: Job, source: Path, target: Path) -> None:
    """A shard set to a shard set of the same keys, labels and layout, sealed. Nothing in it may be left out."""
    shards = ShardSet(source)
    problems = shards.check()
    if problems:
        fail(problems[0])
    height, width = shards.image(0).shape[:2]
    check_memory(job.purifier, height, width, job.memory, source)
    manifest = _purified_manifest(shards.manifest)
    with (
        _progress(len(shards)) as advance,
        _working_directory(target, digest([job.identity, shards.identity])) as directory,
    ):
        for number, shard in enumerate(shards.manifest.shards):
            path = directory / shard_name(number)
            if not index_of(path).is_file():
                _purify_shard(job.purifier, shards, shard, path, advance)
        seal_shard_set(directory, manifest, target)


def _purified_manifest(source: ShardManifest) -> PurifiedManifest:
    """Of a set whose samples are those of `source`, purified."""
    return PurifiedManifest(
        dataset=source.dataset, split=source.split, image_size=source.image_size, classes=source.classes,
        clean_identity=source.clean_identity, purified_from=source.identity,
        source={name: value for name, value in source.to_json().items() if name != "files"},
    )  # fmt: skip


def _purify_shard(purifier: "Purifier", shards: ShardSet, shard: ShardEntry, path: Path, advance: Advance) -> None:
    indices = range(shard.first, shard.first + shard.count)
    images = ((index, shards.image(index)) for index in indices)
    with ShardWriter(path, shards.manifest.encoding) as writer:
        for index, image in purify_stream(purifier, images):
            assert image is not None
            writer.write(index, image, shards.label(index))
            advance()


@contextmanager
def _working_directory(target: Path, identity: str) -> Iterator[Path]:
    """A hidden directory beside `target`, to be renamed to it.

    It stays where the process is interrupted, and the same command goes on in it: identity names all that its content
    depends on. After an error, and beside another command's, nothing stays.
    """
    prefix = f".purify-{target.name}-"
    directory = target.with_name(prefix + identity[:16])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for other in target.parent.iterdir():
            if other.name.startswith(prefix) and len(other.name) == len(directory.name) and other != directory:
                shutil.rmtree(other, ignore_errors=True)
        directory.mkdir(exist_ok=True)
        yield directory
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    except Exception:
        shutil.rmtree(directory, ignore_errors=True)
        raise


@contextmanager
def _progress(total: int) -> Iterator[Advance]:
    with progress_bar() as bar:
        task = bar.add_task("purify", total=total, note="")
        yield lambda: bar.advance(task)


def _is_image(archive: Archive, name: str) -> bool:
    """By its suffix, or by how it begins."""
    return name.lower().endswith(IMAGE_SUFFIXES) or begins_like_an_image(archive.head(os.path.normpath(name), HEAD))
