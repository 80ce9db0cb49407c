"""What built shards were made from: a cheap fingerprint beside them, so that a changed source is noticed.

    <shards>/NAME-IDENTITY/                    the shards of the source as it is
    <shards>/NAME-IDENTITY.source.json         its fingerprint
    <shards>/NAME-IDENTITY-FINGERPRINT/        those of the source as it was before; they come back when it does

The fingerprint is of relative names, sizes and times, so that nothing needs to be read, and a source that was moved
keeps it. A source of the same content with new times is built again, into the same bytes, and nothing that was made of
the shards is made again.

Of a directory of more than `FEW` files, a start looks at its folders alone, as long as none of them has changed: a
million files cost a network file system minutes. So a file there that is written over, under its own name, is noticed
only by the next change of a folder, or where shards are built.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from maep.data.images.archives import fingerprint, folder_times
from maep.data.images.label_lists import class_order
from maep.data.shards import read_manifest
from maep.runtime.console import say
from maep.runtime.errors import UserError
from maep.storage.documents import Document
from maep.storage.sealed import MANIFEST

FEW = 20_000  # files: to look at each takes 0.2 s on a local disk, some seconds over a network
BEFORE = "earlier"  # stands for the fingerprint of what was built before there were any


@dataclass(frozen=True)
class SourceRecord(Document):
    """fingerprint: of what data.root held when the shards were begun. folders: when its folders had last changed then.

    Without folders, every file is looked at.
    """

    fingerprint: str
    folders: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> Self:
        """As it is now. The folders are looked at first, so that a change meanwhile is noticed by the next look."""
        folders = folder_times(root, FEW)
        return cls(fingerprint(root), folders)

    def fits(self, root: Path) -> bool:
        """Whether `root` still holds it."""
        return self._folders_fit(root) or self.fingerprint == fingerprint(root)

    def _folders_fit(self, root: Path) -> bool:
        try:
            return bool(self.folders) and all(
                (root / name).stat().st_mtime_ns == time for name, time in self.folders.items()
            )
        except OSError:  # a folder is gone: which, the fingerprint's listing says
            return False


def source_record(path: Path) -> Path:
    """The file of the record beside built shards."""
    return path.with_name(f"{path.name}.source.json")


def source_changed(path: Path, root: str | None) -> bool:
    """Whether the shards at `path` were built from other images than `root` holds now.

    A source that is gone has not changed, nor has one of which nothing was written down.
    """
    file = source_record(path)
    if root is None or not Path(root).exists() or not file.exists():
        return False
    return not SourceRecord.read(file).fits(Path(root))


def match_source(path: Path, root: str | None, splits: Sequence[str]) -> None:
    """Set shards of another source aside, and bring those of this one back; then write down which it is.

    path: held by this process. Shards of which nothing was written down stay, unless numbered classes lie in the order
    of text, which was wrong.
    """
    if root is None or not Path(root).exists():
        return
    file = source_record(path)
    try:
        record = SourceRecord.of(Path(root))
    except UserError:
        if file.exists():
            raise
        return  # built before links and pipes were refused: it stays as it is
    written = SourceRecord.read(file) if file.exists() else None
    before = written.fingerprint if written else BEFORE
    if before == record.fingerprint or (before == BEFORE and not _is_disordered(path, splits)):
        if written != record:
            record.write(file)
        return
    aside = _move(path, path.with_name(f"{path.name}-{before[:8]}"), splits)
    if aside:
        why = "its numbered classes were in the order of text" if before == BEFORE else "names, sizes or times differ"
        say(f"data.root={root}: not what the shards were built from ({why}); they are kept in {aside}")
    for leftover in [*path.glob(".building-*"), *path.glob(".plan-*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    record.write(file)
    back = _move(path.with_name(f"{path.name}-{record.fingerprint[:8]}"), path, splits)
    if back:
        say(f"data.root={root}: as it was before; its shards are there again")


def _move(source: Path, target: Path, splits: Sequence[str]) -> Path | None:
    """Move the finished splits; those that are at the target already are of the same images, and go."""
    finished = [split for split in splits if (source / split).is_dir()]
    for split in finished:
        target.mkdir(exist_ok=True)
        if (target / split).exists():
            shutil.rmtree(target / split)
        (source / split).rename(target / split)
    return target if finished else None


def _is_disordered(path: Path, splits: Sequence[str]) -> bool:
    """Whether classes 0, 1, 10, 11, 2 were labelled in this order."""
    for split in splits:
        if (path / split / MANIFEST).is_file():
            classes = list(read_manifest(path / split).classes)
            if classes == sorted(set(classes)) and class_order(classes, str(path)) != classes:
                return True
    return False
