"""How good a detector is, and how sure we are: metrics, intervals, calibration.

A score is P(fake) in [0, 1]; label 1 is fake; an image is called fake where score >= threshold.
Intervals are 95 % percentile intervals of a bootstrap that draws whole groups (scenes) with
replacement (Field & Welsh 2007). None where there is no honest one: draws=0, one group holds all
reals or all fakes, under half of the draws define the metric. Draws that are all alike prove
nothing: the ends are then as far apart as `beyond` says.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

DECIDED = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "tnr")  # at a threshold
INTERVALS = (*DECIDED, "ap", "auroc", "eer", "brier", "ece")
RATES = ("0.01", "0.05", "0.10")  # false positive rates of tpr_at_fpr
BINS = 15  # of the reliability diagram behind the ECE
FEW = 10  # scenes of a class: fewer tell nothing of scenes
CELLS = 400_000  # images x draws at once: 3 MB an array stays near the core's cache


def evaluate(
    labels: ArrayLike,
    scores: ArrayLike,
    generators: ArrayLike,
    *,
    threshold: float,
    groups: ArrayLike | None = None,
    testsets: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """All metrics of each generator (its fakes, its reals), "all", and "macro", their mean.

    labels, scores, generators ("real" for reals), groups (None: each image its own), testsets (a
    generator is scored against the reals of its own one, where it has any, else all): (n,) each.
    precision is None where nothing is called fake. auroc, ap: as in scikit-learn; eer: FPR = FNR on
    the interpolated ROC curve; tpr_at_fpr: the best TPR at that FPR or less; ece: in 15 bins, by
    chance too large (Bröcker 2012), so its interval is reflected. ValueError: bad input, one class.

    >>> names = ["real", "real", "gan", "vae"]
    >>> table = evaluate([0, 0, 1, 1], [.1, .6, .4, .9], names, threshold=.5)
    >>> table["all"]["auroc"], table["gan"]["auroc"], table["macro"]["recall"]
    (0.75, 0.5, 0.5)
    """
    labels, scores = _checked(labels, scores, generators=generators)
    names, fake = np.asarray(generators, object), labels == 1
    sets = {name: names == name for name in sorted({*names[fake]})} | {"all": fake}
    options = {"threshold": threshold, "groups": groups, "testsets": testsets}
    values, bounds = resample(labels, scores, sets, draws=draws, seed=seed, **options)
    if len(sets) > 2:
        for table in (values, bounds):
            each = [table[name] for name in sets if name != "all"]
            table["macro"] = {k: np.mean([one[k] for one in each], axis=0) for k in each[0]}
    entries = {}
    for name, drawn in values.items():
        wider = beyond(drawn, bounds[name])
        entry = {k: _value(x) for k, x in drawn.items()}
        span = {k: _interval(x, wider[k], 0, 1) for k, x in drawn.items()}
        for each in (entry, span):
            each["tpr_at_fpr"] = {rate: each.pop(rate) for rate in RATES}
        fakes = sets.get(name, fake)
        n, n_fake = int(with_reals(labels, fakes, testsets).sum()), int(fakes.sum())
        entries[name] = entry | {"n": n, "n_real": n - n_fake, "n_fake": n_fake, "ci95": span}
    return entries


def per_scene(
    labels: ArrayLike,
    scores: ArrayLike,
    generators: ArrayLike,
    groups: ArrayLike,
    testsets: ArrayLike | None = None,
    **options,
) -> dict | None:
    """`evaluate`'s "all" of whole scenes, videos say: of the mean score of a scene's images, apart
    for each generator. None where no scene has two such images, or under 10 scenes a class.

    >>> fake = [0, 1] * 20  # ten videos of each class, two frames each
    >>> videos = [f"{i // 4}-{i % 2}" for i in range(40)]
    >>> found = per_scene(fake, fake, ["real", "gan"] * 20, videos, threshold=0.5)
    >>> found["auroc"], found["n"]
    (1.0, 20)
    """
    table = {"label": labels, "score": scores, "generator": generators, "group": groups}
    table["testset"] = "" if testsets is None else testsets
    each = pd.DataFrame(table).groupby(["label", "generator", "group", "testset"], as_index=False)
    means = each["score"].mean()
    if len(means) == len(labels) or means["label"].value_counts().min() < FEW:
        return None
    parts = [means[k] for k in ("label", "score", "generator")]
    own = None if testsets is None else means["testset"]
    return evaluate(*parts, groups=means["group"], testsets=own, **options)["all"]


def best_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold of the highest balanced accuracy (Youden 1950), of equals the nearest to 0.5.

    labels, scores: (n,) each. Raises ValueError: bad input, one class.

    >>> best_threshold([0, 0, 1, 1], [.1, .3, .5, .9])
    0.4
    """
    labels, scores = _checked(labels, scores)
    seen = np.unique(scores)
    low, high = np.append(0.0, seen), np.append(seen, 1.0)
    middle = (low + high) / 2
    middle = np.where(middle > low, middle, high)  # no float lies between; `low` is to be real
    n = np.bincount(labels)
    below = [np.searchsorted(np.sort(scores[labels == label]), middle) for label in (0, 1)]
    right = below[0] * n[1] + (n[1] - below[1]) * n[0]  # balanced accuracy in whole numbers
    best = middle[right == right.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def resample(
    labels: ArrayLike,
    scores: ArrayLike,
    sets: Mapping[str, ArrayLike] | None = None,
    *,
    threshold: float,
    groups: ArrayLike | None = None,
    testsets: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, float]]]:
    """INTERVALS and RATES as they are, then in each draw: {set: {metric: (1 + draws,)}}; `beyond`.

    sets: which fakes count beside their reals, {name: (n,) of bool}; None: {"all": every fake}. The
    others: as for `evaluate`. NaN: undefined. Calls with the same groups and seed share the draws:
    the difference of two arrays is a paired one, of which `combine` makes an interval.

    The second dict, {set: {metric: 1 - 0.025^(1 / n)}}, is how far the truth may lie from a metric
    that no draw moves (exact for a proportion: Clopper & Pearson 1934). n: the scenes behind it.

    >>> values, bounds = resample([0, 0, 1, 1], [.1, .6, .4, .9], threshold=.5, draws=3)
    >>> values["all"]["auroc"].shape, round(bounds["all"]["recall"], 2)
    ((4,), 0.84)
    """
    labels, scores = _checked(labels, scores, groups=groups, testsets=testsets)
    names = np.arange(len(labels)) if groups is None else np.asarray(groups, object)
    codes, falling = pd.factorize(names)[0], np.argsort(-scores, kind="stable")
    sets = {"all": labels == 1} if sets is None else sets
    images = {n: falling[with_reals(labels, of, testsets)[falling]] for n, of in sets.items()}
    parts = {name: [] for name in sets}
    for counts in _counts(codes, draws, seed):
        for name, i in images.items():
            parts[name].append(_metrics(labels[i], scores[i], counts[codes[i]], threshold))
    values, bounds = {}, {}
    for name, i in images.items():
        each = {key: np.concatenate([part[key] for part in parts[name]]) for key in parts[name][0]}
        # chance alone makes gaps, in the images and again in each draw: off as often as put on
        each["ece"][1:] = np.maximum(2 * each["ece"][0] - each["ece"][1:], 0)
        kinds = np.ones(len(i)), labels[i] == 0, labels[i] == 1, scores[i] >= threshold
        both, real, fake, called = (len({*codes[i][kind > 0]}) for kind in kinds)  # scenes
        if min(real, fake) < 2:
            for drawn in each.values():
                drawn[1:] = np.nan  # one scene cannot tell how they vary
        n = dict.fromkeys(each, min(real, fake)) | {"recall": fake, "tnr": real}
        n |= {"accuracy": both, "brier": both, "ece": both, "precision": called}
        values[name] = each
        bounds[name] = {metric: 1 - 0.025 ** (1 / max(1, few)) for metric, few in n.items()}
    return values, bounds


