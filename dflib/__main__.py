"""Command line: `python -m dflib study | results | predict | export | leak`."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from data_prep.errors import InputError, choose, command_line

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False
)
LONG = 500  # rows: a table of more is plain text
LIVE = (
    sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ
)  # a terminal, and not a notebook's (`!python …` has one too)
console = Console(width=None if sys.stdout.isatty() else 160)


def _list(text: str | None, kind: type = str) -> tuple | None:
    """A comma-separated option."""
    if text is None:
        return None
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(
            f"{text!r} is not a list of {kind.__name__}s separated by commas: e.g. 0.6,0.9"
        ) from error


def _settings(pairs: list[str]) -> dict:
    """KEY=VALUE options; values are JSON where they can be, else text."""
    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair!r}: expected KEY=VALUE, e.g. --set epochs=5")
        try:
            result[key] = json.loads(
                {"True": "true", "False": "false", "None": "null"}.get(value, value)
            )
        except json.JSONDecodeError:
            result[key] = value
    return result


def _seconds(option: str, text: str | None) -> float | None:
    """A duration such as 90s, 30m, 8.5h."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*)([smh])", text.strip())
    if not match or not float(match[1]):
        raise InputError(f"{option} {text!r}: expected a number with its unit, e.g. 90s, 30m, 8.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


@app.command()
def study(
    grid: Annotated[
        Path | None, typer.Option(help="YAML file of these options; those beside it count more")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny | demo (unless given) | paper")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="name of a prepared dataset, or several: a,b")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="name of the dataset that transfers start from")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="e.g. BL,CPF,CKD,CQ")] = None,
    rates: Annotated[
        str | None, typer.Option(help="shares of parameters removed, e.g. 0.6,0.9")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="e.g. 0,1,2")] = None,
    protocol: Annotated[str | None, typer.Option(help="strict (unless given) | paper")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE: any setting of the preset")
    ] = None,
    folds: Annotated[
        str | None, typer.Option(help="leave-one-out | one-to-all: of the training generators")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="show how far it is, run elsewhere; start nothing")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="try runs again that raised or took too long")
    ] = False,
    timeout: Annotated[
        str | None, typer.Option(help="most that one run may take: 90s, 30m, 2h")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="stop after 8.5h, 90m or 30s; the same command goes on")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="address of an existing Dask cluster, tcp://…")
    ] = None,
) -> None:
    """Make every run of a grid that is not there yet; then the table and outputs/report.html.

    Exit status: 0 all runs are done; 1 some failed or are blocked; 2 bad input; 3 the budget is used up, and nothing failed.
    """
    began, seconds = time.monotonic(), _seconds("--budget", budget)
    from dflib.study import engine
    from dflib.study import grid as grid_file
    from dflib.study.methods import method as find_method
    from dflib.study.methods import preset as find_preset

    options = grid_file.read(grid) if grid else {}
    own = {
        "preset": preset,
        "dataset": _list(dataset),
        "source": source,
        "protocol": protocol,
        "methods": _list(methods),
        "folds": folds,
        "rates": _list(rates, float),
        "seeds": _list(seeds, int),
    }
    options |= {key: value for key, value in own.items() if value is not None}
    options["set"] = options.get("set", {}) | _settings(set_ or [])
    limit = _seconds("--timeout", timeout)
    engine.check(**grid_file.request(options))  # before a minute goes into the demo data
    if not (dry_run or watch):
        usual = find_preset(options.get("preset", "demo"))
        transfers = any(
            find_method(code).transfers for code in options.get("methods") or usual.methods
        )
        source = [options.get("source") or usual.source] if transfers else []
        _ensure_demo(*(options.get("dataset") or (usual.dataset,)), *source)
    plan = grid_file.plan(options)
    if dry_run:
        _print_plan(plan, engine.estimate(plan))
        return
    if watch:
        _watch(plan)
        return
    rest = None if seconds is None else max(0.0, seconds - (time.monotonic() - began))
    outcomes = _run_with_progress(
        engine, plan, scheduler=scheduler, retry_failed=retry_failed, timeout=limit, budget=rest
    )
    _print_results(*sorted({s.dataset for s in plan}), only={s.run_id for s in plan})
    from dflib.show import report

    try:
        console.print(f"report: {report.write()}")
    except OSError as error:  # a full disk, say: the runs and the table stand
        console.print(f"[red]no report:[/] {error}", highlight=False)
    bad = [o for o in outcomes.values() if o["status"] != "done"]
    if bad:
        _print_bad(plan, bad)
        raise typer.Exit(3 if all(o["status"] == "left" for o in bad) else 1)


