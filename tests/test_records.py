"""Damaged run folders: every reader names one, leaves it out and goes on."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import mutated, python

from dflib.show import explorer, report, terminal
from dflib.study import compare, engine, methods, records, robustness, runs, tables
from dflib.study.progress import Progress

BROKEN = "predictions.parquet is damaged"
REASON = {  # what happened to the folder: what is said of it
    "no json": ("result.json", b"{", "Invalid JSON"),
    "empty": ("result.json", b"", "Invalid JSON"),
    "zeros": ("result.json", b"\0" * 4000, "Invalid JSON"),
    "other json": ("result.json", b"[1, 2]", "should be an object"),
    "deep json": ("result.json", b"[" * 100_000, "result.json is damaged"),
    "a folder": ("result.json", None, "not a regular file"),
    "cut parquet": ("predictions.parquet", b"PAR1 and no more", BROKEN),
    "empty parquet": ("predictions.parquet", b"", BROKEN),
    "parquet as a folder": ("predictions.parquet", None, BROKEN),
}
TABLES = {
    "no row": lambda table: table[:0],
    "one class": lambda table: table[table["label"] == 1],
    "numbers": lambda table: table.assign(generator=1),
    "nothing": lambda table: table.assign(group=None),
    "half of nothing": lambda table: table.assign(path=table["path"].where(table["label"] == 1)),
    "lists": lambda table: table.assign(group=[["a"]] * len(table)),
    "labels as text": lambda table: table.assign(label=table["label"].astype(str)),
    "scores above 1": lambda table: table.assign(score=table["score"] + 5),
}
REASON |= {kind: ("predictions.parquet", table, BROKEN) for kind, table in TABLES.items()}


def victim(outputs: Path) -> Path:
    (file,) = outputs.glob("*/*/CPF/*/result.json")
    return file.parent


def damage(file: Path, contents) -> None:
    """contents: bytes, another table in place of the file's, or None: a folder."""
    if callable(contents):
        contents(runs.predictions(file.parent)).to_parquet(file)
        return
    file.unlink()
    file.mkdir() if contents is None else file.write_bytes(contents)


def every_reader(outputs: Path) -> str:
    """Ask everything that reads runs; the report's text."""
    terminal.results(runs.results())
    every = compare.load()
    for study in explorer.studies():
        for run_id in study.results:
            explorer.cards(study, run_id)
    Progress(engine.plan(preset="tiny", dataset="tiny-set", methods_=("CQ",))).look()
    assert len(every) >= 3
    return report.write(outputs / "r.html").read_text()


@pytest.mark.parametrize("kind", REASON)
def test_a_damaged_run_is_named_and_the_others_are_shown(own_outputs, undrawn, kind, caplog):
    folder, (name, contents, reason) = victim(own_outputs), REASON[kind]
    damage(folder / name, contents)
    page = every_reader(own_outputs)
    assert folder.name not in page and "4 finished" not in page and "3 finished runs" in page
    said = [m for m in caplog.messages if m.startswith(f"left out: {folder}: ")]
    assert said and all(reason in m and len(m) < len(str(folder)) + 250 for m in said)


NUMBERS = [None, True, -1, 0, 1.5, 10**30]
JUNK = st.sampled_from([*NUMBERS, "", "x", "1e999", "<b>", "a" * 9999, [], [None], {}, {"x": None}])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_whatever_changes_in_a_result_no_reader_falls(explorer_outputs, own_outputs, undrawn, draw):
    file = victim(own_outputs) / "result.json"
    whole = (victim(explorer_outputs) / "result.json").read_text()
    file.write_text(draw.draw(mutated(whole, JUNK)))
    every_reader(own_outputs)


def test_figures_are_drawn_of_odd_but_possible_numbers(own_outputs):
    file = victim(own_outputs) / "result.json"
    result = json.loads(file.read_text())
    cost = result["cost"] | {"file_bytes": 1, "macs": 1, "peak_rss_mb": None}
    cost["latency_ms"] |= {"p50": 1e-9, "p95": 1e8}
    result["metrics"]["all"] |= {"auroc": None, "f1": None}
    file.write_text(json.dumps(result | {"cost": cost}))
    assert "4 finished runs" in every_reader(own_outputs)


