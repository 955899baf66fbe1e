"""dflib.metrics against scikit-learn, scipy, statsmodels, brute force and known answers."""

import doctest
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from dflib import metrics
from dflib.metrics import best_threshold, evaluate

quick = settings(max_examples=40, deadline=None, derandomize=True)


def slow(labels, scores, threshold, weight=None) -> dict[str, float]:
    """The independent way: scikit-learn, a draw at a time; NaN where a class has no weight."""
    weight = np.ones(len(labels)) if weight is None else weight
    if not weight[labels == 0].sum() or not weight[labels == 1].sum():
        return dict.fromkeys((*metrics.INTERVALS, *metrics.RATES), np.nan)
    called, w = (scores >= threshold).astype(int), {"sample_weight": weight}
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False, **w)
    return {
        "accuracy": sk.accuracy_score(labels, called, **w),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called, **w),
        "f1": sk.f1_score(labels, called, **w),
        "precision": sk.precision_score(labels, called, zero_division=np.nan, **w),
        "recall": sk.recall_score(labels, called, **w),
        "tnr": sk.recall_score(labels, called, pos_label=0, **w),
        "ap": sk.average_precision_score(labels, scores, **w),
        "auroc": sk.roc_auc_score(labels, scores, **w),
        "eer": optimize.brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1, xtol=1e-14),
        "brier": sk.brier_score_loss(labels, scores, **w),
        "ece": binned_gaps(labels, scores, weight),
        **{rate: tpr[fpr <= float(rate)].max() for rate in metrics.RATES},
    }


def binned_gaps(labels, scores, weight) -> float:
    """The expected calibration error by its definition: |share of fakes - mean score| of bins."""
    bins = pd.cut(scores, np.linspace(0, 1, 16), include_lowest=True)
    gaps = pd.Series((labels - scores) * weight).groupby(bins, observed=True).sum()
    return float(gaps.abs().sum() / weight.sum())


def flat(each: dict) -> dict:
    """An entry of `evaluate`, or its intervals, with tpr_at_fpr beside the other metrics."""
    return {k: each[k] for k in metrics.INTERVALS} | each["tpr_at_fpr"]


def same(ours: float | None, theirs: float) -> bool:
    return ours is None and np.isnan(theirs) or ours == pytest.approx(theirs, abs=1e-9)


def random_set(seed: int, n: int, levels: int, names=("gan", "vae", "diffusion")):
    """Labels, scores on a grid of `levels` values (few: heavy ties), generators: all present."""
    rng = np.random.default_rng(seed)
    generators = np.array(["real", *names, *rng.choice(["real", *names], size=n - 1 - len(names))])
    labels = (generators != "real").astype(int)
    scores = np.round(np.clip(rng.normal(0.45 + 0.15 * labels, 0.25), 0, 1) * levels) / levels
    return labels, scores, generators


def detector(rng, scenes: int, images: int, shift=1.0, noise=0.3):
    """Scenes with a real and a fake of each image; a scene moves all of its scores alike."""
    labels = np.tile([0, 1], scenes * images)
    groups = np.repeat(np.arange(scenes), 2 * images)
    x = rng.normal(size=scenes)[groups] + noise * rng.normal(size=len(labels))
    return labels, stats.norm.cdf(x + shift * (labels - 0.5)), groups


def of_one(labels, scores, *, threshold=0.5, **options) -> dict:
    """`evaluate` of a set with one generator."""
    kinds = np.where(labels, "gan", "real")
    return evaluate(labels, scores, kinds, threshold=threshold, **options)["all"]


def weights_of(codes, draws: int, seed: int) -> np.ndarray:
    """How often each image is drawn, (draws, n)."""
    return np.hstack(list(metrics._counts(codes, draws, seed)))[codes, 1:].T


# --- point values


@quick
@given(
    st.integers(0, 10**6),
    st.integers(4, 80),
    st.sampled_from([1, 2, 5, 10**9]),
    st.sampled_from([0.0, 0.4, 0.5, 1.0]),
)
def test_every_metric_equals_scikit_learn_with_ties(seed, n, levels, threshold):
    labels, scores, generators = random_set(seed, n, levels)
    table = evaluate(labels, scores, generators, threshold=threshold, draws=0)
    for name in ("gan", "vae", "diffusion", "all"):
        used = (labels == 0) | (generators == name) | (name == "all")
        for metric, value in slow(labels[used], scores[used], threshold).items():
            assert same(flat(table[name])[metric], value), (name, metric)
        counts = ((labels == 0).sum(), labels[used].sum(), used.sum())
        assert tuple(table[name][k] for k in ("n_real", "n_fake", "n")) == counts
        assert all(interval is None for interval in flat(table[name]["ci95"]).values())
    for metric, mean in flat(table["macro"]).items():
        parts = [flat(table[name])[metric] for name in ("gan", "vae", "diffusion")]
        assert same(mean, np.nan if None in parts else np.mean(parts)), metric


