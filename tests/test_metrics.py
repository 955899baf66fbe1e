"""dflib.metrics against scikit-learn, scipy, statsmodels, brute force and known answers."""

import doctest
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from statsmodels.discrete.discrete_model import Logit
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from dflib import metrics
from dflib.metrics import best_threshold, evaluate, fit_temperature, non_inferior, reliability

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
    table = (
        pd.DataFrame({"y": labels * weight, "p": scores * weight, "w": weight})
        .groupby(bins, observed=True)
        .sum()
    )
    return float(
        (
            table["w"] / weight.sum() * (table["y"] / table["w"] - table["p"] / table["w"]).abs()
        ).sum()
    )


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
    x = (
        rng.normal(size=scenes)[groups]
        + noise * rng.normal(size=len(labels))
        + shift * (labels - 0.5)
    )
    return labels, stats.norm.cdf(x), groups


def width(ci95) -> float:
    return ci95[1] - ci95[0]


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
        assert (table[name]["n_real"], table[name]["n_fake"]) == (
            (labels == 0).sum(),
            labels[used].sum(),
        )
        assert table[name]["n"] == used.sum()
        assert all(interval is None for interval in flat(table[name]["ci95"]).values())
    for metric in flat(table["all"]):
        parts = [flat(table[name])[metric] for name in ("gan", "vae", "diffusion")]
        assert same(flat(table["macro"])[metric], np.nan if None in parts else np.mean(parts)), (
            metric
        )


def test_auroc_is_mann_whitney_with_half_ties():
    labels, scores, generators = random_set(3, 200, 6)
    u = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    auroc = evaluate(labels, scores, generators, threshold=0.5, draws=0)["all"]["auroc"]
    assert auroc == pytest.approx(u / ((labels == 0).sum() * labels.sum()))


def test_eer_of_known_curves():
    def eer(labels, scores):
        return evaluate(labels, scores, np.where(labels, "gan", "real"), threshold=0.5, draws=0)[
            "all"
        ]["eer"]

    assert eer(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])) == 0
    assert eer(np.array([0, 0, 1, 1]), np.array([0.8, 0.9, 0.1, 0.2])) == 1
    assert eer(np.array([0, 0, 1, 1]), np.full(4, 0.3)) == 0.5
    normal = stats.norm(0, 1).ppf(
        (np.arange(2000) + 0.5) / 2000
    )  # exact quantiles: EER = Phi(-d / 2)
    scores = stats.norm.cdf(np.concatenate([normal, normal + 1.5]))
    assert eer(np.repeat([0, 1], 2000), scores) == pytest.approx(stats.norm.cdf(-0.75), abs=1e-3)


def test_undefined_precision_is_none_and_the_table_is_json():
    labels, scores, generators = random_set(0, 60, 10**9)
    table = evaluate(labels, scores * 0.9, generators, threshold=1.0, draws=50)
    assert table["all"]["precision"] is None and table["all"]["ci95"]["precision"] is None
    assert table["macro"]["precision"] is None and table["all"]["f1"] == 0
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_one_generator_needs_no_macro():
    table = evaluate(
        [0, 1, 0, 1], [0.2, 0.7, 0.3, 0.6], ["real", "gan", "real", "gan"], threshold=0.5, draws=20
    )
    assert list(table) == ["gan", "all"] and table["gan"] == table["all"]


# --- intervals


