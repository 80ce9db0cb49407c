"""The bytes of an image file as a viewer shows it: upright, over a stated background, in bounded memory."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Image.init()
# Registered, but read by another program (EPS: Ghostscript), by nothing (the stubs), or no images of their own.
NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"}
USUAL = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # asked first: of small files, asking all takes a tenth
FORMATS = (*USUAL, *sorted(set(Image.OPEN) - NOT_READ - set(USUAL)))
IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS))
USUAL_SUFFIXES = ".png, .jpg, .webp, .bmp, .gif, .tif and whatever else Pillow reads"
# How the files of the common formats begin: what is one of these is an image, whatever its name.
SIGNATURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  \r\n\x87\n",
)
HEAD = 16  # bytes that tell
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
# Several images in one file that are one picture to viewers: a photograph with its preview.
STILL = ("MPO",)
STRIP = 2**20  # pixels that are converted at a time, so that the largest image is in memory twice and not four times
MAX_RESIZED = 16_000_000  # pixels: what a resized image may have before only the part that is cropped is computed


@dataclass(frozen=True)
class Decoding:
    """background: what transparent pixels lie on. max_pixels: an image of more is a corrupt one."""

    background: str = "white"
    max_pixels: int = 64_000_000

    @property
    def max_bytes(self) -> int:
        """Of a file: four channels of 16 bits a pixel, and a mebibyte of whatever else is in it."""
        return 8 * self.max_pixels + 2**20


def begins_like_an_image(head: bytes) -> bool:
    """Whether a file of these first HEAD bytes is an image of a common format."""
    in_container = (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] in (b"ftypavif", b"ftypavis")
    return in_container or head.startswith(SIGNATURES)


def decode(content: bytes, decoding: Decoding) -> Image.Image:
    """RGB, upright, over the background, in its own size. Raises whatever Pillow raises for what is no still image."""
    return over_background(upright(content, decoding.max_pixels), decoding.background)


def upright(content: bytes, max_pixels: int) -> Image.Image:
    """Decoded and turned as its EXIF entry says, in its own mode.

    Raises ValueError for animations and for more than `max_pixels`, and whatever Pillow raises.
    """
    with _bounded(max_pixels):
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format not in STILL:
            raise ValueError(f"{frames} frames or pages; animations are not read: save one frame as an image")
        image.load()
        return _turned(image)


def is_deep(content: bytes) -> bool:
    """Whether an image that can be read has more than 8 bits a channel, of which 8 are kept; not known of JPEG 2000."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    return image.mode.startswith("I") or any(map(_has_deep_layout, image.tile))


def _has_deep_layout(tile: Any) -> bool:
    """Of a part of a file, whose layout Pillow names such as RGB;16B, before numbers of other meanings, if any."""
    layout, *numbers = [tile.args] if isinstance(tile.args, str) else tile.args or [""]
    return ";16" in str(layout) or (
        tile.codec_name.startswith("ppm") and numbers[-1:] > [255]
    )  # of PPM, the largest value


@contextmanager
def _bounded(max_pixels: int) -> Iterator[None]:
    """Pillow's own limit, which also holds for images inside of images (icons), set to this one for a while."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{str(error).partition(' exceeds')[0]}; data.max_pixels={max_pixels}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _turned(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return image
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (damaged EXIF raises anything; viewers show such an image as it lies)
        return image


def over_background(image: Image.Image, background: str) -> Image.Image:
    """8-bit RGB: grey is repeated, 16-bit grey scaled, transparency laid over the background.

    background: one of BACKGROUNDS. Raises ValueError for pixels whose range is not known.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known; save it in 8 or 16 bits")
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    canvas = Image.new("RGB", image.size, BACKGROUNDS[background])
    rows = max(1, STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if image.mode.startswith("I"):
            canvas.paste(_from_16_bits(strip, background), (0, top))
        elif image.has_transparency_data:
            layers = strip.convert("RGBA")
            canvas.paste(layers, (0, top), layers.getchannel("A"))
        else:
            canvas.paste(strip.convert("RGB"), (0, top))
    return canvas


def _from_16_bits(image: Image.Image, background: str) -> Image.Image:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("pixels of more than 16 bits, whose range is not known; save it in 8 or 16 bits")
    levels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # the nearest of 256 levels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = BACKGROUNDS[background][0]  # all of them are grey
    return Image.fromarray(levels).convert("RGB")


def crop_to(image: Image.Image, size: int, resize: int) -> np.ndarray:
    """uint8 [size, size, 3]: the centre of the image with its shorter side scaled (bicubic) to `resize`.

    An image whose shorter side is `resize` already is not resampled. Of a very long one only the centre is computed.
    """
    shorter = min(image.size)
    if shorter == resize:
        return _centre(image, size)
    width, height = (max(resize, round(side * resize / shorter)) for side in image.size)
    if width * height <= MAX_RESIZED:
        return _centre(image.resize((width, height), Image.Resampling.BICUBIC), size)
    x, y = (width - size) // 2, (height - size) // 2
    across, down = image.width / width, image.height / height
    box = (x * across, y * down, (x + size) * across, (y + size) * down)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _centre(image: Image.Image, size: int) -> np.ndarray:
    if image.size == (size, size):
        return np.asarray(image)
    x, y = ((side - size) // 2 for side in image.size)
    return np.asarray(image.crop((x, y, x + size, y + size)))
