"""Is this file an image that can be trusted? Opens, checks and converts single files; knows nothing of datasets."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb: 89 megapixels
# Luminance table of the JPEG standard (ITU T.81, K.1), which the usual encoders scale by quality, and its sum at each quality.
_LUMINANCE = np.array(
    [
        16,
        11,
        10,
        16,
        24,
        40,
        51,
        61,
        12,
        12,
        14,
        19,
        26,
        58,
        60,
        55,
        14,
        13,
        16,
        24,
        40,
        57,
        69,
        56,
        14,
        17,
        22,
        29,
        51,
        87,
        80,
        62,
    ]
    + [
        18,
        22,
        37,
        56,
        68,
        109,
        103,
        77,
        24,
        35,
        55,
        64,
        81,
        104,
        113,
        92,
        49,
        64,
        78,
        87,
        103,
        121,
        120,
        101,
        72,
        92,
        95,
        98,
        112,
        100,
        103,
        99,
    ]
)
_SCALES = [5000 // q if q < 50 else 200 - 2 * q for q in range(1, 101)]
_LUMINANCE_SUMS = np.array([np.clip((_LUMINANCE * s + 50) // 100, 1, 255).sum() for s in _SCALES])


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
    except Exception as error:  # each decoder has its own kinds (AVIF: RuntimeError)
        raise BadImage(f"truncated or damaged: {str(error)[:60]}") from error
    if min(image.size) < 1:
        raise BadImage("empty image")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB of any mode: EXIF rotation applied, 16-bit scaled down, transparency laid on white.

    >>> to_rgb(Image.new("CMYK", (4, 2))).mode
    'RGB'
    """
    image = _upright(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        scale = (
            257.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 1.0
        )  # 65535 / 255
        return Image.fromarray(np.clip(values / scale, 0, 255).round().astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. Damaged EXIF (frequent, and harmless to the pixels) counts as none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:  # the parser raises whatever its bytes lead it to
        return image


def jpeg_quality(image: Image.Image) -> int | None:
    """Quality 1–100 of the usual (IJG) encoders, from the luminance table; None for images that are not JPEG."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    return 1 + int(np.abs(_LUMINANCE_SUMS - sum(tables[min(tables)])).argmin())


def inspect_file(path: Path) -> dict:
    """The manifest's facts of one file: width, height, mode, format, jpeg_quality, bytes, sha256, phash, status."""
    import imagehash  # here, because it loads scipy

    facts: dict = dict.fromkeys(
        ("width", "height", "mode", "format", "jpeg_quality", "sha256", "phash")
    )
    facts |= {"bytes": 0, "status": "ok"}
    try:
        data = Path(path).read_bytes()
        facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        image = open_image(data)
        facts |= {
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
            "format": image.format,
        }
        facts |= {"jpeg_quality": jpeg_quality(image), "phash": str(imagehash.phash(to_rgb(image)))}
    except BadImage as error:
        facts["status"] = str(error)
    except OSError as error:
        facts["status"] = f"unreadable: {error.strerror}"
    return facts
