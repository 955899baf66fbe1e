"""The shortcut probe: how well can real and fake be told apart without looking? A classifier on metadata and trivial statistics alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from data_prep.integrity import BadImage, jpeg_quality, open_image, to_rgb
from data_prep.transform import Equaliser, centre_square

FEATURES = (
    "width",
    "height",
    "aspect",
    "bytes_per_pixel",
    "format",
    "mode",
    "jpeg_quality",
    "pixel_quality",
    "blockiness",
    "red",
    "green",
    "blue",
    "contrast",
)
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
MODES = ("RGB", "L", "RGBA", "P", "CMYK", "LA")
FOLDS = 5
DRAWS = 500
SPECTRUM = 128  # pixels: side of the centre square whose residual spectrum is taken
_LOOK = 256  # pixels: side of the middle square that pixel statistics are taken from
_BASE = np.array(
    [[16, 11, 10, 16], [12, 12, 14, 19], [14, 13, 16, 24], [14, 17, 22, 29]]
)  # ITU T.81 K.1, low frequencies
_QUALITIES = np.arange(30, 97)


@dataclass(frozen=True)
class Probe:
    """What the probe reached: AUROC with its 95 % interval, and the AUROC of each feature alone (0.5 to 1)."""

    auroc: float
    ci95: tuple[float, float]
    single: dict[str, float]


def features(image: Image.Image, n_bytes: int) -> dict[str, float]:
    """Metadata and trivial statistics of an opened image: the columns `FEATURES`, nan where one does not apply."""
    rgb = to_rgb(image)
    side = min(_LOOK, *rgb.size)
    left, top = (
        (n - side) // 2 // 8 * 8 for n in rgb.size
    )  # on the 8 x 8 grid that a JPEG would have had
    middle = np.asarray(rgb.crop((left, top, left + side, top + side)), dtype=np.float32)
    red, green, blue = middle.mean(axis=(0, 1))
    luma = middle @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    quality = jpeg_quality(image)
    return {
        "width": image.width,
        "height": image.height,
        "aspect": image.width / image.height,
        "bytes_per_pixel": n_bytes / (image.width * image.height),
        "format": FORMATS.index(image.format) if image.format in FORMATS else len(FORMATS),
        "mode": MODES.index(image.mode) if image.mode in MODES else len(MODES),
        "jpeg_quality": np.nan if quality is None else quality,
        "pixel_quality": pixel_quality(luma),
        "blockiness": blockiness(luma),
        "red": red,
        "green": green,
        "blue": blue,
        "contrast": luma.std(),
    }


def pixel_quality(luma: np.ndarray) -> float:
    """JPEG quality (30 to 96, of the usual encoders) that grey pixels (H x W, 0 to 255) once had, nan where none shows: also inside a PNG.

    Block DCT coefficients of a decoded JPEG lie near multiples of the quantisation steps (Fan & de Queiroz 2003); the lowest quality
    whose steps fit wins. Blind to images that were scaled or shifted off the 8 x 8 grid since.
    """
    blocks = _blocks(luma)
    if blocks is None:
        return np.nan
    coefficients = dctn(blocks - 128, axes=(2, 3), norm="ortho")[:, :, :4, :4].reshape(-1, 16)[
        :, 1:
    ]
    scores = np.zeros(len(_QUALITIES))
    for n, quality in enumerate(_QUALITIES):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        steps = np.maximum((_BASE * scale + 50) // 100, 1).ravel()[1:]
        used = (np.abs(coefficients) > 0.5 * steps) & (steps >= 2)
        if used.sum() >= 50:
            scores[n] = np.cos(2 * np.pi * coefficients / steps)[used].mean()
    fits = scores > 0.45
    return (
        float(_QUALITIES[fits.argmax() + scores[fits.argmax() :][:4].argmax()])
        if fits.any()
        else np.nan
    )


def blockiness(luma: np.ndarray) -> float:
    """Mean step across the borders of 8 x 8 blocks over that inside them: 1 without JPEG history, more with it."""
    if min(luma.shape) < 16:
        return np.nan
    step = np.abs(np.diff(luma, axis=1)).mean(axis=0)
    border = np.arange(len(step)) % 8 == 7
    return float(step[border].mean() / max(step[~border].mean(), 1e-6))


def residual(luma: np.ndarray) -> np.ndarray:
    """What a blur of one pixel takes away from grey pixels (… x H x W): the noise residual."""
    return luma - gaussian_filter(luma, 1.0, axes=(-2, -1))


def spectrum(luma: np.ndarray) -> np.ndarray:
    """Log power spectrum of the residual of grey pixels (… x H x W, 0 to 255), zero frequency in the middle."""
    return np.log(np.abs(np.fft.fftshift(np.fft.fft2(residual(luma)), axes=(-2, -1))) ** 2 + 1)


def residual_spectrum(image: Image.Image) -> np.ndarray:
    """Log power spectrum (SPECTRUM x SPECTRUM, zero frequency in the middle) of what a blur takes away: generators leave peaks there."""
    return spectrum(np.asarray(centre_square(image.convert("L"), SPECTRUM), dtype=np.float32))


def look(path: Path, sha256: str, *, alike: Equaliser | None) -> dict | None:
    """All that the audit takes from one file: features as it is and as equalised, and its residual spectrum; None if it cannot be read."""
    try:
        data = Path(path).read_bytes()
        image = open_image(data)
    except (OSError, BadImage):
        return None
    raw, rgb = features(image, len(data)), to_rgb(image)
    if alike is None:
        return {"raw": raw, "equalised": raw, "spectrum": residual_spectrum(rgb)}
    encoded = alike.encoded(rgb, sha256)
    return {
        "raw": raw,
        "equalised": features(open_image(encoded), len(encoded)),
        "spectrum": residual_spectrum(rgb),
    }


def probe(table: pd.DataFrame, labels: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> Probe:
    """Cross-validated AUROC of gradient-boosted trees on `table` (columns `FEATURES`); no scene (group) trains and tests.

    The interval is a bootstrap over scenes. Raises ValueError as scikit-learn does for fewer than 5 scenes of a class.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    x = table[list(FEATURES)].fillna(-1).to_numpy(dtype=float)  # "none" is a value like any other
    score = np.empty(len(x))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(
        x, labels, groups
    ):
        trees = HistGradientBoostingClassifier(
            max_iter=60,
            max_depth=3,
            min_samples_leaf=10,
            class_weight="balanced",
            early_stopping=False,
            random_state=seed,
        )
        score[test] = trees.fit(x[train], labels[train]).predict_proba(x[test])[:, 1]
    codes, rng = pd.factorize(groups)[0], np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS):
        weight = np.bincount(
            rng.integers(codes.max() + 1, size=codes.max() + 1), minlength=codes.max() + 1
        )[codes]
        if weight[labels == 0].any() and weight[labels == 1].any():
            draws.append(roc_auc_score(labels, score, sample_weight=weight))
    single = {f: roc_auc_score(labels, x[:, i]) for i, f in enumerate(FEATURES)}
    low, high = np.percentile(draws, [2.5, 97.5])
    single = {
        f: max(a, 1 - a) for f, a in sorted(single.items(), key=lambda item: -abs(item[1] - 0.5))
    }
    return Probe(float(roc_auc_score(labels, score)), (float(low), float(high)), single)


def _blocks(luma: np.ndarray) -> np.ndarray | None:
    rows, columns = (n // 8 for n in luma.shape)
    if rows * columns < 4:
        return None
    return luma[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).swapaxes(1, 2)