@pytest.mark.parametrize(
    ("n", "scenes", "levels"), [(120, 25, 10**9), (60, None, 4), (9, 5, 10**9)]
)
def test_intervals_equal_an_explicit_loop_with_the_same_weights(monkeypatch, n, scenes, levels):
    """The set of 9 has draws without reals or without some generator: they are left out."""
    monkeypatch.setattr(metrics, "CELLS", 13 * n)  # several pieces, the last one shorter
    labels, scores, generators = random_set(1, n, levels)
    groups = None if scenes is None else np.random.default_rng(2).integers(scenes, size=n)
    codes = metrics._codes(groups, n)
    table = evaluate(labels, scores, generators, threshold=0.5, groups=groups, draws=60, seed=5)
    weights = np.hstack(list(metrics._counts(codes, 60, 5)))[codes, 1:].T
    drawn = {}
    for name in ("gan", "vae", "diffusion", "all"):
        used = (labels == 0) | (generators == name) | (name == "all")
        each = [slow(labels[used], scores[used], 0.5, weight[used]) for weight in weights]
        drawn[name] = {metric: np.array([x[metric] for x in each]) for metric in each[0]}
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
            expected = np.percentile(values, [2.5, 97.5]) if len(values) >= 30 else None
            if expected is not None and any(np.nanstd(each[k]) < 1e-12 for k in still(metric)):
                assert found[0] < expected[0] or found[1] > expected[1] or set(expected) <= {0, 1}
                continue
            assert (found is None) == (expected is None), (name, metric)
            assert found is None or found == pytest.approx(expected, abs=1e-9), (name, metric)


def test_small_set_of_the_loop_test_has_draws_without_a_class():
    labels, _, _ = random_set(1, 9, 10**9)
    codes = metrics._codes(np.random.default_rng(2).integers(5, size=9), 9)
    weights = np.hstack(list(metrics._counts(codes, 60, 5)))[codes]
    missing = (weights[labels == 0].sum(0) == 0) | (weights[labels == 1].sum(0) == 0)
    assert 0 < missing.sum() < 30
    one, none = np.ones((1, 1)), np.zeros((1, 1))
    for real, fake in ((none, one), (one, none)):
        values = metrics._weighted(np.array([0.1]), np.array([0.9]), real, fake, 0.5)
        assert all(np.isnan(value).all() for value in values.values())


def test_group_counts_are_multinomial():
    counts = np.hstack(list(metrics._counts(np.repeat(np.arange(20), 3), 4000, 0)))
    assert (counts[:, 0] == 1).all() and counts.shape == (20, 4001)
    assert (counts.sum(axis=0) == 20).all()
    assert counts[:, 1:].mean(axis=1) == pytest.approx(np.ones(20), abs=0.08)  # 5 standard errors
    assert np.cov(counts[:, 1:])[0, 1] == pytest.approx(-1 / 20, abs=0.08)
    assert counts[:, 1:].var() == pytest.approx(1 - 1 / 20, abs=0.03)


