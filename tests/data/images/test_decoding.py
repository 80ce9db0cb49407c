"""Images as a viewer shows them, in bounded memory."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maep.data.images.build import build_shards
from maep.data.images.decoding import Decoding, crop_to, decode, is_deep
from maep.data.shards import ShardSet
from maep.runtime.errors import UserError
from tests.data.images.test_build import configured
from tests.data.images.test_sources import opened, picture, write_images


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_upright(kind: str, orientation: int) -> None:
    """All eight orientations, in every format that says them."""
    shown = np.zeros((16, 32, 3), np.uint8)
    shown[:8, :16] = 255  # the upper left is white
    turns = [
        lambda x: x, np.fliplr, lambda x: np.rot90(x, 2), np.flipud,
        lambda x: x.transpose(1, 0, 2), lambda x: np.rot90(x, 1), lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        lambda x: np.rot90(x, -1),
    ]  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation - 1](shown)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    image = decode(encoded(stored, kind, exif=exif, **lossless), Decoding())
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image).astype(int) - shown).max() <= 3


def transparent(mode: str) -> Image.Image:
    """Red hidden by transparency on the left, opaque blue on the right."""
    pixels = np.zeros((4, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 0)
    pixels[:, 4:] = (0, 0, 255, 255)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("grey", 128)])
@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG")])
def test_hidden_colours_do_not_appear(background: str, level: int, mode: str, kind: str) -> None:
    """What is transparent is the background; what is opaque keeps its colour."""
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = np.asarray(decode(encoded(transparent(mode), kind, **options), Decoding(background)))
    assert (pixels[:, :4] == level).all()
    assert tuple(pixels[0, 7]) == ((29, 29, 29) if mode == "LA" else (0, 0, 255))


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_a_transparent_colour_is_background(mode: str) -> None:
    """A palette's entry, a grey level, a colour or a 16-bit level that stands for nothing."""
    levels = np.full((4, 8), 40, np.uint8)
    levels[:, 4:] = 200
    colour = np.stack([levels] * 3, axis=2)
    image, key = {
        "P": (Image.fromarray(levels).convert("P"), 40), "L": (Image.fromarray(levels), 40),
        "RGB": (Image.fromarray(colour), (40, 40, 40)),
        "I;16": (Image.fromarray(levels.astype(np.uint16) * 257), 40 * 257),
    }[mode]  # fmt: skip
    pixels = np.asarray(decode(encoded(image, transparency=key), Decoding()))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 200).all()


def test_half_transparent_is_mixed() -> None:
    """Black at half over white is grey."""
    pixels = np.asarray(decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), Decoding()))
    assert np.abs(pixels.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_are_refused(tmp_path: Path, kind: str) -> None:
    """By name, with how many frames there are; an image of one frame is read."""
    frames = [picture(seed) for seed in range(3)]
    write_images(tmp_path, ["a/x.png", "b/y.png"])
    (tmp_path / "a" / "x.png").write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    (tmp_path / "b" / "y.png").write_bytes(encoded(frames[0], kind))
    source, splits = opened(tmp_path, test_fraction=0.0)
    items = {item.name: item for item in splits["train"]}
    assert source.image(items["b/y.png"]).size == (12, 10)
    with pytest.raises(UserError, match=r"a/x\.png: corrupt image: 3 frames or pages"):
        source.image(items["a/x.png"])


def test_a_photograph_with_its_preview_is_one_picture() -> None:
    """MPO, as cameras and phones write it under .jpg."""
    content = encoded(picture(0, (64, 48)), "MPO", save_all=True, append_images=[picture(1)])
    assert decode(content, Decoding()).size == (64, 48)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_unknown_ranges_are_refused(mode: str) -> None:
    """Floating point and 32 bits have no white that is known."""
    image = Image.fromarray(np.full((4, 4), 70000, np.int32 if mode == "I" else np.float32))
    with pytest.raises(ValueError, match="range is not known"):
        decode(encoded(image, "TIFF"), Decoding())


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large; black."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = zlib.compress(b"\0" * (height * (width + 1))) if width * height < 10**7 else zlib.compress(b"")
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60000, 1), (1, 60000), (2, 100000), (3, 1)])
def test_long_images_need_no_memory(tmp_path: Path, width: int, height: int) -> None:
    """Only the part that is stored is computed; what the image says of itself is not believed to be affordable."""
    image = Image.fromarray(np.linspace(0, 255, width * height).astype(np.uint8).reshape(height, width)).convert("RGB")
    tracemalloc.start()
    pixels = crop_to(image, 224, 256)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert pixels.shape == (224, 224, 3)
    assert abs(float(pixels.mean()) - 127) < 2
    data = tmp_path / "data"
    write_images(data, ["a/x.png", "b/y.png"])
    (data / "a" / "x.png").write_bytes(bomb(width, height))
    path = build_shards(configured(tmp_path / "c", data, "data.test_fraction=0.0"))
    assert len(ShardSet(path / "train")) == 2


