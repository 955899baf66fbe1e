"""How good a detector is, and how sure we are: metrics, intervals, tests, calibration. No models, no plots.

A score is P(fake) in [0, 1]; label 1 is fake; an image is called fake where score >= threshold. Intervals are 95 %
percentile intervals (Efron & Tibshirani 1993) of a bootstrap that draws whole groups (scenes) with replacement (Field &
Welsh 2007). A draw with no real, or none of a set's fakes, is left out for that set. An interval is None where there is
no honest one: draws=0, one group holds all reals or all fakes, under half of the draws define the metric.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

INTERVALS = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "tnr",
    "ap",
    "auroc",
    "eer",
    "brier",
    "ece",
)
PAIRED = ("auroc", "accuracy", "balanced_accuracy")  # what `paired` compares
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
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """All metrics: for each generator (its fakes, all reals), "all", and "macro" (mean over generators, if several).

    labels, scores, generators ("real" for reals), groups (None: each image its own): (n,) each. Values are fractions,
    never NaN: precision is None where nothing is called fake; ci95 as above. auroc, ap: scikit-learn's; eer: FPR = FNR
    on the interpolated ROC curve; tpr_at_fpr: the best TPR at that FPR or less (under 1/FPR reals: at no false
    positive); ece: of `reliability`. "macro" shares the draws of its parts and the counts of "all".
    Raises ValueError: bad input, one class.
    Sources: Hanley & McNeil 1982 (AUROC), Davis & Goadrich 2006 (AP), Brier 1950, Guo et al. 2017 (ECE).

    >>> table = evaluate([0, 0, 1, 1], [.1, .6, .4, .9], ["real", "real", "gan", "vae"], threshold=.5)
    >>> table["all"]["auroc"], table["gan"]["auroc"], table["macro"]["recall"]
    (0.75, 0.5, 0.5)
    """
    labels, scores = _check(labels, scores)
    names, codes, real = _names(labels, generators), _codes(groups, len(labels)), labels == 0
    single = {name: names == name for name in sorted(set(names[~real]))}
    fakes = single | {"all": ~real}
    values = _bootstrap(scores, real, fakes, threshold, codes, draws, seed)
    if len(single) > 1:
        values["macro"] = {
            key: np.mean([values[name][key] for name in single], axis=0) for key in values["all"]
        }
    n_real, n_fake = int(real.sum()), {name: int(fake.sum()) for name, fake in fakes.items()}
    return {
        name: _entry(each, n_real, n_fake.get(name, n_fake["all"])) for name, each in values.items()
    }


def best_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold of the highest balanced accuracy: choose it on the validation part, then freeze it.

    labels, scores: (n,) each. Candidates: midpoints of neighbouring scores, all fake, all real; of equals, the nearest
    to 0.5. Raises ValueError: bad input, one class. Source: Youden 1950 (J = 2 x balanced accuracy - 1).

    >>> best_threshold([0, 0, 1, 1], [.1, .3, .5, .9])
    0.4
    """
    labels, scores = _check(labels, scores)
    real, fake, seen = np.sort(scores[labels == 0]), np.sort(scores[labels == 1]), np.unique(scores)
    low, high = np.append(0.0, seen), np.append(seen, 1.0)
    middle = (low + high) / 2
    middle = np.where(
        middle > low, middle, high
    )  # adjacent floats have none between them; `low` is to be called real
    right = (
        np.searchsorted(real, middle) * fake.size
        + (fake.size - np.searchsorted(fake, middle)) * real.size
    )  # exact
    best = middle[right == right.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def paired(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    threshold_a: float,
    threshold_b: float,
    groups: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """Two detectors on the same images: differences (b minus a) with paired clustered intervals, and McNemar's test.

    labels, scores_a, scores_b, groups: (n,) each. auroc, accuracy, balanced_accuracy: {a, b, difference, ci95}.
    mcnemar, of accuracy: {b: images only a gets right, c: only b does, p: two-sided, test: "exact" (b + c < 25) or
    "chi2" (continuity-corrected)}; it takes images as independent: where scenes hold several, trust the interval.
    Raises ValueError: bad input, one class. Sources: McNemar 1947, Edwards 1948 (correction).

    >>> paired([0, 0, 1, 1], [.1, .6, .4, .9], [.1, .2, .8, .9], threshold_a=.5, threshold_b=.5)["mcnemar"]
    {'b': 0, 'c': 2, 'p': 0.5, 'test': 'exact'}
    """
    values, right = [], []
    for name, scores, threshold in (
        ("scores_a", scores_a, threshold_a),
        ("scores_b", scores_b, threshold_b),
    ):
        y, p = _check(labels, scores, name)
        fakes, codes = {"all": y == 1}, _codes(groups, len(y))
        values.append(
            _bootstrap(p, y == 0, fakes, threshold, codes, draws, seed, brief=True)["all"]
        )
        right.append((p >= threshold) == (y == 1))
    result = {"mcnemar": mcnemar(*right)}
    for metric in PAIRED:
        a, b = values[0][metric], values[1][metric]
        change = b - a  # draw by draw: the same images in both
        result[metric] = {
            "a": float(a[0]),
            "b": float(b[0]),
            "difference": float(change[0]),
            "ci95": _interval(change),
        }
    return result


def resample(
    labels: ArrayLike,
    scores: ArrayLike,
    sets: Mapping[str, ArrayLike] | None = None,
    *,
    threshold: float,
    groups: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """The metrics of INTERVALS and of RATES as they are and in each draw, {set: {metric: (1 + draws,)}}; NaN: undefined.

    sets: which fakes count beside all reals, {name: (n,) of bool}; None: {"all": every fake}. Calls with the same groups and
    seed share the draws, so the difference of two arrays is a paired one, whatever differs: the detector, the generators,
    what was done to the images. `combine` makes an interval of it. Raises ValueError: bad input, one class.

    >>> resample([0, 0, 1, 1], [.1, .6, .4, .9], threshold=.5, draws=3)["all"]["auroc"].shape
    (4,)
    """
    labels, scores = _check(labels, scores)
    fakes = {"all": labels == 1} if sets is None else {}
    for name, members in (sets or {}).items():
        fakes[name] = _column(
            f"sets[{name!r}]", members, len(labels), lambda x: x <= (labels == 1), "a fake", bool
        )
    return _bootstrap(
        scores, labels == 0, fakes, threshold, _codes(groups, len(labels)), draws, seed
    )


def combine(values: Sequence[ArrayLike]) -> dict:
    """Several seeds' arrays of `resample` (or differences of them) as one: {mean, ci95, seeds, std_seeds, std_images}.

    Images and seeds are two random factors. std_images: of the mean over seeds, from one draw to the next (all seeds are
    tested on the same images). std_seeds: between the seeds' values (n - 1). ci95 = mean +- t (std_images^2 + std_seeds^2 /
    seeds)^.5, with the degrees of freedom of Satterthwaite 1946: Student's t where seeds matter alone, normal where images
    do. What image and seed do together counts twice, so it is rather too wide. Of one seed: the percentile interval of its
    images, which knows nothing of training. None where any of the seeds has no interval, NaN of undefined values left out.
    Raises ValueError: no seeds, arrays of different lengths.

    >>> found = combine([[.5, .4, .6], [.7, .6, .8]])
    >>> round(found["mean"], 3), round(found["std_seeds"], 3), found["seeds"]
    (0.6, 0.141, 2)
    """
    from scipy import stats

    if not len(values) or len({np.shape(each) for each in values}) > 1 or np.ndim(values) != 2:
        raise ValueError(
            f"values: expected one array (1 + draws,) per seed, got {[np.shape(each) for each in values]}"
        )
    values = np.asarray(values, float)
    mean, n = values.mean(axis=0), len(values)
    images, span = (
        np.nanstd(mean[1:], ddof=1) if np.isfinite(mean[1:]).sum() > 1 else np.nan,
        _interval(mean),
    )
    between = values[:, 0].std(ddof=1) if n > 1 else np.nan
    if span and n > 1:
        variance = images**2 + between**2 / n
        freedom = (n - 1) * (variance / (between**2 / n)) ** 2 if between else np.inf
        half = variance**0.5 * (
            stats.t.ppf(0.975, freedom) if np.isfinite(freedom) else stats.norm.ppf(0.975)
        )
        span = [float(mean[0] - half), float(mean[0] + half)]
    known = {"mean": mean[0], "std_seeds": between, "std_images": images}
    return {k: float(x) if np.isfinite(x) else None for k, x in known.items()} | {
        "ci95": span,
        "seeds": n,
    }


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> dict:
    """Do two detectors err equally often? {b: only a is right, c: only b, p: two-sided, test}.

    right_a, right_b: (n,) of bool, on the same images. test: "exact" (b + c < 25) or "chi2", corrected
    for continuity. Images count as independent: where scenes hold several, trust the interval of
    the difference. Sources: McNemar 1947, Edwards 1948.

    >>> mcnemar([True, True, False], [True, False, False])
    {'b': 1, 'c': 0, 'p': 1.0, 'test': 'exact'}
    """
    from scipy import stats

    right_a, right_b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    b, c = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    if b + c >= 25:
        p = stats.chi2.sf((abs(b - c) - 1) ** 2 / (b + c), 1)
        return {"b": b, "c": c, "p": float(p), "test": "chi2"}
    p = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    return {"b": b, "c": c, "p": float(p), "test": "exact"}


def non_inferior(difference_ci: Sequence[float] | None, margin: float) -> bool:
    """Whether a new detector is shown to lose less than `margin`: the interval (new - reference) lies above -margin.

    difference_ci: [low, high] in the metric's unit, higher is better; 95 % makes a one-sided test at 2.5 %. Fix the
    margin before looking. False, also for None (no interval), means "not shown", not "worse". Raises ValueError: margin
    not positive, no interval. Source: Piaggio et al. 2012 (CONSORT extension).

    >>> non_inferior([-.015, .004], margin=.02), non_inferior([-.031, .004], margin=.02)
    (True, False)
    """
    if not 0 < margin < np.inf:
        raise ValueError(
            f"margin = {margin}: expected a positive number, such as 0.02 for two points of accuracy"
        )
    if difference_ci is not None and (
        len(difference_ci) != 2 or not difference_ci[0] <= difference_ci[1]
    ):
        raise ValueError(f"difference_ci = {difference_ci}: expected [low, high] or None")
    return difference_ci is not None and bool(difference_ci[0] > -margin)


def with_interval(values: dict, name: str) -> str:
    """A metric of `evaluate` for a sentence: "0.912 (0.880 to 0.940)", or that there is no interval."""
    span = values["ci95"][name]
    return f"{values[name]:.3f} " + (
        f"({span[0]:.3f} to {span[1]:.3f})" if span else "(no interval: too few scenes)"
    )


def overlap(a: Sequence[float] | None, b: Sequence[float] | None) -> str:
    """Whether two intervals "overlap" or "do not overlap". Overlap proves nothing: `paired` asks the sharper question."""
    if a is None or b is None:
        return "are not known"
    return "overlap" if max(a[0], b[0]) <= min(a[1], b[1]) else "do not overlap"


def verdict(difference_ci: Sequence[float] | None) -> str:
    """What the interval of a difference shows: a loss or a gain only where all of it lies on one side of zero.

    >>> verdict([-0.03, -0.01])
    'a loss'
    """
    if difference_ci is None:
        return "not known"
    low, high = difference_ci
    return (
        "a loss"
        if high < 0
        else "a gain"
        if low > 0
        else "no difference that these test images can show"
    )


def reliability(labels: ArrayLike, scores: ArrayLike, bins: int = BINS) -> dict[str, np.ndarray]:
    """A reliability diagram: {edges: (bins + 1,), score: mean score, observed: fraction of fakes, count: (bins,) each}.

    labels, scores: (n,) each; one class is enough. Bins of equal width on P(fake), (low, high], 0 in the first; empty
    ones hold NaN (matplotlib leaves a gap). evaluate's ece is the binary ECE on them: sum of count / n x |observed -
    score|. Chance makes it too large (Bröcker 2012), so its interval is a reflected one (2 x value - draw, 0 or more), and
    may lie below the value; near perfect calibration it is still too high. Raises ValueError: bad input. Sources: DeGroot & Fienberg 1983, Guo et al. 2017.

    >>> reliability([0, 1, 1], [.2, .4, .9], bins=2)["observed"].tolist()
    [0.5, 1.0]
    """
    labels, scores = _check(labels, scores, both=False)
    edges = np.linspace(0, 1, _whole("bins", bins, 1) + 1)
    where = np.searchsorted(edges[1:-1], scores)
    count, score, fake = (
        np.bincount(where, weight, minlength=bins) for weight in (None, scores, labels)
    )
    filled = np.where(count > 0, count, np.nan)
    return {"edges": edges, "score": score / filled, "observed": fake / filled, "count": count}


def fit_temperature(labels: ArrayLike, logit_difference: ArrayLike) -> float:
    """The T that minimises the NLL of P(fake) = sigmoid(logit_difference / T) on validation; T > 1: overconfident.

    labels, logit_difference (fake minus real): (n,) each. T lies in [0.01, 100]; where no T is best (separated classes,
    scores no better than chance) an end is returned and a warning logged. AUROC stays; the threshold moves.
    Raises ValueError: bad input, one class. Source: Guo et al. 2017.

    >>> round(fit_temperature([0, 0, 0, 1, 0, 1, 1, 1], [-4] * 4 + [4] * 4), 3)  # 3 of 4 right: log-odds ln 3, not 4
    3.641
    """
    from scipy import optimize, special

    labels, z = _check(labels, logit_difference, "logit_difference", np.inf)
    slope = lambda sharpness: np.mean(
        z * (special.expit(sharpness * z) - labels)
    )  # NLL's, convex in 1 / T
    if slope(0.01) < 0 < slope(100):
        return float(1 / optimize.brentq(slope, 0.01, 100, xtol=1e-10))
    end = 100.0 if slope(0.01) >= 0 else 0.01
    log.warning("no temperature is best on these %d images: took the limit, %g", len(z), end)
    return end


def at_temperature(scores: ArrayLike, temperature: float) -> np.ndarray:
    """P(fake) at a temperature: sigmoid(logit(score) / T), (n,). 1 leaves a score, more draws it to 0.5; the order stays.

    `fit_temperature` finds T from validation scores; a threshold goes through this function as well. Scores nearer to 0 or
    1 than 1e-7 count as that near. Raises ValueError: T not positive. Source: Guo et al. 2017.

    >>> at_temperature([.1, .5, .9], 2).round(3).tolist()  # odds of 1/9, 1, 9 become 1/3, 1, 3
    [0.25, 0.5, 0.75]
    """
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"temperature = {temperature}: expected a positive number, such as fit_temperature gives"
        )
    return 1 / (1 + np.exp(-logits(scores) / temperature))


def logits(scores: ArrayLike) -> np.ndarray:
    """ln(p / (1 - p)) of each P(fake), the difference of a detector's two logits; those nearer to 0 or 1 than 1e-7 count as that near.

    >>> logits([.5, 1]).round(1).tolist()
    [0.0, 16.1]
    """
    p = np.clip(np.asarray(scores, float), 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def over_seeds(values: Sequence[dict]) -> dict:
    """Several seeds' results as one: each number becomes {mean, std, ci95, seeds}; nested dicts keep their shape.

    std (n - 1) and ci95 (Student's t, of the mean) tell how training varies, on these test images; None for one seed.
    The seeds' own "ci95" (how images vary) are left out, so are undefined values (None): `seeds` counts the rest.
    Raises ValueError: keys that differ, no finite number. Source: Bouthillier et al. 2021 (Accounting for variance).

    >>> over_seeds([{"auroc": .5}, {"auroc": .75}])["auroc"]["mean"], over_seeds([{"auroc": .5}])["auroc"]["ci95"]
    (0.625, None)
    """
    if not values or any(
        not isinstance(each, dict) or each.keys() != values[0].keys() for each in values
    ):
        raise ValueError(
            f"values = {str(values)[:200]}: expected one dict per seed, all with the same keys"
        )
    columns = {key: [each[key] for each in values] for key in values[0] if key != "ci95"}
    return {
        key: over_seeds(x) if isinstance(x[0], dict) else _combine(key, x)
        for key, x in columns.items()
    }


def _bootstrap(
    scores, real, fakes: dict, threshold, codes, draws, seed, brief=False
) -> dict[str, dict[str, np.ndarray]]:
    """{set: {metric: (1 + draws,)}}: the value, then each draw's (NaN: undefined). All sets share the draws."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}: expected a number in [0, 1]")
    order = np.argsort(scores, kind="stable")
    reals, members = order[real[order]], {name: order[fake[order]] for name, fake in fakes.items()}
    parts = {name: [] for name in fakes}
    for counts in _counts(codes, _whole("draws", draws, 0), seed):
        weight = counts[codes[reals]]
        for name, i in members.items():
            parts[name].append(
                _weighted(scores[reals], scores[i], weight, counts[codes[i]], threshold, brief)
            )
    values = {
        name: {key: np.concatenate([p[key] for p in part]) for key in part[0]}
        for name, part in parts.items()
    }
    for name, i in members.items():
        if not brief:  # chance alone makes gaps, in the images and again in each draw: off as often as it was put on
            ece = values[name]["ece"]
            ece[1:] = np.maximum(2 * ece[0] - ece[1:], 0)
        if (
            min(len(set(codes[reals])), len(set(codes[i]))) < 2
        ):  # one scene cannot tell how scenes vary
            for drawn in values[name].values():
                drawn[1:] = np.nan
    return values


def _counts(codes: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, (groups, some draws): ones first (the data as they are), then multinomial."""
    groups, step, rng = codes.max() + 1, max(1, CELLS // len(codes)), np.random.default_rng(seed)
    yield np.ones((groups, 1))
    for start in range(0, draws, step):
        width = min(step, draws - start)
        cell = rng.integers(groups, size=(groups, width)) * width + np.arange(width)
        yield (
            np.bincount(cell.ravel(), minlength=groups * width).reshape(groups, width).astype(float)
        )


def _weighted(
    real, fake, weight_real, weight_fake, threshold, brief=False
) -> dict[str, np.ndarray]:
    """All metrics (brief: PAIRED alone), (draws,) each, from sorted scores (n,) and whole-numbered weights (n, draws) of either class."""
    below_real, below_fake = map(_summed, (weight_real, weight_fake))
    n_real, n_fake = (
        np.where(below[-1] > 0, below[-1], np.nan) for below in (below_real, below_fake)
    )
    tn, tp = (
        below_real[np.searchsorted(real, threshold)],
        n_fake - below_fake[np.searchsorted(fake, threshold)],
    )
    called = tp + n_real - tn
    lower, upto = (
        below_real[np.searchsorted(real, fake)],
        below_real[np.searchsorted(real, fake, "right")],
    )
    wins = np.einsum("fd,fd->d", weight_fake, lower + upto) / 2  # half of a tie
    values = {
        "accuracy": (tp + tn) / (n_real + n_fake),
        "balanced_accuracy": (tp / n_fake + tn / n_real) / 2,
        "auroc": wins / (n_real * n_fake),
    }
    if brief:
        return values
    hits = (
        below_fake[-1] - below_fake[np.searchsorted(fake, fake)]
    )  # called fake, with this fake's score as threshold
    precisions = hits / np.maximum(
        hits + below_real[-1] - lower, 1
    )  # the maximum guards 0 / 0 only

    corners = np.unique(
        np.concatenate([real, fake])
    )  # of the ROC curve, as thresholds; beyond them nothing is fake
    at_real, at_fake = (
        np.append(np.searchsorted(each, corners), len(each)) for each in (real, fake)
    )
    column = np.arange(len(tn))
    alarms = lambda corner: n_real - below_real[at_real[corner], column]
    misses = lambda corner: below_fake[at_fake[corner], column]
    gap = lambda corner: (
        alarms(corner) * n_fake - misses(corner) * n_real
    )  # FPR - FNR in whole numbers, falling
    k = _last(lambda corner: gap(corner) >= 0, len(corners), len(tn))
    share = gap(k) / (gap(k) - gap(k + 1))
    values |= {
        "f1": 2 * tp / (called + n_fake),
        "precision": tp / np.where(called > 0, called, np.nan),
        "recall": tp / n_fake,
        "tnr": tn / n_real,
        "ap": np.einsum("fd,fd->d", weight_fake, precisions) / n_fake,
        "eer": (misses(k) + share * (misses(k + 1) - misses(k))) / n_fake,
        "brier": (np.square(real) @ weight_real + np.square(1 - fake) @ weight_fake)
        / (n_real + n_fake),
        "ece": np.abs(_binned(real, real, weight_real) + _binned(fake, fake - 1, weight_fake)).sum(
            0
        )
        / (n_real + n_fake),
    }
    for rate in RATES:
        k = _last(
            lambda corner, limit=float(rate): alarms(corner) / n_real > limit, len(corners), len(tn)
        )
        values[rate] = 1 - misses(k + 1) / n_fake
    return {
        key: np.where(np.isfinite(n_real * n_fake), value, np.nan) for key, value in values.items()
    }


def _summed(weight: np.ndarray) -> np.ndarray:
    """The weight of the first 0, 1, … n images, (n + 1, draws)."""
    below = np.zeros((len(weight) + 1, weight.shape[1]))
    np.cumsum(weight, axis=0, out=below[1:])
    return below


def _binned(scores, values, weight) -> np.ndarray:
    """The weighted sum of the values in each bin of `reliability`, (BINS, draws), from sorted scores."""
    cuts = [0, *np.searchsorted(scores, np.linspace(0, 1, BINS + 1)[1:-1], "right"), len(scores)]
    return np.stack([values[i:j] @ weight[i:j] for i, j in zip(cuts, cuts[1:], strict=False)])


def _last(holds: Callable, size: int, draws: int) -> np.ndarray:
    """For each draw the last corner where `holds`, true at 0 and false at `size`: a bisection."""
    low, high = np.zeros(draws, int), np.full(draws, size)
    while (high - low > 1).any():
        middle = (low + high) // 2
        low, high = np.where(holds(middle), (middle, high), (low, middle))
    return low


def _entry(values: dict[str, np.ndarray], n_real: int, n_fake: int) -> dict:
    point = {
        key: float(drawn[0]) if np.isfinite(drawn[0]) else None for key, drawn in values.items()
    }
    span = {key: _interval(drawn) for key, drawn in values.items()}
    for each in (point, span):
        each["tpr_at_fpr"] = {rate: each.pop(rate) for rate in RATES}
    return point | {"n": n_real + n_fake, "n_real": n_real, "n_fake": n_fake, "ci95": span}


def _interval(drawn: np.ndarray) -> list[float] | None:
    defined = drawn[1:][np.isfinite(drawn[1:])]
    enough = len(defined) > 0 and len(defined) >= (len(drawn) - 1) / 2
    return np.percentile(defined, [2.5, 97.5]).tolist() if enough else None


def _combine(key: str, values: list) -> dict:
    from scipy import stats

    for i, each in enumerate(values):
        if each is not None and not (isinstance(each, Real) and np.isfinite(each)):
            raise ValueError(f"values[{i}][{key!r}] = {each!r}: expected a finite number or None")
    x = np.array([each for each in values if each is not None], float)
    mean, n = float(x.mean()) if len(x) else None, len(x)
    if n < 2:
        return {"mean": mean, "std": None, "ci95": None, "seeds": n}
    std = float(x.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / n**0.5
    return {"mean": mean, "std": std, "ci95": [mean - half, mean + half], "seeds": n}


def _check(labels, scores, name="scores", most=1.0, both=True) -> tuple[np.ndarray, np.ndarray]:
    least, expected = (
        (0, "a probability of fake in [0, 1]") if most == 1 else (-most, "a finite number")
    )
    labels = _column(
        "labels",
        labels,
        np.size(labels),
        lambda y: np.isin(y, (0, 1)),
        "0 (real) or 1 (fake)",
        float,
    )
    inside = lambda x: np.isfinite(x) & (x >= least) & (x <= most)
    scores = _column(name, scores, len(labels), inside, expected, float)
    if len(set(labels)) < 1 + both:
        raise ValueError(
            f"labels holds only {sorted(set(labels.tolist()))}: expected both real (0) and fake (1) images"
        )
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
    return _column(
        "generators", generators, len(labels), lambda x: list(map(fits, x, labels)), expected
    )


def _column(
    name: str, values, n: int, good: Callable, expected: str, dtype: type = object
) -> np.ndarray:
    values = np.asarray(values, dtype)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}: expected ({n},), one for each label")
    wrong = ~np.asarray(good(values), bool)
    if wrong.any():
        i = wrong.argmax()
        raise ValueError(
            f"{name}[{i}] = {str(values[i])[:80]}: expected {expected} ({wrong.sum()} of {n} are not)"
        )
    return values


def _whole(name: str, value: int, least: int) -> int:
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} = {value!r}: expected a whole number, {least} or more")
    return int(value)