def test_auroc_interval_covers_the_known_value():
    """Two normals d apart: AUROC = Phi(d / sqrt 2). Nominal 95 % of 200 sets, and 5 % of slack."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 80)
    truth, inside = stats.norm.cdf(1.2 / np.sqrt(2)), 0
    for _ in range(200):
        scores = stats.norm.cdf(rng.normal(size=160) + 1.2 * labels)
        low, high = evaluate(
            labels, scores, np.where(labels, "gan", "real"), threshold=0.5, draws=200
        )["all"]["ci95"]["auroc"]
        inside += low <= truth <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_the_interval_of_the_calibration_error_covers_what_the_value_overstates():
    """Overconfident scores, T = 1.5: the truth of a million images; chance adds half on 300."""
    rng = np.random.default_rng(3)
    draw = lambda n: (
        p := rng.beta(0.7, 0.7, n),
        rng.random(n) < special.expit(special.logit(p) / 1.5),
    )
    p, y = draw(1_000_000)
    truth, inside, values = binned_gaps(y, p, np.ones(len(p))), 0, []
    for _ in range(60):
        p, y = draw(300)
        found = evaluate(y, p, np.where(y, "gan", "real"), threshold=0.5, draws=200)["all"]
        low, high = found["ci95"]["ece"]
        inside += low <= truth <= high
        values.append(found["ece"])
    assert np.mean(values) > 1.3 * truth
    assert 0.85 <= inside / 60 <= 0.99


def test_only_the_clustered_interval_covers_when_scenes_agree():
    rng, covered, widths = np.random.default_rng(1), np.zeros(2), np.zeros(2)
    truth = stats.norm.cdf(0.5 / np.sqrt(1 + 0.3**2))  # recall of `detector` at 0.5
    for _ in range(120):
        labels, scores, groups = detector(rng, scenes=40, images=5)
        for i, by in enumerate((groups, None)):
            table = evaluate(
                labels, scores, np.where(labels, "gan", "real"), threshold=0.5, groups=by, draws=200
            )
            low, high = table["all"]["ci95"]["recall"]
            covered[i] += (low <= truth <= high) / 120
            widths[i] += (high - low) / 120
    assert 0.88 <= covered[0] <= 0.99
    assert covered[1] < 0.75
    assert widths[0] > 1.6 * widths[1]


def test_all_generators_share_the_draws():
    labels, scores, groups = detector(np.random.default_rng(2), scenes=30, images=1)
    fake = labels == 1
    labels, scores = (
        np.append(labels, labels[fake]),
        np.append(scores, scores[fake]),
    )  # "vae" is a copy of "gan"
    generators = np.append(np.where(fake, "gan", "real"), np.full(fake.sum(), "vae"))
    table = evaluate(
        labels, scores, generators, threshold=0.5, groups=np.append(groups, groups[fake]), draws=200
    )
    assert table["gan"] == table["vae"]
    assert table["macro"]["ci95"] == table["gan"]["ci95"]


def test_seed_decides_and_group_names_do_not_matter():
    labels, scores, groups = detector(np.random.default_rng(3), scenes=20, images=2)
    names = np.where(labels, "gan", "real")
    first, again, other = (
        evaluate(labels, scores, names, threshold=0.5, groups=groups, seed=s) for s in (0, 0, 1)
    )
    assert first == again and first["all"]["ci95"] != other["all"]["ci95"]
    assert first == evaluate(
        labels, scores, names, threshold=0.5, groups=[f"scene {g}" for g in groups]
    )


def test_no_interval_from_a_single_scene():
    labels, scores, generators = random_set(4, 60, 10**9, names=("gan", "vae"))
    groups = np.where(generators == "gan", -1, np.arange(60))
    table = evaluate(labels, scores, generators, threshold=0.5, groups=groups, draws=200)
    assert (
        set(flat(table["gan"]["ci95"]).values())
        == {None}
        == set(flat(table["macro"]["ci95"]).values())
    )
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
    assert best_threshold([0, 1, 0, 1], [0.1, 0.3, 0.6, 0.7]) == pytest.approx(
        0.65
    )  # 0.2 and 0.65 are as good
    assert best_threshold([1, 0], [0.2, 0.4]) == pytest.approx(
        0.7
    )  # useless: all real, as 0.7 is no farther than 0.1
    below, above = 0.5, np.nextafter(0.5, 1)
    assert best_threshold([0, 1], [below, above]) == above  # no float lies between


def test_differences_of_resampled_values_are_paired_as_in_an_explicit_loop():
    rng = np.random.default_rng(6)
    labels, a, groups = detector(rng, scenes=25, images=2)
    b = np.clip(a + 0.1 * rng.normal(size=len(a)), 0, 1)
    options = {"groups": groups, "draws": 60, "seed": 3}
    ours = [
        metrics.resample(labels, x, threshold=t, **options)["all"] for x, t in ((a, 0.5), (b, 0.4))
    ]
    weights = np.hstack(list(metrics._counts(groups, 60, 3)))[groups, 1:].T
    drawn = [(slow(labels, a, 0.5, w), slow(labels, b, 0.4, w)) for w in weights]
    for metric in ("auroc", "accuracy", "balanced_accuracy"):
        found = metrics.combine([ours[1][metric] - ours[0][metric]])
        expected = np.percentile([y[metric] - x[metric] for x, y in drawn], [2.5, 97.5])
        assert found["ci95"] == pytest.approx(expected, abs=1e-9)
        points = [slow(labels, x, t)[metric] for x, t in ((a, 0.5), (b, 0.4))]
        assert found["mean"] == pytest.approx(points[1] - points[0])


def test_pairing_narrows_the_interval_and_equals_are_as_wide_as_they_are_told():
    rng = np.random.default_rng(7)
    labels, a, groups = detector(rng, scenes=60, images=2)
    b = np.clip(a + 0.02 * rng.normal(size=len(a)), 0, 1)
    first, again, second = (
        metrics.resample(labels, x, threshold=0.5, groups=groups)["all"]["auroc"] for x in (a, a, b)
    )
    alone, together = (metrics.combine([x])["ci95"] for x in (first, second - first))
    assert width(together) < width(alone) / 3
    assert metrics.combine([again - first])["ci95"] is None  # no width: no proof
    assert metrics.combine([again - first], wider=0.1)["ci95"] == [-0.1, 0.1]


@quick
@given(st.integers(0, 10**6), st.floats(0.01, 0.05))
def test_non_inferiority_is_the_one_sided_test_at_half_the_level(seed, margin):
    """Of a difference in accuracy: statsmodels' z test against minus the margin."""
    rng = np.random.default_rng(seed)
    change = rng.choice([-1, 0, 1], size=500, p=[0.04, 0.92, 0.04])
    described = DescrStatsW(change)
    p = described.ztest_mean(-margin, alternative="larger")[1]
    assert non_inferior(described.zconfint_mean(0.05), margin) == (p < 0.025)


