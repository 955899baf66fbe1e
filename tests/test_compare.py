"""Runs side by side: budgets, the right BL to hold a run against, means over seeds and verdicts, on written predictions."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from dflib.show import report
from dflib.study import compare, methods

LABELS = np.repeat([0, 1], [40, 80])
GENERATORS = np.repeat(["real", "gan", "vae"], 40)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a finished run whose scores part the classes by `skill`."""
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path))

    def make(
        method, skill=1.0, seed=0, rate=None, parents=(), paths=range(120), noise=None, **settings
    ):
        values = methods.settings("tiny", settings)
        run_id = f"{method}-{seed}-{len(list(tmp_path.glob('*/*/*/*')))}"
        folder = tmp_path / "faces" / "strict" / method / run_id
        folder.mkdir(parents=True)
        result = {
            "run_id": run_id,
            "method": method,
            "rate": rate,
            "seed": seed,
            "dataset": "faces",
            "protocol": "strict",
            "source": "dogs" if method.startswith("TL") else None,
            "params": methods.relevant(method, values),
            "parents": list(parents),
            "train_generators": sorted((settings.get("train_generators") or "gan,vae").split(",")),
            "threshold": 0.5,
            "metrics": dict.fromkeys(("all", "macro", "gan", "vae")),
            "cost": {"trainable_params": 10, "shipped_bytes": 5, "file_bytes": 100},
            "timings": {"transfer_s": 2.0},
        }
        (folder / "result.json").write_text(json.dumps(result))
        rng = np.random.default_rng(100 * seed + len(method) if noise is None else noise)
        score = 1 / (1 + np.exp(-(skill * (2 * LABELS - 1) + rng.normal(0, 1, 120))))
        table = {
            "path": [f"{i}.png" for i in paths],
            "generator": GENERATORS,
            "label": LABELS,
            "score": score,
            "group": np.arange(120) // 2,
        }
        pd.DataFrame(table).to_parquet(folder / "predictions.parquet")
        return run_id

    return make


def loaded() -> dict[str, dict]:
    return compare.load("faces", source="dogs")


def test_load_knows_dataset_source_and_protocol_and_names_what_is_damaged(write, tmp_path, caplog):
    kept = {write("BL"), write("TL+FT")}
    (tmp_path / "faces" / "strict" / "BL" / write("BL") / "result.json").write_text("{")
    assert set(loaded()) == kept
    assert "left out" in caplog.text
    assert {r["method"] for r in compare.load("faces").values()} == {"BL"}
    assert compare.load("faces", protocol="paper") == compare.load("other") == {}


def test_matching_takes_the_newest_of_equals_and_lets_named_settings_differ(write):
    write("BL"), write("BL", epochs=9), write("BL", target_images=25)
    newest, wanted = write("BL"), methods.settings("tiny")
    found = compare.matching(loaded().values(), wanted)
    assert [r["run_id"] for r in found] == [newest]
    few = compare.matching(loaded().values(), wanted, but=("target_images",))
    assert {r["params"]["target_images"] for r in few} == {None, 25}


def test_the_budget_counts_epochs_on_the_target_alone(write):
    ft = write("TL+FT", transfer_epochs=3)
    quantized = write("TL+FT+Q", parents=[ft])
    pruned = write("TL+P+FT", rate=0.9, parents=["CPF-on-the-source"], transfer_epochs=3)
    adapted = write("TL+P+A", rate=0.9, parents=[pruned], transfer_epochs=5)
    student = write("TL+KD", rate=0.9, parents=["BL-on-the-source", ft], epochs=7)
    taught = write(
        "TL+KD", rate=0.9, parents=["BL-on-the-source", ft], epochs=7, teacher="transferred"
    )
    behind = write("TL+KD+A", rate=0.9, parents=[student], transfer_epochs=3)
    lost = write("TL+KD+A", rate=0.9, parents=["gone"], transfer_epochs=3)
    every = loaded()
    epochs = {name: compare.budget(every[name], every) for name in every}
    assert [epochs[i] for i in (ft, quantized, pruned, adapted, student, taught, behind)] == [
        3,
        3,
        3,
        8,
        7,
        10,
        10,
    ]
    assert math.isnan(epochs[lost])


