"""The explorer as one file, in a real browser: what is turned shows what Python says, offline."""

from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from sklearn.metrics import balanced_accuracy_score, recall_score

from dflib.show import explorer
from dflib.study import runs

pytestmark = chromium.needed


@pytest.fixture(scope="module", autouse=True)
def written(explorer_outputs, tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(explorer_outputs))
        yield explorer.write(tmp_path_factory.mktemp("page") / "explorer.html")


@pytest.fixture(scope="module")
def page(written) -> Iterator:
    with chromium.opened(written.as_uri()) as found:
        yield found


def turn(page, control: str, value: float) -> None:
    """Set a slider, as a hand would end."""
    move = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }"
    page.eval_on_selector(control, move, value)


def shares(page) -> dict[str, float]:
    """The table of decisions, by row."""
    rows = page.locator("#decided tr").all()
    texts = [row.locator("th, td").all_inner_texts() for row in rows]
    return {name: float(share.removesuffix(" %")) / 100 for name, share, _ in texts}


def run_of(page) -> str:
    return page.inner_text("#said").rpartition("run ")[2]


def test_it_opens_on_a_run_that_saves_something(page):
    (study,) = explorer.studies()
    size = study.rows["file_bytes"]
    assert size[run_of(page)] <= size[study.base["run_id"]] / 4
    cards = explorer.cards(study, run_of(page))
    for title, card in cards.iterrows():
        assert f"{title}\n{card['value']}" in page.inner_text("#cards")


def test_each_run_and_threshold_has_the_scores_of_its_file(page):
    (study,) = explorer.studies()
    for method in study.rows["method"].unique():
        page.select_option("#method", method)
        for k in range(int(page.get_attribute("#rate", "max")) + 1):
            turn(page, "#rate", k)
            result, table = study.results[run_of(page)], explorer.compared(study, run_of(page))
            label = table["label"]
            for at in (result["threshold"], 0.25, 0.75):
                if at != result["threshold"]:
                    turn(page, "#threshold", at)
                fake, told = table["score"] >= at, shares(page)
                found = balanced_accuracy_score(label, fake)
                assert told["balanced accuracy"] == pytest.approx(found, abs=6e-4)
                reals = recall_score(label, fake, pos_label=0)
                assert told["reals called real"] == pytest.approx(reals, abs=6e-4)
            page.click("#frozen")
            text = page.inner_text("#flipped")
            assert text.startswith((f"{table['flip'].sum()} of {len(table)}:", "This is BL itself"))


def test_a_marker_chooses_its_run(page):
    name = page.locator("#pareto .run").first.get_attribute("aria-label").split(":")[0]
    page.locator("#pareto .run").first.focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#said").startswith(name)


def test_thumbnails_are_the_images_that_flipped(page):
    (study,) = explorer.studies()
    flips = {i: explorer.compared(study, i)["flip"].sum() for i in study.rows.index}
    most = max(flips, key=flips.get)
    page.select_option("#method", study.rows.loc[most, "method"])
    assert flips[most] and page.locator("#flips figure").count()


def test_without_runs_the_page_says_how_to_make_some(tmp_path, monkeypatch):
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path))
    assert not len(runs.results())
    assert '"studies": []' in explorer.write().read_text()
