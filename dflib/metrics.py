"""How good a detector is, and how sure we are: metrics, intervals, tests, calibration.

A score is P(fake) in [0, 1]; label 1 is fake; an image is called fake where score >= threshold.
Intervals are 95 % percentile intervals (Efron & Tibshirani 1993) of a bootstrap that draws whole
groups (scenes) with replacement (Field & Welsh 2007). A draw with no real, or none of a set's
fakes, is left out for that set. An interval is None where there is no honest one: draws=0, one
group holds all reals or all fakes, under half of the draws define the metric. Draws that are all
alike prove nothing: the ends are then as far apart as `least` says.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

DECIDED = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "tnr")  # at a threshold
INTERVALS = (*DECIDED, "ap", "auroc", "eer", "brier", "ece")
RATES = ("0.01", "0.05", "0.10")  # false positive rates of tpr_at_fpr
BINS = 15  # of the reliability diagram
CELLS = 400_000  # images x draws at once: 3 MB an array stays near the core's cache
log = logging.getLogger(__name__)


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
    Values are fractions, never NaN: precision is None where nothing is called fake. auroc, ap: as
    in scikit-learn; eer: FPR = FNR on the interpolated ROC curve; tpr_at_fpr: the best TPR at that
    FPR or less; ece: of `reliability`. Raises ValueError: bad input, one class.
    Sources: Hanley & McNeil 1982 (AUROC), Davis & Goadrich 2006 (AP), Brier 1950, Guo et al. 2017.

    >>> names = ["real", "real", "gan", "vae"]
    >>> table = evaluate([0, 0, 1, 1], [.1, .6, .4, .9], names, threshold=.5)
    >>> table["all"]["auroc"], table["gan"]["auroc"], table["macro"]["recall"]
    (0.75, 0.5, 0.5)
    """
    labels, scores = _check(labels, scores)
    names = _names(labels, generators)
    sets = {name: names == name for name in sorted({*names} - {"real"})}
    every = sets | {"all": labels == 1}
    at = {"threshold": threshold, "groups": groups, "testsets": testsets}
    shown = every if len(sets) > 1 else sets
    values = resample(labels, scores, shown, draws=draws, seed=seed, **at)
    bounds = {name: least(labels, scores, of, **at) for name, of in shown.items()}
    mean = lambda tables, key: np.mean([tables[name][key] for name in sets], axis=0)
    last = "macro" if len(sets) > 1 else "all"
    for tables in (values, bounds):
        tables[last] = {key: mean(tables, key) for key in tables[next(iter(sets))]}
    own = lambda of: len(_own(*map(np.flatnonzero, (labels == 0, of)), testsets))
    entries = {}
    for name, drawn in values.items():
        n_real, n_fake = own(of := every.get(name, labels == 1)), int(of.sum())
        wider = beyond(drawn, bounds[name])
        value = {k: _value(v) for k, v in drawn.items()}
        span = {k: _interval(v, wider[k], ends=(0, 1)) for k, v in drawn.items()}
        for each in (value, span):
            each["tpr_at_fpr"] = {rate: each.pop(rate) for rate in RATES}
        counts = {"n": n_real + n_fake, "n_real": n_real, "n_fake": n_fake}
        entries[name] = value | counts | {"ci95": span}
    return entries