def beyond(drawn: Mapping[str, np.ndarray], bounds: Mapping[str, float]) -> dict[str, float]:
    """How much wider each metric's interval must be than its draws (…, 1 + draws), for `combine`:
    its bound where all draws are alike, else nothing."""
    wider = {}
    for metric, values in drawn.items():
        found = values[..., 1:][np.isfinite(values[..., 1:])]
        wider[metric] = 0.0 if found.size and np.ptp(found) > 1e-12 else bounds[metric]
    if wider.get("balanced_accuracy") == 0:  # it may be still in one class
        wider["balanced_accuracy"] = (wider.get("recall", 0) + wider.get("tnr", 0)) / 2
    return wider


def combine(values: Sequence[ArrayLike], wider: float = 0.0) -> dict:
    """Several seeds' arrays of `resample` (or differences of them) as one, with its interval.

    Returns {mean, ci95, seeds, std_seeds (between the seeds' values), std_images (of their mean,
    from draw to draw)}. Of one seed: the percentile interval of its images. Else mean +-
    t (std_images^2 + std_seeds^2 / seeds)^.5, t with the degrees of freedom of Satterthwaite 1946;
    rather too wide, as what image and seed do together counts twice. wider (`beyond`): added at
    both ends. ci95 is None where any seed has none, or where it would have no width.

    >>> found = combine([[.5, .4, .6], [.7, .6, .8]])
    >>> round(found["mean"], 3), round(found["std_seeds"], 3), found["seeds"]
    (0.6, 0.141, 2)
    """
    from scipy import stats

    values = np.asarray(values, float)
    mean, n, draws = values.mean(axis=0), len(values), values.shape[1] - 1
    images = np.nanstd(mean[1:], ddof=1) if np.isfinite(mean[1:]).sum() > 1 else np.nan
    between = values[:, 0].std(ddof=1) if n > 1 else np.nan
    span = _interval(mean, wider)
    if n > 1 and np.isfinite(mean[0]) and 2 * np.isfinite(mean[1:]).sum() >= draws:
        variance = (images**2 if draws else 0) + between**2 / n
        freedom = (n - 1) * (variance / (between**2 / n)) ** 2 if between else np.inf
        half = stats.t.ppf(0.975, freedom) * variance**0.5 + wider
        span = [float(mean[0] - half), float(mean[0] + half)] if half else None
    known = {"mean": mean, "std_seeds": [between], "std_images": [images]}
    return {k: _value(x) for k, x in known.items()} | {"ci95": span, "seeds": n}


