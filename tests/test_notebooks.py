"""The notebooks: their form, and what they leave behind when they are executed (preset tiny)."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import badges
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from made import lived_in
from sklearn.metrics import roc_auc_score

from data_prep.paths import PROJECT
from dflib import models
from dflib.study import engine, methods, runs
from dflib.study.kernel import kernel_manager

FOLDER = PROJECT / "notebooks"
ALL = sorted(FOLDER.glob("*.ipynb"))
METHODS = {p.stem: methods.made_by(p.stem) for p in ALL if methods.made_by(p.stem)}
READERS = [p.stem for p in ALL if p.stem in ("00_start_here", "13_compare")]
KEYS = "schema run_id method rate seed dataset source protocol preset params parents versions"
KEYS = {*KEYS.split(), "data_fingerprint", "device", "timings", "cost", "metrics", "threshold"}

each = pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)


def cells(path: Path, kind: str) -> list[str]:
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def outputs(path: Path) -> list[dict]:
    book = nbformat.read(path, as_version=4)
    return [o for c in book.cells if c.cell_type == "code" for o in c.outputs]


def figures(path: Path) -> int:
    """How many there are; fails where one is drawn twice."""
    found = [o["data"]["image/png"] for o in outputs(path) if "image/png" in o.get("data", {})]
    assert len({*found}) == len(found)
    return len(found)


def recap(path: Path) -> str:
    """The last Markdown that a notebook shows."""
    shown = [o.get("data", {}) for o in outputs(path)]
    return [data["text/markdown"] for data in shown if "text/markdown" in data][-1]


def quiet(path: Path) -> Path:
    """The same, where it holds no error and nothing on stderr; fails with the text otherwise."""
    loud = [o for o in outputs(path) if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert not loud, loud[0]
    return path


# --- form


def test_every_method_has_its_notebook_and_its_line_in_the_readme():
    assert {code for codes in METHODS.values() for code in codes} == set(methods.METHODS)
    _, text = (PROJECT / "README.md").read_text().split("\n## The methods\n")
    listed = re.findall(r"^\| `([^`]+)` \|", text.split("\n## ")[0], re.MULTILINE)
    assert sorted(listed) == sorted(methods.METHODS)


@each
def test_is_a_valid_stripped_notebook_whose_code_is_short_and_follows_prose(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert 30 <= len(book.cells) <= 75
    assert book.metadata.kernelspec.name == "python3" and "widgets" not in book.metadata
    assert len({c.id for c in book.cells}) == len(book.cells)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert all(c.outputs == [] and c.execution_count is None for c in code)
    assert not re.search(r"/(work|tmp|home|root|mnt)/|[A-Z]:\\\\", path.read_text())
    lines = [len(c.source.splitlines()) for c in code]
    assert max(lines) <= 15, code[lines.index(max(lines))].source
    before = [a.cell_type for a, b in zip(book.cells, book.cells[1:], strict=False) if b in code]
    assert before.count("markdown") >= 0.6 * len(code)


@each
def test_has_one_parameters_cell_that_papermill_understands(path):
    book = nbformat.read(path, as_version=4)
    assert sum("parameters" in c.metadata.get("tags", []) for c in book.cells) == 1
    found = papermill.inspect_notebook(str(path))
    assert {"preset", "dataset", "protocol"} <= set(found)
    if path.stem in METHODS:
        assert ("rate" in found) == any(methods.method(code).rated for code in METHODS[path.stem])
        assert "method" in found or len(METHODS[path.stem]) == 1
        assert "method" not in found or json.loads(found["method"]["default"]) in METHODS[path.stem]


def test_all_code_together_is_short():
    code = [each for path in ALL for each in cells(path, "code")]
    ours = [each for each in code if not re.search(r"exercises\.(check|quiz)\(", each)]
    assert sum(len(each.splitlines()) for each in ours) <= 2600


@each
def test_teaches(path):
    text = "\n".join(cells(path, "markdown"))
    assert all(part in text for part in ("## Exercises", "## Recap", "ou should see"))
    folded = r"<details>\s*<summary>Solution</summary>(.+?)</details>"
    solutions = re.findall(folded, text, re.DOTALL)
    assert len(solutions) >= 2 and all(solution.strip() for solution in solutions)
    assert text.count("<details>") == text.count("</details>")
    assert any("assert " in code for code in cells(path, "code"))


@each
def test_begins_with_title_badges_goals_time_and_the_way_on(path):
    title, badges_, *rest = nbformat.read(path, as_version=4).cells[0].source.split("\n\n")
    assert title.startswith(f"# {path.stem[:2]} · ") and "\n" not in title
    repository = badges.address(ALL[0].read_text())  # the same in all of them
    assert badges_ == badges.line(path.stem, repository)
    goals = rest.index("**After this notebook you can**")
    assert rest[goals + 1].count("\n- ") >= 2
    time, way = rest[goals + 2 :]
    how = r"on 2 CPU cores .+; on a T4 .+ \((an estimate: not measured|measured.*)\)\."
    assert re.fullmatch(rf"\*\*Time\*\* .*{how}", time, re.DOTALL)
    following = [p.name for p in ALL if p.stem > path.stem]
    assert not following or re.search(r"Next: \[\d\d · [^]]+\]\(([^)]+)\)", way)[1] == following[0]


@each
def test_recap_is_computed_and_a_sliders_figure_drawn_by_the_one_helper(path):
    book = nbformat.read(path, as_version=4)
    (start,) = [i for i, c in enumerate(book.cells) if c.source.startswith("## Recap")]
    code = "\n".join(c.source for c in book.cells[start:] if c.cell_type == "code")
    computed = "Markdown(" in code and re.search(r"f\"+.*{", code, re.DOTALL)
    assert "lessons.recap(" in code or computed
    code = "\n".join(cells(path, "code"))
    assert "interactive_output" not in code and "interact(" not in code
    assert "widgets.slide(" in code or path.stem in ("16_explorer", "17_sweep")


def anchors(path: Path) -> set[str]:
    """What GitHub and JupyterLab make of a Markdown file's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@each