def test_the_centre_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed alone or cut out of the whole, to a level."""
    image = picture(0, (300, 20))
    whole = crop_to(image, 16, 24).astype(int)
    monkeypatch.setattr("maep.data.images.decoding.MAX_RESIZED", 0)
    assert np.abs(whole - crop_to(image, 16, 24)).max() <= 1


@pytest.mark.parametrize("size", [(100_000, 100_000), (9000, 9000), (2**31 - 1, 1)])
def test_huge_images_are_corrupt_images(tmp_path: Path, size: tuple[int, int]) -> None:
    """Named and refused, or skipped; the limit is a setting."""
    data = tmp_path / "data"
    write_images(data, ["a/x.png", "a/z.png", "b/y.png"])
    (data / "a" / "x.png").write_bytes(bomb(*size))
    with pytest.raises(UserError, match=r"a/x\.png: corrupt image: .*data\.max_pixels=64000000"):
        build_shards(configured(tmp_path / "c", data, "data.test_fraction=0.0"))
    skip = ("data.test_fraction=0.0", "data.on_error=skip")
    assert len(ShardSet(build_shards(configured(tmp_path / "c", data, *skip)) / "train")) == 2
    (data / "a" / "x.png").unlink()
    with pytest.raises(UserError, match=r"Image size \(120 pixels\); data\.max_pixels=100"):
        build_shards(configured(tmp_path / "d", data, "data.max_pixels=100", "data.test_fraction=0.0"))


def test_no_memory_is_a_corrupt_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it ends, while an image is decoded or resized."""
    data = tmp_path / "data"
    write_images(data, ["a/x.png", "b/y.png"])

    def ends(*_: object, **__: object) -> None:
        raise MemoryError

    for part in ("sources.decode", "build.crop_to"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"(x|y)\.png: corrupt image: "):
            patch.setattr(f"maep.data.images.{part}", ends)
            build_shards(configured(tmp_path / "c", data, "data.test_fraction=0.0"))


def test_damaged_exif_is_ignored() -> None:
    """Viewers show such an image as it lies."""
    content = encoded(picture(0), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 20)
    assert decode(content, Decoding()).size == (12, 10)


@pytest.mark.parametrize("kind", ["BMP", "PCX", "PNG", "PPM", "TGA", "TIFF", "JPEG", "GIF", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("width", [16, 544])
def test_no_image_of_8_bits_is_deep(kind: str, width: int) -> None:
    """Whatever other numbers its file has: lines of 544 pixels are 1632 bytes long."""
    assert not is_deep(encoded(Image.new("RGB", (width, 16)), kind))


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(np.zeros((4, 4), np.uint16))),
        encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "TIFF"),
        b"P6\n4 4\n65535\n" + bytes(96),
        b"P5\n4 4\n1023\n" + bytes(32),
        b"P3\n1 1\n65535\n9 9 9\n",
    ],
    ids=["PNG", "TIFF", "PPM", "PGM", "plain PPM"],
)
def test_more_than_8_bits_are_deep(content: bytes) -> None:
    """Of PPM the largest value says it; 16-bit colours in PNG are in tests/cli/test_purify.py."""
    assert is_deep(content)
