"""Members of a tar file are those that `tarfile` and webdataset's writer make, byte for byte."""

import io
import tarfile

import pytest
import webdataset

from maep.data.tar_members import LARGEST, MODE, end_of_tar, member_header, padding


@pytest.mark.parametrize("size", [0, 1, 511, 512, 2300, LARGEST])
@pytest.mark.parametrize("name", ["a", "000000007.png", "é.cls", "x" * 100])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    """Of any name and size that USTAR holds."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, MODE
    assert member_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("a", LARGEST + 1), ("a", -1)])
def test_what_a_header_cannot_say_is_refused(name: str, size: int) -> None:
    """Rather than written as something else."""
    with pytest.raises(ValueError, match="expected a name of at most 100 bytes"):
        member_header(name, size)


@pytest.mark.parametrize("count", [0, 1, 9, 10, 40])
def test_a_tar_is_that_of_webdataset(count: int) -> None:
    """With its end: also of none, and where the members fill whole records."""
    ours, theirs = bytearray(), io.BytesIO()
    with webdataset.TarWriter(theirs, user="", group="", mtime=0, encoder=False) as writer:
        for number in range(count):
            image, label = bytes([number]) * (100 * number), str(number).encode()
            writer.write({"__key__": f"{number:09d}", "png": image, "cls": label})
            for suffix, content in (("cls", label), ("png", image)):
                ours += member_header(f"{number:09d}.{suffix}", len(content)) + content + padding(len(content))
    assert bytes(ours + end_of_tar(len(ours))) == theirs.getvalue()