def best_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold of the highest balanced accuracy: choose it on validation, then freeze it.

    labels, scores: (n,) each. Candidates: midpoints of neighbouring scores, all fake, all real; of
    equals, the nearest to 0.5. Raises ValueError: bad input, one class. Source: Youden 1950.

    >>> best_threshold([0, 0, 1, 1], [.1, .3, .5, .9])
    0.4
    """
    labels, scores = _check(labels, scores)
    seen = np.unique(scores)
    low, high = np.append(0.0, seen), np.append(seen, 1.0)
    middle = (low + high) / 2
    middle = np.where(middle > low, middle, high)  # no float lies between; `low` is to be real
    n = np.bincount(labels.astype(int))
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
) -> dict[str, dict[str, np.ndarray]]:
    """INTERVALS and RATES as they are, then in each draw: {set: {metric: (1 + draws,)}}.

    sets: which fakes count beside their reals, {name: (n,) of bool}; None: {"all": every fake}.
    testsets: as for `evaluate`. NaN: undefined. Calls with the same groups and seed share the
    draws: the difference of two arrays is a paired one, whatever differs. `combine` makes an
    interval of it. Raises ValueError: bad input, one class.

    >>> resample([0, 0, 1, 1], [.1, .6, .4, .9], threshold=.5, draws=3)["all"]["auroc"].shape
    (4,)
    """
    labels, scores = _check(labels, scores)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}: expected a number in [0, 1]")
    codes, order, fake = _codes(groups, len(labels)), np.argsort(scores, kind="stable"), labels == 1
    sets = {"all": fake} if sets is None else sets
    inside = lambda x: x <= fake
    members = {
        name: order[_column(f"sets[{name!r}]", of, len(fake), inside, "a fake", bool)[order]]
        for name, of in sets.items()
    }
    pairs = {name: (_own(order[~fake[order]], i, testsets), i) for name, i in members.items()}
    parts = {name: [] for name in sets}
    for counts in _counts(codes, _whole("draws", draws, 0), seed):
        for name, (reals, i) in pairs.items():
            weights = counts[codes[reals]], counts[codes[i]]
            parts[name].append(_weighted(scores[reals], scores[i], *weights, threshold))
    values = {}
    for name, (reals, i) in pairs.items():
        each = {key: np.concatenate([part[key] for part in parts[name]]) for key in parts[name][0]}
        # chance alone makes gaps, in the images and again in each draw: off as often as put on
        each["ece"][1:] = np.maximum(2 * each["ece"][0] - each["ece"][1:], 0)
        if min(len({*codes[reals]}), len({*codes[i]})) < 2:  # one scene cannot tell how they vary
            each = {key: np.append(drawn[:1], np.nan + drawn[1:]) for key, drawn in each.items()}
        values[name] = each
    return values


def _own(reals: np.ndarray, fakes: np.ndarray, testsets: ArrayLike | None) -> np.ndarray:
    """Of the reals (indices) those in the fakes' own test sets; all where these have none."""
    if testsets is None:
        return reals
    testsets = np.asarray(testsets, object)
    own = reals[np.isin(testsets[reals].astype(str), testsets[fakes].astype(str))]
    return own if len(own) else reals


def least(
    labels: ArrayLike,
    scores: ArrayLike,
    fakes: ArrayLike | None = None,
    *,
    threshold: float,
    groups: ArrayLike | None = None,
    testsets: ArrayLike | None = None,
) -> dict[str, float]:
    """How far the truth may lie from each metric although no draw moves it: 1 - 0.025^(1 / n).

    n: the scenes that it rests on, of its own class, or the fewer of both. Exact for a proportion,
    and a difference of two detectors that never differ (Clopper & Pearson 1934); rather too wide
    for the rest. fakes: (n,) of bool, one of `resample`'s sets; the others: as for `evaluate`.

    >>> round(1 - least([0] * 20 + [1] * 20, [.1] * 20 + [.9] * 20, threshold=.5)["recall"], 2)
    0.83
    """
    labels, scores = _check(labels, scores)
    codes, fake = _codes(groups, len(labels)), np.flatnonzero(labels if fakes is None else fakes)
    real = _own(np.flatnonzero(labels == 0), fake, testsets)
    called = np.intersect1d(both := np.append(real, fake), np.flatnonzero(scores >= threshold))
    scenes = lambda of: max(1, len(np.unique(codes[of])))
    each = dict.fromkeys((*INTERVALS, *RATES), min(scenes(real), scenes(fake)))
    each |= dict.fromkeys(("accuracy", "brier", "ece"), scenes(both))
    each |= {"recall": scenes(fake), "tnr": scenes(real), "precision": scenes(called)}
    return {metric: 1 - 0.025 ** (1 / n) for metric, n in each.items()}


def beyond(drawn: Mapping[str, np.ndarray], least: Mapping[str, float]) -> dict[str, float]:
    """How much wider each metric's interval must be than its draws (…, 1 + draws): for `combine`.

    `least` where all draws are alike, else nothing; balanced accuracy may be still in one class.
    """
    moves = lambda x: x[np.isfinite(x)].size and np.ptp(x[np.isfinite(x)]) > 1e-12
    wider = {key: 0.0 if moves(x[..., 1:]) else least[key] for key, x in drawn.items()}
    if wider.get("balanced_accuracy") == 0:
        wider["balanced_accuracy"] = (wider.get("recall", 0) + wider.get("tnr", 0)) / 2
    return wider


