"""What comes from outside cannot fill the memory: the worst inputs that were found, each in bounds at its peak.

Each is small on the disk and large where it is believed: archives and images that unpack to gigabytes, headers and
lists that name them, files of millions of short lines.
"""

import json
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maep.config.data_settings import DataSettings
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings
from maep.config.training_settings import ModelSettings
from maep.data.images.archives import open_archive
from maep.data.images.cifar import read_cifar
from maep.data.images.decoding import Decoding, decode
from maep.data.images.sources import survey
from maep.data.purifying import purify_pixels
from maep.evaluation.reporting import curves
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.weights import load_weights, read_weights
from maep.purifiers import MAEPurifier
from maep.runtime.errors import UserError
from maep.storage.json_files import read_json

# What torch and the rest take by themselves is 300 to 400 MB; all of it is to stay below a gigabyte.
ALLOWED = 600  # MiB that a call may add at its peak
MEBIBYTE = 2**20
ROOM = 4 * 2**30  # bytes of address space that it may ask for, so that a failing test ends and not the machine
STATUS = Path("/proc/self/status")

pytestmark = pytest.mark.skipif(not STATUS.is_file(), reason="the peak is read from /proc")


def megabytes(entry: str) -> int:
    """Of this process, as the kernel counts: VmRSS now, VmHWM at its peak, VmSize of its address space."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1]) // 1024


@contextmanager
def bounded(allowed: int = ALLOWED) -> Iterator[None]:
    """Fails if the block raises the peak by more than so many MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, limits = megabytes("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (megabytes("VmSize") * 2**20 + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        open_archive.cache_clear()
        read_cifar.cache_clear()
    assert megabytes("VmHWM") - before < allowed


def zeros(size: int) -> bytes:
    """A raw deflate stream of that many zeros, made without packing them all."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(size % MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // MEBIBYTE) + rest + b"\3\0"


def png(width: int, height: int, bits: int, colour: int) -> bytes:
    """A black PNG. colour: PNG's code, 0 grey, 6 RGBA."""
    size = height * (1 + width * {0: 1, 6: 4}[colour] * bits // 8)
    packed = b"\x78\xda" + zeros(size) + struct.pack(">I", (size % 65521) << 16 | 1)  # Adler's checksum of zeros

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "colour"), [(8, 6), (16, 0)])
def test_the_largest_image_that_is_read(bits: int, colour: int) -> None:
    """As many pixels as data.max_pixels allows, transparent ones and 16 bits of grey."""
    content, decoding = png(8000, 8000, bits, colour), Decoding()
    with bounded():
        image = decode(content, decoding)
        assert (image.size, image.mode) == ((8000, 8000), "RGB")
        assert image.getpixel((7999, 7999)) == ((255, 255, 255) if colour == 6 else (0, 0, 0))


def test_a_photograph_is_purified_by_parts() -> None:
    """9 megapixels by parts: whole, they would be in memory several times in fp32, 103 MiB each."""
    network = ModelSettings(image_size=64, patch_size=16, encoder_width=16, encoder_depth=1, encoder_heads=2,
                            decoder_width=16, decoder_depth=1, decoder_heads=2)  # fmt: skip
    purifier = MAEPurifier(MaskedAutoencoder(network), PurifySettings(batch_tiles=64, overlap=16))
    pixels = np.zeros((3000, 3000, 3), np.uint8)
    purify_pixels(purifier, pixels[:200, :200])  # what libraries take at their first call is not the image's
    with bounded(250):  # MiB; by parts it takes 118, whole 1138
        purified = purify_pixels(purifier, pixels)
    assert purified.shape == pixels.shape


