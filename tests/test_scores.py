"""Scores of a detector that is not here, as a run; scenes and families as other groups."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from data_prep import families
from data_prep.errors import InputError
from data_prep.paths import images_root
from dflib import metrics
from dflib.__main__ import app
from dflib.edge import elsewhere, scores
from dflib.edge.predict import Predictor
from dflib.show import explorer, report, terminal
from dflib.study import compare, engine, records, runs, tables
from dflib.study.progress import Progress
from dflib.study.settings import DEFAULTS


@pytest.fixture
def base(own_outputs) -> dict:
    return next(r for r in compare.load().values() if r["method"] == "BL")


@pytest.fixture
def theirs(base, tmp_path) -> pd.DataFrame:
    """What another detector said of BL's test images, in another order: path, label, score."""
    table = records.predictions(base["folder"])[["path", "label", "score"]]
    noise = np.random.default_rng(0).normal(0, 0.05, len(table))
    return table.assign(score=(table["score"] + noise).clip(0, 1)).sample(frac=1, random_state=0)


def kept(table: pd.DataFrame, file) -> str:
    table.to_csv(file, index=False) if file.suffix == ".csv" else table.to_parquet(file)
    return str(file)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_of_a_bl_s_images_are_held_against_it_everywhere(base, theirs, tmp_path, suffix):
    model = tmp_path / "theirs.onnx"
    model.write_bytes(b"x" * 12345)
    words = ["adopt", kept(theirs, tmp_path / f"theirs{suffix}"), "--dataset", base["dataset"]]
    done = CliRunner().invoke(app, [*words, "--weights", str(model)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    every = compare.load()
    run = next(r for r in every.values() if r["method"] == "theirs")
    everything = run["metrics"]["all"]
    assert everything["auroc"] == pytest.approx(roc_auc_score(theirs["label"], theirs["score"]))
    assert {*run["metrics"]} == {*base["metrics"]} and run["cost"]["file_bytes"] == 12345
    assert compare.baseline(run, every)["run_id"] == base["run_id"]
    change = compare.paired(run, base)["all"]["auroc"]
    assert change["mean"] == pytest.approx(everything["auroc"] - base["metrics"]["all"]["auroc"])
    assert change["ci95"][0] < change["mean"] < change["ci95"][1]
    (study,) = (s for s in explorer.studies() if run["run_id"] in s.results)
    assert "Verdict" in explorer.cards(study, run["run_id"]).index
    assert "theirs" in set(tables.over_seeds(every.values(), every)["method"])
    alike = tables.matching(every.values(), DEFAULTS | base["params"])
    assert run["run_id"] in {r["run_id"] for r in alike}
    page = report.write().read_text()
    assert page.count("<section id=") == 1 and "theirs, seed" in page and ">nan" not in page
    terminal.results(runs.results())


def test_scores_alone_are_a_run_with_a_threshold_from_validation(own_outputs, tmp_path):
    rng, n = np.random.default_rng(0), 200
    label = np.arange(2 * n) % 2
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(2 * n)], "label": label})
    table["score"] = (rng.normal(0.3 + 0.2 * label, 0.1)).clip(0, 1)
    table["split"] = np.where(np.arange(2 * n) < n, "val", "test")
    table["scene"] = [f"video-{i // 4}" for i in range(2 * n)]
    kept(table, file := tmp_path / "other.csv")
    run = records.read(scores.adopt(file, dataset="wild"))
    val, test = table[table["split"] == "val"], table[table["split"] == "test"]
    assert run["threshold"] == metrics.best_threshold(val["label"], val["score"])
    assert run["metrics"]["all"]["n"] == len(test) and run["parents"] == []
    assert records.validated(run["folder"]) == roc_auc_score(val["label"], val["score"])
    means = test.groupby(["scene", "label"], as_index=False)["score"].mean()
    expected = roc_auc_score(means["label"], means["score"])
    assert run["per_scene"]["auroc"] == pytest.approx(expected)
    assert "AUROC per scene" in report.table_rows(runs.results("wild"))


WRONG = {
    "no score": (lambda t: t.drop(columns="score"), "Name them path, label, score"),
    "no rows": (lambda t: t[:0], "lists no images"),
    "no test": (lambda t: t.assign(split="val"), "all have the split val or train"),
    "other labels": (lambda t: t.assign(label=1 - t["label"]), r"72 of 72 labels are not those"),
    "a reserved name": (lambda t: t.assign(generator="Macro"), "cannot be called macro"),
    "twice, in other words": (
        lambda t: pd.concat([t, t[:1].assign(path="./" + t["path"])]),
        "stand in it twice",
    ),
    "logits": (lambda t: t.assign(score=t["score"] * 9 - 3), "Expected P"),
    "text": (lambda t: t.assign(score="high"), "none, e.g. 'high'"),
    "twice": (lambda t: pd.concat([t, t[:1]]), "stand in it twice"),
    "one class": (lambda t: t[t["label"] == 1], "all of one class"),
    "a label": (lambda t: t.assign(label=2), "label '2'"),
}
for name in ("CPF", "cpf", "Chain"):
    WRONG[f"called {name}"] = (lambda t: t, "one of this workbook's methods", name)


