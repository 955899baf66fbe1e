"""The explorer: its numbers against independent ones, its controls, uploads, a new run; and as one
file, in a real browser: what is turned shows what Python says, offline."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import chromium
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from data_prep.errors import InputError
from dflib.show import explorer, widgets
from dflib.study import runs, tables

pytestmark = pytest.mark.usefixtures("shown_outputs")


@pytest.fixture
def study() -> explorer.Study:
    (found,) = explorer.studies()
    return found


@pytest.fixture
def page() -> widgets.Explorer:
    return widgets.Explorer()


def last(study: explorer.Study, method: str = "CPF-S") -> str:
    return study.rows.index[study.rows["method"] == method][-1]


def test_a_study_holds_what_can_be_compared(study, tiny_dataset):
    assert study.rows["name"].tolist() == ["BL", "CPF 60%", "CPF-S 60%", "CPF-S 90%"]
    assert study.title == f"{tiny_dataset} · strict · {study.base['run_id']}"


def test_cards_tell_shares_and_paired_differences(study):
    run, base = study.rows.loc[last(study)], study.rows.loc[study.base["run_id"]]
    cards = explorer.cards(study, run.name)
    share = f"{100 * run['params'] / base['params']:.3g} % of BL's"
    assert cards.loc["parameters"].tolist() == [f"{run['params']:,}", share, "gain"]
    table = explorer.compared(study, run.name)
    a, b = (roc_auc_score(table["label"], table[c]) for c in ("base_score", "score"))
    assert cards.loc["AUROC", "against"].startswith(f"{b - a:+.3f} [".replace("-", "−"))
    assert set(explorer.cards(study, base.name)["against"]) == {""}


def test_flips_are_decisions_that_differ_at_each_runs_threshold(study):
    run_id = last(study)
    table = explorer.compared(study, run_id)
    decided = table["base_score"] >= study.base["threshold"]
    differ = set(np.flatnonzero(decided != (table["score"] >= study.results[run_id]["threshold"])))
    found = {choice: explorer.chosen(table, choice) for choice in explorer.CHOICES}
    assert {*found["flipped to wrong"], *found["flipped to right"]} == differ
    assert sum(map(len, found.values())) == len(table)
    assert table["right"][found["flipped to right"]].all()
    assert not table["right"][found["wrong under both"]].any()


def test_a_run_without_predictions_says_so(own_outputs):
    (study,) = explorer.studies()
    (study.results[last(study)]["folder"] / "predictions.parquet").unlink()
    page = widgets.Explorer()
    page.method.value = "CPF-S"
    assert "no predictions to read" in page.cards.value
    assert 'role="alert"' in page.cards.value


def again(folder: Path, seed: int, **changed: str) -> Path:
    """A copy of a finished run as another's."""
    text = (folder / "result.json").read_text()
    result = json.loads(text.replace(folder.name, f"{folder.name}-again{seed}")) | {"seed": seed}
    if changed:
        result["parents"] = [f"{parent}-again{seed}" for parent in result["parents"]]
    place = folder.parents[2] / changed.get("protocol", "strict") / result["method"]
    copy = Path(shutil.copytree(folder, place / result["run_id"]))
    (copy / "result.json").write_text(json.dumps(result | changed))
    return copy


def test_runs_of_another_protocol_and_repeated_ones_cost_no_study_its_page(own_outputs):
    folders = [result["folder"] for result in explorer.studies()[0].results.values()]
    for folder in folders:
        again(folder, 0, protocol="paper")
    twin = again(folders[-1], 0)  # as after a cell was edited
    lost = again(folders[-1], 1)
    (lost / "predictions.parquet").unlink()
    found = explorer.studies()
    assert sorted(s.base["protocol"] for s in found) == ["paper", "strict"]
    for study in found:
        for run_id in {*study.results} - {lost.name, twin.name}:
            alike = tables.with_seeds(study.results[run_id], study.every.values())
            assert study.results[run_id] in alike
            assert {r["protocol"] for r in alike} == {study.base["protocol"]}
            assert len(explorer.cards(study, run_id))
    page = explorer.write().read_text()
    assert all(f'"{name}"' in page for f in folders for name in (f.name, f"{f.name}-again0"))