def test_links_lead_somewhere(path):
    targets = [t for text in cells(path, "markdown") for t in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert targets
    for target in targets:
        file, _, anchor = target.partition("#")
        assert target.startswith("https://") or (FOLDER / file).is_file(), target
        assert not anchor or anchor in anchors(FOLDER / file), target


def test_one_command_fills_in_the_repositorys_address(tmp_path):
    books = Path(shutil.copytree(FOLDER, tmp_path / "notebooks"))
    shutil.copy(PROJECT / "README.md", tmp_path)
    before = {p.name: p.read_text() for p in books.glob("*.ipynb")}
    for address in ("https://github.com/me/first", "https://github.com/somebody/a.copy"):
        badges.fill(tmp_path, address)
        for path in books.glob("*.ipynb"):
            head = nbformat.read(path, as_version=4).cells[0].source
            assert badges.line(path.stem, address) in head
        readme = (tmp_path / "README.md").read_text()
        assert f"git clone {address} workbook" in readme and badges.PLACEHOLDER not in readme
    badges.fill(tmp_path, badges.address(ALL[0].read_text()))
    assert before == {p.name: p.read_text() for p in books.glob("*.ipynb")}


# --- executed


@pytest.fixture(scope="module")
def outputs_folder(tiny_dataset, tiny_source, tmp_path_factory) -> Iterator[Path]:
    """An outputs root that the tests below share: each run is made once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("notebook-outputs")
        patch.setenv("DFLIB_OUTPUTS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def begun(tiny_dataset, tiny_source, outputs_folder) -> tuple[runs.Run, list[str]]:
    """A transfer begun by hand before its source has a trained model, and what was said."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run = engine.start("TL+FT", preset="tiny", dataset=tiny_dataset, source=tiny_source)
    return run, said.getvalue().splitlines()


@pytest.fixture(scope="module")
def made(tiny_dataset, tiny_source, outputs_folder, begun) -> dict[str, dict]:
    """Results of all run notebooks on the target by method, executed as the batch does."""
    request = {"preset": "tiny", "dataset": tiny_dataset, "source": tiny_source}
    plan = engine.plan(**request, methods_=tuple(methods.METHODS))
    outcomes = engine.run(plan)
    assert {outcome["error"] for outcome in outcomes.values()} == {None}
    own = [s for s in plan if s.dataset == tiny_dataset]
    return {s.method: runs.read(s.folder) | {"folder": s.folder, "spec": s} for s in own}


MOVE = """
from ipywidgets.widgets import widget
for control in list(widget._instances.values()):
    if hasattr(control, "options") and control.options:
        control.value = [*control._options_values][-1]
    elif hasattr(control, "max") and hasattr(control, "readout"):
        control.value = control.max
"""


def execute(book: Path, out: Path | None, parameters: dict) -> None:
    """With a kernel as the engine starts it: others wait for ever while a cell's widgets talk."""
    how = {"cwd": str(FOLDER), "progress_bar": False, "kernel_name": "python3"}
    with book.with_suffix(".log").open("w") as log:
        how["kernel_manager_class"] = kernel_manager(log)
        papermill.execute_notebook(str(book), out and str(out), parameters, **how)


@pytest.fixture
def read(tiny_dataset, tmp_path):
    """read(stem, **parameters): execute a notebook as a reader would, preset tiny, and move its
    sliders and menus to the other end; it must be quiet."""

    def through(stem: str, **parameters) -> Path:
        book = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)
        book.cells.append(nbformat.v4.new_code_cell(MOVE))
        nbformat.write(book, target := tmp_path / "read.ipynb")
        execute(target, target, {"preset": "tiny", "dataset": tiny_dataset} | parameters)
        return quiet(target)

    return through