def combine(values: Sequence[ArrayLike], wider: float = 0.0) -> dict:
    """Several seeds' arrays of `resample` (or differences of them) as one, with its interval.

    Returns {mean, ci95, seeds, std_seeds, std_images}: std_images of the mean over seeds, from draw
    to draw (all seeds see the same images); std_seeds between the seeds' values. ci95 = mean +- t (std_images^2 + std_seeds^2 / seeds)^.5,
    t with the degrees of freedom of Satterthwaite 1946: Student's where seeds matter alone (or
    nothing was drawn), normal where images do. What image and seed do together counts twice, so it
    is rather too wide. Of one seed: the percentile interval of its images. wider (`beyond`): what
    is added at both ends. None where any of the seeds has no interval, or where it would have no
    width. Raises ValueError: no seeds, arrays of different lengths.

    >>> found = combine([[.5, .4, .6], [.7, .6, .8]])
    >>> round(found["mean"], 3), round(found["std_seeds"], 3), found["seeds"]
    (0.6, 0.141, 2)
    """
    from scipy import stats

    if not len(values) or len({np.shape(each) for each in values}) > 1 or np.ndim(values) != 2:
        shapes = [np.shape(each) for each in values]
        raise ValueError(f"values: expected one array (1 + draws,) per seed, got {shapes}")
    values = np.asarray(values, float)
    mean, n, draws = values.mean(axis=0), len(values), values.shape[1] - 1
    images = np.nanstd(mean[1:], ddof=1) if np.isfinite(mean[1:]).sum() > 1 else np.nan
    between = values[:, 0].std(ddof=1) if n > 1 else np.nan
    span = _interval(mean, wider)
    if n > 1 and np.isfinite(mean[0]) and 2 * np.isfinite(mean[1:]).sum() >= draws:
        variance = (images**2 if draws else 0) + between**2 / n
        freedom = (n - 1) * (variance / (between**2 / n)) ** 2 if between else np.inf
        t = stats.t.ppf(0.975, freedom) if np.isfinite(freedom) else stats.norm.ppf(0.975)
        half = t * variance**0.5 + wider
        span = [float(mean[0] - half), float(mean[0] + half)] if half else None
    known = {"mean": mean, "std_seeds": [between], "std_images": [images]}
    return {k: _value(x) for k, x in known.items()} | {"ci95": span, "seeds": n}


def non_inferior(difference_ci: Sequence[float] | None, margin: float) -> bool:
    """Whether a new detector is shown to lose less than `margin`: its interval lies above -margin.

    difference_ci: [low, high] of new minus reference, higher is better. Fix the margin before
    looking. False, also for None: "not shown", not "worse". Raises ValueError: margin not positive,
    no interval. Source: Piaggio et al. 2012 (CONSORT).

    >>> non_inferior([-.015, .004], margin=.02), non_inferior([-.031, .004], margin=.02)
    (True, False)
    """
    if not 0 < margin < np.inf:
        raise ValueError(f"margin = {margin}: expected a positive number, 0.02 for two points, say")
    if difference_ci is None:
        return False
    if len(difference_ci) != 2 or not difference_ci[0] <= difference_ci[1]:
        raise ValueError(f"difference_ci = {difference_ci}: expected [low, high] or None")
    return bool(difference_ci[0] > -margin)


def reliability(labels: ArrayLike, scores: ArrayLike, bins: int = BINS) -> dict[str, np.ndarray]:
    """A reliability diagram: {edges: (bins + 1,), score, observed (share of fakes), count}.

    labels, scores: (n,) each; one class is enough. Bins of equal width on P(fake), (low, high], 0
    in the first; empty ones hold NaN. ece: the sum of count / n x |observed - score|, by chance too
    large (Bröcker 2012), so its interval is reflected (2 x value - draw), and may lie below. Raises
    ValueError: bad input. Sources: DeGroot & Fienberg 1983, Guo et al. 2017.

    >>> reliability([0, 1, 1], [.2, .4, .9], bins=2)["observed"].tolist()
    [0.5, 1.0]
    """
    labels, scores = _check(labels, scores, both=False)
    edges = np.linspace(0, 1, _whole("bins", bins, 1) + 1)
    where = np.searchsorted(edges[1:-1], scores)
    count, score, fake = (np.bincount(where, w, minlength=bins) for w in (None, scores, labels))
    filled = np.where(count > 0, count, np.nan)
    return {"edges": edges, "score": score / filled, "observed": fake / filled, "count": count}


