"""Pixels in, pixels out: cropped, coded again, made alike (equalise) or made worse (perturb)."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageFilter

from data_prep.errors import InputError, choose

if TYPE_CHECKING:  # the processes that scan files need no pandas
    import pandas as pd

# all that is ever opened as an image; AVIF, HEIF: where Pillow or a registered plugin reads them
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")
MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb: 89 megapixels, unless
if megapixels := os.environ.get("DFLIB_MEGAPIXELS"):  # a phone's photographs have 108 or 200
    try:
        MAX_PIXELS = Image.MAX_IMAGE_PIXELS = int(float(megapixels) * 1_000_000)
    except ValueError:
        raise SystemExit(f"error: DFLIB_MEGAPIXELS={megapixels}: expected a number") from None
QUALITIES = range(70, 91)  # of the JPEG that every equalised image becomes
SMALL = 0.05  # share of a class that may be smaller than the common side, and is scaled up to it


def opened(source: BinaryIO | Path | str) -> Image.Image:
    """An image file of one of `FORMATS`, its pixels not yet read; else `UnidentifiedImageError`: of
    others Pillow would start programs (Ghostscript)."""
    Image.init()  # loads what reads them
    return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])


def at_least(image: Image.Image, side: int) -> Image.Image:
    """The image itself; one with a shorter edge is scaled up until that has `side` pixels."""
    scale = side / min(image.size)
    if scale <= 1:
        return image
    size = tuple(max(side, round(n * scale)) for n in image.size)
    return image.resize(size, Image.Resampling.BICUBIC)


def centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle width x height pixels of an image that has as many, unscaled."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The middle side x side pixels of the image as `at_least` gives it."""
    return centre_crop(at_least(image, side), side, side)


def coded(image: Image.Image, format_: str = "JPEG", **options) -> bytes:
    """The image as the bytes of a file; options (such as quality) as Pillow's `save` takes them."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """The RGB image in the bytes of a file that is known to be good."""
    with opened(io.BytesIO(data)) as image:
        return image.convert("RGB")


def jpeg(image: Image.Image, quality: float, *, format_: str = "JPEG") -> Image.Image:
    """An RGB image as JPEG (or WEBP) of this quality (1 to 100), and decoded again."""
    return decoded(coded(image, format_, quality=int(quality)))


@dataclass(frozen=True)
class Equaliser:
    """Makes real and fake alike in size and JPEG quality."""

    side: int | None  # of the centre square that is cut out; None: the whole image
    jpeg: bool  # whether to encode again

    @property
    def key(self) -> str:
        return f"eq{self.side or ''}{'j' if self.jpeg else ''}"

    def encoded(self, image: Image.Image, sha256: str) -> bytes:
        """As JPEG, of a quality drawn from the file's hash; as PNG where sizes alone differed."""
        if self.side:
            image = centre_square(image, self.side)
        if not self.jpeg:
            return coded(image, "PNG", compress_level=0)
        return coded(image, quality=QUALITIES[int(sha256[:8], 16) % len(QUALITIES)])

    def __call__(self, image: Image.Image, sha256: str) -> Image.Image:
        return decoded(self.encoded(image, sha256))


def equaliser(table: pd.DataFrame) -> Equaliser | None:
    """What makes the usable images of a manifest alike; None where they are alike already.

    Size: a centre square, unscaled, that all but 5 % of each class can give. JPEG: where any file
    is lossless, qualities differ, or the classes differ in their `integrity.coding`, every image is
    encoded at a random quality of 70 to 90 (arXiv 2403.17608).
    """
    ok = table[table["status"] == "ok"]
    side = None
    if ok["width"].nunique() > 1 or ok["height"].nunique() > 1:
        short = ok[["width", "height"]].min(axis=1).groupby(ok["label"])
        side = int(short.quantile(SMALL, interpolation="lower").min())
    codings = ok["coding"].groupby(ok["label"]).agg(lambda seen: tuple(sorted(set(seen))))
    mixed = (ok["format"] != "JPEG").any() or ok["jpeg_quality"].nunique() > 1
    again = bool(mixed or codings.nunique() > 1)
    return Equaliser(side, again) if side or again else None


def _resized(image: Image.Image, factor: float) -> Image.Image:
    size = tuple(max(1, round(n * factor)) for n in image.size)
    return image.resize(size, Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    return centre_crop(image, *(max(1, round(n * share)) for n in image.size))


def _noisy(image: Image.Image, sigma: float) -> Image.Image:
    pixels = np.asarray(image)
    rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))  # the same image has the same noise
    noisy = np.rint(pixels + rng.normal(0, sigma, pixels.shape))
    return Image.fromarray(np.uint8(np.clip(noisy, 0, 255)))


_PERTURBATIONS = {
    "jpeg": jpeg,
    "webp": partial(jpeg, format_="WEBP"),
    "blur": lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
    "resize": _resized,
    "crop": _cropped,
    "noise": _noisy,
}
GRID = ("jpeg-95", "jpeg-90", "jpeg-75", "jpeg-50", "jpeg-30", "webp-80", "webp-50")
GRID += ("blur-1", "blur-2", "blur-4", "resize-0.75", "resize-0.5", "crop-0.9", "crop-0.75")
GRID += ("noise-2", "noise-5", "noise-10")


def perturb(image: Image.Image, how: str) -> Image.Image:
    """An RGB image made worse; `InputError` for an unknown name or one without an amount.

    how: "jpeg-75", "webp-80" (quality), "blur-2" (sigma in pixels), "resize-0.5" (factor),
    "crop-0.75" (share of each side), "noise-5" (sigma in grey levels).

    >>> perturb(Image.new("RGB", (8, 8)), "resize-0.5").size
    (4, 4)
    """
    kind, _, amount = how.partition("-")
    choose("perturbation", kind, _PERTURBATIONS, hint=f"E.g. {', '.join(GRID)}.")
    try:
        return _PERTURBATIONS[kind](image, float(amount))
    except ValueError as error:
        raise InputError(f"perturbation {how!r} has no amount: e.g. {kind}-5") from error