def test_non_inferior():
    assert non_inferior([-0.019, 0.01], 0.02) and non_inferior((0.01, 0.02), 0.02)
    assert not non_inferior([-0.02, 0.01], 0.02)  # on the margin is not above it
    assert not non_inferior([-0.05, 0.05], 0.02) and not non_inferior(None, 0.02)


# --- draws that are all alike


@quick
@given(st.integers(2, 400), st.integers(2, 400))
def test_what_no_draw_moves_is_as_wide_as_the_exact_interval(reals, fakes):
    """Each image its own scene, each right: Clopper and Pearson's interval of each proportion."""
    labels = np.repeat([0, 1], [reals, fakes])
    names, perfect = np.where(labels, "gan", "real"), np.where(labels, 0.9, 0.1)
    found = evaluate(labels, perfect, names, threshold=0.5, draws=20)["all"]["ci95"]
    exact = lambda n: proportion_confint(n, n, method="beta")[0]
    counts = {"recall": fakes, "precision": fakes, "tnr": reals, "accuracy": reals + fakes}
    counts |= dict.fromkeys(("auroc", "ap", "balanced_accuracy", "f1"), min(reals, fakes))
    for metric, n in counts.items():
        assert found[metric] == pytest.approx([exact(n), 1]), metric
    assert flat(found)["0.05"][0] == found["auroc"][0] and found["eer"][0] == 0
    wrong = evaluate(labels, 1 - perfect, names, threshold=0.5, draws=20)["all"]["ci95"]
    assert wrong["recall"] == pytest.approx([0, 1 - exact(fakes)])
    same = [metrics.resample(labels, perfect, threshold=0.5, draws=20)["all"]] * 2
    lost = {k: same[1][k] - same[0][k] for k in same[0]}
    wider = metrics.beyond(lost, metrics.least(labels, perfect, threshold=0.5))
    interval = metrics.combine([lost["accuracy"]], wider["accuracy"])["ci95"]
    assert interval == pytest.approx([exact(reals + fakes) - 1, 1 - exact(reals + fakes)])
    assert non_inferior(interval, 0.02) == (exact(reals + fakes) > 0.98)


def test_scenes_count_not_images_and_several_seeds_prove_no_more():
    labels, groups = np.repeat([0, 1], 40), np.arange(80) // 4
    perfect = labels * 0.8 + 0.1
    bound = metrics.least(labels, perfect, threshold=0.5, groups=groups)
    assert bound["recall"] == pytest.approx(1 - 0.025**0.1)
    drawn = metrics.resample(labels, perfect, threshold=0.5, groups=groups, draws=30)["all"]
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
            tables.append(metrics.resample(labels, scores, threshold=0.5, draws=200)["all"])
            bounds.append(metrics.least(labels, scores, threshold=0.5))
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


# --- calibration