Y, P, G = [0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], ["real", "gan", "real", "gan"]


def test_undefined_precision_is_none_and_the_table_is_json():
    labels, scores, generators = random_set(0, 60, 10**9)
    table = evaluate(labels, scores * 0.9, generators, threshold=1.0, draws=50)
    assert table["all"]["precision"] is None and table["all"]["ci95"]["precision"] is None
    assert table["macro"]["precision"] is None and table["all"]["f1"] == 0
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_one_generator_needs_no_macro():
    table = evaluate(Y, P, G, threshold=0.5, draws=20)
    assert list(table) == ["gan", "all"] and table["gan"] == table["all"]


# --- intervals


@pytest.mark.parametrize(("n", "scenes", "levels"), [(120, 25, 1e9), (60, None, 4), (9, 5, 1e9)])
def test_intervals_equal_an_explicit_loop_with_the_same_weights(monkeypatch, n, scenes, levels):
    """The set of 9 has draws without reals or without some generator: they are left out."""
    monkeypatch.setattr(metrics, "CELLS", 13 * n)  # several pieces, the last one shorter
    labels, scores, generators = random_set(1, n, levels)
    groups = None if scenes is None else np.random.default_rng(2).integers(scenes, size=n)
    codes = pd.factorize(np.arange(n) if groups is None else groups)[0]
    table = evaluate(labels, scores, generators, threshold=0.5, groups=groups, draws=30, seed=5)
    weights, drawn = weights_of(codes, 30, 5), {}
    for name in ("gan", "vae", "diffusion", "all"):
        used = (labels == 0) | (generators == name) | (name == "all")
        each = [slow(labels[used], scores[used], 0.5, weight[used]) for weight in weights]
        drawn[name] = {metric: np.array([x[metric] for x in each]) for metric in each[0]}
        assert n > 9 or 0 < np.isnan(drawn[name]["auroc"]).sum() < 30
        drawn[name]["ece"] = np.maximum(2 * table[name]["ece"] - drawn[name]["ece"], 0)
        few = min(len(set(codes[labels == 0])), len(set(codes[used & (labels == 1)]))) < 2
        for values in drawn[name].values():
            values[:] = np.nan if few else values
    drawn["macro"] = {
        m: np.mean([drawn[g][m] for g in ("gan", "vae", "diffusion")], axis=0) for m in drawn["all"]
    }
    still = lambda metric: ("recall", "tnr") if metric == "balanced_accuracy" else (metric,)
    for name, each in drawn.items():
        for metric, values in each.items():
            found, values = flat(table[name]["ci95"])[metric], values[~np.isnan(values)]
            expected = np.percentile(values, [2.5, 97.5]) if len(values) >= 15 else None
            if expected is not None and any(np.nanstd(each[k]) < 1e-12 for k in still(metric)):
                assert found[0] < expected[0] or found[1] > expected[1] or set(expected) <= {0, 1}
                continue
            assert (found is None) == (expected is None), (name, metric)
            assert found is None or found == pytest.approx(expected, abs=1e-9), (name, metric)


def test_group_counts_are_multinomial():
    counts = np.hstack(list(metrics._counts(np.repeat(np.arange(20), 3), 4000, 0)))
    assert (counts[:, 0] == 1).all() and counts.shape == (20, 4001)
    assert (counts.sum(axis=0) == 20).all()
    assert counts[:, 1:].mean(axis=1) == pytest.approx(np.ones(20), abs=0.08)  # 5 standard errors
    assert np.cov(counts[:, 1:])[0, 1] == pytest.approx(-1 / 20, abs=0.08)
    assert counts[:, 1:].var() == pytest.approx(1 - 1 / 20, abs=0.03)


def test_seed_decides_and_group_names_do_not_matter():
    labels, scores, groups = detector(np.random.default_rng(3), scenes=20, images=2)
    first, again, other = (of_one(labels, scores, groups=groups, seed=s) for s in (0, 0, 1))
    assert first == again and first["ci95"] != other["ci95"]
    assert first == of_one(labels, scores, groups=[f"scene {g}" for g in groups])


def test_no_interval_from_a_single_scene():
    labels, scores, generators = random_set(4, 60, 10**9, names=("gan", "vae"))
    groups = np.where(generators == "gan", -1, np.arange(60))
    table = evaluate(labels, scores, generators, threshold=0.5, groups=groups, draws=200)
    for name in ("gan", "macro"):
        assert set(flat(table[name]["ci95"]).values()) == {None}
    assert None not in flat(table["vae"]["ci95"]).values() and table["gan"]["auroc"] is not None


