"""Is this file an image that can be trusted? Opens, checks and converts; knows no datasets."""

import hashlib
import io
import stat
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.transform import MAX_PIXELS, coded, opened

MAX_BYTES = 300_000_000  # what as many pixels take without any compression
MAX_RATIO = 20  # of the sides: crops scale small images up by the shorter one


class BadImage(ValueError):
    """The file cannot be used as an image; the message is the reason for the manifest."""


def read_file(path: Path | str) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`; another is not even opened: `BadImage`."""
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadImage("not a regular file")  # a pipe or a device may never end
        if found.st_size > MAX_BYTES:
            raise BadImage(f"too large: more than {MAX_BYTES // 1_000_000} MB")
        return Path(path).read_bytes() if found.st_size else b""
    except OSError as error:
        raise BadImage(f"unreadable: {error.strerror}") from error


def open_image(source: Path | bytes, *, max_pixels: int | None = None) -> Image.Image:
    """Open and fully decode one image of `transform.FORMATS`, still in its own mode.

    Raises `BadImage` with a short reason (zero-byte, not an image, truncated, bomb, unreadable, not
    a regular file, too large, too long and thin); what the header tells of is not decoded then.

    >>> open_image(b"")
    Traceback (most recent call last):
    data_prep.integrity.BadImage: zero-byte
    """
    data = source if isinstance(source, bytes) else read_file(source)
    most = max_pixels or MAX_PIXELS
    if not data:
        raise BadImage("zero-byte")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but harmless metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = opened(io.BytesIO(data))
            short, long = sorted(image.size)
            if short < 1:
                raise BadImage("empty image")
            if short * long > most:
                raise Image.DecompressionBombError
            if long > MAX_RATIO * short:
                raise BadImage(f"sides of {long} and {short} pixels: over {MAX_RATIO} to 1")
            image.load()
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"bomb: more than {most // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except Exception as error:  # each decoder has its own kinds (AVIF: RuntimeError)
        raise BadImage(f"truncated or damaged: {str(error)[:60]}") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB of any mode: EXIF rotation applied, 16 bits scaled, transparency on white.

    >>> to_rgb(Image.new("CMYK", (4, 2))).mode
    'RGB'
    """
    image = _upright(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        wide = image.mode.startswith("I;16") or values.max(initial=0) > 255
        values = np.clip(values / (257 if wide else 1), 0, 255)  # 65535 / 255 is 257
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. Damaged EXIF (frequent, harmless to the pixels) counts as none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:  # the parser raises whatever its bytes lead it to
        return image


@cache
def luminance(quality: int) -> np.ndarray:
    """The quantisation steps of luma in a JPEG of this quality (1 to 100), 8 x 8: asked of Pillow,
    which scales the standard's table (ITU T.81, K.1) as the usual (IJG) encoders do.

    >>> luminance(50)[0, :4]
    array([16, 11, 10, 16])
    """
    tables = opened(io.BytesIO(coded(Image.new("L", (8, 8)), quality=quality))).quantization
    return np.reshape(tables[0], (8, 8))


@cache
def _sums() -> np.ndarray:
    return np.array([luminance(quality).sum() for quality in range(1, 101)])


def jpeg_quality(image: Image.Image) -> int | None:
    """Quality 1 to 100 of the usual encoders, from the luminance table; None if it is no JPEG."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    return 1 + int(np.abs(_sums() - sum(tables[min(tables)])).argmin())


def inspect_file(path: Path) -> dict:
    """The manifest's facts of one file: from `width` to `status`, None where it is no image."""
    import imagehash  # here, because it loads scipy

    kinds = ("width", "height", "mode", "format", "jpeg_quality", "sha256", "phash")
    facts = dict.fromkeys(kinds) | {"bytes": 0, "status": "ok"}
    try:
        data = read_file(path)
        facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        image = open_image(data)
        facts |= {k: getattr(image, k) for k in ("width", "height", "mode", "format")}
        facts |= {"jpeg_quality": jpeg_quality(image), "phash": str(imagehash.phash(to_rgb(image)))}
    except BadImage as error:
        facts["status"] = str(error)
    return facts
