"""Stored images come back as they were, and what is none is refused before it takes memory."""

import io

import numpy as np
import pytest
from PIL import Image

from maep.data.image_encoding import decode_image, encode_image
from maep.data.shard_manifest import ENCODINGS

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def array(values: np.ndarray) -> bytes:
    """A .npy file as NumPy writes it."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [(6, 6), (1, 7), (300, 2)])
def test_every_encoding_is_lossless_and_deterministic(encoding: str, size: tuple[int, int]) -> None:
    """Any size, also from an array whose memory runs by columns; equal images give equal bytes."""
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    encoded = encode_image(image, encoding)
    assert encode_image(np.asfortranarray(image), encoding) == encoded
    decoded = decode_image(encoded)
    assert (decoded.dtype, decoded.tolist()) == (np.uint8, image.tolist())


def test_raw_is_npy_and_other_writers_of_it_are_read() -> None:
    """NumPy reads what is stored as `raw`, and what NumPy stores is read."""
    assert np.array_equal(np.load(io.BytesIO(encode_image(PIXELS, "raw"))), PIXELS)
    assert np.array_equal(decode_image(array(PIXELS), 6), PIXELS)


def test_other_modes_are_made_rgb() -> None:
    """A PNG that another writer made grey is read with three equal channels."""
    file = io.BytesIO()
    Image.fromarray(PIXELS[..., 0]).save(file, "PNG")
    assert np.array_equal(decode_image(file.getvalue(), 6), PIXELS[..., [0, 0, 0]])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_another_size_than_the_sets_is_refused(encoding: str) -> None:
    """Before it is decoded: the size stands in the header."""
    with pytest.raises(ValueError, match="6 x 6 pixels; the manifest says 7 x 7"):
        decode_image(encode_image(PIXELS, encoding), 7)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (array(PIXELS.astype(np.float32)), "array of float32"),
        (array(PIXELS[..., :2]), r"\(6, 6, 2\)"),
        (array(np.asfortranarray(PIXELS)), "an array of uint8"),
        (array(np.array([{}], dtype=object)), "array of object"),
        (array(PIXELS)[:-1], "107 bytes of pixels; 6 x 6 have 108"),
        (array(PIXELS) + b"x", "109 bytes of pixels"),
        (array(PIXELS).replace(b"(6, 6, 3)", b"(6, 10**9, 3)"), None),
        (array(PIXELS).replace(b"(6, 6, 3)", b"(6, 99999, 3)"), "bytes of pixels; 6 x 99999"),
        (array(PIXELS)[:20], None),
        (b"\x93NUMPY\x03\x00" + array(PIXELS)[8:], "another version"),
        (b"GIF89a", None),
        (b"", None),
    ],
    ids=range(12),
)
def test_what_is_no_stored_image_is_refused(content: bytes, named: str | None) -> None:
    """An array of something else, one cut short, a header that lies, another format: an error, never pixels."""
    with pytest.raises((ValueError, OSError), match=named):
        decode_image(content)