@pytest.mark.parametrize("kind", WRONG)
def test_a_table_that_tells_nothing_is_refused(base, theirs, tmp_path, kind):
    change, message, *name = WRONG[kind]
    kept(change(theirs), file := tmp_path / f"{[*name, 'theirs'][0]}.csv")
    before = compare.load().keys()
    with pytest.raises(InputError, match=message):
        scores.adopt(file, dataset=base["dataset"])
    assert compare.load().keys() == before


SPELLINGS = {
    "absolute": lambda paths, root: [str(root / path) for path in paths],
    "from here": lambda paths, root: [f"./{path}" for path in paths],
    "of Windows": lambda paths, root: [path.replace("/", "\\") for path in paths],
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_paths_are_known_however_they_are_spelt(base, theirs, tmp_path, kind):
    spelt = SPELLINGS[kind](theirs["path"], images_root(base["dataset"]))
    kept(theirs.assign(path=spelt), file := tmp_path / "theirs.csv")
    assert records.read(scores.adopt(file, dataset=base["dataset"]))["parents"] == [base["run_id"]]


def test_more_images_are_left_out_and_fewer_are_held_against_no_bl(base, theirs, tmp_path, caplog):
    more = pd.concat([theirs, theirs[:3].assign(path=["a.png", "b.png", "c.png"])])
    for name, table, said in (
        ("more", more, "3 images that .* was not tested on are left out"),
        ("fewer", theirs[:60], "held against no BL: 60 of these 60 images"),
    ):
        kept(table, file := tmp_path / f"{name}.csv")
        run = records.read(scores.adopt(file, dataset=base["dataset"]))
        assert re.search(said, caplog.text)
        assert run["metrics"]["all"]["n"] == {"more": 72, "fewer": 60}[name]
        assert bool(run["parents"]) == (name == "more")


def test_a_run_of_scores_alone_has_no_model_and_no_time(base, theirs, tmp_path):
    kept(theirs.assign(score=theirs["label"].astype(float)), file := tmp_path / "theirs.csv")
    run = scores.adopt(file, dataset=base["dataset"])
    assert scores.adopt(file, dataset="elsewhere").name != run.name
    for use in (Predictor, partial(elsewhere.test, dataset=base["dataset"])):
        with pytest.raises(InputError, match="scores alone: there is no model"):
            use(run.name)
    assert not records.read(records.find("best")).get("imported")
    assert not records.read(records.find("latest")).get("imported")
    request = {"preset": "tiny", "dataset": base["dataset"], "methods_": ("CKD",)}
    with pytest.raises(InputError, match="there is no model"):
        engine.plan(**request, settings={"teacher": run.name})
    assert Progress(engine.plan(**request)).look().summary()
    with pytest.raises(InputError, match="is no file"):
        scores.adopt(file, dataset=base["dataset"], model=tmp_path)
    with pytest.raises(InputError, match="cannot be a dataset's name"):
        scores.adopt(file, dataset="../evil")


def test_single_images_and_few_scenes_have_no_score_per_scene():
    few, label = [f"v{i // 4}" for i in range(36)], [0, 1] * 18
    for groups in (range(36), few):
        names = np.where(np.array(label) == 1, "gan", "real")
        assert metrics.per_scene(label, np.linspace(0, 1, 36), names, groups, threshold=0.5) is None


def test_generators_belong_to_the_family_of_the_longest_beginning():
    names = ["progan", "StyleGAN2", "sdxl", "dalle3", "vqgan-2", "vqdm", "own-net"]
    assert families.of(names) == {
        "GAN": ["progan", "StyleGAN2", "vqgan-2"],
        "diffusion": ["sdxl", "vqdm"],
        "commercial": ["dalle3"],
    }


def test_families_are_a_second_grouping_of_verdicts_and_matrix(own_outputs, tmp_path):
    rng, n = np.random.default_rng(0), 60
    kinds = ["progan", "stylegan", "sdxl", "glide"]
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(5 * n)]})
    table["generator"] = np.repeat(["real", *kinds], n)
    table["label"] = (table["generator"] != "real").astype(int)
    table["score"] = rng.normal(0.4 + 0.1 * table["label"], 0.1).clip(0, 1)
    kept(table, file := tmp_path / "other.csv")
    run = records.read(scores.adopt(file, dataset="wild"))
    found = compare.combined([run])
    gans = table["generator"].isin(["real", "progan", "stylegan"])
    expected = roc_auc_score(table["label"][gans], table["score"][gans])
    assert found["all GAN"]["auroc"]["mean"] == pytest.approx(expected)
    assert {"all GAN", "all diffusion"} <= {*tables.matrix([run])["test"]}
    assert "AUROC, all diffusion" in report.write().read_text()
