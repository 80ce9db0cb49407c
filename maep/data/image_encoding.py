"""How one stored image is written: losslessly, 8 bits, as PNG, WebP or bare pixels.

`raw` is NumPy's .npy format, which any WebDataset reader decodes too: the pixels behind a header that says their
shape. At 32x32 it takes about 1.4 times the bytes of PNG and is read some twenty times faster.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

# PNG's and WebP's options are lossless; a change of the levels changes the bytes of shards, and so what a rebuilt set
# is compared with.
OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 6},
    "webp": {"format": "WEBP", "lossless": True, "exact": True, "quality": 50, "method": 2},
}
FORMATS = [str(options["format"]) for options in OPTIONS.values()]
SUFFIXES = {"png": "png", "webp": "webp", "raw": "npy"}  # of the members of a shard
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NPY_PREFIX = 10  # bytes: signature, version, length of the header
NPY_HEADER = 10_000  # bytes, at most: NumPy's own limit for what it reads from outside


def encode_image(image: np.ndarray, encoding: str, profile: bytes | None = None) -> bytes:
    """Losslessly encode uint8 [H, W, 3] as `png`, `webp` or `raw`; equal images give equal bytes.

    As `png` and `webp` also [H, W, 4], with transparency, and with an ICC profile, which says what colours they are.
    """
    buffer = io.BytesIO()
    if encoding == "raw":
        np.lib.format.write_array(buffer, np.ascontiguousarray(image), allow_pickle=False)
    else:
        Image.fromarray(image).save(buffer, **OPTIONS[encoding], icc_profile=profile)
    return buffer.getvalue()


def decode_image(content: bytes, side: int | None = None) -> np.ndarray:
    """The pixels of an encoded image, uint8 [H, W, 3], read-only.

    What it is, its first bytes say. side: height and width that it must have, looked at before it is decoded; None:
    any. Raises ValueError for another size or what is no such image, and whatever Pillow raises.
    """
    if content.startswith(np.lib.format.MAGIC_PREFIX):
        return _raw(content, side)
    if side is not None and content.startswith(PNG_SIGNATURE):
        # Pillow's reader of PNG itself: a tenth faster for small images than to open by content. What that adds is
        # the limit of an image's size, which stands in for a side that is not known.
        return _pixels(PngImagePlugin.PngImageFile(io.BytesIO(content)), side)
    return _pixels(Image.open(io.BytesIO(content), formats=FORMATS), side)


def _pixels(opened: Image.Image, side: int | None) -> np.ndarray:
    with opened as image:
        _check_size(image.height, image.width, side)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _raw(content: bytes, side: int | None) -> np.ndarray:
    end = NPY_PREFIX + int.from_bytes(content[8:NPY_PREFIX], "little")
    height, width = _npy_size(content[:end])
    _check_size(height, width, side)
    size = len(content) - end
    if size != 3 * height * width:
        raise ValueError(f"{size} bytes of pixels; {height} x {width} have {3 * height * width}")
    return np.frombuffer(content, np.uint8, offset=end).reshape(height, width, 3)


@lru_cache(maxsize=64)  # a set's images have one size or few, and a header takes longer to parse than an image to read
def _npy_size(header: bytes) -> tuple[int, int]:
    """Height and width of the array behind a header of version 1.0."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another version than .npy's 1.0")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=NPY_HEADER)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or by_columns:
        raise ValueError(f"an array of {dtype} {shape}; an image is uint8 [H, W, 3]")
    return shape[0], shape[1]


def _check_size(height: int, width: int, side: int | None) -> None:
    if side is not None and (height, width) != (side, side):
        raise ValueError(f"{width} x {height} pixels; the manifest says {side} x {side}")