def test_a_run_is_held_against_the_bl_of_its_seed_images_and_budget(write):
    short, long = write("BL", epochs=3), write("BL", epochs=8)
    (
        write("BL", epochs=4, lr=0.5),
        write("BL", epochs=4, seed=1),
        write("BL", epochs=4, target_images=25),
    )
    run = write("TL+FT")
    every = loaded()
    run = every[run]
    bl = lambda **limit: compare.from_nothing(run, every, **limit)["run_id"]
    assert (bl(), bl(epochs=8), bl(epochs=7), bl(epochs=2)) == (long, long, short, short)
    assert compare.from_nothing(run, {}) is None


def test_means_over_seeds_and_differences_from_bl(write):
    for seed in range(3):
        write("BL", 0.5, seed), write("CPF", 2.0, seed, rate=0.9)
    every = loaded()
    table = compare.over_seeds(every.values(), every).set_index("method")
    assert table["seeds"].tolist() == [3, 3]
    for method in ("BL", "CPF"):
        files = [
            r["folder"] / "predictions.parquet" for r in every.values() if r["method"] == method
        ]
        use = LABELS * (GENERATORS != "vae") + (LABELS == 0) > 0
        mine = [roc_auc_score(LABELS[use], pd.read_parquet(f)["score"][use]) for f in files]
        assert table.loc[method, "gan/auroc"] == pytest.approx(np.mean(mine))
        assert (
            table.loc[method, "gan/auroc_low"] < np.mean(mine) < table.loc[method, "gan/auroc_high"]
        )
    change = table["all/auroc"].diff().iloc[-1]
    assert table.loc["CPF", "all/auroc-BL"] == pytest.approx(change)
    assert table.loc["CPF", "all/auroc-BL_low"] > 0
    assert math.isnan(table.loc["BL", "all/auroc-BL"])


def test_a_compressed_run_is_held_against_its_own_bl_not_a_longer_one(write):
    own = write("BL", epochs=3)
    longer, cut = write("BL", epochs=8), write("CPF", rate=0.9, parents=[own])
    moved = write("TL+FT", parents=["BL-on-the-source"])
    every = loaded()
    assert compare.baseline(every[cut], every)["run_id"] == own
    assert compare.baseline(every[moved], every)["run_id"] == longer
    del every[own]
    assert compare.baseline(every[cut], every)["run_id"] == longer


@pytest.fixture
def three_seeds(write):
    """three_seeds(method, skill): finished runs of three seeds; images that are hard for one are hard for all."""

    def make(method, skill, seeds=(0, 1, 2), **options) -> list[dict]:
        ids = [write(method, skill, seed, noise=seed, **options) for seed in seeds]
        return [loaded()[i] for i in ids]

    return make


def test_runs_of_several_seeds_become_one_result(three_seeds):
    good, bad = three_seeds("BL", 1.5), three_seeds("CPF", 0.5)
    found = compare.combined(good)["all"]["accuracy"]
    tables = [pd.read_parquet(r["folder"] / "predictions.parquet") for r in good]
    assert found["mean"] == pytest.approx(
        np.mean([((t["score"] >= 0.5) == t["label"]).mean() for t in tables])
    )
    assert found["seeds"] == 3 and found["ci95"][0] < found["mean"] < found["ci95"][1]
    unseen = compare.combined(good, sets={"unseen": ["vae"]})["unseen"]["recall"]["mean"]
    assert unseen == pytest.approx(
        np.mean([(t["score"] >= 0.5)[t["generator"] == "vae"].mean() for t in tables])
    )
    lost = compare.paired(bad[::-1], good)["all"]["auroc"]  # by seed, whatever the order
    means = [compare.combined(group)["all"]["auroc"]["mean"] for group in (bad, good)]
    assert lost["ci95"][1] < 0 and lost["mean"] == pytest.approx(means[0] - means[1])
    same = compare.paired(good, good)["all"]["auroc"]
    assert (same["mean"], same["ci95"]) == (0, [0, 0])


