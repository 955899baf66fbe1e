"""A study as its user sees it: how far it is, what a budget leaves, what is told and where."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import light
import pytest
from filelock import FileLock
from made import result
from test_study import kernels_below

from data_prep.errors import InputError
from dflib.__main__ import _seconds
from dflib.show import terminal
from dflib.study import engine, kernel, methods, runs
from dflib.study.progress import Progress, spoken


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_dataset) -> Path:
    return light.project(tmp_path_factory.mktemp("light"), result())


@pytest.fixture
def fresh(project, monkeypatch) -> Path:
    """The project, without outputs; plans of this process are its plans."""
    shutil.rmtree(project / "outputs", ignore_errors=True)
    monkeypatch.setenv("DFLIB_OUTPUTS", str(project / "outputs"))
    monkeypatch.setattr(runs, "NOTEBOOKS", project / "notebooks")
    return project


def words(dataset: str, *more: str) -> list[str]:
    return ["study", "--preset", "tiny", "--dataset", dataset, *more]


def finished(project: Path) -> list[str]:
    return sorted(p.parent.parent.name for p in project.glob("outputs/*/*/*/*/result.json"))


def test_a_study_goes_down_the_graph_and_says_what_failed(fresh, tiny_dataset):
    asked = words(tiny_dataset, "--methods", "BL,CPF,CKD", "--rates", "0.9")
    done = light.call(fresh, *asked, LIGHT_RAISES="CKD-0")
    assert done.returncode == 1 and done.stderr == ""
    assert finished(fresh) == ["BL", "CPF"]
    assert "2 of 4 done, 1 failed, 1 blocked (0 found finished)" in done.stdout
    assert "ValueError: CKD-0 cannot [/] be made" in " ".join(done.stdout.split())
    assert "--retry-failed" in done.stdout
    firsts = [line.partition(" ")[0] for line in done.stdout.splitlines()][:7]
    assert sorted(firsts) == ["blocked", "done", "done", "failed", *["running"] * 3]
    assert "(0 of 4 done, 1 running, 3 waiting)" in done.stdout and "log.txt" in done.stdout
    again = light.call(fresh, *asked, "--retry-failed")
    assert again.returncode == 0, again.stdout
    assert "4 of 4 done (2 found finished)" in again.stdout
    assert (fresh / "outputs" / "report.html").exists()


@pytest.mark.parametrize(("kind", "helps"), [("died", False), ("error", True)])
def test_the_last_line_names_what_helps(fresh, tiny_dataset, kind, helps):
    p = engine.plan(preset="tiny", dataset=tiny_dataset, methods_=("BL",))
    record = {"run_id": p[0].run_id, "kind": kind, "error": "no more memory"}
    p[0].folder.mkdir(parents=True)
    (p[0].folder / "failed.json").write_text(json.dumps(record))
    outcomes = {p[0].run_id: kernel.outcome(p[0], "failed", "no more memory")}
    with terminal.console.capture() as said:
        assert terminal.unfinished(p, outcomes) == {"failed"}
    how = " with --retry-failed" if helps else ""
    last = f"Mend the cause, then run the same command{how}: finished runs are kept."
    assert said.get().splitlines()[-1] == last


def test_the_longest_chain_starts_first(fresh, tiny_dataset):
    asked = words(tiny_dataset, "--methods", "CPF,CKD", "--rates", "0.6")
    done = light.call(fresh, *asked, cores=1)  # so there is one worker
    ended = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("done ")]
    order = ["BL", "CKD-0", "CKD", "CPF"]  # a child takes its parent's place
    assert [run.partition("-r")[0].partition("-s0")[0] for run in ended] == order


def test_what_a_budget_does_not_reach_is_left_and_no_failure(fresh, tiny_dataset):
    cut = light.call(fresh, *words(tiny_dataset, "--methods", "CQ"), "--budget", "1s")
    assert cut.returncode == 3, cut.stdout + cut.stderr
    text = " ".join(cut.stdout.split())
    assert "0 of 2 done, 2 left" in text and "2 runs are left: the same command goes on" in text
    assert "not started: the budget does not reach" in text


def test_a_duration_has_a_unit():
    assert [_seconds(text) for text in ("8.5h", "90m", " 30s")] == [30600, 5400, 30]
    for text in ("-3h", "0m", "1h30m"):
        with pytest.raises(InputError, match="--budget .*e.g. 90s, 30m, 8.5h"):
            _seconds(text)


def test_watching_shows_a_study_that_runs_elsewhere_and_starts_nothing(
    fresh, tiny_dataset, monkeypatch
):
    monkeypatch.setenv("LIGHT_SECONDS", "1000")
    base, _ = engine.plan(preset="tiny", dataset=tiny_dataset, methods_=("CQ",))
    elsewhere = threading.Thread(target=engine.execute, args=(base,))
    elsewhere.start()
    while not (base.folder / "notebook.new.ipynb").exists():
        time.sleep(0.1)
    seen = light.call(fresh, *words(tiny_dataset, "--methods", "BL,CQ"), "--watch")
    assert seen.stdout.splitlines()[0] == "0 of 2 done, 1 running, 1 waiting"
    assert seen.stdout.splitlines()[1] == f"running {base.run_id}  log: {base.folder / 'log.txt'}"
    kernels_below(os.getpid())[0].kill()
    elsewhere.join()
    assert not finished(fresh)


def test_states_are_found_in_the_outputs_folder(tiny_dataset, outputs_root):
    asked = {"preset": "tiny", "dataset": tiny_dataset, "methods_": ("CPF", "CQ")}
    base, *rest = plan = engine.plan(**asked, rates=(0.6, 0.9))
    assert Progress(plan).look().summary() == "0 of 4 done, 4 waiting"
    base.folder.mkdir(parents=True)
    with FileLock(base.folder / "lock"):
        assert Progress(plan).look().running == [base.run_id]
    assert Progress(plan).look().running == []
    failed = {"run_id": base.run_id, "kind": "error", "error": "x"}
    (base.folder / "failed.json").write_text(json.dumps(failed))
    view = Progress(plan).look()
    assert view.summary() == "0 of 4 done, 1 failed, 3 blocked"
    (base.folder / "result.json").write_text("{}")  # damaged, so it is to be made again
    assert view.look().summary() == "0 of 4 done, 1 failed, 3 blocked"
    (base.folder / "result.json").write_text(json.dumps(result()))
    rest[0].folder.mkdir(parents=True)
    (rest[0].folder / "result.json").write_text(json.dumps(result()))
    assert view.look().summary() == "2 of 4 done, 2 waiting"


def test_the_time_left_is_learned_from_finished_runs(tiny_dataset, outputs_root):
    asked = {"preset": "tiny", "dataset": tiny_dataset, "methods_": ("CPF",)}
    base, *pruned = plan = engine.plan(**asked, rates=(0.6, 0.9))
    first = Progress(plan)
    assert first.summary(devices=1) == "0 of 3 done, 3 waiting; no run to learn from yet"
    base.folder.mkdir(parents=True)
    own = {"run_id": base.run_id, "dataset": base.dataset}
    own["params"] = methods.relevant("BL", base.settings)
    (base.folder / "result.json").write_text(json.dumps(result() | own))
    took = json.loads((base.folder / "result.json").read_text())["timings"]["total_s"]
    view = Progress(plan)
    assert view.guess(pruned[0]) == pytest.approx(took / 2)  # no CPF yet: one epoch against two
    longer = engine.plan(**asked, settings={"finetune_epochs": 4, "size": 64})[-1]
    assert view.guess(longer) == pytest.approx(4 * 4 * took / 2)
    view.start(pruned[0])
    own |= {"run_id": pruned[0].run_id, "method": "CPF", "timings": {"total_s": 200.0}}
    own["params"] = methods.relevant("CPF", pruned[0].settings)
    pruned[0].folder.mkdir(parents=True)
    (pruned[0].folder / "result.json").write_text(json.dumps(result() | own))
    view.end(pruned[0], {"status": "done", "seconds": 205.0})
    assert view.guess(pruned[1]) == 200 and view.guess(base) == pytest.approx(took)
    assert view.summary(devices=2) == "2 of 3 done, 1 waiting; about 2 min left on 2 devices"
    rows = [(row["state"], row["estimate"]) for row in view.rows()]
    assert rows == [("done", ""), ("done", ""), ("waiting", "3 min")]
    times = {0: "0 s", 89: "89 s", 91: "2 min", 5399: "1 h 30 min", 30600: "8 h 30 min"}
    assert {seconds: spoken(seconds) for seconds in times} == times


def test_a_table_shows_every_row_and_nothing_is_cut(capsys):
    rows = [{"run": f"CPF-r90-s{i}", "why": "x" * 190, "s": f"[{i}.0]"} for i in range(600)]
    terminal.show(rows, title="many")
    shown = capsys.readouterr().out
    assert all(row["run"] in shown and row["s"] in shown for row in rows)
    assert shown.count("x" * 190) == len(rows) and len(shown.splitlines()) == 602