def test_images_of_a_set_that_has_changed_are_not_shown(study):
    assert len(study.data.test) > 0
    other = explorer.Study(study.base | {"data_fingerprint": "other"}, study.results, study.every)
    with pytest.raises(InputError, match="has changed since these runs were made"):
        other.data.test.image(0)


def test_controls_move_the_cards_and_the_views(page):
    page.method.value = "CPF-S"
    assert [name for name, _ in page.rate.options] == ["CPF-S 60%", "CPF-S 90%"]
    before = page.cards.value
    page.rate.value = page.rate.options[0][1]
    assert "CPF-S 60%" in page.cards.value and page.cards.value != before
    shown = page.shown.value
    page.cost.value = "file_bytes"
    assert "file, MB" in page.shown.value and page.shown.value != shown
    page.view.value = "Test images"
    found = explorer.compared(page.study, page.run.name)["became"].value_counts()
    page.choice.value = found.index[0]
    shown = min(widgets.SHOWN, found.iloc[0])
    assert page.shown.value.count("<figure") == shown
    assert page.shown.value.count("<image ") == 4 * shown


Image.new("1", (9500, 9500)).save(LARGE := io.BytesIO(), "PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain text", "(not an image): take JPEG, MPO, PNG"),
        (bytes(8_000_001), "8.0 MB: take JPEG"),
        (LARGE.getvalue(), "more than 89 megapixels): take JPEG"),
    ],
)
def test_a_wrong_upload_is_refused_with_its_reason_and_not_kept(content, message, page):
    with pytest.raises(InputError, match=re.escape(message)):
        explorer.check_upload(content)
    page.view.value = "Your image"
    about = {"name": "<b>x</b>.exe", "type": "", "size": 1, "last_modified": pd.Timestamp.now()}
    page.upload.value = (about | {"content": memoryview(content)},)
    assert 'role="alert"' in page.shown.value and message in page.shown.value
    assert page.upload.value == ()


def test_a_new_rate_is_made_as_a_run_like_all_others(own_outputs):
    page = widgets.Explorer()
    page.view.value, page.percent.value = "New rate", 75
    command = page.study.spec("CPF-S", 0.75).command()
    assert command in page.shown.value and "--set weight_decay=0.3" in command
    page.start()
    process = page.running
    page.start()  # how far is it?
    assert page.running is process and "0 of 2 done" not in page.shown.value
    assert process.wait() == 0
    page.start()
    assert page.run["name"] == "CPF-S 75%" and page.make.disabled
    assert "is finished" in page.shown.value
    assert page.run["params"] / page.study.base["cost"]["params"] == pytest.approx(0.25, rel=0.01)
    found = runs.read(runs.find(page.run.name))
    assert found["parents"] == [page.study.base["run_id"]]
    assert found["folder"].is_relative_to(own_outputs)


def test_a_run_that_starts_from_another_bl_says_so(study, monkeypatch):
    monkeypatch.setattr(runs, "code_hash", lambda notebook: "other code")
    page = widgets.Explorer()
    page.view.value = "New rate"
    (own,) = page.study.spec("CPF-S", 0.75).parents
    assert own.run_id != study.base["run_id"]
    for text in ("does not start from the BL shown", study.base["run_id"], own.run_id):
        assert text in page.shown.value


