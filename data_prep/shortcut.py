"""How well can real and fake be told apart without looking? The shortcut probe, and spectra."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from data_prep import integrity
from data_prep.integrity import jpeg_quality, open_image, to_rgb
from data_prep.transform import FORMATS, Equaliser, centre_square

FEATURES = ("width", "height", "aspect", "bytes_per_pixel", "format", "mode", "jpeg_quality")
FEATURES += ("chroma", "progressive", "tables", "exif", "icc", "xmp", "c2pa", "bits")
FEATURES += ("pixel_quality", "blockiness", "red", "green", "blue", "contrast")
MODES = ("RGB", "L", "RGBA", "P", "CMYK", "LA")
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green, blue
FOLDS = 5
DRAWS = 500
SPECTRUM = 128  # pixels: side of the centre square whose residual spectrum is taken
_LOOK = 256  # pixels: side of the middle square that pixel statistics are taken from
_QUALITIES = np.arange(30, 97)


@dataclass(frozen=True)
class Probe:
    """What the probe reached: AUROC, its 95 % interval, each feature's AUROC alone (0.5 to 1)."""

    auroc: float
    ci95: tuple[float, float]
    single: dict[str, float]


def features(image: Image.Image, data: bytes) -> dict[str, float]:
    """Metadata and trivial statistics of an opened image: `FEATURES`, nan where one has none."""
    rgb = to_rgb(image)
    side = min(_LOOK, *rgb.size)
    # on the 8 x 8 grid that a JPEG would have had
    left, top = ((n - side) // 2 // 8 * 8 for n in rgb.size)
    middle = np.asarray(rgb.crop((left, top, left + side, top + side)), dtype=np.float32)
    luma = middle @ LUMA
    quality, format_ = jpeg_quality(image), integrity.format_of(image)
    return {
        "width": image.width,
        "height": image.height,
        "aspect": image.width / image.height,
        "bytes_per_pixel": len(data) / (image.width * image.height),
        "format": FORMATS.index(format_) if format_ in FORMATS else len(FORMATS),
        "mode": MODES.index(image.mode) if image.mode in MODES else len(MODES),
        "jpeg_quality": np.nan if quality is None else quality,
        **integrity.coding(image, data),
        "pixel_quality": pixel_quality(luma),
        "blockiness": blockiness(luma),
        **dict(zip(("red", "green", "blue"), middle.mean(axis=(0, 1)), strict=True)),
        "contrast": luma.std(),
    }


def pixel_quality(luma: np.ndarray) -> float:
    """JPEG quality (30 to 96) that grey pixels (H x W, 0 to 255) once had, else nan: DCT
    coefficients lie near multiples of the quantisation steps (Fan & de Queiroz 2003)."""
    rows, columns = (n // 8 for n in luma.shape)
    if rows * columns < 4:
        return np.nan
    blocks = luma[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).swapaxes(1, 2)
    spectra = dctn(blocks - 128, axes=(2, 3), norm="ortho")
    low = spectra[:, :, :4, :4].reshape(-1, 16)[:, 1:]  # low frequencies, without the mean
    scores = np.zeros(len(_QUALITIES))
    for n, quality in enumerate(_QUALITIES.tolist()):
        steps = integrity.luminance(quality)[:4, :4].ravel()[1:]
        used = (np.abs(low) > 0.5 * steps) & (steps >= 2)
        if used.sum() >= 50:
            scores[n] = np.cos(2 * np.pi * low / steps)[used].mean()
    fits = scores > 0.45
    if not fits.any():
        return np.nan
    first = fits.argmax()
    return float(_QUALITIES[first + scores[first:][:4].argmax()])


def blockiness(luma: np.ndarray) -> float:
    """Mean step across the borders of 8 x 8 blocks over that inside: 1 without JPEG history."""
    if min(luma.shape) < 16:
        return np.nan
    step = np.abs(np.diff(luma, axis=1)).mean(axis=0)
    border = np.arange(len(step)) % 8 == 7
    return float(step[border].mean() / max(step[~border].mean(), 1e-6))


def residual(luma: np.ndarray) -> np.ndarray:
    """What a blur of one pixel takes away from grey pixels (… x H x W): the noise residual."""
    return luma - gaussian_filter(luma, 1.0, axes=(-2, -1))


def spectrum(luma: np.ndarray) -> np.ndarray:
    """Log power spectrum of the residual of grey pixels (… x H x W): generators leave peaks."""
    return np.log(np.abs(np.fft.fftshift(np.fft.fft2(residual(luma)), axes=(-2, -1))) ** 2 + 1)


def look(item: tuple[Path, str], *, alike: Equaliser | None) -> dict | None:
    """Features, raw and equalised, and spectrum of one file (path, sha256); None: unreadable."""
    path, sha256 = item
    try:
        data = integrity.read_file(path)
        image = open_image(data)
    except integrity.BadImage:
        return None
    rgb = to_rgb(image)
    middle = np.asarray(centre_square(rgb.convert("L"), SPECTRUM), dtype=np.float32)
    found = {"raw": features(image, data), "spectrum": spectrum(middle)}
    if alike is None:
        return found | {"equalised": found["raw"]}
    encoded = alike.encoded(rgb, sha256)
    return found | {"equalised": features(open_image(encoded), encoded)}


def probe(table: pd.DataFrame, labels: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> Probe:
    """Cross-validated AUROC of gradient-boosted trees on `table` (columns `FEATURES`). No scene
    (group) trains and tests; the interval is a bootstrap over scenes."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    x = table[list(FEATURES)].fillna(-1).to_numpy(dtype=float)  # "none" is a value like any other
    shape = {"max_iter": 60, "max_depth": 3, "min_samples_leaf": 10, "early_stopping": False}
    trees = HistGradientBoostingClassifier(**shape, class_weight="balanced", random_state=seed)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    split = {"groups": groups, "cv": folds, "method": "predict_proba"}
    score = cross_val_predict(trees, x, labels, **split)[:, 1]
    scene, rng = pd.factorize(groups)[0], np.random.default_rng(seed)
    n, draws = scene.max() + 1, []
    for _ in range(DRAWS):
        weight = np.bincount(rng.integers(n, size=n), minlength=n)[scene]
        if weight[labels == 0].any() and weight[labels == 1].any():
            draws.append(roc_auc_score(labels, score, sample_weight=weight))
    low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    alone = [roc_auc_score(labels, column) for column in x.T]
    single = {name: max(a, 1 - a) for name, a in zip(FEATURES, alone, strict=True)}
    best_first = dict(sorted(single.items(), key=lambda item: -item[1]))
    return Probe(float(roc_auc_score(labels, score)), (low, high), best_first)