@quick
@given(
    st.integers(0, 10**6),
    st.integers(4, 100),
    st.sampled_from([1, 15, 30, 10**9]),
    st.integers(1, 20),
)
def test_reliability_equals_scikit_learn(seed, n, levels, bins):
    labels, scores, generators = random_set(seed, n, levels)
    ours = reliability(labels, scores, bins)
    observed, score = calibration_curve(labels, scores, n_bins=bins)
    filled = ours["count"] > 0
    assert ours["observed"][filled] == pytest.approx(observed) and ours["score"][
        filled
    ] == pytest.approx(score)
    assert (
        np.isnan(ours["observed"][~filled]).all()
        and ours["count"].sum() == n
        and len(ours["edges"]) == bins + 1
    )
    fifteen = reliability(labels, scores)
    ece = sum(
        c / n * abs(o - s)
        for c, o, s in zip(fifteen["count"], fifteen["observed"], fifteen["score"], strict=True)
        if c
    )
    assert evaluate(labels, scores, generators, threshold=0.5, draws=0)["all"][
        "ece"
    ] == pytest.approx(ece)


def test_ece_of_known_cases():
    def ece(labels, scores):
        return evaluate(labels, scores, np.where(labels, "gan", "real"), threshold=0.5, draws=0)[
            "all"
        ]["ece"]

    labels = np.array([0, 1, 1, 1])
    assert ece(labels, np.full(4, 0.75)) == pytest.approx(0)
    assert ece(labels, np.full(4, 0.25)) == pytest.approx(0.5)
    assert ece(labels, labels.astype(float)) == 0


@quick
@given(st.integers(0, 10**6), st.floats(0.3, 5))
def test_temperature_equals_logistic_regression_without_intercept(seed, temperature):
    rng = np.random.default_rng(seed)
    z = 4 * rng.normal(size=300)
    labels = (rng.random(300) < 1 / (1 + np.exp(-z / temperature))).astype(int)
    assert fit_temperature(labels, z) == pytest.approx(
        1 / Logit(labels, z).fit(disp=0).params[0], rel=1e-4
    )


def test_temperature_recovers_the_true_one_and_says_where_there_is_none(caplog):
    rng = np.random.default_rng(0)
    z = 5 * rng.normal(size=20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-z / 2.5))).astype(int)
    assert fit_temperature(labels, z) == pytest.approx(2.5, rel=0.05) and not caplog.records
    assert fit_temperature([0, 0, 1, 1], [-2, -1, 1, 2]) == 0.01  # separated: the surer the better
    assert fit_temperature([1, 1, 0, 0], [-2, -1, 1, 2]) == 100
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


@quick
@given(st.integers(0, 10**6), st.floats(0.3, 5))
def test_a_temperature_fitted_from_scores_calibrates_them_and_keeps_their_order(seed, temperature):
    rng = np.random.default_rng(seed)
    z = 3 * rng.normal(size=400)
    labels = (rng.random(400) < special.expit(z / temperature)).astype(int)
    scores = special.expit(z)
    assert metrics.logits(scores) == pytest.approx(z, abs=1e-6)
    found = fit_temperature(labels, metrics.logits(scores))
    cooler = metrics.at_temperature(scores, found)
    assert cooler == pytest.approx(special.expit(z / found), abs=1e-9)
    assert sk.log_loss(labels, cooler) <= sk.log_loss(labels, scores) + 1e-12
    assert sk.roc_auc_score(labels, cooler) == pytest.approx(sk.roc_auc_score(labels, scores))
    threshold = best_threshold(labels, scores)
    assert (
        (cooler >= metrics.at_temperature(threshold, found)) == (scores >= threshold)
    ).mean() > 0.997  # rounding


# --- any sets, images and seeds together


