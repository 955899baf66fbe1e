"""The explorer: its numbers against independent ones, its controls by setting values, and uploads."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, roc_auc_score

from data_prep.errors import InputError
from data_prep.paths import images_root
from dflib.edge.predict import Predictor
from dflib.show import explorer, widgets


@pytest.fixture(scope="module", autouse=True)
def outputs(explorer_outputs) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(explorer_outputs))
        yield explorer_outputs


@pytest.fixture
def study() -> explorer.Study:
    (found,) = explorer.studies()
    return found


@pytest.fixture
def page() -> widgets.Explorer:
    return widgets.Explorer(explorer.studies())


def written(image: Image.Image, kind: str = "PNG") -> bytes:
    image.save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def test_a_study_holds_what_can_be_compared(study, tiny_dataset):
    assert study.rows["name"].tolist() == ["BL", "CPF 60%", "CPF-S 60%", "CPF-S 90%"]
    assert study.title.startswith(f"{tiny_dataset} · strict · 32 px · seed 0")
    assert study.of("CPF-S")["label"].tolist() == ["60 %", "90 %"]


def test_cards_tell_ratios_and_paired_differences(study):
    run = study.of("CPF-S").iloc[-1]
    cards = {c.title: c for c in explorer.cards(study, run["run_id"])}
    ratio = study.base["params"] / run["params"]
    assert (
        cards["Parameters"].value == f"{run['params']:,}"
        and cards["Parameters"].against == f"{ratio:.1f} times fewer"
    )
    table = explorer.compared(study, run["run_id"])
    a, b = (roc_auc_score(table["label"], table[c]) for c in ("base_score", "score"))
    assert cards["AUROC"].against.startswith(f"{b - a:+.3f} against BL [".replace("-", "−"))
    assert all(c.against == "" for c in explorer.cards(study, study.base["run_id"]))


def test_flips_are_decisions_that_differ_at_each_runs_threshold(study):
    run = study.of("CPF-S").iloc[0]
    table = explorer.compared(study, run["run_id"])
    differ = (table["base_score"] >= study.base["threshold"]) != (
        table["score"] >= run["threshold"]
    )
    assert set(explorer.chosen(table, "decisions that flipped")) == set(np.flatnonzero(differ))
    both = set(explorer.chosen(table, "got worse (BL was right)")) | set(
        explorer.chosen(table, "got better (BL was wrong)")
    )
    assert both == set(np.flatnonzero(differ))
    assert (
        table["generator"].iloc[explorer.chosen(table, "one of each generator")[:3]].nunique() == 3
    )


def test_confusion_and_cost_are_what_scikit_learn_counts(study):
    table = explorer.compared(study, study.base["run_id"])
    for at in (0.0, float(table["score"].median()), 1.0):
        tn, fp, fn, tp = confusion_matrix(table["label"], table["score"] >= at).ravel()
        assert explorer.confusion(table, "score", at) == {"tp": tp, "fn": fn, "fp": fp, "tn": tn}
        (cost,) = explorer.error_cost(table, "score", np.array([at]), miss=7, share=0.1)
        assert cost == pytest.approx(100 * (0.9 * fp / (fp + tn) + 0.1 * 7 * fn / (fn + tp)))


def test_a_missing_run_is_answered_with_its_command(study, page):
    command = study.missing("CPF", 0.75)
    assert (
        "--methods CPF " in command
        and "--rates 0.75" in command
        and "--set weight_decay=0.3" in command
    )
    page.method.value = "CPF"
    shown = page.run_id
    page.wanted.value = 75
    assert command in page.message.value and page.run_id == shown
    page.wanted.value = 60
    assert page.message.value == ""


def test_controls_move_the_cards(page):
    page.method.value = "CPF-S"
    assert [label for label, _ in page.rate.options] == ["60 %", "90 %"]
    before = page.cards.value
    page.rate.value = page.rate.options[0][1]
    assert "CPF-S 60%" in page.cards.value and page.cards.value != before
    assert 'r="9"' in page.pareto.value  # the ring around the current run
    page.cost.value = "file_bytes"
    assert "file, MB" in page.pareto.value
    page.view.value = "Threshold"
    line = page.line.value
    page.threshold.value = 0.01
    assert page.line.value != line and "confusion matrix of CPF-S 60%" in page.matrix.value
    page.view.value = "Test images"
    page.choice.value = "probabilities furthest apart"
    assert (
        page.images.value.count("<figure") == explorer.SHOWN
        and page.images.value.count("data:image/png") == 4 * explorer.SHOWN
    )
    page.page.value = 2
    assert "Page 2 of" in page.images.value


def test_an_upload_gets_two_probabilities_and_stays_in_memory(
    page, study, tiny_dataset, roots, tmp_path, monkeypatch
):
    path = images_root(tiny_dataset) / explorer.predictions(study.base["folder"])["path"].iloc[0]
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for root in (roots, tmp_path) for p in root.rglob("*")}
    page.view.value = "Your image"
    page.first.value, page.second.value = study.base["run_id"], study.of("CPF-S")["run_id"].iloc[-1]
    page.upload.value = (
        {
            "name": "<b>x</b>.exe",
            "type": "",
            "size": 1,
            "content": memoryview(path.read_bytes()),
            "last_modified": pd.Timestamp.now(),
        },
    )
    for run_id in (page.first.value, page.second.value):
        assert (
            f"P(fake) {Predictor(study.row(run_id)['folder'])(path)['probability']:.3f}"
            in page.answer.value
        )
    assert page.upload.value == () and page.answer.value.count("data:image/png") == 4
    assert before == {
        p: p.stat().st_mtime_ns for root in (roots, tmp_path) for p in root.rglob("*")
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain text", "not an image of a kind that is taken here: JPEG, PNG"),
        (b"", "not an image"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image",
        ),  # Pillow would start Ghostscript
        (written(Image.new("RGB", (9, 9)), "PPM"), "not an image"),
        (bytes(explorer.UPLOAD_BYTES + 1), "8.0 MB: at most 8 MB"),
        (written(Image.new("1", (9000, 5000))), "9000 x 5000 pixels: at most 40 million"),
        (written(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated or damaged"),
    ],
)
def test_a_wrong_upload_is_refused_with_its_reason(content, message, page):
    with pytest.raises(InputError, match=re.escape(message)):
        explorer.check_upload(content)
    page.upload.value = (
        {
            "name": "x.png",
            "type": "image/png",
            "size": 1,
            "content": memoryview(content),
            "last_modified": pd.Timestamp.now(),
        },
    )
    assert 'role="alert"' in page.answer.value and message in page.answer.value


def test_a_rate_is_cancelled_or_made_on_the_spot_and_kept(explorer_outputs, tmp_path, monkeypatch):
    shutil.copytree(explorer_outputs, tmp_path / "outputs")
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "outputs"))
    page = widgets.Explorer(explorer.studies())
    page.new_rate.value, page.epochs.value = 75, 1
    cancel = lambda _: page.cancel.click()
    page.progress.observe(cancel, "value")  # at the first step of the fine-tuning
    page.start()
    page.worker.join()
    assert (
        "Cancelled" in page.state.value
        and page.job.process.returncode < 0
        and not page.job.folder.exists()
    )
    page.progress.unobserve(cancel, "value")
    page.start()
    page.worker.join()
    run_id = page.job.spec.run_id
    assert page.run_id == run_id and "CPF-S 75%" in page.cards.value
    assert run_id not in explorer.studies()[0].table["run_id"].tolist()
    page.keep.click()
    row = explorer.studies()[0].row(run_id)
    assert row["folder"] == page.study.row(run_id)["folder"]
    assert row["params"] / page.study.base["params"] == pytest.approx(0.25, rel=0.01)
    page.start()
    assert f"{run_id} is finished already" in page.state.value


def test_names_from_outside_are_escaped():
    assert "<script>" not in widgets.note("<script>", "<script>") + widgets.bar(
        "<script>", 0.5, "red"
    )


def test_without_runs_the_explorer_says_how_to_make_some(outputs_root):
    assert "python -m dflib study --preset demo --dataset demo" in widgets.explore().value