def test_a_seed_without_its_counterpart_is_named(three_seeds):
    with pytest.raises(InputError, match="no run to compare BL-1-1 with at seed 1, 2"):
        compare.paired(three_seeds("BL", 3.0), three_seeds("CPF", 1.0, seeds=(0,)))


def auroc(result: dict, *generators: str) -> float:
    table = pd.read_parquet(result["folder"] / "predictions.parquet")
    table = table[table["generator"].isin(("real", *generators))]
    return roc_auc_score(table["label"], table["score"])


@pytest.fixture
def folds(write):
    """BL and CKD trained on each of two generators alone, two seeds; CKD also with cutmix; a BL that saw both; one fold of a third seed."""
    for noise, (seed, g) in enumerate([(0, "gan"), (0, "vae"), (1, "gan"), (1, "vae")]):
        fold = {"seed": seed, "train_generators": g}
        write("BL", 1.0, noise=noise, **fold), write("CKD", 0.6, rate=0.9, noise=10 + noise, **fold)
        write("CKD", 0.7, rate=0.9, noise=20 + noise, cutmix=1.0, **fold)
    write("BL")
    return loaded().values()


def test_the_gap_is_the_mean_over_folds_and_seeds_of_seen_minus_unseen(folds, write):
    table = compare.gaps(folds)
    assert table[["method", "recipe", "folds", "seeds"]].to_numpy().tolist() == [
        ["BL", "plain", 2, 2],
        ["CKD", "plain", 2, 2],
        ["CKD", "cutmix 1.0", 2, 2],
    ]
    expected = {}
    for method, how in (("BL", "plain"), ("CKD", "plain"), ("CKD", "cutmix 1.0")):
        mine = [
            r
            for r in folds
            if r["method"] == method
            and compare.recipe(r["params"]) == how
            and len(r["train_generators"]) == 1
        ]
        others = {"gan": "vae", "vae": "gan"}
        pairs = [(auroc(r, g), auroc(r, others[g])) for r in mine for g in r["train_generators"]]
        seen, unseen = np.mean(pairs, axis=0)
        row = table[(table["method"] == method) & (table["recipe"] == how)].iloc[0]
        assert row[["seen", "unseen", "gap"]].tolist() == pytest.approx(
            [seen, unseen, seen - unseen]
        )
        assert row["gap_low"] < row["gap"] < row["gap_high"]
        expected[method, how] = row["gap"]
    bl, plain, cut = expected.values()
    assert table["gap-BL"].tolist() == pytest.approx([np.nan, plain - bl, np.nan], nan_ok=True)
    assert table["gap-plain"].tolist() == pytest.approx([np.nan, np.nan, cut - plain], nan_ok=True)
    write(
        "CKD", 0.6, 2, 0.9, train_generators="gan"
    )  # a third seed with one of the folds: that fold counts
    row = compare.gaps(loaded().values()).query("method == 'CKD' and recipe == 'plain'").iloc[0]
    assert (row["folds"], row["seeds"]) == (1, 3)
    mine = [
        r
        for r in loaded().values()
        if r["method"] == "CKD"
        and compare.recipe(r["params"]) == "plain"
        and r["train_generators"] == ["gan"]
    ]
    assert row["gap"] == pytest.approx(np.mean([auroc(r, "gan") - auroc(r, "vae") for r in mine]))


def test_a_run_contrasted_with_itself_differs_in_nothing_and_one_that_saw_all_has_no_gap(folds):
    alone = [r for r in folds if r["method"] == "BL"]
    same = compare.contrast(alone, alone)
    assert all((value["mean"], value["ci95"]) == (0, [0, 0]) for value in same.values())
    assert compare.contrast([r for r in alone if len(r["train_generators"]) == 2]) == {}
    assert compare.contrast(alone, []) != {} and len(compare.gaps([])) == 0