def fit_temperature(labels: ArrayLike, logit_difference: ArrayLike) -> float:
    """The T with the least NLL of P(fake) = sigmoid(logit_difference / T); T > 1: overconfident.

    labels, logit_difference (fake minus real): (n,) each, of validation. T lies in [0.01, 100];
    where none is best (separated classes, scores no better than chance) an end is returned and a
    warning logged. Raises ValueError: bad input, one class. Source: Guo et al. 2017.

    >>> round(fit_temperature([0, 0, 0, 1, 0, 1, 1, 1], [-4] * 4 + [4] * 4), 3)  # 4 / ln 3
    3.641
    """
    from scipy import optimize, special

    labels, z = _check(labels, logit_difference, "logit_difference", np.inf)
    slope = lambda sharpness: np.mean(z * (special.expit(sharpness * z) - labels))  # of the NLL
    if slope(0.01) < 0 < slope(100):
        return float(1 / optimize.brentq(slope, 0.01, 100, xtol=1e-10))
    end = 100.0 if slope(0.01) >= 0 else 0.01
    log.warning("no temperature is best on these %d images: took the limit, %g", len(z), end)
    return end


def at_temperature(scores: ArrayLike, temperature: float) -> np.ndarray:
    """P(fake) at a temperature: sigmoid(logit(score) / T), (n,); the order stays.

    A threshold goes through it as well. Raises ValueError: T not positive. Guo et al. 2017.

    >>> at_temperature([.1, .5, .9], 2).round(3).tolist()  # odds of 1/9, 1, 9 become 1/3, 1, 3
    [0.25, 0.5, 0.75]
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature = {temperature}: expected a positive number")
    return 1 / (1 + np.exp(-logits(scores) / temperature))


def logits(scores: ArrayLike) -> np.ndarray:
    """ln(p / (1 - p)) of each P(fake); nearer to 0 or 1 than 1e-7 counts as that near.

    >>> logits([.5, 1]).round(1).tolist()
    [0.0, 16.1]
    """
    p = np.clip(np.asarray(scores, float), 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def _counts(codes: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, (groups, some draws): once each, then multinomial."""
    groups, step, rng = codes.max() + 1, max(1, CELLS // len(codes)), np.random.default_rng(seed)
    yield np.ones((groups, 1))
    for start in range(0, draws, step):
        width = min(step, draws - start)
        cell = rng.integers(groups, size=(groups, width)) * width + np.arange(width)
        counts = np.bincount(cell.ravel(), minlength=groups * width)
        yield counts.reshape(groups, width).astype(float)


def _weighted(real, fake, weight_real, weight_fake, threshold) -> dict[str, np.ndarray]:
    """All metrics, (draws,) each, from sorted scores (n,) and whole weights (n, draws) of a class.

    A corner is a fake's score as the threshold, where the ROC curve rises; the last is infinity.
    """
    below_real, below_fake = _below(weight_real), _below(weight_fake)
    n_real, n_fake = (np.where(x[-1] > 0, x[-1], np.nan) for x in (below_real, below_fake))
    tn = below_real[np.searchsorted(real, threshold)]
    tp = n_fake - below_fake[np.searchsorted(fake, threshold)]
    called, n, draw = tp + n_real - tn, n_real + n_fake, np.arange(len(tn))
    corners = np.append(fake, np.inf)
    first, beyond = (np.searchsorted(real, corners, side) for side in ("left", "right"))
    own = np.searchsorted(fake, corners)
    lower, hits = below_real[first[:-1]], below_fake[-1] - below_fake[own[:-1]]
    wins = np.einsum("fd,fd->d", weight_fake, lower + below_real[beyond[:-1]]) / 2  # half of ties
    precisions = hits / np.maximum(hits + below_real[-1] - lower, 1)  # guards 0 / 0 only
    squares = np.square(real) @ weight_real + np.square(1 - fake) @ weight_fake
    gaps = _binned(real, real, weight_real) + _binned(fake, fake - 1, weight_fake)
    values = {
        "accuracy": (tp + tn) / n,
        "balanced_accuracy": (tp / n_fake + tn / n_real) / 2,
        "f1": 2 * tp / (called + n_fake),
        "precision": tp / np.where(called > 0, called, np.nan),
        "recall": tp / n_fake,
        "tnr": tn / n_real,
        "ap": np.einsum("fd,fd->d", weight_fake, precisions) / n_fake,
        "auroc": wins / (n_real * n_fake),
        "brier": squares / n,
        "ece": np.abs(gaps).sum(axis=0) / n,
    }
    alarms = lambda k, at=first: n_real - below_real[at[k], draw]
    misses = lambda k: below_fake[own[k], draw]
    surplus = lambda alarms, misses: alarms * n_fake - misses * n_real  # FPR - FNR, times both
    k = _last(lambda k: surplus(alarms(k), misses(k)) >= 0, len(fake), len(n))
    before, after = surplus(alarms(k), misses(k)), surplus(alarms(k, beyond), misses(k + 1))
    share = np.minimum(before / np.maximum(before - after, 0.5), 1)  # of the step, to FPR = FNR
    values["eer"] = (misses(k) + share * (misses(k + 1) - misses(k))) / n_fake
    for rate in RATES:
        k = _last(lambda k, most=float(rate): alarms(k) / n_real > most, len(fake), len(n))
        values[rate] = 1 - misses(k + 1) / n_fake
    both = np.isfinite(n_real * n_fake)
    return {key: np.where(both, value, np.nan) for key, value in values.items()}


def _below(weight: np.ndarray) -> np.ndarray:
    """The weight of the first 0, 1, … n images, (n + 1, draws)."""
    below = np.zeros((len(weight) + 1, weight.shape[1]))
    np.cumsum(weight, axis=0, out=below[1:])
    return below


def _last(holds: Callable, size: int, draws: int) -> np.ndarray:
    """For each draw the last k below `size` where `holds`, true and then false; -1: nowhere."""
    low, high = np.full(draws, -1), np.full(draws, size)
    while (high - low > 1).any():
        middle = (low + high) // 2
        low, high = np.where(holds(middle), (middle, high), (low, middle))
    return low


def _binned(scores, values, weight) -> np.ndarray:
    """The weighted sum of values in each bin of `reliability`, (BINS, draws), of sorted scores."""
    cuts = [0, *np.searchsorted(scores, np.linspace(0, 1, BINS + 1)[1:-1], "right"), len(scores)]
    return np.stack([values[i:j] @ weight[i:j] for i, j in zip(cuts, cuts[1:], strict=False)])


def _value(drawn: ArrayLike) -> float | None:
    return float(drawn[0]) if np.isfinite(drawn[0]) else None


def _interval(drawn: np.ndarray, wider: float = 0.0, ends=(-np.inf, np.inf)) -> list | None:
    defined = drawn[1:][np.isfinite(drawn[1:])]
    if not len(defined) or len(defined) < (len(drawn) - 1) / 2:
        return None
    low, high = np.percentile(defined, [2.5, 97.5]) + [-wider, wider]
    return np.clip([low, high], *ends).tolist() if low < high else None


def _check(labels, scores, name="scores", most=1.0, both=True) -> tuple[np.ndarray, np.ndarray]:
    n, least = np.size(labels), 0 if most == 1 else -most
    what = "a probability of fake in [0, 1]" if most == 1 else "a finite number"
    known = lambda y: np.isin(y, (0, 1))
    labels = _column("labels", labels, n, known, "0 (real) or 1 (fake)", float)
    inside = lambda x: np.isfinite(x) & (x >= least) & (x <= most)
    scores = _column(name, scores, n, inside, what, float)
    if len(set(labels)) < 1 + both:
        only = sorted(set(labels.tolist()))
        raise ValueError(f"labels holds only {only}: expected both real (0) and fake (1) images")
    return labels, scores


def _codes(groups, n: int) -> np.ndarray:  # 0, 1, … for names of any kind
    if groups is None:
        return np.arange(n)
    import pandas as pd

    return pd.factorize(_column("groups", groups, n, pd.notna, "the name or number of a scene"))[0]


def _names(labels: np.ndarray, generators) -> np.ndarray:
    fits = lambda g, label: (
        isinstance(g, str) and g not in ("all", "macro") and (g == "real") == (label == 0)
    )
    expected = '"real" for label 0, a generator\'s name (not "real", "all", "macro") for 1'
    good = lambda names: list(map(fits, names, labels))
    return _column("generators", generators, len(labels), good, expected)


def _column(
    name: str, values, n: int, good: Callable, expected: str, dtype: type = object
) -> np.ndarray:
    values = np.asarray(values, dtype)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}: expected ({n},), one for each label")
    wrong = np.flatnonzero(~np.asarray(good(values), bool))
    if len(wrong):
        value = f"{name}[{wrong[0]}] = {str(values[wrong[0]])[:80]}"
        raise ValueError(f"{value}: expected {expected} ({len(wrong)} of {n} are not)")
    return values


def _whole(name: str, value: int, least: int) -> int:
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} = {value!r}: expected a whole number, {least} or more")
    return int(value)