@app.command()
def results(
    dataset: str | None = None,
    csv: Annotated[Path | None, typer.Option(help="write all columns to this file")] = None,
    html: Annotated[Path | None, typer.Option(help="write the report to this file")] = None,
) -> None:
    """The table of all finished runs."""
    from data_prep.paths import HOW_TO_GET, present
    from dflib.study.runs import folders

    found = folders()
    if dataset:
        choose(
            "dataset",
            dataset,
            sorted({*present(), *HOW_TO_GET, *(f.parents[2].name for f in found)}),
        )
    _print_results(*([dataset] if dataset else []), csv=csv)
    if html:
        from dflib.show import report

        wanted = [f.name for f in found if dataset in (None, f.parents[2].name)]
        console.print(f"report: {report.write(html, only=wanted)}")


@app.command()
def robustness(
    dataset: Annotated[str | None, typer.Option(help="all finished runs on it")] = None,
    run: Annotated[
        list[str] | None, typer.Option(help="run id or run folder; may be given more than once")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="e.g. jpeg-75,blur-2,screenshot-0.5; without it the usual grid"),
    ] = None,
) -> None:
    """Finished runs on test images that were re-encoded, blurred, resized, cropped, made noisy; kept beside each run, for notebook 14."""
    from dflib.study import robustness as grids
    from dflib.study.runs import find, folders, read

    chosen = [find(name) for name in run or ()] or [
        f for f in folders() if dataset in (None, read(f)["dataset"])
    ]
    if not chosen:
        raise InputError("no finished runs yet: python -m dflib study --preset demo")
    grids.measure(
        chosen,
        _list(grid) or grids.GRID,
        on_run=lambda folder: console.print(f"{folder / grids.FILE}"),
    )


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="images or folders")],
    run: Annotated[str, typer.Option(help="run id, run folder, .safetensors or .onnx file")],
    csv: Annotated[
        Path | None, typer.Option(help="write path, probability and label to this file")
    ] = None,
) -> None:
    """Probability of fake, label and threshold of images, by any finished run."""
    from dflib.edge.predict import Predictor, files

    predictor = Predictor(run)
    rows = [predictor(path) | {"path": str(path)} for path in files(images)]
    if csv:
        import pandas as pd

        pd.DataFrame(rows)[["path", "probability", "label", "threshold", "error"]].to_csv(
            csv, index=False
        )
    table = Table(
        "image", "P(fake)", "label", title=f"{predictor.name}, threshold {predictor.threshold:.3f}"
    )
    for row in rows:
        table.add_row(
            row["path"],
            "" if row["error"] else f"{row['probability']:.4f}",
            row["error"] or row["label"],
            style="red" if row["error"] else None,
        )
    console.print(table)
    if all(row["error"] for row in rows):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[str, typer.Option(help="run id or run folder")],
    format: Annotated[str, typer.Option(help="onnx | onnx-int8 | executorch")],  # noqa: A002
    out: Annotated[Path, typer.Option(help="file to write; ONNX gets a predict.py beside it")],
    page: Annotated[
        bool, typer.Option("--page", help="and a web page that runs it in the browser")
    ] = False,
) -> None:
    """A finished run's model as a file for another machine, checked against the run on the whole test set."""
    from dflib.edge.files import FORMATS, export_run
    from dflib.study.runs import find, read

    if page and FORMATS.get(format) == ".pte":
        raise InputError("--page needs a format that a browser can run: onnx or onnx-int8")
    done = export_run(run, format=format, out=out)
    same = done["parity"]
    text = f"{done['file']}  {done['bytes'] / 1e6:.2f} MB  logits differ by {same['max_logit_difference']:.2g} at most, "
    console.print(
        text + f"{same['same_decisions']:.2%} of {same['images']} decisions are the same",
        highlight=False,
    )
    if done["flag"]:
        console.print(f"[yellow]{done['flag']}[/]")
    if page:
        from dflib.edge.page import write

        index = write(out, read(find(run)))
        console.print(
            f"{index}: to see it, python -m http.server --directory {index.parent}", highlight=False
        )