@quick
@given(st.integers(0, 10**6), st.integers(8, 60), st.sampled_from([2, 10**9]))
def test_resampled_sets_hold_the_values_of_scikit_learn_and_of_evaluate(seed, n, levels):
    labels, scores, generators = random_set(seed, n, levels)
    sets = {"two": np.isin(generators, ["gan", "vae"]), "vae": generators == "vae"}
    drawn = metrics.resample(labels, scores, sets, threshold=0.4, draws=30, seed=3)
    for name, fakes in sets.items():
        for metric, value in slow(
            labels[fakes | (labels == 0)], scores[fakes | (labels == 0)], 0.4
        ).items():
            found = drawn[name][metric][0]
            assert same(None if np.isnan(found) else found, value), (name, metric)
    interval = evaluate(labels, scores, generators, threshold=0.4, draws=30, seed=3)["vae"]["ci95"][
        "auroc"
    ]
    bound = metrics.least(labels, scores, sets["vae"], threshold=0.4)
    wider = metrics.beyond(drawn["vae"], bound)["auroc"]
    found = metrics.combine([drawn["vae"]["auroc"]], wider)["ci95"]
    assert (found and np.clip(found, 0, 1).tolist()) == interval


def test_a_set_without_fakes_has_no_values():
    found = metrics.resample(
        [0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], {"none": [False] * 4}, threshold=0.5, draws=9
    )["none"]
    assert np.isnan(found["auroc"]).all()
    assert metrics.combine([found["auroc"]]) == {
        "mean": None,
        "std_seeds": None,
        "std_images": None,
        "ci95": None,
        "seeds": 1,
    }


@quick
@given(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=6, unique=True))
def test_seeds_alone_are_students_and_images_alone_are_normal(values):
    alone = metrics.combine(
        [np.full(50, v) for v in values]
    )  # every draw alike: images do not matter
    assert alone["std_images"] == pytest.approx(0, abs=1e-12)
    assert alone["ci95"] == pytest.approx(DescrStatsW(values).tconfint_mean(0.05), abs=1e-6)
    assert alone["std_seeds"] == pytest.approx(np.std(values, ddof=1)) and alone["seeds"] == len(
        values
    )
    undrawn = metrics.combine([[v] for v in values])  # as in a resample with draws=0
    assert undrawn["ci95"] == pytest.approx(DescrStatsW(values).tconfint_mean(0.05))
    assert undrawn["std_images"] is None and metrics.combine([values[:1]])["ci95"] is None
    drawn = np.append(values[0], values[0] + 0.1 * np.random.default_rng(0).normal(size=400))
    images = metrics.combine([drawn] * len(values))  # every seed alike
    spread = drawn[1:].std(ddof=1)
    assert images["ci95"] == pytest.approx(stats.norm.interval(0.95, values[0], spread))


def test_the_combined_interval_covers_what_new_seeds_and_new_images_would_give():
    """Scores = label + image + seed x label + noise: each part alone covers far too seldom."""
    rng, truth, inside = np.random.default_rng(5), stats.norm.cdf(0.5), np.zeros(3)
    labels = np.repeat([0, 1], 60)
    for _ in range(150):
        image = rng.normal(size=120) * 0.8
        values = []
        for shift in rng.normal(0, 0.25, 3):  # of the fakes
            scores = stats.norm.cdf(
                labels - 0.5 + labels * shift + image + 0.6 * rng.normal(size=120)
            )
            values.append(
                metrics.resample(labels, scores, threshold=0.5, draws=150)["all"]["recall"]
            )
        points = [v[0] for v in values]
        target = stats.norm.cdf(0.5 / np.sqrt(1 + 0.25**2))  # of the mean over all seeds
        images = metrics._interval(np.mean(values, axis=0))
        flat = np.mean(points) + np.array([-1.96, 1.96]) * np.std(points, ddof=1) / 3**0.5
        for i, (low, high) in enumerate((metrics.combine(values)["ci95"], images, flat)):
            inside[i] += (low <= target <= high) / 150
    assert truth > target
    assert 0.91 <= inside[0] <= 1
    assert inside[1] < 0.88 and inside[2] < 0.88


def test_a_difference_over_seeds_is_non_inferior_only_with_seeds_enough_alike():
    same_seeds = [np.append(-0.005, np.random.default_rng(0).normal(-0.005, 0.004, 500))] * 3
    assert non_inferior(metrics.combine(same_seeds)["ci95"], 0.02)
    apart = [each + shift for each, shift in zip(same_seeds, (-0.03, 0, 0.03), strict=True)]
    assert metrics.combine(apart)["mean"] == pytest.approx(-0.005)
    assert not non_inferior(metrics.combine(apart)["ci95"], 0.02)


