"""The report: one page that stands alone, whose sentences are true of the runs, whatever their names say."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from test_plots import BL, GRID, result, table
from typer.testing import CliRunner

from dflib.__main__ import app
from dflib.show import report
from dflib.study import runs

HOSTILE = '<script>alert(1)</script> & "quotes" $\\frac{'


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("DFLIB_DATA", str(tmp_path / "data"))
    return tmp_path


def store(root, *results, **changes):
    for r in results:
        r = r | changes
        folder = root / r["dataset"] / r["protocol"] / r["method"] / r["run_id"]
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(r))


class Page(HTMLParser):
    """What a browser would load, the text it would show, and the attributes of each tag."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without figures, for tests of the rest."""
    monkeypatch.setattr(report, "FIGURES", {})


def page(**options):
    return Page(report.write(**options).read_text())


def test_report_stands_alone(outputs):
    store(outputs, BL, *GRID)
    html = report.write().read_text()
    loads = [
        v
        for _, a in Page(html).tags
        for k, v in a.items()
        if k in ("src", "href", "xlink:href", "srcset", "data") and not v.startswith("#")
    ]
    assert loads == []
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)|fetch\(|XMLHttpRequest", html)
    ids = [a["id"] for _, a in Page(html).tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert not list(outputs.glob("*.new"))


def test_every_run_has_its_row_command_and_sorting(outputs, undrawn):
    store(outputs, BL, *GRID)
    shown = page()
    for r in (BL, *GRID):
        assert r["run_id"] in shown.text
        assert r["command"] in shown.text
    heads = [a for tag, a in shown.tags if tag == "th" and "aria-sort" in a]
    assert len(heads) == 1 + len(report.MAIN) + 4  # of the runs; and run, gan, vae, macro
    assert {a["aria-sort"] for a in heads} == {"none"}
    folds = [a for tag, a in shown.tags if tag == "button" and a.get("class") == "fold"]
    assert (
        len(folds)
        == 1 + len(GRID)
        == len([a for tag, a in shown.tags if tag == "tr" and "hidden" in a])
    )
    every = report.table_rows(runs.results())
    known = [title for title in every if title != "run" and (every[title] != "–").any()]
    assert len(known) > len(report.MAIN) and all(title in shown.text for title in known)
    values = {a["data-value"] for tag, a in shown.tags if tag == "td" and "data-value" in a}
    assert str(BL["metrics"]["all"]["auroc"]) in values


def test_a_command_writes_the_report_of_one_dataset(outputs, tmp_path):
    store(outputs, BL)
    other = BL | {"run_id": BL["run_id"].replace("BL", "BL-s7"), "dataset": "other"}
    store(outputs, other)
    words = ["results", "--dataset", "other", "--html", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    html = (tmp_path / "page.html").read_text()
    assert other["run_id"] in html and BL["run_id"] not in html


def test_no_runs_says_how_to_make_some(outputs):
    assert "python -m dflib study --preset demo" in page().text


@pytest.mark.parametrize(
    "kept",
    [
        [BL],
        [GRID[0]],
        [BL, result("CQ")],
        [result(draws=0), result("CPF", 0.9, draws=0)],
        [result(generators=("gan",))],
    ],
)
def test_few_runs_make_a_page(outputs, kept):
    store(outputs, *kept)
    assert kept[0]["run_id"] in page().text


def test_only_limits_the_page(outputs, undrawn):
    store(outputs, BL, *GRID)
    text = page(only=[BL["run_id"]]).text
    assert BL["run_id"] in text
    assert GRID[0]["run_id"] not in text
    assert "There is no finished run" in page(only=[]).text


def test_hostile_names_and_reasons_are_only_text(outputs):
    store(outputs, result(generators=(HOSTILE, "gan")), command=HOSTILE)
    folder = outputs / "faces" / "strict" / "CPF" / "CPF-x"
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text(
        json.dumps({"run_id": "CPF-x", "error": HOSTILE, "command": "c", "kind": "error"})
    )
    shown = page()
    assert [tag for tag, _ in shown.tags].count("script") == 1  # ours
    assert shown.text.count(HOSTILE) >= 3
    assert "CPF-x" in shown.text


def test_a_failure_that_was_mended_is_not_shown(outputs, undrawn):
    store(outputs, BL)
    (next(outputs.glob("*/*/*/*")) / "failed.json").write_text(
        json.dumps({"run_id": "old", "error": "mended since"})
    )
    assert "mended since" not in page().text


def test_other_sizes_protocols_and_limits_are_sections_of_their_own(outputs, undrawn):
    store(outputs, BL)
    store(outputs, BL, protocol="paper")
    store(outputs, BL, run_id="BL-64", params=BL["params"] | {"size": 64})
    store(outputs, BL, run_id="BL-few", params=BL["params"] | {"limit": 48})
    shown = page()
    assert sum(tag == "h2" for tag, _ in shown.tags) == 4 + 1  # and the methods
    assert "at most 48 images of each class" in shown.text


def test_recipes_are_sections_after_the_plain_one_and_other_settings_stand_in_the_runs_name(
    outputs, undrawn
):
    more = {"raised": {"front": "srm"}, "few": {"target_images": 25}, "longer": {"epochs": 99}}
    store(outputs, BL | {"params": BL["params"] | {"epochs": 9}})
    for name, params in more.items():
        store(outputs, BL, run_id=f"BL-{name}", params=BL["params"] | {"epochs": 9} | params)
    html = report.write().read_text()
    heads, shown = re.findall(r"<h2[^>]*>(faces.*?)</h2>", html), Page(html).text
    title = "faces, strict protocol, 32 px"
    assert heads == [title, f"{title}, front srm", f"{title}, 25 training images of each class"]
    assert "BL (epochs 9), seed 0" in shown and "BL (epochs 99), seed 0" in shown


def test_answer_matches_the_numbers():
    small = result("CKD", 0.9, skill=0.8, file_bytes=400_000, p50=0.5)
    worse = result("CPF", 0.9, skill=0.1)
    first, size, speed = report.answer(
        table(BL, small, worse, result("CKD", 0.6, file_bytes=10**6))
    )
    auroc, (low, high) = small["metrics"]["all"]["auroc"], small["metrics"]["all"]["ci95"]["auroc"]
    assert (
        f"With 90 % of the parameters removed or set to zero, the best of 2 runs, CKD 90%, reaches AUROC {auroc:.3f}"
        in first
    )
    overlap = (
        high >= BL["metrics"]["all"]["ci95"]["auroc"][0]
        and low <= BL["metrics"]["all"]["ci95"]["auroc"][1]
    )
    assert ("the intervals overlap" in first) == overlap
    assert "smallest file is 0.40 MB (CKD 90%" in size and "10.0 times smaller" in size
    assert "lowest latency is 0.50 ms (CKD 90%" in speed and "4.0 times faster" in speed


@pytest.mark.parametrize(
    ("interval", "words"),
    [((0.1, 0.2), "lies below"), ((0.97, 0.99), "lies above"), ((0.1, 0.99), "overlap")],
)
def test_verdict_follows_the_intervals(interval, words):
    rows = table(BL, result("CKD", 0.9))
    rows.loc[0, ["auroc_low", "auroc_high"]] = 0.8, 0.95
    rows.loc[1, ["auroc_low", "auroc_high"]] = interval
    assert words in report.answer(rows)[0]


@pytest.mark.parametrize(
    ("shift", "words"), [(0.0, "no loss is shown"), (-3.0, "a loss"), (3.0, "a gain")]
)
def test_verdict_is_paired_where_predictions_were_kept(tmp_path, shift, words):
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 100)
    base = rng.normal(label, 1.0)
    scores = {
        "BL": base,
        "CKD": base + shift * label * rng.random(200) + 0.01 * rng.normal(size=200),
    }
    rows = table(BL, result("CKD", 0.9))
    rows["folder"] = [str(tmp_path / m) for m in rows["method"]]
    for method, z in scores.items():
        (tmp_path / method).mkdir()
        columns = {
            "path": [f"{i}.png" for i in range(200)],
            "label": label,
            "score": 1 / (1 + np.exp(-z)),
            "group": range(200),
        }
        pd.DataFrame(columns).to_parquet(tmp_path / method / "predictions.parquet")
    first = report.answer(rows)[0]
    assert "on the same images" in first
    assert words in first


def test_answer_says_so_when_nothing_is_gained_or_known():
    masked = report.answer(table(BL, result("CPF", 0.9)))
    assert (
        "No run is clearly smaller than BL" in masked[1]
        and "No run is clearly faster than BL" in masked[2]
    )
    assert "Without a finished BL" in report.answer(table(GRID[0]))[0]
    assert len(report.answer(table(BL))) == 1
    guess = table(result(skill=0.0), result("CPF", 0.9))
    guess["auroc_low"] = 0.4
    assert "not shown to do better than guessing" in report.answer(guess)[0]


def test_a_run_is_compared_with_its_own_parent():
    rows = table(BL, result(seed=1, file_bytes=8 * 10**6), result("CKD", 0.9, file_bytes=10**6))
    assert "4.0 times smaller" in report.answer(rows)[1]
    rows["record"] = [{"parents": []}, {"parents": []}, {"parents": ["BL-s1"]}]
    assert "8.0 times smaller" in report.answer(rows)[1]


def test_terminal_table_is_text_in_the_order_of_the_methods():
    shown = report.table_rows(table(result("CQ"), *GRID, BL))
    assert list(shown.columns) == [
        "run",
        "accuracy",
        "AUROC",
        "F1",
        "params",
        "non-zero",
        "file MB",
        "p50 ms",
        "p95 ms",
        "images/s",
        "peak MB",
        "compress s",
        "train s",
        "transfer s",
        "trained",
        "to ship MB",
    ]
    assert shown["run"].tolist()[0] == "BL-s0" and shown["run"].tolist()[-1] == "CQ-s0"
    assert shown.loc[0, ["params", "file MB", "p50 ms"]].tolist() == ["1,000", "4.00", "2.00"]
    assert all(isinstance(cell, str) for cell in shown.to_numpy().ravel())


def predicted(root, seeds, shift):
    """Runs of BL and CKD over seeds, with predictions on the same 200 images; CKD's scores of fakes are moved by `shift`."""
    rng, label, aurocs = np.random.default_rng(0), np.repeat([0, 1], 100), {"BL": [], "CKD": []}
    for seed in range(seeds):
        base = rng.normal(1.5 * label, 1.0)
        for method, z in (
            ("BL", base),
            ("CKD", base + shift * label + 0.05 * rng.normal(size=200)),
        ):
            r = result(method, 0.9 if method == "CKD" else None, seed, generators=("gan",))
            r |= {"source": None, "params": r["params"] | {"epochs": 1, "draws": 200}}
            store(root, r)
            names, generators = [f"{i}.png" for i in range(200)], np.where(label, "gan", "real")
            table_ = {
                "path": names,
                "generator": generators,
                "label": label,
                "score": 1 / (1 + np.exp(-z)),
            }
            folder = next(root.glob(f"*/*/*/{r['run_id']}"))
            pd.DataFrame(table_ | {"group": range(200)}).to_parquet(folder / "predictions.parquet")
            aurocs[method].append(roc_auc_score(label, z))
    return {method: np.mean(values) for method, values in aurocs.items()}


@pytest.mark.parametrize(
    ("shift", "words"), [(0.0, "no loss is shown"), (-1.5, "a loss"), (1.5, "a gain")]
)
def test_several_seeds_are_one_row_and_the_answer_speaks_of_their_mean(
    outputs, undrawn, shift, words
):
    means = predicted(outputs, 3, shift)
    shown = page().text
    change = f"{means['CKD'] - means['BL']:+.3f} [".replace("-", "−")
    assert (
        f"CKD, the only one with several seeds, reaches a mean AUROC of {means['CKD']:.3f} ["
        in shown
    )
    assert f"over 3 seeds: on the same images that is {change}" in shown and words in shown
    assert "Means over seeds" in shown


def test_one_seed_needs_no_table_of_seeds(outputs, undrawn):
    predicted(outputs, 1, 0.0)
    assert "Means over seeds" not in page().text


def test_the_audit_is_told_or_how_to_make_it(outputs, undrawn):
    store(outputs, BL)
    assert "python -m data_prep audit faces" in page().text
    found = {
        "verdict": "A verdict.",
        "shortcut_auroc": {"raw": 0.7125, "equalised": 0.5551},
        "equaliser": {"side": 9},
        "images_probed": 40,
        "scene_overlap": {"paper": 0.25, "strict": 0.0},
        "licence": HOSTILE,
    }
    (outputs / "audit-faces.json").write_text(json.dumps(found))
    text = page().text
    assert "A verdict." in text and "0.713 as the files are, 0.555 made alike" in text
    assert "25.0 %" in text and HOSTILE in text and "data_prep audit" not in text