@pytest.mark.parametrize("code", methods.METHODS)
def test_run_notebook_leaves_a_complete_result_with_figures_and_recap(code, made):
    result = made[code]
    assert result.keys() >= KEYS and result["status"] == "done" and result["method"] == code
    json.dumps([result["metrics"], result["timings"]], allow_nan=False)  # fails for NaN, infinity
    assert 0 <= result["threshold"] <= 1
    everything, cost = result["metrics"]["all"], result["cost"]
    assert everything["n"] == everything["n_real"] + everything["n_fake"]
    assert cost["file_bytes"] == (result["folder"] / result["deployed"]).stat().st_size
    assert 0 < cost["latency_ms"]["p50"] <= cost["latency_ms"]["p95"]
    written = {p.name for p in result["folder"].iterdir()}
    assert {"notebook.ipynb", "model.safetensors", "predictions.parquet", "log.txt"} <= written
    assert not {"checkpoint.pt", "failed.json", "notebook.new.ipynb"} & written
    notebook = quiet(result["folder"] / "notebook.ipynb")
    assert figures(notebook) >= 3
    assert f"{everything['auroc']:.3f}" in recap(notebook) and "interval" in recap(notebook)


def test_each_method_costs_what_it_must(made):
    costs = pd.DataFrame({code: result["cost"] for code, result in made.items()}).T
    full, params = costs.loc["BL"], costs["params"] / costs.loc["BL", "params"]
    assert (params[["CPF", "CQ", "TL+FT", "TL+FT+Q", "TL+P+FT"]] == 1).all()
    tenth = params[["CPF-S", "SCRATCH", "CPKDQ", "chain", "CKD"]]
    assert tenth.tolist() == pytest.approx([0.1] * 5, rel=0.01)
    assert params["CKD-0"] == params["CKD"]
    file, macs = costs["file_bytes"] / full["file_bytes"], costs["macs"] / full["macs"]
    assert macs["CPF"] == 1 and file["CPF"] == pytest.approx(1, rel=1e-3)  # zeros gain nothing
    assert costs.loc["CPF", "nonzero"] / full["params"] == pytest.approx(0.1, abs=1e-3)
    assert costs.loc["CPF", "gzip_bytes"] < 0.5 * full["gzip_bytes"]
    assert macs["CPF-S"] < 0.15 and file["CPF-S"] < 0.11 and file["CKD"] < 0.2
    assert file["CQ"] < 1 and file["CPKDQ"] < 0.035
    int8 = {code for code, result in made.items() if result["deployed"] == "model.int8.onnx"}
    assert int8 == {"CQ", "CQ-S", "TL+FT+Q", "CPKDQ", "chain"}
    assert made["SCRATCH"]["parents"] == [made[m]["run_id"] for m in ("BL", "CPF-S")]
    pair = [models.load(made[m]["folder"] / "model.safetensors").arch for m in ("SCRATCH", "CPF-S")]
    assert pair[0] == pair[1]