# --- bad input, documentation, weight of the import

Y, P, G = [0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], ["real", "gan", "real", "gan"]
GOOD = {"labels": Y, "scores": P, "generators": G, "threshold": 0.5}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"scores": P[:3]}, r"scores has shape \(3,\): expected \(4,\)"),
        ({"generators": G[:2]}, r"generators has shape \(2,\): expected \(4,\)"),
        ({"groups": [1]}, r"groups has shape \(1,\): expected \(4,\)"),
        ({"scores": [P] * 4}, r"scores has shape \(4, 4\): expected \(4,\)"),
        ({"scores": [0.1, np.nan, 0.2, 0.8]}, r"scores\[1\] = nan: expected a probability"),
        ({"scores": [0.1, 0.9, 1.5, 0.8]}, r"scores\[2\] = 1.5: expected .* in \[0, 1\]"),
        ({"scores": [0.1, 0.9, 0.2, -1e-9]}, r"scores\[3\] = -1e-09"),
        ({"labels": [0, 1, 2, 1]}, r"labels\[2\] = 2.0: expected 0 \(real\) or 1 \(fake\)"),
        ({"labels": [1] * 4, "generators": ["gan"] * 4}, r"labels holds only \[1.0\]: expected"),
        ({"labels": [], "scores": [], "generators": []}, r"labels holds only \[\]"),
        ({"generators": ["gan", *G[1:]]}, r"generators\[0\] = gan: expected \"real\" for label 0"),
        ({"generators": ["real"] * 4}, r"generators\[1\] = real: .*2 of 4"),
        ({"generators": ["real", "all", "real", "gan"]}, r"generators\[1\] = all"),
        ({"generators": ["real", None, "real", "gan"]}, r"generators\[1\] = None"),
        ({"groups": ["a", "b", np.nan, "c"]}, r"groups\[2\] = nan: expected .* scene"),
        ({"threshold": np.nan}, r"threshold = nan: expected a number in \[0, 1\]"),
        ({"threshold": 1.5}, "threshold = 1.5"),
        ({"draws": -1}, r"draws = -1: expected a whole number, 0 or more"),
    ],
)
def test_bad_input_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**(GOOD | bad))


@pytest.mark.parametrize(
    ("function", "bad", "message"),
    [
        (best_threshold, ([0, 0], [0.1, 0.2]), "expected both real"),
        (non_inferior, ([-0.1, 0.1], 0), r"margin = 0: expected a positive number"),
        (non_inferior, ([0.1, -0.1], 0.02), r"difference_ci = \[0.1, -0.1\]: expected \[low, high"),
        (reliability, (Y, P, 0), r"bins = 0: expected a whole number, 1 or more"),
        (reliability, ([], []), r"labels holds only \[\]"),
        (metrics.at_temperature, (P, 0), r"temperature = 0: expected a positive number"),
        (fit_temperature, (Y, [1, 2, np.inf, 3]), r"logit_difference\[2\] = inf: expected a fin"),
        (metrics.combine, ([],), "expected one array"),
        (metrics.combine, ([[0.1, 0.2], [0.1]],), r"one array \(1 \+ draws,\) per seed"),
    ],
)
def test_bad_input_of_others_is_named(function, bad, message):
    with pytest.raises(ValueError, match=message):
        function(*bad)


def test_a_set_may_hold_fakes_alone():
    with pytest.raises(ValueError, match=r"sets\['a'\]\[0\] = True: expected a fake"):
        metrics.resample(Y, P, {"a": [True] * 4}, threshold=0.5)


def test_examples_in_the_docstrings_are_true():
    done = doctest.testmod(metrics)
    assert done.attempted >= 7 and not done.failed


def test_import_is_light():
    heavy = "torch", "matplotlib", "scipy", "sklearn"
    code = f"import sys, dflib.metrics; print(*set({heavy}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")