def test_the_matrix_has_a_cell_for_each_training_and_test_generator(folds):
    cells = compare.matrix(r for r in folds if r["method"] == "BL")
    assert {(c.train, c.test): (c.seen, c.seeds) for c in cells.itertuples()} == {
        ("gan", "gan"): (True, 2),
        ("gan", "vae"): (False, 2),
        ("vae", "gan"): (False, 2),
        ("vae", "vae"): (True, 2),
        ("all", "gan"): (True, 1),
        ("all", "vae"): (True, 1),
    }
    cell = cells[(cells["train"] == "gan") & (cells["test"] == "vae")].iloc[0]
    mine = [r for r in folds if r["method"] == "BL" and r["train_generators"] == ["gan"]]
    assert cell["auroc"] == pytest.approx(np.mean([auroc(r, "vae") for r in mine]))
    assert 0 <= cell["auroc_low"] < cell["auroc"] < cell["auroc_high"] <= 1


def test_each_transfer_gets_a_verdict_against_scratch(write):
    for seed in range(3):
        write("BL", 1.0, seed, epochs=3), write("BL", 3.0, seed, epochs=30)
        (
            write("TL+FT", 3.0, seed, transfer_epochs=3),
            write("TL+FT", 3.0, seed, transfer_epochs=5, lr=0.5),
        )
        (
            write("TL+P+FT", 0.0, seed, rate=0.9, transfer_epochs=5),
            write("TL+P+FT", 0.0, seed, rate=0.6, transfer_epochs=2),
        )
        write("TL+P+FT", 3.0, seed, rate=0.7, transfer_epochs=7)
        write("TL+KD", 1.0, seed, rate=0.9, epochs=3, noise=100 * seed + 2)  # BL's very scores
        write("TL+FT", 3.0, seed, transfer_epochs=5, target_images=25)
    every = loaded()
    table = compare.against_scratch(every.values(), every)
    table["images"] = table["target_images"].fillna(0)
    verdicts = {
        (r.method, r.rate, r.images, r.settings): (r.verdict, r.epochs, r.seeds)
        for r in table.fillna({"rate": 0}).itertuples()
    }
    assert verdicts == {
        ("TL+FT", 0, 25, ""): ("not measured", 5, 0),
        ("TL+FT", 0, 0, "transfer_epochs 3"): ("beats scratch", 3, 3),
        ("TL+FT", 0, 0, "lr 0.5, transfer_epochs 5"): ("not measured", 5, 0),
        ("TL+P+FT", 0.6, 0, ""): ("loses to a longer scratch", 2, 3),
        ("TL+P+FT", 0.7, 0, ""): ("beats a shorter scratch", 7, 3),
        ("TL+P+FT", 0.9, 0, ""): ("loses to scratch", 5, 3),
        ("TL+KD", 0.9, 0, ""): ("undecided", 3, 3),
    }
    assert set(table["scratch_epochs"].dropna()) == {3}


def test_runs_on_other_images_are_not_compared(write):
    write("BL"), write("CPF", rate=0.9, paths=range(1, 121))
    every = loaded()
    with pytest.raises(InputError, match="were tested on different images"):
        compare.over_seeds(every.values(), every)


def test_the_report_shows_seeds_and_verdicts_where_there_are_any(write):
    def shown() -> dict | None:
        every = loaded()
        return report._over_seeds(
            pd.DataFrame(
                {"record": list(every.values()), "folder": [r["folder"] for r in every.values()]}
            )
        )

    write("BL", 1.0, 0, epochs=3)
    assert shown() is None
    write("TL+FT", 3.0, 0, transfer_epochs=3)
    table = shown()
    lines = {
        row[0][0]: dict(zip(table["head"], (text for text, _ in row), strict=True))
        for row in table["rows"]
    }
    assert lines["BL"]["against scratch"] == "–" and lines["BL"]["AUROC minus BL"] == "–"
    assert lines["TL+FT"]["against scratch"].startswith("beats scratch (+0.")
    assert lines["TL+FT"]["to ship"] == "5.0%" and lines["TL+FT"]["seeds"] == "1"