def test_transfers_name_their_source_and_ship_what_they_trained(made, tiny_source):
    for code, result in made.items():
        assert result["source"] == (tiny_source if code.startswith("TL") else None)
    cost = {code: result["cost"] for code, result in made.items()}
    full = cost["BL"]["params"]
    assert cost["BL"]["trainable_params"] == full
    assert cost["TL+FT+Q"]["trainable_params"] == cost["CQ"]["trainable_params"] == 0
    assert 0 < cost["TL+P+A"]["trainable_params"] < 0.02 * full
    for code, base in (("TL+P+A", "TL+P+FT"), ("TL+KD+A", "TL+KD")):
        assert cost[code]["trainable_params"] == cost[code]["params"] - cost[base]["params"]
        assert cost[code]["shipped_bytes"] < 0.05 * cost[base]["file_bytes"]
    for code in ("TL+FT", "TL+P+FT", "TL+P+A", "TL+KD+A"):
        delta = made[code]["folder"] / "delta.safetensors"
        assert cost[code]["shipped_bytes"] == delta.stat().st_size
        assert made[code]["timings"]["transfer_s"] > 0
    assert cost["TL+FT+Q"]["shipped_bytes"] == cost["TL+FT+Q"]["file_bytes"]


def test_a_source_without_a_trained_model_is_trained_first_and_that_is_said(begun, tiny_source):
    run, said = begun
    there = run.parent("BL")
    assert there.spec.dataset == tiny_source and there.finished
    missing = f"needs {there.spec.run_id}, which is not there yet: making it first (02_base"
    assert len(said) == 1 and missing in said[0]


def test_a_transferred_pruned_model_keeps_its_zeros(made):
    folders = [made["TL+P+FT"]["spec"].parents[0].folder]
    folders += [made["TL+P+FT"]["folder"], made["TL+P+A"]["folder"]]
    pruned, tuned, adapted = (models.load(f / "model.safetensors").state_dict() for f in folders)
    moved = 0
    for name, w in pruned.items():
        if w.ndim > 1 and not name.startswith("head.6"):
            assert not tuned[name][w == 0].any() and not adapted[name][w == 0].any(), name
            moved += int((tuned[name] != w).sum())
    assert moved > 0


def test_a_second_execution_finds_the_first(made):
    for result in made.values():
        assert engine.execute(result["spec"])["seconds"] == 0


@pytest.mark.parametrize("code", [codes[-1] for codes in METHODS.values()])
def test_the_cells_tagged_result_are_what_makes_it(code, made, tmp_path, monkeypatch):
    """They alone give the same weights and scores: nothing else needs to be in the run's id."""
    spec, finished = made[code]["spec"], made[code]["folder"]
    there = [parent.folder for parent in spec.parents]
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path))
    for parent, folder in zip(spec.parents, there, strict=True):
        shutil.copytree(folder, parent.folder)
    book = nbformat.read(spec.notebook, as_version=4)
    code = [c for c in book.cells if c.cell_type == "code"]
    tags = [{"parameters", "result"} & {*c.metadata.get("tags", [])} for c in code]
    start = tags.index({"parameters"})  # what comes before are the imports
    book.cells = [c for i, c in enumerate(code) if i < start or tags[i]]
    nbformat.write(book, tmp_path / "bare.ipynb")
    execute(tmp_path / "bare.ipynb", None, spec.parameters())
    assert spec.folder != finished and spec.finished()
    scores = [pd.read_parquet(f / "predictions.parquet")["score"] for f in (spec.folder, finished)]
    np.testing.assert_array_equal(*scores)


ASIDES = [path.stem for path in ALL if '"aside"' in path.read_text()]


