"""Finished detectors on other images: their own scores again at home, one class, records."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from data_prep import folder
from data_prep.errors import InputError
from dflib.__main__ import app
from dflib.edge import elsewhere
from dflib.edge.predict import Predictor
from dflib.show import report
from dflib.study import records


@pytest.fixture(scope="module", autouse=True)
def outputs(explorer_outputs, tmp_path_factory):
    own = shutil.copytree(explorer_outputs, tmp_path_factory.mktemp("elsewhere") / "outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(own))
        yield


@pytest.fixture(scope="module")
def run() -> dict:
    return next(r for r in records.every() if r["method"] == "BL")


@pytest.fixture(scope="module")
def another(tree, tmp_path_factory) -> str:
    """A dataset of noise, with two generators."""
    counts = {"real": 12, "fake/gan": 8, "fake/vae": 6}
    folder.prepare(tree(tmp_path_factory.mktemp("noise"), counts, size=(40, 40)), name="noise")
    return "noise"


def command(*words: str) -> Result:
    return CliRunner().invoke(app, words, catch_exceptions=False)


def test_at_home_a_run_scores_as_its_record_says(run, tiny_dataset):
    record = elsewhere.test(run["run_id"], tiny_dataset)
    assert record["part"] == "test" and record["threshold"] == run["threshold"]
    stored, again = run["metrics"]["all"], record["metrics"]["all"]
    assert again["n_fake"] == stored["n_fake"]
    pair = 1 / (stored["n_fake"] * stored["n_real"])  # rounding may swap near-equal scores
    assert again["auroc"] == pytest.approx(stored["auroc"], abs=2.5 * pair)


def test_on_another_set_it_scores_as_predict_does(run, another):
    record = elsewhere.test(run["run_id"], another)
    written = pd.read_parquet(run["folder"] / "tests" / f"{another}.parquet")
    assert json.loads((run["folder"] / "tests" / f"{another}.json").read_text()) == record
    assert record["part"] == "all" and record["n"] == len(written) == 26
    auroc = roc_auc_score(written["label"], written["score"])
    assert record["metrics"]["all"]["auroc"] == pytest.approx(auroc)
    fakes = written["generator"].isin(["real", "gan"])
    auroc = roc_auc_score(written["label"][fakes], written["score"][fakes])
    assert record["metrics"]["gan"]["auroc"] == pytest.approx(auroc)


def test_images_that_it_trained_on_prove_nothing(run, tiny_dataset):
    for part in ("train", "val", "all"):
        with pytest.raises(InputError, match=f"its {part} part proves nothing, take test"):
            elsewhere.test(run["run_id"], tiny_dataset, split=part)


def test_a_set_that_has_changed_may_test_on_what_was_trained_on(run, tiny_dataset, monkeypatch):
    """Where it gives no split itself: then each scan deals its images anew."""
    table = elsewhere.manifest.load(tiny_dataset).assign(split="").iloc[1:]
    monkeypatch.setattr(elsewhere.manifest, "load", lambda name: table)
    with pytest.raises(InputError, match="has changed since .* was made: it may have trained on"):
        elsewhere.test(run["run_id"], tiny_dataset)


def test_the_record_of_another_part_is_not_taken_for_the_tests(run, another):
    record = elsewhere.test(run["run_id"], another)
    assert elsewhere.known(run["run_id"], another) == record
    file = run["folder"] / "tests" / f"{another}.json"
    file.write_text(json.dumps(record | {"part": "val"}))
    assert elsewhere.known(run["run_id"], another) is None
    assert f"{another}, val" in report.tested_elsewhere([run])
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("kind", "key"), [("real", "false_alarms"), ("fake/gan", "found")], ids=["reals", "fakes"]
)
def test_one_class_gives_the_share_that_is_called_fake(run, tree, tmp_path, kind, key):
    name = f"only-{key.replace('_', '-')}"
    folder.prepare(tree(tmp_path / "images", {kind: 15}, size=(40, 40)), name=name)
    record = elsewhere.test(run["run_id"], name)
    scores = pd.read_parquet(run["folder"] / "tests" / f"{name}.parquet")["score"]
    assert "metrics" not in record and record[key]["scenes"] == 15
    assert record[key]["value"] == (scores >= run["threshold"]).mean()


@given(st.integers(1, 200))
def test_where_all_are_alike_the_bound_is_clopper_and_pearsons(n):
    found = elsewhere.one_class([0] * n, [0.1] * n, threshold=0.5, groups=range(n))
    bound = stats.beta.ppf(0.975, 1, n)
    assert found["false_alarms"]["ci95"] == pytest.approx([0, bound])


def test_one_scene_tells_no_interval_and_few_a_wide_one():
    share = lambda *scenes: elsewhere.one_class(
        [0] * len(scenes[0]) * len(scenes),
        [score for scene in scenes for score in scene],
        threshold=0.5,
        groups=np.repeat(range(len(scenes)), len(scenes[0])),
    )["false_alarms"]
    assert share((0.1, 0.9)) == {"value": 0.5, "ci95": None, "scenes": 1}
    for scene in ((0.1, 0.9), (0.1, 0.1, 0.9), (0.1,) * 6 + (0.9,)):  # thirds and sevenths round
        low, high = share(scene, scene)["ci95"]
        assert low < 0.01 and high > 0.9


def test_scenes_count_as_wholes():
    rng, n = np.random.default_rng(0), 60
    scores = np.repeat(rng.random(n), 20)  # 20 frames alike in each
    wide = elsewhere.one_class([0] * n * 20, scores, threshold=0.7, groups=np.repeat(range(n), 20))
    low, high = wide["false_alarms"]["ci95"]
    mean, error = (scores >= 0.7).mean(), np.std(scores[::20] >= 0.7, ddof=1) / n**0.5
    assert low == pytest.approx(mean - stats.t.ppf(0.975, n - 1) * error)
    assert high == pytest.approx(mean + stats.t.ppf(0.975, n - 1) * error)


def test_a_model_file_keeps_its_records_beside_it(run, another, tmp_path):
    file = tmp_path / "detector.onnx"
    file.write_bytes((run["folder"] / "model.onnx").read_bytes())
    record = elsewhere.test(str(file), another)
    assert record["trained_on"] == "" and record["threshold"] == Predictor(file).threshold
    assert (tmp_path / "detector.onnx.tests" / "noise.json").exists()


def test_the_command_tests_on_every_set_and_the_records_are_one_table(run, another, tiny_dataset):
    done = command("test", "--run", run["run_id"], "--dataset", f"{another},{tiny_dataset}")
    assert done.exit_code == 0
    assert all(word in done.output for word in ("noise (all)", f"{tiny_dataset} (test)", "gan"))
    table = elsewhere.every(records.every())
    cells = table.pivot_table(index="trained_on", columns="dataset", values="auroc")
    assert {another, tiny_dataset} <= {*cells.columns}
    assert set(table["generator"][table["dataset"] == another]) == {"gan", "vae", "all", "macro"}
    shown = report.tested_elsewhere(records.every()).iloc[0]
    assert shown["run"].startswith("BL, ") and re.match(r"0\.\d{3} \[", shown[another])


def test_a_damaged_record_is_named_and_the_others_are_shown(run, another, caplog):
    elsewhere.test(run["run_id"], another)
    for i, text in enumerate(("", "[]", '{"run_id": 1}', "\0")):
        (run["folder"] / "tests" / f"{i}.json").write_text(text)
    assert another in set(elsewhere.every(records.every())["dataset"])
    assert all(f"{i}.json is damaged" in caplog.text for i in range(4))


def test_a_study_tests_its_runs_on_other_sets_once(run, another, tiny_dataset):
    words = f"study --preset tiny --dataset {tiny_dataset} --methods BL --set latency_runs=1"
    words = [*words.split(), "--set", "weight_decay=0.3", "--test-on"]
    with pytest.raises(InputError, match="noize"):
        command(*words, "noize")
    file = run["folder"] / "tests" / f"{another}.json"
    file.unlink(missing_ok=True)
    made = set()
    for _ in range(2):  # what is there is kept
        done = command(*words, another)
        assert done.exit_code == 0 and "noise (all)" in done.output, done.output
        made.add(file.stat().st_mtime_ns)
    assert len(made) == 1


def test_what_is_not_there_is_named(run, another):
    for words in ((run["run_id"], "noize"), ("x.onnx", another)):
        with pytest.raises(InputError, match=r"noize|x\.onnx"):
            elsewhere.test(*words)
