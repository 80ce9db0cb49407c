"""Images that were moved, or lie at two places: the shards that were built of them are used at the new one.

A set of shards is named by where its images lie; it belongs to another place too if the same images lie there, by their
fingerprint, and the settings are the same. Its files are linked, not copied: what is sealed does not change.
"""

import glob
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maep.config.data_settings import DataSettings
from maep.config.identity import decisive_fields
from maep.data.images.source_record import SourceRecord, source_record
from maep.data.shard_manifest import CleanManifest
from maep.data.shards import ShardSet
from maep.runtime.console import say
from maep.runtime.errors import UserError
from maep.storage.atomic import fsync, link_or_copy


def content_settings(settings: DataSettings) -> dict[str, Any]:
    """The settings that determine what the shards hold."""
    return decisive_fields(settings, "shards")


def shards_of_moved_source(path: Path, settings: DataSettings, splits: Sequence[str]) -> dict[str, Path]:
    """`{split: shard set}` of the wanted splits that were built from the same images at another place, with the same
    settings; reads no image.

    path: where the shards are wanted; others lie beside it.
    """
    if not splits or settings.root is None or not Path(settings.root).exists():
        return {}
    for record in sorted(path.parent.glob(f"{glob.escape(settings.name)}-*.source.json")):
        directory = record.with_name(record.name.removesuffix(".source.json"))
        built = {split: directory / split for split in splits if _is_built(directory / split, settings)}
        if record != source_record(path) and built and _fits(record, Path(settings.root)):
            return built
    return {}


def _fits(record: Path, root: Path) -> bool:
    """Whether shards were built of what `root` holds; a record that cannot be read says nothing of it."""
    try:
        return SourceRecord.read(record).fits(root)
    except UserError:
        return False


def take_over(path: Path, built: Mapping[str, Path]) -> None:
    """Put shard sets of other places in place where there are none yet; what cannot be linked is left to be built."""
    for split, directory in built.items():
        if (path / split).exists():
            continue
        temporary = path / f".taking-{split}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            shutil.copytree(directory, temporary, copy_function=link_or_copy)
            temporary.rename(path / split)
            fsync(path)
        except OSError as error:  # another run set them aside meanwhile, or the disk is full
            shutil.rmtree(temporary, ignore_errors=True)
            say(f"{directory}: cannot be linked ({error.strerror or error}); {split} is built again")
            continue
        say(f"{split}: the same images were built before, {directory}; their shards are used")


def _is_built(directory: Path, settings: DataSettings) -> bool:
    """Whether there are shards of these settings, wherever their images lay, and no file lacks."""
    try:
        manifest = ShardSet(directory).manifest
    except UserError:
        return False
    return isinstance(manifest, CleanManifest) and _placeless(manifest.settings) == _placeless(
        content_settings(settings)
    )


def _placeless(settings: Mapping[str, object]) -> object:
    """Settings as JSON has them, without the source's place."""
    return json.loads(json.dumps({key: value for key, value in settings.items() if key != "root"}))