def _counts(codes: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, (groups, some draws): once each, then multinomial."""
    groups, step, rng = codes.max() + 1, max(1, CELLS // len(codes)), np.random.default_rng(seed)
    yield np.ones((groups, 1))
    for start in range(0, draws, step):
        width = min(step, draws - start)
        cell = rng.integers(groups, size=(groups, width)) * width + np.arange(width)
        counts = np.bincount(cell.ravel(), minlength=groups * width)
        yield counts.reshape(groups, width).astype(float)


def _metrics(labels, scores, weights, threshold: float) -> dict[str, np.ndarray]:
    """All metrics, (draws,) each, of images with falling scores (n,), weighted (n, draws)."""
    # ROC points: nothing is called fake, then all images down to a score; reals in a row are one
    new = np.diff(scores, prepend=2.0) != 0  # equal scores stay together
    rises = np.bincount(np.cumsum(new) - 1, labels) > 0  # a fake has that score
    first = np.flatnonzero(new)[rises | np.append(True, rises[:-1])]
    above = np.append(first, len(labels))  # images, then fakes, above each point's end
    fakes = np.append(0, np.cumsum(labels))[above]
    hits = _cumulated(weights[labels == 1], fakes)
    alarms = _cumulated(weights[labels == 0], above - fakes)
    n_fake, n_real = hits[-1], alarms[-1]
    called = scores >= threshold
    tp, fp = (labels * called) @ weights, ((1 - labels) * called) @ weights
    tn = n_real - fp
    errors = scores - labels
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], scores)
    gaps = np.where(bins == np.arange(BINS)[:, None], errors, 0) @ weights
    rise = np.diff(hits, axis=0)  # of the ROC curve, at each point but the first
    precisions = hits[1:] / np.maximum(hits[1:] + alarms[1:], 1)
    wins = np.einsum("pd,pd->d", rise, 2 * n_real - alarms[1:] - alarms[:-1]) / 2
    # EER: FPR - FNR, times both classes' weights, goes through zero just before point k
    surplus = alarms * n_fake - (n_fake - hits) * n_real
    draw = np.arange(len(n_fake))
    k = np.minimum(np.count_nonzero(surplus <= 0, axis=0), len(first))
    before, after = surplus[k - 1, draw], surplus[k, draw]
    share = -before / np.maximum(after - before, 1)  # of the step, to FPR = FNR
    crossing = (1 - share) * alarms[k - 1, draw] + share * alarms[k, draw]
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing called, or a class not drawn
        values = {
            "accuracy": (tp + tn) / (n_fake + n_real),
            "balanced_accuracy": (tp / n_fake + tn / n_real) / 2,
            "f1": 2 * tp / (tp + fp + n_fake),
            "precision": tp / (tp + fp),
            "recall": tp / n_fake,
            "tnr": tn / n_real,
            "ap": np.einsum("pd,pd->d", rise, precisions) / n_fake,
            "auroc": wins / (n_real * n_fake),
            "eer": crossing / n_real,
            "brier": errors**2 @ weights / (n_fake + n_real),
            "ece": np.abs(gaps).sum(axis=0) / (n_fake + n_real),
        }
        fpr, tpr = alarms / n_real, hits / n_fake
    for rate in RATES:
        values[rate] = tpr[np.count_nonzero(fpr <= float(rate), axis=0) - 1, draw]
    return {key: np.where(n_fake * n_real > 0, x, np.nan) for key, x in values.items()}


def _cumulated(weights: np.ndarray, upto: np.ndarray) -> np.ndarray:
    """The weight of the first so many images, (points, draws)."""
    below = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=below[1:])
    return below[upto]


def _value(drawn: ArrayLike) -> float | None:
    return float(drawn[0]) if np.isfinite(drawn[0]) else None


def _interval(drawn: np.ndarray, wider: float = 0.0, least=-np.inf, most=np.inf) -> list | None:
    defined = drawn[1:][np.isfinite(drawn[1:])]
    if not len(defined) or len(defined) < (len(drawn) - 1) / 2:
        return None
    low, high = np.percentile(defined, [2.5, 97.5]) + [-wider, wider]
    return np.clip([low, high], least, most).tolist() if low < high else None


def with_reals(labels: np.ndarray, fakes: ArrayLike, testsets: ArrayLike | None) -> np.ndarray:
    """The images of a set, (n,) of bool: its fakes, and their own test sets' reals, else all."""
    fakes, real = np.asarray(fakes, bool), labels == 0
    if testsets is not None:
        testsets = np.asarray(testsets, str)
        own = real & np.isin(testsets, testsets[fakes])
        real = own if own.any() else real
    return fakes | real


def _checked(labels, scores, **columns) -> tuple[np.ndarray, np.ndarray]:
    """labels as whole numbers, scores as floats; `ValueError` where they or a column do not fit."""
    labels, scores = np.asarray(labels), np.asarray(scores, float)
    for name, values in {"scores": scores, **columns}.items():
        if values is not None and (labels.ndim != 1 or np.shape(values) != labels.shape):
            shapes = f"{np.shape(values)}, labels {labels.shape}"
            raise ValueError(f"{name} has shape {shapes}: expected (n,) both")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels: expected 0 (real) or 1 (fake), got {np.unique(labels)[:9]}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"scores: expected probabilities of fake in [0, 1], got {scores[:9]} …")
    if len(np.unique(labels)) < 2:
        raise ValueError("expected both real (0) and fake (1) images")
    return labels.astype(int), scores
