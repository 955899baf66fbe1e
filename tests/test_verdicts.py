"""The same runs, the same words: report, explorer and notebooks 13 and 14 side by side."""

import itertools
import re

import nbclient
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from made import result, store

from data_prep.paths import PROJECT
from dflib import metrics
from dflib.show import explorer, report
from dflib.study import compare, methods, tables

SHIFTS = {"CPF": (-1.2, 0.0), "CKD": (0.0, 1.5), "CQ": (0.0, 0.0)}  # of seen and unseen fakes
WORD = re.compile(r"(better|worse|mixed|kept|undecided), (these weights|the method \(\d seeds\))")
NAMES = np.repeat(["real", "gan", "vae"], [60, 60, 180])  # "always fake" is right in 80 %


def make(root, seeds: int, preset: str) -> None:
    """BL, CPF, CKD and CQ over seeds: scores of the same images, those of `vae` unseen."""
    rng, label = np.random.default_rng(3), (NAMES != "real").astype(int)
    about = {"path": [f"{i}.png" for i in range(300)], "generator": NAMES, "label": label}
    about["group"] = np.arange(300) // 2
    known = {"label": [0, 0, 1, 1], "score": [0.1, 0.4, 0.6, 0.9]}
    for seed in range(seeds):
        base = rng.normal(np.where(NAMES == "gan", 1.5, np.where(label, 0.8, -1)), 1.0)
        for code in ("BL", *SHIFTS):
            shift = SHIFTS.get(code, (0, 0))
            z = base + np.where(NAMES == "gan", shift[0], np.where(label, shift[1], 0))
            z += 0.02 * rng.normal(size=300) if shift != (0, 0) else 0
            scores = 1 / (1 + np.exp(-z))
            r = result(code, 0.9 if methods.method(code).rated else None, seed)
            r |= {"params": methods.relevant(code, methods.settings(preset))}
            r |= {"train_generators": ["gan"], "parents": [] if code == "BL" else [f"BL-s{seed}"]}
            r["metrics"] = metrics.evaluate(label, scores, NAMES, threshold=0.5, draws=50)
            store(root, r, about | {"score": scores}, known)


def notebook(stem: str, preset: str) -> str:
    """What a notebook shows, as text, after it was executed on the runs."""
    book = nbformat.read(PROJECT / "notebooks" / f"{stem}.ipynb", 4)
    at = next(i for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    given = f'preset, dataset = "{preset}", "faces"'
    book.cells.insert(at + 1, nbformat.v4.new_code_cell(given))
    nbclient.NotebookClient(book, timeout=600).execute()
    shown = [o for c in book.cells for o in c.get("outputs", ())]
    data = [o.get("data", {}) for o in shown]
    return "\n".join(d.get("text/html", d.get("text/markdown", "")) for d in data)


def rows(html: str, column: str) -> dict[str, str]:
    """{run: text} of that column, of the page's tables that have it."""
    found = {}
    for table in BeautifulSoup(html, "html.parser").find_all("table"):
        heads = [head.get_text(strip=True) for head in table.find("thead").find_all("th")]
        for row in table.find_all("tr")[1:] if column in heads else ():
            cells = [cell.get_text(strip=True) for cell in row.find_all(["th", "td"])]
            found[cells[0]] = cells[heads.index(column)]
    return found


@pytest.mark.filterwarnings("ignore")  # of the kernel's own
@pytest.mark.parametrize(("seeds", "preset"), [(1, "demo"), (3, "tiny")])  # demo: with a front
def test_report_explorer_and_notebooks_say_the_same_words(outputs_root, data_root, seeds, preset):
    make(outputs_root, seeds, preset)
    every = compare.load()
    table = tables.over_seeds(every.values(), every).dropna(subset="all/verdict")
    names = [f"{m} 90%" if m != "CQ" else m for m in table["method"]]
    told = {
        p: dict(zip(names, table[f"{p}/verdict"], strict=True)) for p in ("all", "seen", "unseen")
    }
    whom = "these weights" if seeds == 1 else f"the method ({seeds} seeds)"
    assert {says.partition(", ")[2] for part in told.values() for says in part.values()} == {whom}
    assert told["seen"]["CPF 90%"] == f"worse, {whom}"
    assert told["unseen"]["CKD 90%"] == f"better, {whom}"
    assert ("kept" in told["all"]["CQ"]) == (seeds > 1 and table["all/word"].iloc[-1] == "kept")

    page = report.write().read_text()
    for part, column in (("all", "against BL, all"), ("seen", "against BL, seen")):
        shown = rows(page, column)
        assert {run: shown[run] for run in names} == told[part]
    for study in explorer.studies():
        for run_id in study.results:
            cards = explorer.cards(study, run_id)
            if run_id != study.base["run_id"]:
                title, run = "Verdict" if seeds == 1 else "Verdict over seeds", study.rows["run"]
                for part in ("all", "seen", "unseen"):
                    last = cards.loc[title + f", {part}" * (part != "all"), "value"]
                    assert last == told[part][run[run_id]]
                means = compare.combined([study.results[run_id]])
                for part in ("seen", "unseen"):
                    assert cards.loc[f"AUROC, {part}", "value"].startswith(
                        f"{means[part]['auroc']['mean']:.3f}"
                    )
    assert ("fixed high-pass filters" in page) == (preset == "demo")

    book = notebook("13_compare", preset)
    shown = {part: rows(book, f"verdict, {part}") for part in ("seen", "unseen")}
    assert shown == {part: told[part] for part in shown}
    generalization = notebook("14_generalization", preset)
    for part in ("seen", "unseen"):
        assert rows(generalization, f"verdict, {part}") == told[part]
    duels = tables.duels(every.values(), {"CKD": ["CPF"]}).set_index("where")["verdict"]
    for text in (book, generalization):
        found = re.findall(rf"<td>(seen|unseen)</td>\s*<td>({WORD.pattern})</td>", text)
        assert {where: says for where, says, *_ in found} == duels.to_dict()
        for measure in compare.JUDGED.values():  # a verdict stands beside all that it is made of
            assert len(rows(text, f"{measure}, minus rival")) == 1
    for part, measure in itertools.product(("seen", "unseen"), compare.JUDGED.values()):
        assert rows(generalization, f"{measure} {part}, minus BL").keys() == told[part].keys()
    said = {"".join(m) for m in WORD.findall(page + book + generalization)}
    assert all(("these weights" in each) == (seeds == 1) for each in said)
