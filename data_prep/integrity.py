"""Is this file an image that can be trusted? Opens, checks and converts single files; knows nothing of datasets."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb: 89 megapixels
# Luminance table of the JPEG standard (ITU T.81, K.1), which the usual encoders scale by quality.
_STANDARD_LUMINANCE_SUM = 3690


class BadImage(ValueError):
    """The file cannot be used as an image; the message is the reason that goes into the manifest."""


def open_image(source: Path | bytes) -> Image.Image:
    """Open and fully decode one image, still in its own mode.

    Raises `BadImage` with a short reason (zero-byte, not an image, truncated, bomb, unreadable).

    >>> open_image(b"")
    Traceback (most recent call last):
    data_prep.integrity.BadImage: zero-byte
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise BadImage(f"unreadable: {error.strerror}") from error
    if not data:
        raise BadImage("zero-byte")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but harmless metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"bomb: more than {MAX_PIXELS // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError, OverflowError) as error:
        raise BadImage(f"truncated or damaged: {str(error)[:60]}") from error
    if min(image.size) < 1:
        raise BadImage("empty image")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB of any mode: EXIF rotation applied, 16-bit scaled down, transparency laid on white.

    >>> to_rgb(Image.new("CMYK", (4, 2))).mode
    'RGB'
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        scale = 257.0 if values.max(initial=0) > 255 else 1.0  # 65535 / 255
        return Image.fromarray(np.clip(values / scale, 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def jpeg_quality(image: Image.Image) -> int | None:
    """Quality 1–100 of the usual (IJG) encoders, from the luminance table; None for images that are not JPEG."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    scale = 100.0 * sum(tables[min(tables)]) / _STANDARD_LUMINANCE_SUM
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return int(np.clip(round(quality), 1, 100))


def inspect_file(path: Path) -> dict:
    """The manifest's facts of one file: width, height, mode, format, jpeg_quality, bytes, sha256, phash, status."""
    import imagehash  # here, because it loads scipy

    facts: dict = dict.fromkeys(("width", "height", "mode", "format", "jpeg_quality", "sha256", "phash"))
    facts |= {"bytes": 0, "status": "ok"}
    try:
        data = Path(path).read_bytes()
        facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        image = open_image(data)
        facts |= {"width": image.width, "height": image.height, "mode": image.mode, "format": image.format}
        facts |= {"jpeg_quality": jpeg_quality(image), "phash": str(imagehash.phash(to_rgb(image)))}
    except BadImage as error:
        facts["status"] = str(error)
    except OSError as error:
        facts["status"] = f"unreadable: {error.strerror}"
    return facts