def zip_of(path: Path, entries: dict[str, tuple[int, int]]) -> Path:
    """A zip with files of so many mebibytes of zeros, and these Unix modes (0: a plain file)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, (size, mode) in entries.items():
            info, content = zipfile.ZipInfo(name), zeros(size * MEBIBYTE)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            info.compress_size, info.file_size, info.CRC = len(content), size * MEBIBYTE, 0
            info.header_offset = archive.fp.tell()
            archive.fp.write(info.FileHeader() + content)
            archive.filelist.append(info)
            archive.start_dir, archive._didModify = archive.fp.tell(), True
    return path


def a_link_of_a_gigabyte(folder: Path) -> Path:
    return zip_of(folder / "a.zip", {"train/x/a.png": (1024, 0o120777), "train/y/b.png": (1, 0)})


def an_image_and_a_list_of_a_gigabyte(folder: Path) -> Path:
    return zip_of(folder / "a.zip", {"images/a.png": (1024, 0), "labels.csv": (1024, 0)})


def listed_twice(folder: Path) -> Path:
    return zip_of(folder / "a.zip", {"train/x/a.png": (700, 0), "train/x/./a.png": (700, 0)})


def a_tar_header_of_a_gigabyte(folder: Path) -> Path:
    path, member = folder / "a.tar.gz", tarfile.TarInfo("train/x/a.png")
    member.type, member.size = tarfile.XHDTYPE, 2**30
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(member.tobuf(tarfile.GNU_FORMAT)) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + first + zeros(2**30) + bytes(8))
    return path


@pytest.mark.parametrize(
    "make", [a_link_of_a_gigabyte, an_image_and_a_list_of_a_gigabyte, listed_twice, a_tar_header_of_a_gigabyte]
)
def test_archives_that_unpack_to_gigabytes(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Surveyed, and every file read as an image."""
    path = make(tmp_path)
    assert path.stat().st_size < 4 * MEBIBYTE
    with bounded():
        with suppress(UserError):
            survey(DataSettings(root=str(path)))
        with suppress(UserError):
            archive = open_archive(path)
            for name in archive.files:
                with pytest.raises(UserError, match="at most"):
                    archive.read(name, Decoding().max_bytes)


def test_batches_of_cifar_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    """Six files of half a gigabyte."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    path = zip_of(tmp_path / "a.zip", {f"cifar-10-batches-py/{name}": (500, 0) for name in names})
    with bounded(), pytest.raises(UserError, match="at most"):
        read_cifar(path, "cifar10")


@pytest.mark.parametrize(("row", "rows"), [("\n", 60_000_000), ("\U00010000" + "a" * 100 + "\n", 620_000)])
def test_lists_of_millions_of_rows(tmp_path: Path, row: str, rows: int) -> None:
    """Of nothing, and of letters that take four bytes in memory."""
    for split in ("train/x", "val"):
        (tmp_path / split).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / split / "a.png")
    with (tmp_path / "val" / "labels.txt").open("w") as file:
        for _ in range(100):
            file.write(row * (rows // 100))
    with bounded(), pytest.raises(UserError, match="labels.txt"):
        survey(DataSettings(root=str(tmp_path)))


@pytest.mark.parametrize(
    ("begin", "item", "items", "end"),
    [("[", "1.5,", 7_900_000, "1]"), ("[", '"\\u1234",', 3_990_000, "1]"), ('["', "\U00010000", 15_000_000, '"]')],
    ids=["numbers", "strings", "text"],
)
def test_json_of_the_largest_size_that_is_read(tmp_path: Path, begin: str, item: str, items: int, end: str) -> None:
    """Values and letters, each up to its limit."""
    (tmp_path / "a.json").write_text(begin + item * items + end)
    with bounded():
        read_json(tmp_path / "a.json")


def test_settings_of_any_size(tmp_path: Path) -> None:
    """A file of settings of megabytes, and one that has no end."""
    (tmp_path / "a.yaml").write_text("data: {classes: [" + "1, " * 2_000_000 + "]}")
    (tmp_path / "b.yaml").symlink_to("/dev/zero")
    for name in ("a.yaml", "b.yaml"):
        with bounded(), pytest.raises(UserError, match=r"larger than|no such configuration"):
            load_settings(str(tmp_path / name))


def test_a_log_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more lines than are kept, the first and the last are among what is drawn, in equal steps."""
    monkeypatch.setattr(curves, "MAX_LINES", 1000)
    line = json.dumps({f"value_{number}": 0.123456789 for number in range(10)})[1:]
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 40_002):
            file.write(f'{{"step": {step}, "loss": 1.5, {line}\n')
    with bounded(20):
        curve = curves.read_metrics(tmp_path / "metrics.jsonl")
    assert [values["step"] for values in curve] == [*range(64, 40_001, 64), 40_001]


def test_weights_that_say_they_are_huge(tmp_path: Path) -> None:
    """One number repeated to a terabyte by its strides, and headers that say so."""
    torch.save({"a.weight": torch.zeros(1).expand(2**38)}, tmp_path / "a.pt")
    entry = {"a.weight": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    header = json.dumps(entry).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "b.safetensors").write_bytes((2**62).to_bytes(8, "little") + header)
    network = torch.nn.Sequential()
    network.add_module("a", torch.nn.Linear(3, 1, bias=False))
    for name in ("a.pt", "a.safetensors", "b.safetensors"):
        with bounded(), pytest.raises(UserError, match=name):
            load_weights(network, read_weights(tmp_path / name, network.state_dict()), tmp_path / name)