def test_no_interval_where_most_draws_are_undefined():
    """Two images a generator: each is missing from 13 % of the draws, one of 20 from 94 %."""
    labels = np.repeat([0, 1], 40)
    generators = np.append(np.full(40, "real"), np.tile([f"g{i}" for i in range(20)], 2))
    table = evaluate(labels, np.linspace(0, 1, 80), generators, threshold=0.5, draws=400)
    assert set(flat(table["macro"]["ci95"]).values()) == {None} and table["macro"]["auroc"] == 1
    assert None not in flat(table["g0"]["ci95"]).values()


# --- threshold, pairs, margin


@quick
@given(st.integers(0, 10**6), st.integers(4, 60), st.sampled_from([1, 3, 10**9]))
def test_best_threshold_is_not_beaten(seed, n, levels):
    labels, scores, _ = random_set(seed, n, levels)
    threshold = best_threshold(labels, scores)
    assert 0 <= threshold <= 1
    ours = sk.balanced_accuracy_score(labels, scores >= threshold)
    for other in np.unique(np.concatenate([scores, np.nextafter(scores, 2), [0, 0.5, 1]])):
        assert ours >= sk.balanced_accuracy_score(labels, scores >= other) - 1e-12
    assert ours == slow(labels, scores, threshold)["balanced_accuracy"]


def test_best_threshold_takes_the_midpoint_nearest_to_a_half():
    assert best_threshold([0, 1], [0.2, 0.4]) == pytest.approx(0.3)
    equals = best_threshold([0, 1, 0, 1], [0.1, 0.3, 0.6, 0.7])  # 0.2 and 0.65 are as good
    useless = best_threshold([1, 0], [0.2, 0.4])  # all real, as 0.7 is no farther than 0.1
    assert (equals, useless) == (pytest.approx(0.65), pytest.approx(0.7))
    below, above = 0.5, np.nextafter(0.5, 1)
    assert best_threshold([0, 1], [below, above]) == above  # no float lies between


def test_differences_of_resampled_values_are_paired_as_in_an_explicit_loop():
    """On a set of some of the fakes, and on one of all."""
    rng = np.random.default_rng(6)
    labels, a, groups = detector(rng, scenes=25, images=2)
    b = np.clip(a + 0.1 * rng.normal(size=len(a)), 0, 1)
    sets = {"some": (labels == 1) & (rng.random(len(labels)) < 0.6), "all": labels == 1}
    options = {"groups": groups, "draws": 40, "seed": 3}
    two = ((a, 0.5), (b, 0.4))
    ours = [metrics.resample(labels, x, sets, threshold=t, **options)[0] for x, t in two]
    for name, fakes in sets.items():
        used = fakes | (labels == 0)
        each = lambda x, t, w=None, used=used: slow(labels[used], x[used], t, w)
        drawn = [[each(*x, w[used]) for x in two] for w in weights_of(groups, 40, 3)]
        points = [each(*x) for x in two]
        for metric in ("auroc", "accuracy", "balanced_accuracy"):
            found = metrics.combine([ours[1][name][metric] - ours[0][name][metric]])
            expected = np.percentile([y[metric] - x[metric] for x, y in drawn], [2.5, 97.5])
            assert found["ci95"] == pytest.approx(expected, abs=1e-9)
            assert found["mean"] == pytest.approx(points[1][metric] - points[0][metric])


# --- draws that are all alike


@quick
@given(st.integers(2, 400), st.integers(2, 400))
def test_what_no_draw_moves_is_as_wide_as_the_exact_interval(reals, fakes):
    """Each image its own scene, each right: Clopper and Pearson's interval of each proportion."""
    labels = np.repeat([0, 1], [reals, fakes])
    perfect = np.where(labels, 0.9, 0.1)
    found = of_one(labels, perfect, draws=20)["ci95"]
    exact = lambda n: proportion_confint(n, n, method="beta")[0]
    counts = {"recall": fakes, "precision": fakes, "tnr": reals, "accuracy": reals + fakes}
    counts |= dict.fromkeys(("auroc", "ap", "balanced_accuracy", "f1"), min(reals, fakes))
    for metric, n in counts.items():
        assert found[metric] == pytest.approx([exact(n), 1]), metric
    assert flat(found)["0.05"][0] == found["auroc"][0] and found["eer"][0] == 0
    wrong = of_one(labels, 1 - perfect, draws=20)["ci95"]
    assert wrong["recall"] == pytest.approx([0, 1 - exact(fakes)])
    drawn, bounds = metrics.resample(labels, perfect, threshold=0.5, draws=20)
    lost = {k: x - x for k, x in drawn["all"].items()}  # of two detectors that never differ
    wider = metrics.beyond(lost, bounds["all"])["accuracy"]
    interval = metrics.combine([lost["accuracy"]], wider)["ci95"]
    assert interval == pytest.approx([exact(reals + fakes) - 1, 1 - exact(reals + fakes)])


