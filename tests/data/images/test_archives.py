"""Archives: what is listed is what is read, once, and nothing from outside of them."""

import io
import os
import socket
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from maep.data.images import archives
from maep.data.images.archives import Archive, open_archive
from maep.runtime.errors import UserError


def tar(path: Path, *members: tuple[str, object]) -> Path:
    """A tar of (name, content), or (name, (type, target)) for what is no file."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content  # type: ignore[misc]
                archive.addfile(info)
    return path


def contents(archive: Archive) -> dict[str, bytes]:
    return archive.read_many(archive.files)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    open_archive.cache_clear()


def test_links_of_a_tar_are_followed(tmp_path: Path) -> None:
    """Hard links, symbolic links, links to links and to folders give the content they lead to."""
    path = tar(
        tmp_path / "x.tar",
        ("./pool/a.png", b"a"), ("train/cat/hard.png", (tarfile.LNKTYPE, "./pool/a.png")),
        ("train/cat/soft.png", (tarfile.SYMTYPE, "../../pool/a.png")),
        ("train/cat/twice.png", (tarfile.SYMTYPE, "soft.png")), ("val", (tarfile.SYMTYPE, "train/cat")),
        ("pool/b.png", b"b"),
    )  # fmt: skip
    assert contents(open_archive(path)) == {
        "pool/a.png": b"a", "pool/b.png": b"b", "train/cat/hard.png": b"a", "train/cat/soft.png": b"a",
        "train/cat/twice.png": b"a", "val/hard.png": b"a", "val/soft.png": b"a", "val/twice.png": b"a",
    }  # fmt: skip


def test_a_linked_folder_of_a_tar(tmp_path: Path) -> None:
    """Its files appear under the name of the link."""
    path = tar(tmp_path / "x.tar", ("pool/a.png", b"a"), ("train/cat", (tarfile.SYMTYPE, "../pool")))
    assert contents(open_archive(path)) == {"pool/a.png": b"a", "train/cat/a.png": b"a"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a", (tarfile.SYMTYPE, "b")), ("b", (tarfile.SYMTYPE, "a"))], "leads round in a circle"),
        ([("x/a.png", b"a"), ("x/y", (tarfile.SYMTYPE, "../x"))], "x/y: a link to a folder around itself"),
        ([("a", (tarfile.SYMTYPE, "../etc/passwd"))], r"a: a link to \.\./etc/passwd, outside"),
        ([("a", (tarfile.SYMTYPE, "/etc/passwd"))], "a: a link to /etc/passwd, outside"),
        ([("d/a", (tarfile.LNKTYPE, "../x"))], r"d/a: a link to \.\./x, outside"),
        ([("a", (tarfile.LNKTYPE, "gone.png"))], "a: a link to gone.png, which is not there"),
        ([("/etc/a.png", b"a")], "/etc/a.png: an absolute name"),
        ([("C:\\x\\a.png", b"a")], "an absolute name"),
        ([("x/../../a.png", b"a")], r"x/\.\./\.\./a\.png: a name that leads upwards"),
        ([("p", (tarfile.FIFOTYPE, ""))], "p: neither a file, a folder nor a link"),
        ([("p", (tarfile.CHRTYPE, ""))], "p: neither a file, a folder nor a link"),
        ([("a.png", b"a"), ("./a.png", b"b")], r"a\.png: listed twice, with different content"),
        ([("B\u00e4r.png", b"a"), ("Ba\u0308r.png", b"b")], "listed twice"),
    ],
)
def test_what_a_tar_must_not_list(tmp_path: Path, members: list[tuple[str, object]], message: str) -> None:
    """Refused by name."""
    with pytest.raises(UserError, match=message):
        _ = open_archive(tar(tmp_path / "x.tar", *members)).files


def test_the_same_content_twice_is_read_once(tmp_path: Path) -> None:
    """As archives that were packed twice have it, in a tar and in a zip."""
    path = tar(tmp_path / "x.tar", ("a.png", b"a"), ("b.png", b"b"), ("./a.png", b"a"))
    assert contents(open_archive(path)) == {"a.png": b"a", "b.png": b"b"}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("d\\a.png", "./d/a.png", "d//a.png"):
            archive.writestr(name, b"a")
    assert contents(open_archive(tmp_path / "x.zip")) == {"d/a.png": b"a"}


@pytest.mark.parametrize("at", [0.3, 0.5, 0.8])
def test_a_tar_damaged_in_its_middle_is_not_half_read(tmp_path: Path, at: float) -> None:
    """Tarfile ends its list at a damaged header without a word."""
    path = tar(tmp_path / "x.tar", *((f"{number}.png", b"x" * 512) for number in range(10)))
    content = bytearray(path.read_bytes())
    header = int(10 * at) * 1024
    content[header : header + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged after {int(10 * at) - 1}\.png"):
        open_archive(path)
    path.write_bytes(content[: header + 100])
    with pytest.raises(UserError, match="cannot be read as tar"):
        open_archive(path)


def zip_entry(path: Path, name: str, mode: int, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("real/a.png", b"a")
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, content)
    return path


def test_links_and_pipes_of_a_zip(tmp_path: Path) -> None:
    """As those of a tar."""
    path = zip_entry(tmp_path / "1.zip", "x/link.png", 0o120777, b"../real/a.png")
    assert contents(open_archive(path)) == {"real/a.png": b"a", "x/link.png": b"a"}
    for number, (name, mode, content, message) in enumerate(
        [
            ("l", 0o120777, b"../../etc/passwd", "outside"), ("p", 0o010644, b"", "neither a file"),
            ("../a.png", 0o100644, b"", "leads upwards"), ("/a.png", 0o100644, b"", "absolute"),
        ]
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            _ = open_archive(zip_entry(tmp_path / f"x{number}.zip", name, mode, content)).files


def test_links_of_a_directory(tmp_path: Path) -> None:
    """Inside of the root they are followed, once; loops, ways out and ends in nothing are refused by name."""
    root = tmp_path / "data"
    (root / "pool").mkdir(parents=True)
    (root / "pool" / "a.png").write_bytes(b"a")
    (root / "train").mkdir()
    (root / "train" / "cat").symlink_to("../pool")
    (root / "train" / "b.png").symlink_to("../pool/a.png")
    (tmp_path / "alias").symlink_to(root)
    for path in (root, tmp_path / "alias"):
        assert contents(open_archive(path)) == {"pool/a.png": b"a", "train/b.png": b"a", "train/cat/a.png": b"a"}
    (tmp_path / "outside").mkdir()
    wrong: dict[str, str] = {
        "..": "folder around it", "../pool": "folder around it", "../../outside": "outside of", "gone": "No such file",
        "/dev/zero": "outside of", "loop": "circle|Too many levels",
    }  # fmt: skip
    for target, message in wrong.items():
        (root / "pool" / "loop").symlink_to(target)
        open_archive.cache_clear()
        with pytest.raises(UserError, match=f"(pool|cat)/loop: a link.*({message})"):
            _ = open_archive(root).files
        (root / "pool" / "loop").unlink()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize("make", [_pipe, _socket])
def test_pipes_in_a_directory(tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by name, where opening them would wait for ever; so is one named as the root. Hidden ones are clutter."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    make(Path("data/.hidden"))
    assert open_archive(Path("data")).files == []
    open_archive.cache_clear()
    make(Path("data/p.png"))
    with pytest.raises(UserError, match=r"data: p\.png: neither a file"):
        _ = open_archive(Path("data")).files
    make(Path("x.tar"))
    with pytest.raises(UserError, match=r"x\.tar: must be a directory, \.zip or \.tar"):
        open_archive(Path("x.tar"))


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """Readable, under a name that can be printed and hashed."""
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/caf\xe9.png")).write_bytes(b"x")
    assert contents(open_archive(tmp_path)) == {"a/caf\\xe9.png": b"x"}


def test_a_size_is_checked_before_reading(tmp_path: Path) -> None:
    """Of a file that is a hole of a terabyte, and of a zip that says so."""
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UserError, match=r"big\.png: 1000000000000 bytes; at most 1000 are read"):
        open_archive(tmp_path).read("big.png", 1000)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_a_tar_lists_so_many_files_at_most(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty members, of which a compressed tar of a few megabytes can hold any number, are not all taken in."""
    path = tmp_path / f"a.{suffix}"
    with tarfile.open(path, f"w:{suffix.partition('.')[2]}") as tar:
        for number in range(51):
            tar.addfile(tarfile.TarInfo(f"x/{number}.png"))
    assert len(open_archive(path).files) == 51
    open_archive.cache_clear()
    monkeypatch.setattr(archives, "MAX_FILES", 50)
    with pytest.raises(UserError, match=rf"a\.{suffix}: lists more than 50 files; unpack it"):
        open_archive(path)


