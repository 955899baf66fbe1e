"""The report: one page that stands alone, whose sentences are true of the runs."""

import json
import re

import numpy as np
import pytest
from bs4 import BeautifulSoup
from made import result, store
from sklearn.metrics import roc_auc_score
from test_plots import BL, GRID, SETS, table
from typer.testing import CliRunner

from dflib.__main__ import app
from dflib.show import report, terminal, words
from dflib.study import compare, runs, tables

pytestmark = pytest.mark.usefixtures("data_root")

HOSTILE = '<script>alert(1)</script> & "quotes" $\\frac{'


def put(root, *results, **changes):
    for r in results:
        store(root, r | changes)


class Page:
    """A page's tags with their attributes, and the text that a browser would show."""

    def __init__(self, html):
        soup = BeautifulSoup(html, "html.parser", multi_valued_attributes=None)
        self.tags = [(tag.name, tag.attrs) for tag in soup.find_all(True)]
        for tag in soup.find_all(["style", "script"]):
            tag.clear()
        self.text = " ".join(soup.get_text(" ").split())


def page(**options):
    return Page(report.write(**options).read_text())


def test_report_stands_alone_and_every_figure_has_its_caption(outputs_root):
    put(outputs_root, BL, *GRID, result("TL+FT"))
    html = report.write().read_text()
    tags = Page(html).tags
    named = [item for _, a in tags for item in a.items()]
    sources = [v for k, v in named if k in ("src", "href", "xlink:href", "srcset", "data")]
    assert all(v.startswith("#") for v in sources)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)|fetch\(|XMLHttpRequest", html)
    ids = [v for k, v in named if k == "id"]
    assert len(ids) == len(set(ids))
    assert not list(outputs_root.glob("*.new"))
    labels = [a["aria-label"] for _, a in tags if a.get("role") == "img"]
    assert [label.partition(". ")[0] for label in labels] == list(report.FIGURES)
    assert all(len(label.partition(". ")[2]) > 20 for label in labels)


def test_every_run_has_its_row_command_and_sorting(outputs_root, undrawn):
    put(outputs_root, BL, *GRID)
    shown = page()
    assert all(r["run_id"] in shown.text and r["command"] in shown.text for r in (BL, *GRID))
    heads = [a for tag, a in shown.tags if tag == "th" and "aria-sort" in a]
    assert len(heads) == 1 + len(report.MAIN) and {a["aria-sort"] for a in heads} == {"none"}
    folds = [a for tag, a in shown.tags if tag == "button" and a.get("class") == "fold"]
    hidden = [a for tag, a in shown.tags if tag == "tr" and "hidden" in a]
    assert len(folds) == 1 + len(GRID) == len(hidden)
    every = report.table_rows(runs.results())
    known = [title for title in every if title != "run" and (every[title] != "–").any()]
    assert len(known) > len(report.MAIN) and all(title in shown.text for title in known)
    assert every["AUROC"][0] in shown.text


def test_a_command_writes_the_report_of_one_dataset(outputs_root, tmp_path):
    put(outputs_root, BL)
    other = BL | {"run_id": BL["run_id"].replace("BL", "BL-s7"), "dataset": "other"}
    put(outputs_root, other)
    words = ["results", "--dataset", "other", "--html", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    html = (tmp_path / "page.html").read_text()
    assert other["run_id"] in html and BL["run_id"] not in html


@pytest.mark.parametrize("kept", [*SETS.values(), [result(generators=("gan",))]])
def test_few_runs_make_a_page(outputs_root, kept):
    put(outputs_root, *kept)
    assert kept[0]["run_id"] in page().text


def test_without_runs_the_page_says_how_to_make_some(outputs_root, undrawn):
    assert "python -m dflib study --preset demo" in page().text
    put(outputs_root, BL)
    assert "There is no finished run" in page(only=[]).text


def test_hostile_names_and_reasons_are_only_text(outputs_root):
    put(outputs_root, result(generators=(HOSTILE, "gan")), command=HOSTILE)
    (folder := outputs_root / "faces" / "strict" / "CPF" / "CPF-x").mkdir(parents=True)
    failed = {"run_id": "CPF-x", "error": HOSTILE, "command": "c", "kind": "error"}
    (folder / "failed.json").write_text(json.dumps(failed))
    shown = page()
    assert [tag for tag, _ in shown.tags].count("script") == 1  # ours
    assert shown.text.count(HOSTILE) >= 3
    assert "CPF-x" in shown.text


def test_other_sizes_protocols_and_limits_are_sections_of_their_own(outputs_root, undrawn):
    put(outputs_root, BL)
    put(outputs_root, BL, protocol="paper", run_id="BL-paper")
    put(outputs_root, BL, run_id="BL-64", params=BL["params"] | {"size": 64})
    put(outputs_root, BL, run_id="BL-few", params=BL["params"] | {"limit": 48})
    shown = page()
    assert sum(tag == "h2" for tag, _ in shown.tags) == 4
    assert "at most 48 images of each class" in shown.text


def test_recipes_are_sections_and_other_settings_stand_in_the_runs_name(outputs_root, undrawn):
    more = {"raised": {"front": "srm"}, "few": {"target_images": 25}, "longer": {"epochs": 99}}
    more["older"] = {"crops": 5, "attention": 0.0}  # only older code knew them
    put(outputs_root, BL | {"params": BL["params"] | {"epochs": 9}})
    for name, params in more.items():
        put(outputs_root, BL, run_id=f"BL-{name}", params=BL["params"] | {"epochs": 9} | params)
    html = report.write().read_text()
    heads, shown = re.findall(r"<h2[^>]*>(faces.*?)</h2>", html), Page(html).text
    few, recipes = "25 training images of each class", ("crops 5", "front srm")
    assert heads == [
        f"faces, strict protocol, 32 px{end}"
        for end in ("", *(f", {r}" for r in recipes), f", {few}")
    ]
    named, told = (shown.index(f"{text}") for text in ("front srm Data", "fixed high-pass filters"))
    assert told > named and "Data." not in shown[named + len("front srm Data.") : told]
    assert "BL (epochs 9), seed 0" in shown and "BL (epochs 99), seed 0" in shown


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        ((0.4, 0.6, False), "faster, 4.0 times as fast as its BL [3.0, 5.7]"),
        ((0.4, 2.0, False), "not told apart from its BL (4.0 times"),
        ((0.4, 0.6, True), "not told apart from its BL (a busy or"),
        (None, "not told apart from its BL (a busy or"),  # of older code
    ],
)
def test_faster_needs_spreads_that_are_apart_and_a_quiet_machine(outputs_root, undrawn, mine, says):
    predicted(outputs_root)
    for code, p50, told in (("CKD", 0.5, mine), ("BL", 2.0, (1.8, 2.3, False))):
        (file,) = outputs_root.glob(f"*/*/{code}/*/result.json")
        r = json.loads(file.read_text())
        latency = dict(zip(("low", "high", "busy"), told or (), strict=False))
        r["cost"]["latency_ms"] |= {"p50": p50} | latency
        file.write_text(json.dumps(r))
    text = page().text
    assert says in text and ("0.50 (busy)" in text) == bool(mine and mine[2])
    assert "2.00 [1.80, 2.30]" in text and ("0.50 [" in text) == bool(mine and not mine[2])


