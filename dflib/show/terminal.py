"""What a terminal shows: tables, and a study as it runs, at its end, from elsewhere."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from data_prep.errors import InputError, shown
from dflib.show.words import interval, run_label
from dflib.study import compare, engine, records, runs
from dflib.study.progress import Progress, spoken

# names are data: no markup, no emoji
_PLAIN = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
console = Console(width=None if sys.stdout.isatty() else 160, **_PLAIN)
# a notebook's `!python …` has a terminal, too
LIVE = sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ
SHOWN = 8  # runs in the live view
COLOURS = {"done": "green", "failed": "red", "blocked": "yellow", "left": "yellow"}


def show(rows: pd.DataFrame | list[dict], title: str) -> None:
    """Print a table whole, in blocks of columns that the terminal has room for, each with the
    first."""
    text = pd.DataFrame(rows).map(shown)
    first = text.columns[0]
    text = text.apply(lambda column: column.str.ljust(column.str.len().max()))
    text = text.set_index(first).rename_axis(index=None, columns=first)
    width = console.width if console.is_terminal else None
    console.print(f"{title}\n{text.to_string(justify='left', line_width=width)}")


def results(rows: pd.DataFrame) -> None:
    """Print finished runs (rows of `runs.results`)."""
    from dflib.show.report import table_rows

    if rows.empty:
        console.print("no finished runs yet: python -m dflib study --preset demo")
    else:
        what = "95 % intervals by bootstrap over scenes"
        for (dataset, protocol), these in rows.groupby(["dataset", "protocol"]):  # other tasks
            show(table_rows(these), f"finished runs on {dataset}, {protocol} ({what})")


def plan(p: engine.Plan) -> None:
    """Print what a study would make, and what that costs."""
    progress = Progress(p).look()
    words = {"done": "finished", "failed": "failed before"}
    rows = [row | {"state": words.get(row["state"], "to do")} for row in progress.rows()]
    show(rows, title=f"{len(rows)} runs")
    console.print(progress.summary(devices=1))


def study(p: engine.Plan, **options) -> dict[str, dict]:
    """Make a study (options: of `engine.run`) and tell of each run as it ends; the outcomes."""
    engine.prepare_data(p)
    progress = Progress(p)
    found = list(progress.state.values()).count("done")

    def end(s: runs.Spec, outcome: dict) -> None:
        progress.end(s, outcome)
        if outcome["seconds"] or outcome["status"] != "done":
            console.print(_line(s, outcome), markup=True)

    with _live(progress, transient=True):
        tell = {"on_start": progress.start, "on_outcome": end}
        outcomes = engine.run(p, **tell, **options)
    took = spoken(time.time() - progress.began)
    console.print(f"{len(p)} runs in {took}: {progress.summary()} ({found} found finished)")
    return outcomes


def watch(p: engine.Plan) -> None:
    """Show a study that runs elsewhere, until it is over; once, where nobody looks."""
    progress = Progress(p).look()
    with _live(progress):
        while LIVE and not progress.over:
            time.sleep(2)
            progress.look()
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


def _line(s: runs.Spec, outcome: dict) -> str:
    status = outcome["status"]
    text = f"[{COLOURS[status]}]{status:7}[/] {s.run_id}  "
    if status != "done":
        return text + escape(outcome["error"])
    values = runs.read(s.folder)["metrics"]["all"]
    scores = f"AUROC {values['auroc']:.3f}  "
    scores += f"balanced accuracy {values['balanced_accuracy']:.3f}"
    note = f"  ({escape(outcome['error'])})" if outcome["error"] else ""
    return f"{text}{spoken(outcome['seconds'])}  {scores}{note}"


def _live(progress: Progress, *, transient: bool = False) -> AbstractContextManager:
    options = {"console": console, "refresh_per_second": 1, "transient": transient}
    return Live(get_renderable=lambda: _view(progress), **options) if LIVE else nullcontext()


def _view(progress: Progress) -> Text:
    """The counts and the time left, then each run that goes on, with its log."""
    now, left = time.time(), progress.seconds()
    lines = [f"{progress.summary()} (after {spoken(now - progress.began)})"]
    for run in progress.running[:SHOWN]:
        rest = "" if left[run] is None else f", about {spoken(left[run])} left"
        path = progress.specs[run].folder / "log.txt"
        lines.append(f"{run}  {spoken(now - progress.since[run])}{rest}  {path}")
    return Text("\n".join(lines))


def tested(records: list[dict]) -> pd.DataFrame:
    """Records of `elsewhere.test` for reading, a row for each generator."""
    rows = []
    for record in records:
        about = {"run": record["run_id"], "trained on": record["trained_on"] or "unknown"}
        about |= {"tested on": f"{record['dataset']} ({record['part']})"}
        for name, found in record.get("metrics", {}).items():
            if name != "macro":
                text = lambda key, m=found: interval(m[key], m["ci95"][key])
                row = {"images": found["n"], "AUROC": text("auroc")}
                row["balanced accuracy"] = text("balanced_accuracy")
                rows.append(about | {"generator": name} | row)
        for key, title in {"false_alarms": "false alarms", "found": "fakes found"}.items():
            if key in record:
                share = interval(record[key]["value"], record[key]["ci95"])
                rows.append(about | {"images": record["n"], title: share})
    return pd.DataFrame(rows).fillna("")


def advice(outcomes: dict[str, dict]) -> None:
    """Which of a study's runs to take, how sure that is, how to run it; what its images tell."""
    from data_prep.audit import verdict_of  # slow to import, and needed here alone

    every = compare.load()
    made = [every[run] for run in outcomes if run in every]
    for dataset, protocol in sorted({(r["dataset"], r["protocol"]) for r in made}):
        best = records.best(r for r in made if (r["dataset"], r["protocol"]) == (dataset, protocol))
        try:
            told = _told(best, compare.baseline(best, every))
        except InputError as error:  # its scores are not there, say
            console.print(f"{dataset}: which run to take cannot be told: {error}")
            continue
        name = run_label(best["method"], best["rate"])
        console.print(f"{dataset}: take {name} ({told}), best on validation of the small files")
        console.print(f"  python -m dflib predict IMAGE --run {best['run_id']}")
        console.print(f"  audit: {verdict_of(dataset)}")


def _told(best: dict, base: dict | None) -> str:
    """A run's AUROC on seen and unseen generators, and what it is beside its BL."""
    quality = compare.combined([best])
    parts = [part for part in ("seen", "unseen") if part in quality] or ["all"]
    values = [(part, quality[part]["auroc"]) for part in parts]
    told = ", ".join(f"AUROC {part} {interval(x['mean'], x['ci95'])}" for part, x in values)
    if not base:
        return told
    smaller = base["cost"]["file_bytes"] / best["cost"]["file_bytes"]
    verdict = compare.verdict(compare.paired(best, base)["all"]).text
    return f"{told}, {smaller:.1f} times smaller than BL; {verdict}"