@pytest.mark.parametrize("stem", ASIDES)
def test_experiments_are_left_out_of_a_batch_and_run_by_hand(stem, made, read):
    result = next(r for r in made.values() if r["spec"].notebook.stem == stem)
    batch = nbformat.read(result["folder"] / "notebook.ipynb", as_version=4)
    left_out = [c.id for c in batch.cells if "left out of batches" in c.source]
    by_hand = nbformat.read(read(stem, **result["spec"].parameters()), as_version=4)
    tagged = [c for c in by_hand.cells if "aside" in c.metadata.tags]
    assert [c.id for c in tagged] == left_out
    assert any(c.outputs for c in tagged) and runs.read(result["folder"])["status"] == "done"


@pytest.mark.parametrize("stem", READERS)
def test_readers_show_the_runs(stem, made, read, tiny_source):
    text = json.dumps(outputs(read(stem, **{"source": tiny_source} if stem[:2] == "13" else {})))
    assert all(result["run_id"] in text or stem == "13_compare" for result in made.values())
    assert stem != "13_compare" or f"**{len(made)}** runs to compare" in text


@pytest.mark.parametrize("stem", [*READERS, "14_generalization"])
def test_readers_say_what_to_do_without_runs(stem, read, tmp_path, monkeypatch):
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "nothing"))
    monkeypatch.setenv("DFLIB_DATA", str(tmp_path / "nothing"))
    text = json.dumps(outputs(read(stem, preset="demo", dataset="demo")))
    assert "python -m dflib study --preset demo --dataset demo" in text


def test_the_data_notebook_audits_what_is_there(read):
    book = read("01_data", sample=30)
    assert figures(book) == 5
    assert "240 usable images of 3 kinds" in recap(book) and "0.0% under `strict`" in recap(book)


def test_the_generalization_notebook_measures_the_gap(outputs_folder, tiny_dataset, read):
    settings = {"train_generators": "nearest", "latency_runs": 1}
    fold = {"preset": "tiny", "dataset": tiny_dataset, "settings": settings}
    plan = engine.plan(**fold, methods_=("BL", "CPF", "CKD"))
    for s in plan:  # of networks that were not trained
        runs.Run(s).finish(lived_in(models.student(s.rate or 0.6, size=32), seed=len(s.run_id)))
    book = read("14_generalization", grid="jpeg-50,blur-1")
    assert figures(book) >= 9
    told = recap(book)
    assert "Against BL, seen: **" in told and f"{len(plan)} runs with unseen generators" in told
    for place in ("seen", "unseen"):  # with both measures of the verdict
        duel = rf"Distillation, {place}, 90%: CKD AUROC .+, balanced accuracy .+ against CPF"
        assert re.search(duel, told), told
    scored = lambda s, name: pd.read_parquet(s.folder / f"{name}.parquet")
    auroc = lambda t: roc_auc_score(t["label"], t["score"])
    rated = [s for s in plan if s.method != "BL"]
    best = max(rated, key=lambda s: auroc(scored(s, "validation")))
    unseen = auroc(scored(best, "predictions").query("generator != 'nearest'"))
    assert f"**{best.method}** is best on validation images" in told
    assert f"unseen {unseen:.3f}" in told
    assert all((s.folder / "robustness.parquet").exists() for s in plan if s.method != "CKD-0")


def test_the_edge_notebook_exports_a_finished_run(made, read):
    book = read("15_edge", method="CKD", rate=0.9, fresh=False)
    assert figures(book) >= 3
    assert made["CKD"]["run_id"] in recap(book) and "this Python, isolated" in recap(book)


def test_the_sweep_notebook_makes_what_is_missing_and_shows_the_grid(made, read, tiny_dataset):
    book = read("17_sweep", chosen="BL", start=True)
    assert figures(book) == 3
    text = "".join(o["text"] for o in outputs(book) if o.get("name") == "stdout")
    assert "status 0: 2 of 2 done" in text and "python -m dflib study --grid " in text
    (other,) = engine.plan(preset="tiny", dataset=tiny_dataset, methods_=("BL",), seeds=(1,))
    assert other.finished()
    assert "the plan has **2**" in recap(book) and "2 of 2 done" in recap(book)