def test_the_first_screen_says_what_the_data_are_and_marks_what_was_unseen(outputs_root, undrawn):
    names = {"generators": ("gan", "vae", "vae", "vae")}
    put(outputs_root, result(**names), result("CQ", **names), train_generators=["gan"])
    cats = result("CQ") | {"run_id": "CQ-cats", "classes": ["cat", "dog"], "dataset": "pets"}
    put(outputs_root, cats)
    text = page().text
    first = text[: text.index("What the codes mean")]
    assert "40 real, 10 gan, 30 vae (unseen) (50 % fake" in first and "0.500, 0.667" in first
    assert "There was none" in first and "whole scenes on one side" in first
    with terminal.console.capture() as said:
        terminal.results(runs.results())
    assert "unseen ones too: vae)" in said.get()
    assert "pets" not in text  # not about fakes
    put(outputs_root, BL, dataset="demo", run_id="BL-demo")
    assert "ten photographs" in page().text


def test_terminal_table_is_text_in_the_order_of_the_methods():
    shown = report.table_rows(table(result("CQ"), *GRID, BL))
    first = ["run", "AUROC", "balanced accuracy", "accuracy", "F1", words.TRIVIAL]
    assert list(shown) == [*first, *(title for title, *_ in words.COSTS.values())]
    assert shown["run"].tolist()[0] == "BL-s0" and shown["run"].tolist()[-1] == "CQ-s0"
    assert shown.loc[0, report.MAIN[2:]].tolist() == ["1,000", "4.00", "2.00"]
    assert all(isinstance(cell, str) for cell in shown.to_numpy().ravel())


def predicted(root, seeds=1, shift=0.0, rate=0.9, skill=1.5, good=0.9, front="", **cost):
    """BL and CKD over seeds; CKD's scores of fakes are moved by `shift`; the mean AUROC of each.
    good: CKD's validation AUROC; BL's is 0.8."""
    rng, label, aurocs = np.random.default_rng(0), np.repeat([0, 1], 300), {"BL": [], "CKD": []}
    names = {"path": [f"{i}.png" for i in range(600)], "label": label, "group": range(600)}
    names["generator"] = np.where(label, "gan", "real")
    for seed in range(seeds):
        base = rng.normal(skill * label, 1.0)
        moved = base + shift * label + 0.08 * rng.normal(size=600)
        for code, z, share in (("BL", base, 0.8), ("CKD", moved, good)):
            r = result(code, None if code == "BL" else rate, seed, skill, ("gan",))
            r["cost"] |= {} if code == "BL" else {"file_bytes": 400_000} | cost
            r |= {"params": r["params"] | {"epochs": 1, "draws": 200}, "train_generators": ["gan"]}
            if front:
                r |= {"params": r["params"] | {"front": front}, "run_id": f"{r['run_id']}-{front}"}
            right = round(100 * share)
            known = np.append([0.5], np.repeat([0.9, 0.1], [right, 100 - right]))
            known = {"label": [0] + [1] * 100, "score": known}
            store(root, r, names | {"score": 1 / (1 + np.exp(-z))}, known)
            aurocs[code].append(roc_auc_score(label, z))
    return {code: np.mean(values) for code, values in aurocs.items()}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("shift", "word"), [(0.0, ""), (-1.5, "worse"), (1.5, "better")])