@app.command("leak")
def leak_(
    dataset: Annotated[str, typer.Argument(help="name of a prepared dataset")],
    size: Annotated[int, typer.Option(help="pixels a side")] = 64,
    mode: Annotated[str, typer.Option(help="resize | center_crop | texture_crop")] = "resize",
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    seeds: Annotated[str, typer.Option(help="each is a split and a training")] = "0,1,2,3,4",
    model: Annotated[str, typer.Option(help="BL, S60, S70, S80 or S90")] = "S60",
) -> None:
    """How much of a score is the protocol's: one detector under the random, the grouped and the strict split, and the gaps."""
    from dflib import train
    from dflib.study import leak

    def show(row: dict) -> None:
        console.print(
            f"seed {row['seed']}  {row['arm']:8} AUROC {row['auroc']:.3f}", highlight=False
        )

    recipe = train.Recipe(epochs=epochs)
    runs, gaps = leak.leak(
        dataset,
        size=size,
        mode=mode,
        model=model,
        seeds=_list(seeds, int),
        recipe=recipe,
        on_run=show,
    )
    table = Table("gap", *leak.METRICS, title=f"{dataset}: mean over seeds [95 % interval]")
    for gap, (a, b) in leak.GAPS.items():
        cells = [gaps[gap][m] for m in leak.METRICS]
        bounds = [
            f" [{c['ci95'][0]:+.3f}, {c['ci95'][1]:+.3f}]" if c["ci95"] else "" for c in cells
        ]
        table.add_row(
            f"{gap}: {a} minus {b}",
            *(f"{c['mean']:+.3f}{b}" for c, b in zip(cells, bounds, strict=True)),
        )
    console.print(table, f"written to {leak.write(dataset, runs, gaps)}")


def _id(title: str) -> Column:
    """A column that never cuts what a user will copy."""
    return Column(title, overflow="fold")


def _ensure_demo(*datasets: str) -> None:
    from data_prep.paths import dataset_folder, present

    for name in datasets:
        if name not in ("demo", "demo-source"):
            dataset_folder(name)  # a wrong name is told before anything is made
    if {"demo", "demo-source"} & set(datasets) - set(present()):
        from data_prep import demo

        console.print("making the offline demo data (about a minute) …")
        demo.prepare()


def _run_with_progress(engine, plan, **options) -> dict:
    """The engine, with a live view in a terminal; a log file has a line for each run."""
    from rich.live import Live

    from dflib.study.progress import Progress, Report, spoken

    started, refresh = time.perf_counter(), Report()
    engine.prepare_data(plan)
    guess = engine.estimates(plan)
    progress = Progress(plan, guess)
    found = sum(state == "done" for state in progress.state.values())
    with (
        Live(get_renderable=progress.render, console=console, refresh_per_second=1, transient=True)
        if LIVE
        else nullcontext()
    ):

        def show(spec, outcome: dict) -> None:
            progress.end(spec, outcome)
            if outcome["seconds"] or outcome["status"] != "done":
                refresh()
                console.print(_line(spec, outcome), highlight=False, soft_wrap=True)

        outcomes = engine.run(
            plan,
            guess=guess,
            on_start=progress.start,
            on_outcome=show,
            on_dashboard=lambda link: setattr(progress, "dashboard", link),
            **options,
        )
    refresh.wait()
    console.print(
        f"{len(plan)} runs in {spoken(time.perf_counter() - started)}: {progress.summary()} ({found} found finished)",
        highlight=False,
    )
    return outcomes