def test_scenes_count_not_images_and_several_seeds_prove_no_more():
    labels, groups = np.repeat([0, 1], 40), np.arange(80) // 4
    perfect = labels * 0.8 + 0.1
    found = metrics.resample(labels, perfect, threshold=0.5, groups=groups, draws=30)
    drawn, bound = (each["all"] for each in found)
    assert bound["recall"] == pytest.approx(1 - 0.025**0.1)
    three = metrics.combine([drawn["recall"]] * 3, metrics.beyond(drawn, bound)["recall"])
    assert three["ci95"] == pytest.approx([1 - bound["recall"], 1 + bound["recall"]])


@pytest.mark.parametrize("right", [0.9, 0.97, 0.995])
def test_intervals_of_small_samples_of_good_detectors_cover_the_truth(right):
    """And those of the difference between two detectors, one of which errs where the other may."""
    rng, labels, inside = np.random.default_rng(8), np.repeat([0, 1], [25, 50]), {}
    for _ in range(200):
        hit = rng.random((2, 75)) < [[right], [(1 + right) / 2]]
        tables, bounds = [], []
        for each in hit:
            scores = np.where(each == (labels == 1), 0.9, 0.1)
            drawn, bound = metrics.resample(labels, scores, threshold=0.5, draws=200)
            tables.append(drawn["all"]), bounds.append(bound["all"])
        change = {k: tables[1][k] - tables[0][k] for k in tables[0]}
        for k in ("accuracy", "recall", "tnr", "balanced_accuracy"):
            for what, drawn, truth in (("", tables[0], right), ("-", change, (1 - right) / 2)):
                wider = metrics.beyond(drawn, bounds[0])[k]
                for name, width in ((what + k, wider), ("drawn alone", 0)):
                    low, high = metrics.combine([drawn[k]], width)["ci95"] or [drawn[k][0]] * 2
                    inside[name] = inside.get(name, 0) + (low <= truth <= high) / 200
    alone = inside.pop("drawn alone") / 8
    assert min(inside.values()) >= 0.86, inside
    assert right < 0.99 or alone < 0.5


# --- images and seeds together


def test_a_set_without_fakes_has_no_values():
    found, _ = metrics.resample(Y, P, {"none": [False] * 4}, threshold=0.5, draws=9)
    assert np.isnan(found["none"]["auroc"]).all()
    nothing = dict.fromkeys(("mean", "std_seeds", "std_images", "ci95"))
    assert metrics.combine([found["none"]["auroc"]]) == nothing | {"seeds": 1}


@quick
@given(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=6, unique=True))
def test_seeds_alone_are_students_and_images_alone_are_normal(values):
    alone = metrics.combine([np.full(50, v) for v in values])  # images do not matter
    assert alone["std_images"] == pytest.approx(0, abs=1e-12)
    assert alone["ci95"] == pytest.approx(DescrStatsW(values).tconfint_mean(0.05), abs=1e-6)
    assert alone["std_seeds"] == pytest.approx(np.std(values, ddof=1))
    assert alone["seeds"] == len(values)
    undrawn = metrics.combine([[v] for v in values])  # as in a resample with draws=0
    assert undrawn["ci95"] == pytest.approx(DescrStatsW(values).tconfint_mean(0.05))
    assert undrawn["std_images"] is None and metrics.combine([values[:1]])["ci95"] is None
    drawn = np.append(values[0], values[0] + 0.1 * np.random.default_rng(0).normal(size=400))
    images = metrics.combine([drawn] * len(values))  # every seed alike
    spread = drawn[1:].std(ddof=1)
    assert images["ci95"] == pytest.approx(stats.norm.interval(0.95, values[0], spread))


# --- bad input, documentation


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"scores": P[:3]}, r"scores has shape \(3,\), labels \(4,\)"),
        ({"groups": [1]}, r"groups has shape \(1,\)"),
        ({"scores": [0.1, np.nan, 0.2, 0.8]}, r"expected probabilities .*nan"),
        ({"scores": [0.1, 0.9, 1.5, 0.8]}, r"expected probabilities of fake in \[0, 1\]"),
        ({"labels": [0, 1, 2, 1]}, r"labels: expected 0 \(real\) or 1 \(fake\), got \[0 1 2\]"),
        ({"labels": [1] * 4, "generators": ["gan"] * 4}, "expected both real .* and fake"),
    ],
)
def test_bad_input_is_named(bad, message):
    good = {"labels": Y, "scores": P, "generators": G, "threshold": 0.5}
    with pytest.raises(ValueError, match=message):
        evaluate(**(good | bad))


def test_examples_in_the_docstrings_are_true():
    done = doctest.testmod(metrics)
    assert done.attempted >= 6 and not done.failed
