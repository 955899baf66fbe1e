"""What a terminal shows: tables, and a study as it runs, at its end, from elsewhere."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from data_prep.errors import InputError, shown
from data_prep.paths import CSV, written
from dflib.show.words import intervals
from dflib.study import compare, engine, records, runs
from dflib.study.progress import Progress, spoken

# names are data: no markup, no emoji
_PLAIN = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
console = Console(width=None if sys.stdout.isatty() else 160, **_PLAIN)


def show(rows: pd.DataFrame | list[dict], title: str) -> None:
    """Print a table whole, in blocks of columns that the terminal has room for."""
    text = pd.DataFrame(rows).map(shown)
    first = text.columns[0]
    text = text.apply(lambda column: column.str.ljust(column.str.len().max()))
    text = text.set_index(first).rename_axis(index=None, columns=first)
    width = console.width if console.is_terminal else None
    console.print(f"{title}\n{text.to_string(justify='left', line_width=width)}")


def save(rows: pd.DataFrame, csv: Path) -> None:
    """Write a table to a file, which stays as it was where that fails; into a pipe as it comes."""
    whole = csv.is_file() or not csv.exists()
    with written(csv.resolve()) if whole else csv.open("w", newline="") as new:
        rows.to_csv(new, **CSV)


def results(rows: pd.DataFrame) -> None:
    """Print finished runs (rows of `runs.results`)."""
    from dflib.show.report import table_rows

    if rows.empty:
        console.print("no finished runs yet: python -m dflib study --preset demo")
    else:
        what = "95 % intervals by bootstrap over scenes; of latency: five processes"
        for (dataset, protocol), these in rows.groupby(["dataset", "protocol"]):  # other tasks
            unseen = sorted({*",".join(these["unseen"].dropna()).split(",")} - {""})
            too = f"; of all generators, unseen ones too: {', '.join(unseen)}" * bool(unseen)
            show(table_rows(these), f"finished runs on {dataset}, {protocol} ({what}{too})")


def plan(p: engine.Plan) -> None:
    """Print what a study would make, and what that costs."""
    progress = Progress(p).look()
    words = {"done": "finished", "failed": "failed before"}
    rows = [row | {"state": words.get(row["state"], "to do")} for row in progress.rows()]
    show(rows, title=f"{len(rows)} runs")
    console.print(progress.summary(devices=1))


def study(p: engine.Plan, *, test_on: Sequence[str] = (), **options) -> int:
    """Make a study (options: of `engine.run`), test its runs on other sets, and tell of it all; the
    exit status: 0 done, 1 something failed, 3 the budget is used up."""
    outcomes = _made(p, once=True, **options)
    from dflib.show import explorer, report  # seconds, in which the runs have begun long ago

    _time_in_turns(outcomes)
    _test_elsewhere(outcomes, test_on)
    rows = runs.results()
    results(rows[rows["run_id"].isin(outcomes)] if len(rows) else rows)
    try:
        console.print(f"explorer: {explorer.write()}\nreport: {report.write()}")
    except (OSError, InputError) as error:  # a full disk, say: the runs and the table stand
        console.print(f"no report: {error}")
    advice(outcomes)
    states = unfinished(p, outcomes)
    return 0 if not states else 3 if states == {"left"} else 1


def _made(p: engine.Plan, **options) -> dict[str, dict]:
    """Make the runs, and tell of each; the outcomes."""
    engine.prepare_data(p)
    progress = Progress(p)
    before = list(progress.state.values()).count("done")

    def start(s: runs.Spec) -> None:
        progress.start(s)
        console.print(f"running {s.run_id}  {s.folder / 'log.txt'}  ({progress.summary()})")

    def end(s: runs.Spec, outcome: dict) -> None:
        progress.end(s, outcome)
        text, error = f"{outcome['status']:7} {s.run_id}  ", outcome["error"]
        if outcome["status"] != "done":
            console.print(text + error)
        elif outcome["seconds"]:
            found = runs.read(s.folder)["metrics"]["all"]
            scores = "  ".join(f"{name} {found[k]:.3f}" for k, name in compare.JUDGED.items())
            note = f"  ({error})" if error else ""
            console.print(f"{text}{spoken(outcome['seconds'])}  {scores}{note}")

    outcomes = engine.run(p, on_start=start, on_outcome=end, **options)
    took = spoken(time.time() - progress.began)
    console.print(f"{len(p)} runs in {took}: {progress.summary()} ({before} found finished)")
    return outcomes


def _time_in_turns(outcomes: dict[str, dict]) -> None:
    """Runs that were made side by side disturbed each other's times: now one by one."""
    rows = runs.results()
    rows = rows[rows["run_id"].isin(outcomes)] if len(rows) else rows
    once = rows["run_id"][rows["latency_low_ms"].isna()] if len(rows) else ()
    made = {run for run in rows.get("run_id", ()) if outcomes[run]["seconds"]} | {*once}
    if len(made) > 1 or len(once):
        console.print(f"timing the files of {len(made)} runs in turns, now that nothing else runs")
        try:
            records.time_again(sorted(made))
        except InputError as error:  # the runs stand, with the times from when they were made
            console.print(f"not timed again: {error}")


