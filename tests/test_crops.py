"""Several crops of each test image: which they are, that the mean of their logits is what counts, and that their cost is told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage import data as pictures

from data_prep.cache import fit, fit_crops
from data_prep.errors import InputError
from data_prep.paths import images_root
from dflib import data, edge, measure, models, robustness, runs, train
from dflib.predict import Predictor
from dflib.runs import Run, spec

QUICK = {"epochs": 8, "limit": 24, "batch": 8, "lr": 3e-3, "latency_runs": 2, "draws": 10, "mode": "center_crop"}


def test_center_crops_are_the_middle_and_the_corners():
    pixels = pictures.astronaut()[:90, :120]
    found = fit_crops(Image.fromarray(pixels), size=32, mode="center_crop", crops=5)
    corners = [(29, 44), (0, 0), (0, 88), (58, 0), (58, 88)]
    assert [int((c == pixels[y : y + 32, x : x + 32]).all()) for c, (y, x) in zip(found, corners, strict=True)] == [
        1
    ] * 5
    assert np.array_equal(found[0], fit(Image.fromarray(pixels), size=32, mode="center_crop"))


def test_texture_crops_are_the_tiles_with_the_most_detail_in_order():
    image = Image.fromarray(pictures.astronaut()[:128, :160])
    found = fit_crops(image, size=32, mode="texture_crop", crops=5)
    grey = found.mean(3)
    detail = np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))
    assert (np.diff(detail) <= 0.02 * detail[0]).all() and len(np.unique(found, axis=0)) == 5
    assert np.array_equal(found[0], fit(image, size=32, mode="texture_crop"))
    small = fit_crops(image.resize((20, 20)), size=32, mode="texture_crop", crops=5)  # one tile is all there is
    assert (small == small[0]).all()


@pytest.fixture(scope="module")
def finished(tiny_dataset, tmp_path_factory):
    """A finished run that takes three crops, and the model that the same run would have with one, in an outputs root of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(tmp_path_factory.mktemp("crops-outputs")))
        found = []
        for crops in (1, 3):
            request = {"protocol": "paper", "settings": QUICK | {"crops": crops}}
            run = Run(spec("BL", preset="tiny", dataset=tiny_dataset, **request))
            with train.seeded(0):
                found.append(models.Detector(models.student(0.9, size=32)))
            run.fit(found[-1], run.recipe())
        run.finish(found[-1])
        yield run, found[0]


def test_the_mean_of_the_logits_is_what_is_tested(finished, tiny_dataset):
    (run, single), test = finished, finished[0].data.test
    model = run.model()
    torch.testing.assert_close(
        dict(model.state_dict()), {k: v.cpu() for k, v in single.state_dict().items()}
    )  # trained alike
    paths = [images_root(tiny_dataset) / p for p in test.table["path"]]
    views = [fit_crops(Image.open(p).convert("RGB"), size=32, mode="center_crop", crops=3) for p in paths]
    x = torch.from_numpy(np.concatenate(views)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = model(x).view(-1, 3, 2).mean(1).softmax(1)[:, 1].numpy()
    scores = pd.read_parquet(run.folder / "predictions.parquet")["score"].to_numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 0.01 and np.abs(scores - train.predict(single, test)).max() > 1e-3
    first, *others = data.crops(run.data, test, 3)
    assert np.array_equal(first.image(4), test.image(4)) and (first.labels == test.labels).all()
    changed = [[not np.array_equal(other.image(i), test.image(i)) for i in range(len(test))] for other in others]
    assert all(map(any, changed))  # but for images that are one crop in all


def test_single_images_and_the_grid_of_perturbations_take_the_same_crops(finished, tiny_dataset):
    table = pd.read_parquet(finished[0].folder / "predictions.parquet")
    predictor = Predictor(finished[0].folder)
    for path, score in zip(table["path"][:5], table["score"][:5], strict=True):
        assert predictor(images_root(tiny_dataset) / path)["probability"] == pytest.approx(score, abs=1e-5)
    robustness.measure([finished[0].folder], ("crop-1", "blur-2"))
    found = pd.read_parquet(finished[0].folder / robustness.FILE)
    assert found["crop-1"].to_numpy() == pytest.approx(table["score"].to_numpy(), abs=1e-5)  # the whole image
    assert np.abs(found["blur-2"] - table["score"]).max() > 1e-3


def test_the_cost_is_that_of_all_crops_and_an_export_is_refused(finished, tmp_path):
    three, one = finished[0].result["cost"], finished[1]
    assert three["macs"] == 3 * measure.macs(one) and three["crops"] == 3
    assert three["params"] == models.parameters(one)
    cost = {
        "macs": 5,
        "latency_ms": {"p50": 2.0, "p95": 4.0, "threads": 1},
        "throughput": {"images_per_s": 90.0, "batch": 32},
    }
    assert measure.times(cost, 3) == {
        "macs": 15, "latency_ms": {"p50": 6.0, "p95": 12.0, "threads": 1}, "throughput": {"images_per_s": 30.0, "batch": 32}, "crops": 3,
    }  # fmt: skip
    with pytest.raises(InputError, match="takes the mean of 3 crops of each image, and an exported file sees one"):
        edge.export_run(finished[0].folder, format="onnx", out=tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_crops_need_a_mode_that_crops_and_a_number_that_can_be_had(tiny_dataset):
    for settings, why in (
        ({"crops": 3}, "crops=3: mode=resize sees the whole image"),
        ({"crops": 6, "mode": "center_crop"}, "setting crops=6 is out of its range: .* to 5"),
        ({"crops": 0, "mode": "center_crop"}, "setting crops=0 is out of its range"),
    ):
        with pytest.raises(InputError, match=why):
            runs.spec("BL", preset="tiny", dataset=tiny_dataset, settings=settings)
