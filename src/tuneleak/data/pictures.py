"""One picture from anywhere -> one square RGB array: the only place where foreign picture files are decoded."""

import contextlib
import io
from pathlib import Path

import numpy as np

from tuneleak.errors import InputError

# A short list on purpose: Pillow also opens formats that start other programs (EPS) or that nobody trains on.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def read_square(source, size, max_pixels, crop=0):
    """Decode a picture, turn it upright, flatten it to RGB on white, and cut it to a square.

    Args:
        source: path of the file, or its content as bytes.
        size: side of the result in pixels.
        max_pixels: a picture with more is refused before it is decoded.
        crop: side of the square cut out of the centre beforehand (0: the largest there is).

    Returns:
        uint8 `(size, size, 3)`: the shorter side resized to `size` (antialiased, Lanczos), the longer one centre-cropped. Of an
        animation, the first frame; 16-bit greys are scaled to 8 bits; transparency is laid on white.

    Raises:
        InputError: with the reason alone; the caller knows the name.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    if not data:
        raise InputError("is empty")
    with _own_pixel_limit(Image):
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > max_pixels:
                    raise InputError(f"has {picture.width} x {picture.height} pixels, more than max_pixels = {max_pixels}")
                return _square(_upright_rgb(picture), size, crop)
        except InputError:
            raise
        except UnidentifiedImageError:
            raise InputError(f"is not a picture that can be read ({', '.join(FORMATS)})") from None
        except Exception as error:  # decoders of broken files raise OSError, SyntaxError, struct.error, EOFError, zlib.error and more
            raise InputError(f"is broken ({error or type(error).__name__})") from error


@contextlib.contextmanager
def _own_pixel_limit(image_module):
    """Switch Pillow's own limit off: `max_pixels` is checked before any pixel is decoded, and the person chose it."""
    limit, image_module.MAX_IMAGE_PIXELS = image_module.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        image_module.MAX_IMAGE_PIXELS = limit


def _upright_rgb(picture):
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise InputError("has floating-point pixels of unknown range; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # convert("RGB") would clip 16-bit greys to white instead of scaling them
        grey = np.asarray(picture).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError("has 32-bit pixels of unknown range; save it with 8 or 16 bits")
        picture = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _square(picture, size, crop):
    from PIL import Image

    # Resampling the centre square equals resizing, then cropping, without the huge intermediate of a very long picture.
    side = crop or min(picture.size)
    if side > min(picture.size):
        raise InputError(f"has {picture.width} x {picture.height} pixels, too few for a crop of {crop}")
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    if crop:  # of whole pixels
        left, top = int(left), int(top)
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)))