def test_a_damaged_run_is_refused_in_one_line_where_it_is_asked_for(own_outputs, tmp_path):
    folder = victim(own_outputs)
    damage(folder / "result.json", b'{"threshold": "high"}')
    for words in (
        ("predict", "x.png", "--run", folder.name),
        ("export", "--run", str(folder), "--format", "onnx", "--out", str(tmp_path / "m.onnx")),
    ):
        done = python("-m", "dflib", *words)
        assert done.returncode == 2 and done.stdout == "", done
        assert done.stderr.count("\n") == 1 and "result.json is damaged" in done.stderr
    assert [Path(r["folder"]).name for r in records.every() if r["method"] == "CPF"] == []
    assert not robustness.measured(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "predictions.parquet", "model.onnx"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "zeros", "garbage"])
def test_a_run_whose_files_are_damaged_is_not_done(own_outputs, name, how):
    folder = victim(own_outputs)
    assert records.whole(folder)
    whole = (folder / name).read_bytes()
    contents = {"empty": b"", "cut": whole[:-100], "zeros": bytes(len(whole)), "garbage": b"x" * 99}
    (folder / name).unlink() if how == "missing" else (folder / name).write_bytes(contents[how])
    assert not records.whole(folder)
    records.clear(folder)  # and all that came with it is made again
    assert [p.name for p in folder.iterdir() if p.name not in ("lock", "log.txt")] == []


def test_older_runs_are_named_and_never_combined_with_newer_ones(own_outputs, undrawn):
    base = runs.read(next(own_outputs.glob("*/*/BL/*")))
    codes = {"code": base["code"]}, {"schema": 1}, {"code": base["code"] | {"train": 0}}
    for seed, code in enumerate(codes, 1):
        folder = base["folder"].with_name(f"BL-s{seed}-32px-{seed:08d}")
        shutil.copytree(base["folder"], folder)
        changed = {k: v for k, v in base.items() if k not in ("folder", "code")}
        changed |= {"seed": seed, "run_id": folder.name} | code
        (folder / "result.json").write_text(json.dumps(changed))
    every = compare.load()
    groups = tables.by_seed(r for r in every.values() if r["method"] == "BL")
    assert sorted([r["seed"] for r in group] for group in groups) == [[0, 1], [2], [3]]
    older = {r["seed"] for r in every.values() if records.older(r)}
    assert older == {2, 3}
    child = next(r for r in every.values() if r["method"] == "CPF")
    orphan = child | {"parents": []}
    for seed, found in ((0, base["run_id"]), (2, None), (3, None)):
        base_of = compare.baseline(orphan | {"seed": seed}, every)
        assert (base_of and base_of["run_id"]) == found
    rows = runs.results()
    table = report.table_rows(rows)["run"].tolist()
    assert sum("made by older code" in name for name in table) == 2
    page = report.write(own_outputs / "r.html").read_text()
    assert page.count("made by older code") >= 2
    titles = [study.title for study in explorer.studies()]
    assert sum(title.endswith("made by older code") for title in titles) == 2
    means = tables.over_seeds(every.values(), every)
    assert (means["settings"] == "made by older code").sum() == 2


def test_a_result_tells_the_code_that_made_it(own_outputs):
    result = runs.read(victim(own_outputs))
    assert result["schema"] == 2 and result["code"] == methods.versions("CPF")
    assert result["commit"] == "unknown" or len(result["commit"]) >= 7
    assert set(result["files"]) == {"model.safetensors", "predictions.parquet", "model.onnx"}


def test_the_commit_is_unknown_outside_git_and_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.paths, "PROJECT", tmp_path)
    commit = runs.commit.__wrapped__
    assert commit() == "unknown"
    (tmp_path / ".git").mkdir()
    assert commit() == "unknown"  # no repository
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"  # no git
