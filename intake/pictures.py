"""Pictures of the formats that are named here, upright, in RGB, transparency on white, 16-bit and float values scaled."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .files import Unusable, open_regular
from .limits import LIMITS

PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
# Never Pillow's whole list: it would start Ghostscript for PostScript, whatever the file is called.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, MemoryError)


def open_picture(source: Path | bytes, name: str) -> Image.Image:
    """The first frame of a picture's file or of its bytes as RGB. Unusable names it by `name`.

    EXIF's orientation is applied, transparency lies on white, 16 bits become 8, floats of 0..1 become 0..255.
    """
    try:
        with open_source(source) as file, Image.open(file, formats=known_formats()) as image:
            check_size(image, name)
            return as_rgb(upright(image), name)
    except Unusable as error:
        raise unusable(name, error.reason) from error
    except UnidentifiedImageError as error:
        raise unusable(name, f"does not decode (it is none of {', '.join(FORMATS)})") from error
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise unusable(name, f"does not decode ({error})") from error


def unusable(name: str, reason: str) -> Unusable:
    return Unusable(name, reason, "Choose another picture.")


def open_source(source: Path | bytes):
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return open_regular(source, LIMITS.picture_bytes)


def known_formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > LIMITS.picture_pixels:
        raise unusable(
            name,
            f"has {image.width} x {image.height} pixels; at most {LIMITS.picture_pixels:,} are read. Make it smaller",
        )


def upright(image: Image.Image) -> Image.Image:
    """As EXIF's orientation says. Tags of a wrong type say nothing."""
    image.load()  # Pillow turns a TIFF by itself here, and takes its tag away
    try:
        turn = image.getexif().get(ORIENTATION)
    except UNREADABLE:
        turn = None
    return image.transpose(UPRIGHT[turn]) if isinstance(turn, int) and turn in UPRIGHT else image


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Image.fromarray(as_bytes(np.asarray(image), name)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def as_bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Grey values of 16 bits or of floats as uint8. Unusable where they are no brightness.

    Integers are of 16 bits. Floats up to 1 are shares of white; up to 255, bytes; up to 65535, of 16 bits.
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # NaN too
        raise unusable(name, f"has values that are no brightness ({low:g} to {high:g})")
    is_float = np.issubdtype(values.dtype, np.floating)
    white = 1.0 if is_float and high <= 1 else 255.0 if is_float and high <= 255 else 65535.0
    return (values.astype(np.float32) * (255 / white)).round().astype(np.uint8)