def _test_elsewhere(outcomes: dict[str, dict], test_on: Sequence[str]) -> None:
    """Finished runs that tell real from fake, on other sets; what is there already is kept."""
    from dflib.edge import elsewhere

    every, made = compare.load() if test_on else {}, []
    for run in outcomes:
        for name in test_on if every.get(run, {}).get("classes") == ["real", "fake"] else ():
            try:
                made.append(elsewhere.known(run, name) or elsewhere.test(run, name))
            except InputError as error:
                console.print(f"{run} was not tested on {name}: {error}")
    if made:
        show(tested(made), title="at the threshold of each run's own dataset")


def watch(p: engine.Plan) -> None:
    """Print how far a study is that runs elsewhere."""
    progress = Progress(p).look()
    console.print(progress.summary())
    for run in progress.running:
        console.print(f"running {run}  log: {progress.specs[run].folder / 'log.txt'}")


def unfinished(p: engine.Plan, outcomes: dict[str, dict]) -> set[str]:
    """Print which runs are not done, why, and what to do; their states."""
    bad = [outcomes[s.run_id] | {"log": s.folder / "log.txt"} for s in p]
    bad = pd.DataFrame(bad).query("status != 'done'").drop(columns="seconds")
    if len(bad):
        show(bad, title="not finished")
    if left := sum(bad["status"] == "left"):
        console.print(f"The budget is used up, {left} runs are left: the same command goes on.")
    failed = [s for s in p if outcomes[s.run_id]["status"] == "failed"]
    if failed:  # what died is tried again by itself
        kept = any((s.failure() or {"kind": "died"})["kind"] != "died" for s in failed)
        how = "the same command with --retry-failed" if kept else "the same command"
        console.print(f"Mend the cause, then run {how}: finished runs are kept.")
    return set(bad["status"])


def tested(records: list[dict]) -> pd.DataFrame:
    """Records of `elsewhere.test` for reading, a row for each generator."""
    from dflib.edge import elsewhere

    rows = pd.DataFrame([row for record in records for row in elsewhere.rows(record)])
    rows = rows[rows["generator"] != "macro"]
    table = {"run": rows["run_id"], "trained on": rows["trained_on"].replace("", "unknown")}
    table |= {"tested on": rows["dataset"] + " (" + rows["part"] + ")"}
    table |= {"generator": rows["generator"], "images": rows["n"]}
    figures = {title: name for name, title in elsewhere.FIGURES.items() if name in rows}
    table |= {title: intervals(rows, name) for title, name in figures.items()}
    return pd.DataFrame(table)


def advice(outcomes: dict[str, dict]) -> None:
    """Which of a study's runs to take, how sure that is, how to run it; what its images tell."""
    from data_prep.audit import verdict_of  # slow to import, and needed here alone
    from dflib.show import report

    for about, rows in report.sections([*compare.load().values()]):
        if not {*rows["run_id"]} & {*outcomes}:
            continue
        title, best = about["title"], about["answer"]
        if "unknown" in best:
            console.print(f"{title}: which run to take cannot be told: {best['unknown']}")
            continue
        guesses = "; BL is not shown to beat guessing: the report tells what may help"
        told = f"AUROC {best['auroc']}{guesses * best['guesses']}"
        if best["base"]:
            told += f"; {best['smaller']:.1f} times smaller than BL; {best['told']}"
        small = " of the small files" if best.get("smaller", 0) >= 4 else ""
        console.print(f"{title}: take {best['name']} ({told}), best on validation{small}")
        console.print(f"  python -m dflib predict IMAGE --run {best['run_id']}")
        console.print(f"  audit: {verdict_of(about['dataset'])}")