@pytest.mark.parametrize(("setting", "works"), [({"attention": 0.0}, True), ({"crops": 4}, False)])
def test_runs_of_older_code_are_shown_and_their_settings_named(setting, works, own_outputs):
    for path in own_outputs.glob("*/*/*/*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"params": result["params"] | setting}))
    page = widgets.Explorer()
    assert len(page.study.results) == 4
    page.view.value = "New rate"
    (name,) = setting
    assert ("python -m dflib study" in page.shown.value) == works
    assert (name in page.shown.value) != works and page.make.disabled != works


def test_names_from_outside_are_escaped(study):
    assert "<script>" not in widgets.HTML.note("<script>", "<script>")
    assert "<script>" not in widgets.HTML.cards("<script>", "", explorer.cards(study, last(study)))


def test_without_runs_the_explorer_says_how_to_make_some(outputs_root):
    assert "python -m dflib study --preset demo --dataset demo" in widgets.explore().value
    assert '"studies": []' in explorer.write().read_text()


SLIDE = """
import matplotlib.pyplot as plt
from ipywidgets import IntSlider
from dflib.show import plots, widgets

def draw(rank):
    figure, axes = plt.subplots()
    axes.set_title(f"rank {rank}")
    return figure

slider = IntSlider(4, 1, 9)
widgets.slide(draw, rank=slider)
"""


def test_a_sliders_figure_is_drawn_once_without_a_front_end_and_follows():
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SLIDE)])
    shown = []
    for move in ("", "slider.value = 9"):
        book.cells[1:] = [nbformat.v4.new_code_cell(move)]
        nbclient.NotebookClient(book, kernel_name="python3").execute()
        images = [
            o.data["image/png"] for c in book.cells for o in c.outputs if "image/png" in o.data
        ]
        assert len(images) == 1
        shown += images
    assert shown[0] != shown[1]
    assert all("rank" in str(o.data) or "image/png" in o.data for o in book.cells[0].outputs)


# --- as one file


@pytest.fixture(scope="module")
def browser(shown_outputs, tmp_path_factory) -> Iterator:
    """The file in a browser."""
    written = explorer.write(tmp_path_factory.mktemp("page") / "explorer.html")
    with chromium.opened(written.as_uri()) as found:
        yield found


def turn(browser, control: str, value: float) -> None:
    """Set a slider, as a hand would end."""
    move = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }"
    browser.eval_on_selector(control, move, value)


def shares(browser) -> dict[str, float]:
    """The table of decisions, by row."""
    rows = browser.locator("#decided tr").all()
    texts = [row.locator("th, td").all_inner_texts() for row in rows]
    return {name: float(share.removesuffix(" %")) / 100 for name, share, _ in texts}


def run_of(browser) -> str:
    return browser.inner_text("#said").rpartition("run ")[2]


@chromium.needed
def test_it_opens_on_a_run_that_saves_something(browser, study):
    size = study.rows["file_bytes"]
    assert size[run_of(browser)] <= size[study.base["run_id"]] / 4
    cards = explorer.cards(study, run_of(browser))
    for title, card in cards.iterrows():
        assert f"{title}\n{card['value']}" in browser.inner_text("#cards")


@chromium.needed
def test_each_run_and_threshold_has_the_scores_of_its_file(browser, study):
    for method in study.rows["method"].unique():
        browser.select_option("#method", method)
        for k in range(int(browser.get_attribute("#rate", "max")) + 1):
            turn(browser, "#rate", k)
            run = run_of(browser)
            own, table = study.results[run]["threshold"], explorer.compared(study, run)
            label = table["label"]
            for at in (own, 0.25, 0.75):
                if at != own:
                    turn(browser, "#threshold", at)
                fake, told = table["score"] >= at, shares(browser)
                found = balanced_accuracy_score(label, fake)
                assert told["balanced accuracy"] == pytest.approx(found, abs=6e-4)
                reals = recall_score(label, fake, pos_label=0)
                assert told["reals called real"] == pytest.approx(reals, abs=6e-4)
            browser.click("#frozen")
            text = browser.inner_text("#flipped")
            assert text.startswith((f"{table['flip'].sum()} of {len(table)}:", "This is BL itself"))


@chromium.needed
def test_a_marker_chooses_its_run(browser):
    name = browser.locator("#pareto .run").first.get_attribute("aria-label").split(":")[0]
    browser.locator("#pareto .run").first.focus()
    browser.keyboard.press("Enter")
    assert browser.inner_text("#said").startswith(name)


@chromium.needed
def test_thumbnails_are_the_images_that_flipped(browser, study):
    flips = {i: explorer.compared(study, i)["flip"].sum() for i in study.rows.index}
    most = max(flips, key=flips.get)
    browser.select_option("#method", study.rows.loc[most, "method"])
    assert flips[most] and browser.locator("#flips figure").count()