def test_a_file_with_holes_is_read_whole(tmp_path: Path) -> None:
    """As GNU tar --sparse packs it: its bytes are fewer in the archive than in the file."""
    content = b"begin" + bytes(2**20) + b"end"
    (tmp_path / "a.bin").write_bytes(b"begin")
    with (tmp_path / "a.bin").open("r+b") as file:
        file.seek(len(content) - 3)
        file.write(b"end")
    command = ["tar", "--sparse", "-cf", str(tmp_path / "a.tar"), "-C", str(tmp_path), "a.bin"]
    subprocess.run(command, check=True)
    assert (tmp_path / "a.tar").stat().st_size < len(content) / 10
    assert open_archive(tmp_path / "a.tar").read("a.bin") == content


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_second_tar_behind_the_first_is_not_passed_over(tmp_path: Path, suffix: str) -> None:
    """Every reader of tars ends at the end of the first; its images alone would be taken for all."""
    parts = []
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.{suffix}", "w:gz" if suffix.endswith("gz") else "w") as archive:
            archive.add(__file__, f"{name}.png")
        parts.append((tmp_path / f"{name}.{suffix}").read_bytes())
        assert open_archive(tmp_path / f"{name}.{suffix}").files == [f"{name}.png"]
    (tmp_path / f"both.{suffix}").write_bytes(b"".join(parts))
    with pytest.raises(UserError, match="more follows its end"):
        open_archive(tmp_path / f"both.{suffix}")
