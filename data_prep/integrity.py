"""Is this file an image that can be trusted? Opens, checks and converts; knows no datasets."""

import hashlib
import io
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, UnidentifiedImageError

from data_prep.paths import regular
from data_prep.transform import MAX_PIXELS, coded, opened

MAX_BYTES = 300_000_000  # what as many pixels take without any compression
MAX_SCANS = 100  # of a JPEG (libtiff's limit): each goes over all pixels, in however few bytes
MAX_RATIO = 20  # of the sides: crops scale small images up by the shorter one
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
BRANDS = dict.fromkeys(HEIF, "HEIF") | {b"avif": "AVIF", b"avis": "AVIF"}
NEEDS = {"HEIF": "a plugin (HEIC): pip install pillow-heif", "AVIF": "Pillow 11.3 or newer (AVIF)"}


class BadImage(ValueError):
    """The file cannot be used as an image; the message is the reason for the manifest."""


def read_file(path: Path | str) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`; `BadImage`, unopened, for another."""
    try:
        file = regular(Path(path), MAX_BYTES)
        return file.read_bytes() if file.stat().st_size else b""
    except OSError as error:
        escaped = "\\udc" in str(path)  # by `paths.as_text`
        reason = f"unreadable: {error.strerror}" if error.errno else error.strerror
        raise BadImage("name is not UTF-8: rename it" if escaped else reason) from error


def open_image(source: Path | bytes) -> Image.Image:
    """Open and fully decode one image of `transform.FORMATS`, still in its own mode; `BadImage`,
    with a short reason, where the header tells it before anything is decoded.

    >>> open_image(b"")
    Traceback (most recent call last):
    data_prep.integrity.BadImage: zero-byte
    """
    data = source if isinstance(source, bytes) else read_file(source)
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if not data:
        raise BadImage("zero-byte")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda\0") > MAX_SCANS:
        raise BadImage(f"more than {MAX_SCANS} scans")
    if brand:
        with suppress(ImportError):  # an extra, that teaches Pillow HEIC
            import pillow_heif

            pillow_heif.register_heif_opener()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but harmless metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = opened(io.BytesIO(data))
            short, long = sorted(image.size)
            if short < 1:
                raise BadImage("empty image")
            if long > MAX_RATIO * short:
                raise BadImage(f"sides of {long} and {short} pixels: over {MAX_RATIO} to 1")
            image.load()
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"bomb: more than {MAX_PIXELS // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        kind = BRANDS.get(brand)
        lacks = kind and kind not in Image.OPEN  # else the file itself is damaged
        raise BadImage(f"needs {NEEDS[kind]}" if lacks else "not an image") from error
    except Exception as error:  # each decoder has its own kinds (AVIF: RuntimeError)
        raise BadImage(f"truncated or damaged: {str(error)[:60]}") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit sRGB of any mode: rotated as EXIF says, colours by the ICC profile, 16 bits and
    floats scaled by their range, transparency on white. `BadImage` for values that are none.

    >>> to_rgb(Image.new("CMYK", (4, 2))).mode
    'RGB'
    """
    image = _as_srgb(_upright(image))
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise BadImage("pixels that are no numbers")
        top, most = values.max(initial=0), 255
        if image.mode.startswith("I;16") or top > 255:
            most = 65535
        elif image.mode == "F" and top <= 1:
            most = 1
        values = np.clip(values * 255 / most, 0, 255)
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    try:
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:  # a transparency of more colours than there are, say
        raise BadImage(f"damaged colours: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. Damaged EXIF (frequent, harmless to the pixels) counts as none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:  # the parser raises whatever its bytes lead it to
        return image


def _as_srgb(image: Image.Image) -> Image.Image:
    """RGB as sRGB shows it, where the image has another profile; a damaged one counts as none."""
    data = image.info.get("icc_profile")
    if not data or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    colours = image.convert("RGB") if image.mode == "RGBA" else image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colours, profile, srgb, outputMode="RGB")
    except Exception:  # whatever the bytes of a damaged profile lead to
        return image
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


def coding(image: Image.Image, data: bytes) -> dict[str, int]:
    """How an opened file was coded: `chroma` (JPEG: 0 is 4:4:4, 1 4:2:2, 2 4:2:0; else -1),
    `progressive` (or interlaced), `tables` (quantisation: 0 none, 1 the standard's, 2 others),
    `exif`, `icc` (1: sRGB, 2: converted), `xmp`, `c2pa` (there or not), `bits` of a channel."""
    tables, family = getattr(image, "quantization", None), 0
    if tables:
        usual = luminance(jpeg_quality(image)).ravel()
        family = 1 if np.array_equal(tables[min(tables)], usual) else 2
    wide = 16 if image.mode[0] in "IF" else 8
    icc = bool(image.info.get("icc_profile"))
    return {
        "chroma": JpegImagePlugin.get_sampling(image) if tables else -1,
        "progressive": int(bool(image.info.get("progressive") or image.info.get("interlace"))),
        "tables": family,
        "exif": int(bool(image.info.get("exif"))),
        "icc": icc + (icc and _as_srgb(image) is not image),
        "xmp": int(b"x:xmpmeta" in data),
        "c2pa": int(b"jumdc2pa" in data),
        "bits": data[24] if image.format == "PNG" else wide,
    }


def format_of(image: Image.Image) -> str:
    """The format that a file counts as: several JPEGs in one (MPO, of phones) are a JPEG."""
    return "JPEG" if image.format == "MPO" else image.format


@cache
def luminance(quality: int) -> np.ndarray:
    """Quantisation steps of luma in a JPEG of this quality (1 to 100), 8 x 8, by Pillow."""
    tables = opened(io.BytesIO(coded(Image.new("L", (8, 8)), quality=quality))).quantization
    return np.reshape(tables[0], (8, 8))


def jpeg_quality(image: Image.Image) -> int | None:
    """Quality 1 to 100 of the usual encoders, from the luminance table; None if it is no JPEG."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    sums = np.array([luminance(quality).sum() for quality in range(1, 101)])
    return 1 + int(np.abs(sums - sum(tables[min(tables)])).argmin())


def inspect_file(path: Path) -> dict:
    """The manifest's facts of one file: from `width` to `status`, None where it is no image."""
    import imagehash  # here, because it loads scipy

    kinds = ("width", "height", "mode", "format", "jpeg_quality", "coding", "sha256", "phash")
    facts = dict.fromkeys(kinds) | {"bytes": 0, "status": "ok"}
    try:
        data = read_file(path)
        facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        image = open_image(data)
        facts |= {k: getattr(image, k) for k in ("width", "height", "mode")}
        facts |= {"format": format_of(image), "phash": str(imagehash.phash(to_rgb(image)))}
        facts["jpeg_quality"] = jpeg_quality(image)
        facts["coding"] = " ".join(f"{k}={n}" for k, n in coding(image, data).items())
    except BadImage as error:
        facts["status"] = str(error)
    return facts
