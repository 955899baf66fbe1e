"""What happens to an image before it is cropped or resized: the two classes made alike (equalise), or an image made worse (perturb)."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from data_prep.errors import InputError, choose

QUALITIES = range(70, 91)  # of the JPEG that every equalised image becomes
SMALL = 0.05  # share of a class that may be smaller than the common side, and is scaled up to it


@dataclass(frozen=True)
class Equaliser:
    """Makes real and fake alike in size and JPEG quality. side: of the centre square cut out, None for all of it; jpeg: whether to encode again."""

    side: int | None
    jpeg: bool

    @property
    def key(self) -> str:
        return f"eq{self.side or ''}{'j' if self.jpeg else ''}"

    def encoded(self, image: Image.Image, sha256: str) -> bytes:
        """The equalised RGB image as JPEG bytes (PNG where sizes alone differed); the quality is drawn from the file's hash, alike for both classes."""
        if self.side:
            image = centre_square(image, self.side)
        buffer = io.BytesIO()
        if self.jpeg:
            image.save(buffer, "JPEG", quality=QUALITIES[int(sha256[:8], 16) % len(QUALITIES)])
        else:
            image.save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()

    def __call__(self, image: Image.Image, sha256: str) -> Image.Image:
        with Image.open(io.BytesIO(self.encoded(image, sha256))) as opened:
            return opened.convert("RGB")


def equaliser(table: pd.DataFrame) -> Equaliser | None:
    """What makes the usable images of a manifest alike; None where they all have one size, and one JPEG quality already.

    Size: a centre square, unscaled (scaling one class alone would leave traces), that all but 5 % of each class can give. JPEG: where any
    file is lossless (its history is unknown) or qualities differ, every image is encoded at a random quality of 70 to 90
    (arXiv 2403.17608 matches sizes and qualities for the same reason). What was lost before, in one class alone, does not come back.
    """
    ok = table[table["status"] == "ok"]
    short = ok[["width", "height"]].min(axis=1)
    side = None
    if ok["width"].nunique() > 1 or ok["height"].nunique() > 1:
        side = int(short.groupby(ok["label"]).quantile(SMALL, interpolation="lower").min())
    jpeg = bool((ok["format"] != "JPEG").any() or ok["jpeg_quality"].nunique() > 1)
    return Equaliser(side, jpeg) if side or jpeg else None


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The middle side x side pixels, unscaled; smaller images are scaled up first."""
    short = min(image.size)
    if short < side:
        size = (
            max(side, round(image.width * side / short)),
            max(side, round(image.height * side / short)),
        )
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _coded(format_: str) -> Callable[[Image.Image, float], Image.Image]:
    def again(image: Image.Image, quality: float) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, format_, quality=int(quality))
        with Image.open(buffer) as opened:
            return opened.convert("RGB")

    return again


jpeg = _coded("JPEG")  # jpeg(image, quality): there and back


def _resized(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = (max(1, round(n * share)) for n in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _noisy(image: Image.Image, sigma: float) -> Image.Image:
    pixels = np.asarray(image)
    rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))  # the same image has the same noise
    return Image.fromarray(
        np.uint8(np.clip(np.rint(pixels + rng.normal(0, sigma, pixels.shape)), 0, 255))
    )


def _screenshot(image: Image.Image, factor: float) -> Image.Image:
    """Shown at another size, cut out by hand (a little is lost all round), saved as JPEG."""
    width, height = (max(1, round(n * factor)) for n in image.size)
    shown = image.resize((width, height), Image.Resampling.BILINEAR)
    return _coded("JPEG")(_cropped(shown, 0.94), 80)


_PERTURBATIONS = {  # name -> (function of image and amount, least, most)
    "jpeg": (_coded("JPEG"), 1, 100),
    "webp": (_coded("WEBP"), 1, 100),
    "blur": (lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)), 0.1, 50),
    "resize": (_resized, 0.01, 4),
    "crop": (_cropped, 0.05, 1),
    "noise": (_noisy, 0.1, 128),
    "screenshot": (_screenshot, 0.05, 4),
}
GRID = (
    *(
        "jpeg-95",
        "jpeg-90",
        "jpeg-75",
        "jpeg-50",
        "jpeg-30",
        "webp-80",
        "webp-50",
        "blur-1",
        "blur-2",
        "blur-4",
    ),
    *("resize-0.75", "resize-0.5", "crop-0.9", "crop-0.75", "noise-2", "noise-5", "noise-10"),
    *("screenshot-0.75", "screenshot-0.5"),
)


def perturb(image: Image.Image, how: str) -> Image.Image:
    """An RGB image made worse: "jpeg-75", "webp-80" (quality), "blur-2" (sigma in pixels), "resize-0.5" (factor), "crop-0.75"
    (share of each side), "noise-5" (sigma in grey levels), "screenshot-0.75" (resized by the factor, cut by 6 %, JPEG of quality 80).

    Raises `InputError` for a name that is not known or an amount out of range.

    >>> perturb(Image.new("RGB", (8, 8)), "resize-0.5").size
    (4, 4)
    """
    function, amount = _parsed(how)
    return function(image, amount)


def check_perturbation(how: str) -> str:
    """The name, if it is one that `perturb` knows; else `InputError`."""
    _parsed(how)
    return how


def _parsed(how: str) -> tuple[Callable[[Image.Image, float], Image.Image], float]:
    kind, _, text = how.partition("-")
    function, least, most = _PERTURBATIONS[
        choose("perturbation", kind, _PERTURBATIONS, hint=f"E.g. {', '.join(GRID)}.")
    ]
    try:
        amount = float(text)
    except ValueError as error:
        raise InputError(
            f"perturbation {how!r} has no amount: e.g. {kind}-{most if most > 4 else 0.5}"
        ) from error
    if not least <= amount <= most:
        raise InputError(f"perturbation {how!r}: {kind} takes {least} to {most}")
    return function, amount