def test_the_answer_is_the_verdict_against_bl(outputs_root, undrawn, seeds, shift, word):
    means = predicted(outputs_root, seeds, shift)
    shown = page().text
    change = f"{means['CKD'] - means['BL']:+.3f} [".replace("-", "−")
    over = f", over {seeds} seeds, a mean" if seeds > 1 else ""
    best = "the best on the validation images is CKD 90% (knowledge distillation)"
    assert f"{best}. On the test it has{over} AUROC {means['CKD']:.3f} [" in shown
    assert f"BL (baseline): {means['BL']:.3f} [" in shown
    assert f"all generators together: AUROC {change}" in shown
    assert "Its file has 0.40 MB, that of its BL 4.00 MB: 10.0 times smaller" in shown
    every = compare.load()
    (says,) = tables.over_seeds(every.values(), every)["all/verdict"].dropna()
    whom = f"the method ({seeds} seeds)" if seeds > 1 else "these weights"
    assert says == f"{word or ('kept' if seeds > 1 else 'undecided')}, {whom}"
    assert shown.count(says) == 2  # the answer and the table


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"file_bytes": 4 * 10**6}, "that of its BL 4.00 MB: not smaller"),
        ({"file_bytes": 4 * 10**6, "good": 0.7}, "It is the baseline"),  # validation chooses
        ({"good": 0.7}, "images is CKD 90%"),  # of the small files alone
        ({"skill": 0.0}, "BL itself is not shown to do better than guessing"),
        ({"skill": 0.0, "file_bytes": 4 * 10**6, "good": 0.7}, "It is not shown to do better than"),
    ],
)
def test_the_answer_is_the_best_of_the_small_files_on_validation(outputs_root, undrawn, how, says):
    predicted(outputs_root, **how)
    assert says in (text := page().text)
    assert ("What may help: more images" in text) == ("skill" in how)


def test_the_study_and_the_report_name_the_same_run_of_each_recipe(outputs_root, undrawn):
    """A recipe's best is not that of another one, nor that of runs with other settings alone."""
    predicted(outputs_root, front="srm", good=0.95)
    predicted(outputs_root, good=0.85)
    every = compare.load()
    made = {run: {} for run in every if "srm" not in run}
    with terminal.console.capture() as said:
        terminal.advice(made | {"BL-s0-srm": {}})
    text, shown = " ".join(said.get().split()), page().text
    recipes = {about["recipe"]: about["answer"] for about, _ in report.sections([*every.values()])}
    assert [recipes[how]["run_id"] for how in ("", "front srm")] == ["CKD-r90-s0", "CKD-r90-s0-srm"]
    for how, best in recipes.items():
        title = "faces, strict protocol, 32 px" + f", {how}" * bool(how)
        assert f"{title}: take CKD 90% (AUROC {best['auroc']};" in text
        assert f"--run {best['run_id']}" in text and best["told"] in text
        assert f"{title} Data." in shown and f"AUROC {best['auroc']}." in shown
    with terminal.console.capture() as said:
        terminal.advice(made)
    assert "front srm" not in said.get()


def test_without_validation_scores_nothing_is_chosen(outputs_root, undrawn):
    put(outputs_root, BL, *GRID)
    assert "Which run to take cannot be told: validation scores are not kept" in page().text


def test_the_audit_is_told_or_how_to_make_it(outputs_root, undrawn):
    put(outputs_root, BL)
    assert "python -m data_prep audit faces" in page().text
    found = {"verdict": "A verdict.", "licence": HOSTILE, "images_probed": 40}
    found |= {"data_fingerprint": "0"}
    found |= {"shortcut_auroc": {"raw": 0.7125, "equalised": 0.5551}, "equaliser": {"side": 9}}
    found["scene_overlap"] = {"paper": 0.25, "strict": 0.0}
    (outputs_root / "audit-faces.json").write_text(json.dumps(found))
    text = page().text
    assert "A verdict." in text and "0.713 as the files are, 0.555 made alike" in text
    assert "25.0 %" in text and HOSTILE in text and "data_prep audit" not in text
    assert text.index("A verdict.") < text.index("How to read the numbers")  # on the first screen
