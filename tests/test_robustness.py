"""The robustness grid of finished runs: the right pixels, decoded once, kept, paired drops."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made import finished, lived_in
from sklearn.metrics import roc_auc_score

from data_prep import cache, integrity, manifest, transform
from data_prep.errors import InputError
from data_prep.paths import images_root
from dflib import models, quantize
from dflib.edge.predict import Predictor
from dflib.study import robustness

GRID = ("jpeg-50", "crop-0.75", "noise-5")


@pytest.fixture(scope="module")
def made(tiny_dataset, tmp_path_factory) -> list[Path]:
    """A float run (BL) and an int8 one (CQ-S) of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(tmp_path_factory.mktemp("robust")))
        model = lived_in(models.architecture("BL", size=32))
        kinds = {"BL": None, "CQ-S": quantize.static_int8}
        made = [finished(model, code, tiny_dataset, int8=int8) for code, int8 in kinds.items()]
        yield [run.folder for run in made]


@pytest.fixture
def two(made, tmp_path) -> list[Path]:
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in made]


def test_scores_are_those_of_each_image_made_worse_by_hand(two, tiny_dataset):
    robustness.measure(two, GRID)
    table = manifest.load(tiny_dataset).set_index("path")
    same, root = transform.equaliser(table.reset_index()), images_root(tiny_dataset)
    for folder in two:
        predicted, found = (
            pd.read_parquet(folder / f"{n}.parquet") for n in ("predictions", "robustness")
        )
        assert found["path"].tolist() == predicted["path"].tolist()
        assert list(found)[1:] == list(GRID)
        predictor, paths = Predictor(folder), found["path"][:12]
        images = {
            path: same(cache.to_rgb(cache.open_image(root / path)), table["sha256"][path])
            for path in paths
        }
        worse = {how: [transform.perturb(images[p], how) for p in paths] for how in GRID}
        worse["as is"] = [images[path] for path in paths]
        for how, made_worse in worse.items():
            expected = (predicted["score"] if how == "as is" else found[how])[:12].to_numpy()
            arrays = np.stack([cache.fit(image, size=32) for image in made_worse])
            assert predictor.probabilities(arrays) == pytest.approx(expected, abs=1e-5)


def test_each_file_is_decoded_once_for_all_runs_and_the_whole_grid(two, monkeypatch):
    opened = []
    count = lambda data: opened.append(data) or integrity.open_image(data)
    monkeypatch.setattr(cache, "open_image", count)
    monkeypatch.setattr(manifest, "cores", lambda: 1)  # in this process, where it can be counted
    robustness.measure(two, GRID)
    assert len(opened) == len(pd.read_parquet(two[0] / "predictions.parquet"))
    robustness.measure(two, GRID)  # found
    assert len(opened) == len(pd.read_parquet(two[0] / "predictions.parquet"))
    robustness.measure(two[:1], ("blur-1",))  # another one is added, those that are known stay
    assert list(pd.read_parquet(two[0] / "robustness.parquet"))[1:] == [*GRID, "blur-1"]
    assert robustness.measured(two[0], ("blur-1", *GRID))
    assert not robustness.measured(two[1], ("blur-1",))


def test_drops_are_paired_differences_by_scene(two):
    base, other = two
    robustness.measure(two, GRID)
    found = robustness.drops([other], [base], grid=GRID, draws=200).set_index("perturbation")
    assert found.loc["", "more"] == 0 and np.isnan(found.loc["", "more_low"])  # by construction
    for how in GRID:
        lost = {}
        for folder in two:
            table = pd.read_parquet(folder / "predictions.parquet")
            worse = pd.read_parquet(folder / "robustness.parquet")[how]
            after = roc_auc_score(table["label"], worse)
            lost[folder] = roc_auc_score(table["label"], table["score"]) - after
        row = found.loc[how]
        assert row["value"] == pytest.approx(after)
        assert row["more"] == pytest.approx(lost[other] - lost[base])
        assert row["more_low"] <= row["more"] <= row["more_high"]


def test_what_cannot_be_measured_says_why(two):
    with pytest.raises(InputError, match="unknown perturbation 'jpg'"):
        robustness.measure(two, ("jpg-5",))
    with pytest.raises(InputError, match="was not measured under blur-4: robustness.measure does"):
        robustness.drops(two[:1], two[:1], grid=("blur-4",))
    result = json.loads((two[0] / "result.json").read_text())
    (two[0] / "result.json").write_text(json.dumps(result | {"data_fingerprint": "other"}))
    with pytest.raises(InputError, match="has changed since .* was made"):
        robustness.measure(two[:1], GRID)
    assert not (two[0] / "robustness.parquet").exists()
