"""Runs side by side, on written predictions: baselines, budgets, paired changes, verdicts."""

import json
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import result, store
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from dflib import metrics
from dflib.study import compare, methods, records, tables

LABELS = np.repeat([0, 1], [40, 80])
GENERATORS = np.repeat(["real", "gan", "vae"], 40)
BASE = result(draws=0)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a finished run whose scores part the classes by `skill`; returns its id."""
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path))

    def make(method, skill=1.0, seed=0, rate=None, first=0, noise=None, older=None, **given):
        about, given_source = ("parents", "data_fingerprint"), given.pop("source", "dogs")
        record = BASE | {k: given.pop(k) for k in about if k in given}
        record |= {"method": method, "rate": rate, "seed": seed}
        record["run_id"] = f"{method}-{seed}-{len(list(tmp_path.glob('*/*/*/*')))}"
        record["source"] = given_source if method.startswith("TL") else None
        record["params"] = methods.relevant(method, methods.settings("tiny", given))
        record["params"] |= older or {}
        record["train_generators"] = sorted((given.get("train_generators") or "gan,vae").split(","))
        record["code"] = methods.versions(method)
        rng = np.random.default_rng(100 * seed + len(method) if noise is None else noise)
        score = 1 / (1 + np.exp(-(skill * (2 * LABELS - 1) + rng.normal(0, 1, 120))))
        table = {"path": [f"{i + first}.png" for i in range(120)], "generator": GENERATORS}
        table |= {"label": LABELS, "score": score, "group": np.arange(120) // 2}
        store(tmp_path, record, table)
        return record["run_id"]

    return make


def loaded() -> dict[str, dict]:
    return compare.load("faces", source="dogs")


def scores(result: dict) -> pd.DataFrame:
    return pd.read_parquet(result["folder"] / "predictions.parquet")


def auroc(result: dict, *generators: str) -> float:
    table = scores(result)
    table = table[table["generator"].isin(("real", *generators))]
    return roc_auc_score(table["label"], table["score"])


def test_load_knows_dataset_source_and_protocol_and_names_what_is_damaged(write, tmp_path, caplog):
    kept = {write("BL"), write("TL+FT")}
    (tmp_path / "faces" / "strict" / "BL" / write("BL") / "result.json").write_text("{")
    assert set(loaded()) == set(compare.load()) == kept
    assert "left out" in caplog.text
    assert {r["method"] for r in compare.load("faces").values()} == {"BL"}
    assert compare.load("faces", protocol="paper") == compare.load("other") == {}


def test_matching_takes_the_newest_of_equals_and_lets_named_settings_differ(write):
    write("BL"), write("BL", epochs=9), write("BL", target_images=25)
    write("BL", older={"crops": 5})
    newest, wanted = write("BL", draws=40), methods.settings("tiny")
    matching = lambda *but: tables.matching(loaded().values(), wanted, but=but)
    assert [r["run_id"] for r in matching()] == [newest]
    assert {r["params"]["target_images"] for r in matching("target_images")} == {None, 25}
    recipes = {compare.recipe(r["params"]) for r in matching(*compare.RECIPE)}
    assert recipes == {"plain", "crops 5"}
    older = {"pairs": True, "attention": 0.0, "front": "srm", "ema": 0.99}
    assert compare.recipe(older) == "ema 0.99, front srm, pairs True"


# --- baselines and budgets


CHANGES = {"hold_out": "gan", "train_generators": "vae", "mode": "center_crop", "ema": 0.9}
CHANGES |= {"front": "srm", "lr": 0.5, "size": 64, "target_images": 25, "seed": 4}
CHANGES |= {"data_fingerprint": "of before"}
OTHER = st.sampled_from([{key: value} for key, value in CHANGES.items()])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(OTHER, st.sampled_from(["TL+FT", "TL+KD", "TL+FT+Q", "TL+P+A"]))
def test_no_transfer_is_held_against_a_bl_that_differs_in_anything(write, tmp_path, other, method):
    """Settings at their default count as well: on either side any of them may be absent."""
    shutil.rmtree(tmp_path / "faces", ignore_errors=True)
    rated = {"rate": 0.9} if methods.method(method).rated else {}
    plain, changed = write("BL"), write("BL", **other)
    runs = {write(method, parents=["gone"], **rated): plain}
    inherited = write("TL+FT", **other)  # what a method does not read, its parent has
    runs[write(method, parents=[inherited], **rated, **other)] = changed
    runs[write(method, parents=["gone"], source="cats", **rated)] = plain  # sources share BL
    every = compare.load()
    for run, own in runs.items():
        assert compare.baseline(every[run], every)["run_id"] == own
        lonely = {i: r for i, r in every.items() if i != own}
        assert compare.baseline(every[run], lonely) is None
    by_hand = [len(group) for group in tables.by_seed(every[i] for i in runs)]
    assert by_hand == [1, 1, 1] or (by_hand == [2, 1] and "seed" in other)


def test_a_compressed_run_is_held_against_its_own_bl_not_a_longer_one(write):
    own = write("BL", epochs=3)
    longer, cut = write("BL", epochs=8), write("CPF", rate=0.9, parents=[own])
    moved = write("TL+FT", parents=["BL-on-the-source"])
    every = loaded()
    assert compare.baseline(every[cut], every)["run_id"] == own
    assert compare.baseline(every[moved], every)["run_id"] == longer
    assert compare.baseline(every[own], every) is None
    other = write("CPF", rate=0.9, parents=[longer])  # of one seed, but not of one BL
    assert records.but_seed(records.by_age()[other]) != records.but_seed(every[cut])
    del every[own]
    assert compare.baseline(every[cut], every)["run_id"] == longer


# --- changes


@pytest.fixture
def three_seeds(write):
    """three_seeds(method, skill): runs of three seeds; images hard for one are hard for all."""

    def make(method, skill, seeds=(0, 1, 2), **options) -> list[dict]:
        ids = [write(method, skill, seed, noise=seed, **options) for seed in seeds]
        return [loaded()[i] for i in ids]

    return make


def test_runs_of_several_seeds_become_one_result(three_seeds):
    good, bad = three_seeds("BL", 1.5), three_seeds("CPF", 0.5)
    found = compare.combined(good)["all"]["accuracy"]
    tables = [scores(r) for r in good]
    right = [((t["score"] >= 0.5) == t["label"]).mean() for t in tables]
    assert found["mean"] == pytest.approx(np.mean(right))
    assert found["seeds"] == 3 and found["ci95"][0] < found["mean"] < found["ci95"][1]
    late = compare.combined(good)["vae"]["recall"]["mean"]
    called = [(t["score"] >= 0.5)[t["generator"] == "vae"].mean() for t in tables]
    assert late == pytest.approx(np.mean(called))
    lost = compare.paired(bad, good)["all"]["auroc"]
    means = [compare.combined(group)["all"]["auroc"]["mean"] for group in (bad, good)]
    assert lost["ci95"][1] < 0 and lost["mean"] == pytest.approx(means[0] - means[1])
    same = compare.paired(good, good)["all"]["accuracy"]  # 60 scenes of which none differs
    bound = 1 - 0.025 ** (1 / 60)
    assert same["mean"] == 0 and same["ci95"] == pytest.approx([-bound, bound])


def test_two_runs_are_compared_whatever_their_seeds_and_draws(three_seeds):
    (one,), (other,) = three_seeds("BL", 1.5, (0,)), three_seeds("BL", 0.5, (7,), draws=30)
    change = compare.paired(one, other)["gan"]["auroc"]
    assert change["mean"] == pytest.approx(auroc(one, "gan") - auroc(other, "gan"))
    drawn = [compare.resampled(r["folder"], draws=30)[0]["all"]["f1"] for r in (one, other)]
    expected = metrics.combine([drawn[0] - drawn[1]])
    assert compare.paired(one, other)["all"]["f1"] == expected


def with_scores(tmp_path, code, seed, label, score, generator, testset="", **about):
    """A finished run of these scores, each image a scene, threshold 0.5."""
    record = BASE | {"method": code, "seed": seed, "run_id": f"{code}-{seed}"} | about
    kinds = dict.fromkeys(generator[label == 1], BASE["metrics"]["gan"])
    record["metrics"] = {"all": BASE["metrics"]["all"]} | kinds
    table = {"path": [f"{i}.png" for i in range(len(label))], "generator": generator}
    table |= {"label": label, "score": score, "group": range(len(label)), "testset": testset}
    return records.read(store(tmp_path, record, table))


@settings(max_examples=20, deadline=None)
@given(st.integers(10, 60), st.integers(1, 3), st.data())
def test_a_handful_of_decisions_decides_nothing(n, seeds, data):
    """Were they all for the better, say: the draws hardly ever miss them, and vary little."""
    flips = data.draw(st.tuples(*[st.integers(0, compare.FLIPS - 1)] * 2), label="real, fake")
    better = data.draw(st.tuples(st.booleans(), st.booleans()), label="for the better")
    label, generator = np.repeat([0, 1], n), np.repeat(["real", "gan"], n).astype(object)
    right = np.tile(np.arange(n) >= 5, 2)  # of each class five are wrong
    other = right.copy()
    for kind in (0, 1):
        other[np.flatnonzero((label == kind) & (right != better[kind]))[: flips[kind]]] ^= True
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for code, hit in (("BL", right), ("CQ", other)):
            score = np.where(hit == (label == 1), 0.9, 0.1)
            scored = label, score, generator
            runs[code] = [with_scores(Path(folder), code, s, *scored) for s in range(seeds)]
        found = compare.paired(runs["CQ"], runs["BL"])["all"]
    (low, high), bound = found["balanced_accuracy"]["ci95"], 1 - 0.025 ** (1 / n)
    assert low < 0 < high and high - low >= 2 * bound
    assert compare.verdict(found | {"auroc": change(-0.001, 0.001, seeds)}).word == "undecided"


def test_generators_of_several_test_sets_are_not_scored_against_each_others_reals(tmp_path):
    """A detector without an error in any of them, on scales of its own, has AUROC 1 there."""
    names, base = ["gan", "vae", "ldm", "vqm"], [0.0, 0.3, 0.5, 0.8]
    testset, label = np.repeat(names, 30), np.tile(np.repeat([0, 1], 15), 4)
    generator = np.where(label, testset, "real").astype(object)
    score = np.repeat(base, 30) + 0.1 * label
    r = with_scores(tmp_path, "BL", 0, label, score, generator, testset, train_generators=["gan"])
    found = compare.combined([r])
    assert {found[name]["auroc"]["mean"] for name in (*names, "seen", "unseen")} == {1.0}
    assert found["gap"]["auroc"]["mean"] == 0
    assert compare.contrast([r])["unseen"]["auroc"]["mean"] == 1
    assert tables.over_seeds([r], {})["unseen/auroc"].tolist() == [1.0]
    at = score >= 0.5  # ldm's reals lie on the threshold
    rate = lambda name: np.mean(
        [(at == label)[(testset == name) & (label == k)].mean() for k in (0, 1)]
    )
    mean = np.mean([rate(name) for name in names[1:]])
    assert found["unseen"]["balanced_accuracy"]["mean"] == pytest.approx(mean)
    mixed = tmp_path / "pooled"
    pooled = with_scores(mixed, "BL", 0, label, score, generator, train_generators=["gan"])
    assert compare.combined([pooled])["unseen"]["auroc"]["mean"] < 0.8  # reals of all: as before


def change(low, high, seeds=1):
    ci95 = None if low is None else [low, high]
    return {"mean": 0.0 if low is None else (low + high) / 2, "ci95": ci95, "seeds": seeds}


ENDS = st.floats(-1, 1).map(lambda x: round(x, 3))
SPANS = st.one_of(st.none(), st.lists(ENDS, min_size=2, max_size=2, unique=True).map(sorted))


@given(SPANS, SPANS, SPANS, st.integers(1, 5), st.floats(0.005, 0.1))
def test_a_verdict_says_what_the_two_intervals_carry_and_no_more(a, b, other, seeds, margin):
    """Accuracy decides nothing: it falls where a detector calls fewer images fake, and no more."""
    both = {"auroc": a, "balanced_accuracy": b}
    made = {k: change(*(span or (None, None)), seeds) for k, span in both.items()}
    made |= {k: change(*(other or (None, None)), seeds) for k in ("accuracy", "f1", "recall")}
    word, says, text = compare.verdict(made, "CKD", margin=margin)
    sides = {None: "unknown", (True, False): "gain", (False, True): "loss"}
    for key, span in both.items():
        side = span and (span[0] > 0, span[1] < 0)
        assert compare.shown(made[key]) == sides.get(side, "none shown")
    gain, loss = any(s and s[0] > 0 for s in (a, b)), any(s and s[1] < 0 for s in (a, b))
    bounded = seeds > 1 and all(s and s[0] > -margin for s in (a, b))
    assert (word == "mixed") == (gain and loss) and (word == "better") == (gain and not loss)
    assert (word == "kept") == (bounded and not gain)  # with one seed no bound is claimed
    assert (word == "worse") == (loss and not gain and not bounded)
    assert word in ("mixed", "better", "kept", "worse", "undecided")
    whom = "these weights" if seeds == 1 else f"the method ({seeds} seeds)"
    assert says == f"{word}, {whom}" and text.endswith(f" against CKD: {says}")
    assert text.count("no interval") == (a, b).count(None) and "-" not in text


@pytest.mark.parametrize("ends", [(0.0004, 0.002), (-0.015, -0.0001)])
def test_an_end_that_reads_zero_decides_nothing(ends):
    """It is written +0.000 or -0.000, and another seed of the draws may move it over zero."""
    made = change(*ends)
    assert compare.shown(made) == "none shown" and "0.000" in compare.spoken(made)
    assert compare.verdict({"auroc": made, "balanced_accuracy": made}).word == "undecided"


def test_the_best_is_a_methods_mean_over_its_seeds_on_validation_images_alone(write):
    """Report, terminal and `--run best` take what notebook 14 calls best, the luckiest no more."""
    right = {"BL": (0.6, 0.6), "CPF": (0.9, 0.7), "CKD": (0.85, 0.83)}  # of 100, in two seeds
    for code in right:
        for seed in (0, 1):
            write(code, rate=0.9 if methods.method(code).rated else None, seed=seed)
    every = loaded()
    assert math.isnan(compare.validated(every.values()))
    for r in every.values():
        known = np.where(np.arange(100) < 100 * right[r["method"]][r["seed"]], 0.9, 0.1)
        known = pd.DataFrame({"label": [0] + [1] * 100, "score": [0.5, *known]})
        known.to_parquet(r["folder"] / "validation.parquet")
    records.validated.cache_clear()
    table = tables.over_seeds(every.values(), every)
    means = table.set_index("method")["val_auroc"]
    assert means.to_dict() == pytest.approx({code: np.mean(right[code]) for code in right})
    assert table.loc[table["val_auroc"].idxmax(), "method"] == "CKD"
    best = records.best(every.values())
    assert (best["method"], best["seed"]) == ("CKD", 0)  # and of its seeds the best
    assert records.find("best") == best["folder"]


def test_runs_on_other_images_are_not_compared(write):
    write("BL"), write("CPF", rate=0.9, first=1)
    every = loaded()
    with pytest.raises(InputError, match="were tested on different images"):
        tables.over_seeds(every.values(), every)
    with pytest.raises(InputError, match="were tested on different images"):
        compare.paired(*every.values())


# --- tables


def test_means_over_seeds_and_differences_from_bl(write):
    for seed in range(3):
        write("BL", 0.5, seed), write("CPF", 2.0, seed, rate=0.9)
    every = loaded()
    table = tables.over_seeds(every.values(), every).set_index("method")
    assert table["seeds"].tolist() == [3, 3] and table["shipped_bytes"].tolist() == [5, 5]
    for method in ("BL", "CPF"):
        row = table.loc[method]
        mine = [auroc(r, "gan") for r in every.values() if r["method"] == method]
        assert row["gan/auroc"] == pytest.approx(np.mean(mine))
        assert row["gan/auroc_low"] < np.mean(mine) < row["gan/auroc_high"]
    change = table["all/auroc"].diff().iloc[-1]
    assert table.loc["CPF", "all/auroc-BL"] == pytest.approx(change)
    assert table.loc["CPF", "all/auroc-BL_low"] > 0
    assert math.isnan(table.loc["BL", "all/auroc-BL"])


def test_records_of_older_code_stand_in_the_row_of_the_same_settings(write, tmp_path):
    write("BL", seed=0)
    file = tmp_path / "faces" / "strict" / "BL" / write("BL", seed=1) / "result.json"
    record = json.loads(file.read_text())
    for unset in ("front", "hold_out"):  # recorded only where they were on
        record["params"].pop(unset)
    file.write_text(json.dumps(record | {"params": record["params"] | {"attention": 0.0}}))
    write("BL", older={"pairs": True})
    groups = tables.by_seed(loaded().values())
    assert sorted(len(group) for group in groups) == [1, 2]
    assert {tables.about(group, groups)["settings"] for group in groups} == {"", "pairs True"}


@pytest.fixture
def folds(write):
    """BL and CKD, also with ema, on each of two generators, two seeds; a BL that saw both."""
    for noise, (seed, g) in enumerate([(0, "gan"), (0, "vae"), (1, "gan"), (1, "vae")]):
        fold = {"seed": seed, "train_generators": g}
        write("BL", 1.0, noise=noise, **fold), write("CKD", 0.6, rate=0.9, noise=10 + noise, **fold)
        write("CKD", 0.7, rate=0.9, noise=20 + noise, ema=0.9, **fold)
    write("BL")
    return list(loaded().values())


def gap(result: dict) -> list[float]:
    (known,) = result["train_generators"]
    seen, unseen = auroc(result, known), auroc(result, "vae" if known == "gan" else "gan")
    return [seen, unseen, seen - unseen]


def chosen(results, method: str, how: str = "plain", known=("gan", "vae")) -> list[dict]:
    fits = lambda r: len(r["train_generators"]) == 1 and set(r["train_generators"]) <= set(known)
    alike = [r for r in results if r["method"] == method and fits(r)]
    return [r for r in alike if compare.recipe(r["params"]) == how]


def test_the_gap_is_the_mean_over_folds_and_seeds_of_seen_minus_unseen(folds, write):
    table = tables.gaps(folds)
    kinds = [("BL", "plain"), ("CKD", "plain"), ("CKD", "ema 0.9")]
    rows = table[["method", "recipe", "folds", "seeds"]].to_numpy().tolist()
    assert rows == [[*kind, 2, 2] for kind in kinds]
    for kind, row in zip(kinds, table.to_dict("records"), strict=True):
        expected = np.mean([gap(r) for r in chosen(folds, *kind)], axis=0)
        assert [row[k] for k in ("seen", "unseen", "gap")] == pytest.approx(expected)
        assert row["gap_low"] < row["gap"] < row["gap_high"]
    bl, plain, cut = table["gap"]
    assert table["gap-BL"].tolist() == pytest.approx([np.nan, plain - bl, np.nan], nan_ok=True)
    assert table["gap-plain"].tolist() == pytest.approx([np.nan, np.nan, cut - plain], nan_ok=True)
    write("CKD", 0.6, 2, 0.9, train_generators="gan")  # a third seed: its only fold counts
    every = loaded().values()
    row = tables.gaps(every).query("method == 'CKD' and recipe == 'plain'").iloc[0]
    assert (row["folds"], row["seeds"]) == (1, 3)
    mine = [gap(r)[2] for r in chosen(every, "CKD", known=["gan"])]
    assert row["gap"] == pytest.approx(np.mean(mine))
    assert compare.contrast(r for r in folds if len(r["train_generators"]) == 2) == {}


def test_the_matrix_has_a_cell_for_each_training_and_test_generator(folds):
    cells = tables.matrix(r for r in folds if r["method"] == "BL")
    both = ("gan", "vae")
    seen = {(train, test): (train in (test, "all")) for train in (*both, "all") for test in both}
    expected = {at: (known, 1 if at[0] == "all" else 2) for at, known in seen.items()}
    assert {(c.train, c.test): (c.seen, c.seeds) for c in cells.itertuples()} == expected
    cell = cells[(cells["train"] == "gan") & (cells["test"] == "vae")].iloc[0]
    mine = chosen(folds, "BL", known=["gan"])
    assert cell["auroc"] == pytest.approx(np.mean([auroc(r, "vae") for r in mine]))
    assert 0 <= cell["auroc_low"] < cell["auroc"] < cell["auroc_high"] <= 1