def _watch(plan) -> None:
    """Show a study that runs elsewhere, until nothing of it runs or waits; once, where nobody looks."""
    from rich.live import Live

    from dflib.study.progress import Progress

    progress = Progress(plan).look()
    if LIVE:
        with Live(get_renderable=progress.render, console=console, refresh_per_second=1):
            while not progress.over:
                time.sleep(2)
                progress.look()
    console.print(progress.summary(), highlight=False)
    for run in progress.running:
        console.print(
            f"running {run}  log: {progress.specs[run].folder / 'log.txt'}",
            highlight=False,
            soft_wrap=True,
        )


def _line(spec, outcome: dict) -> str:
    from dflib.study.progress import STATES, spoken
    from dflib.study.runs import read

    mark = f"[{STATES[outcome['status']]}]{outcome['status']:7}[/]"
    if outcome["status"] != "done":
        return f"{mark} {spec.run_id}  {escape(outcome['error'])}"
    values = read(spec.folder)["metrics"]["all"]
    return f"{mark} {spec.run_id}  {spoken(outcome['seconds'])}  accuracy {values['accuracy']:.3f}  AUROC {values['auroc']:.3f}"


def _show(
    head: list[str], rows: list[list[str]], *, title: str, folded: int = 1, plain: bool = False
) -> None:
    """A table whose first `folded` columns are never cut; a long one as plain text, which takes a tenth of the time."""
    if len(rows) < LONG and not plain:
        columns = [*map(_id, head[:folded]), *head[folded:]]
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows])
    console.file.write("\n".join([title, *lines, ""]))


def _print_plan(plan, estimates: dict) -> None:
    rows, known = [], []
    for s in plan:
        seconds, finished = estimates[s.run_id], s.finished()
        known += [] if finished else [seconds]
        state = "finished" if finished else "failed before" if s.failure() else "to do"
        estimate = (
            ""
            if finished
            else "no run to learn from yet"
            if seconds is None
            else f"{seconds:.0f} s"
        )
        rows.append([s.run_id, ", ".join(p.run_id for p in s.parents), state, estimate])
    _show(["run", "parents", "state", "estimate"], rows, title=f"{len(plan)} runs", folded=2)
    if known and None not in known:
        console.print(f"to do: {len(known)} runs, about {sum(known) / 60:.0f} min on one device")


def _print_bad(plan, bad: list[dict]) -> None:
    folders = {s.run_id: s.folder for s in plan}
    logs = {
        o["run_id"]: str(folders[o["run_id"]] / "log.txt") if o["status"] == "failed" else ""
        for o in bad
    }
    rows = [[o["run_id"], o["status"], o["error"], logs[o["run_id"]]] for o in bad]
    _show(["run", "status", "why", "log"], rows, title="not finished")
    if left := sum(o["status"] == "left" for o in bad):
        console.print(f"The budget is used up, {left} runs are left: the same command goes on.")
    if any(o["status"] == "failed" for o in bad):
        console.print(
            "Mend the cause, then run the same command with --retry-failed: finished runs are kept."
        )


def _print_results(*datasets: str, csv: Path | None = None, only: set[str] | None = None) -> None:
    import pandas as pd

    from dflib.show.report import table_rows
    from dflib.study.runs import results as all_results

    rows = pd.concat([all_results(d) for d in datasets]) if datasets else all_results()
    if only is not None and len(rows):
        rows = rows[rows["run_id"].isin(only)]
    if rows.empty:
        console.print("no finished runs yet: python -m dflib study --preset demo")
        return
    if csv:
        rows.to_csv(csv, index=False)
    shown = table_rows(rows).astype(str)
    widths = [3 + max(map(len, (title, *shown[title]))) for title in shown]
    fit = (
        sum(width < console.width for width in accumulate(widths))
        if console.is_terminal
        else len(widths)
    )
    shown = shown.iloc[:, : max(1, fit)]
    title = "finished runs (95 % intervals by bootstrap over scenes)"
    _show([*shown], shown.to_numpy().tolist(), title=title, plain=not console.is_terminal)
    if fit < len(widths):
        console.print(
            f"{len(widths) - fit} more columns in a wider terminal, in a file (results --csv FILE) and in the report"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    command_line(app)
