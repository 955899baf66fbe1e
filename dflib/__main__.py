"""Command line: `python -m dflib study | results | predict | export | measure | …`."""

from __future__ import annotations

import logging
import os
import re
import signal
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from data_prep.errors import InputError, choose, command_line, short

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False
)


def _seconds(budget: str | None) -> float | None:
    """A duration such as 90s, 30m, 8.5h."""
    if budget is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*)([smh])", budget.strip())
    if not match or not float(match[1]):
        example = "expected a number with its unit, e.g. 90s, 30m, 8.5h"
        raise InputError(f"--budget {short(budget)}: {example}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _writable(option: typer.CallbackParam, file: Path | None) -> Path | None:
    """The file of an option, its folder made; `InputError` where it cannot be written: at once."""
    try:
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            there = file.exists()
            if file.is_file() and f".{option.name}" in {".csv", ".html"} - {file.suffix}:
                raise InputError(f"{file} is there, and no .{option.name}: give another file")
            how = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)  # a pipe would wait
            os.close(os.open(file, how))
            if not there:
                file.resolve().unlink()  # of a link that leads nowhere, what it leads to
    except OSError as error:
        what = f"{option.opts[-1]} {short(str(file))} cannot be written"
        raise InputError(f"{what}: {error.strerror}") from error
    return file


Written = Annotated[
    Path | None, Option(callback=_writable, help="write the table to this file, with all columns")
]


@app.command()
def study(
    grid: Annotated[Path | None, Option(help="YAML file of options; those here count more")] = None,
    preset: Annotated[str | None, Option(help="tiny | demo (unless given) | quick | paper")] = None,
    dataset: Annotated[str | None, Option(help="a prepared dataset, or several: a,b")] = None,
    source: Annotated[str | None, Option(help="the dataset that transfers start from")] = None,
    methods: Annotated[str | None, Option(help="e.g. BL,CPF,CKD,CQ")] = None,
    rates: Annotated[str | None, Option(help="shares of parameters removed: 0.6,0.9")] = None,
    seeds: Annotated[str | None, Option(help="e.g. 0,1,2")] = None,
    protocol: Annotated[str | None, Option(help="strict (unless given) | paper")] = None,
    set_: Annotated[list[str] | None, Option("--set", help="KEY=VALUE: any setting")] = None,
    folds: Annotated[str | None, Option(help="leave-one-out | one-to-all generators")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="print the plan and stop")] = False,
    watch: Annotated[bool, Option("--watch", help="show how far it is; start nothing")] = False,
    retry_failed: Annotated[bool, Option("--retry-failed", help="also what raised")] = False,
    budget: Annotated[str | None, Option(help="stop after 8.5h, 90m; goes on next time")] = None,
    scheduler: Annotated[str | None, Option(help="an existing Dask cluster, tcp://…")] = None,
    device: Annotated[str | None, Option(help="cpu: leave the GPUs of this machine alone")] = None,
    test_on: Annotated[str | None, Option(help="then test each run on these, too: a,b")] = None,
) -> None:
    """Make every run of a grid that is not there yet; then the table and outputs/report.html.

    Exit status: 0 all runs are done; 1 some failed or are blocked; 2 bad input; 3 the budget is
    used up, and nothing failed.
    """
    limit = _seconds(budget)
    from dflib.study import doctor, forks

    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = {"cpu": ""}[choose("device", device, ("cpu",))]
    if not (dry_run or watch or scheduler):
        forks.start()  # while this process does what comes before the first run
        doctor.need_machine()
    from data_prep import manifest
    from dflib.show import terminal
    from dflib.study import grid as grids

    options = grids.read(grid) if grid else {}
    given = {"preset": preset, "source": source, "protocol": protocol, "folds": folds}
    given |= {"dataset": dataset, "methods": methods, "rates": rates, "seeds": seeds}
    for key, value in given.items():
        if value is not None:
            options[key] = grids.entries(value, key) if key in grids.LISTS else value
    for pair in set_ or ():
        if "=" not in pair:
            raise InputError(f"--set {short(pair)}: expected KEY=VALUE, e.g. --set epochs=5")
    options["set"] = options.get("set", {}) | dict(pair.split("=", 1) for pair in set_ or ())
    others = grids.entries(test_on, "test-on") if test_on is not None else ()
    for name in others:
        manifest.load(name)  # is it there, before anything is trained?
    if dry_run or watch:
        return (terminal.plan if dry_run else terminal.watch)(grids.plan(options))
    plan = _planned(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as Ctrl-C does
    how = {"scheduler": scheduler, "retry_failed": retry_failed, "budget": limit}
    try:
        status = terminal.study(plan, test_on=others, **how)
    except KeyboardInterrupt:
        typer.echo("interrupted: finished runs are kept, and the same command goes on", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(status)


def _planned(options: dict) -> tuple:
    """The runs of a study; the demo data are made where they are all that is missing."""
    from data_prep import paths
    from dflib.study import grid

    try:
        return grid.plan(options)
    except InputError as error:
        if not str(error).endswith(paths.HOW_TO_GET["demo"]):
            raise
    from data_prep import demo

    typer.echo("making the offline demo data (about a minute) …")
    demo.prepare()
    return grid.plan(options)


@app.command()
def results(
    dataset: Annotated[str | None, Option(help="runs on it alone")] = None,
    csv: Written = None,
    html: Annotated[Path | None, Option(callback=_writable, help="write the report")] = None,
) -> None:
    """The table of all finished runs."""
    from data_prep.paths import HOW_TO_GET, present
    from dflib.show import report, terminal
    from dflib.study import runs

    if dataset is not None:
        known = {folder.parents[2].name for folder in runs.folders()}
        choose("dataset", dataset, sorted({*known, *present(), *HOW_TO_GET}))
    rows = runs.results(dataset)
    if csv and len(rows):
        terminal.save(rows, csv)
    terminal.results(rows)
    if html:
        only = rows["run_id"] if len(rows) else ()
        typer.echo(f"report: {report.write(html, only=only)}")


@app.command()
def predict(
    images: Annotated[list[str], Argument(help="images or folders")],
    run: Annotated[str, Option(help="run id, run folder, .safetensors or .onnx file")],
    csv: Written = None,
) -> None:
    """Probability of fake, label and threshold of images, by any finished run."""
    import pandas as pd

    from data_prep.paths import as_text
    from dflib.edge.predict import Predictor, files
    from dflib.show import terminal

    predictor = Predictor(run)
    there = [*files(map(Path, images))]
    rows = pd.DataFrame([{"path": as_text(path)} | predictor(path) for path in there])
    if csv:
        terminal.save(rows, csv)
    terminal.show(rows.round(4).astype(object).fillna(""), title=predictor.name)
    if rows["error"].notna().all():
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[str, Option(help="run id or run folder")],
    format: Annotated[str, Option(help="onnx | onnx-int8 | executorch")],  # noqa: A002 - its name
    out: Annotated[Path, Option(callback=_writable, help="file; ONNX: and a predict.py")],
    page: Annotated[bool, Option("--page", help="and a web page that runs it")] = False,
    force: Annotated[bool, Option("--force", help="replace files that are not its own")] = False,
) -> None:
    """A finished run's model as a file for another machine, checked on the whole test set."""
    from dflib.edge.files import export_run
    from dflib.export import told

    done = export_run(run, format=format, out=out, page=page, force=force)
    typer.echo(f"{done['file']}  {done['bytes'] / 1e6:.2f} MB  {told(done['parity'])}")
    if done["flag"]:
        typer.secho(done["flag"], fg="yellow")
    if page:
        typer.echo(f"index.html: to see it, python -m http.server --directory {out.parent}")


@app.command()
def measure(run: Annotated[str, Option(help="ids or folders, with commas between")]) -> None:
    """Time finished runs again, in turns, and rewrite their latency: then it can be compared."""
    from dflib.show import terminal
    from dflib.study import records
    from dflib.study.grid import entries

    rows = records.time_again(entries(run, "run"))
    terminal.show(rows, title="milliseconds an image; times of a busy machine tell nothing apart")


@app.command()
def test(
    run: Annotated[str, Option(help="ids, folders or model files, with commas between")],
    dataset: Annotated[str, Option(help="prepared datasets, with commas between")],
    part: Annotated[str | None, Option(help="test | val | all; else test where it has one")] = None,
) -> None:
    """Finished runs on data that they were not made for, at their own frozen threshold."""
    from dflib.edge import elsewhere
    from dflib.show import terminal
    from dflib.study.grid import entries

    runs, sets = entries(run, "run"), entries(dataset, "dataset")
    records = [elsewhere.test(r, d, split=part) for r in runs for d in sets]
    terminal.show(terminal.tested(records), title="at the threshold chosen where they were made")


@app.command()
def adopt(
    detector: Annotated[str, Argument(help="FILE.py:function, FILE.onnx, or scores: FILE.csv")],
    dataset: Annotated[str, Option(help="a prepared dataset: sets the threshold, and tests")],
    weights: Annotated[str, Option(help="of FILE.py:function; of scores: for its size")] = "",
    name: Annotated[str, Option(help="what it is called; else as its file")] = "",
    size: Annotated[int, Option(help="pixels a side")] = 224,
    mode: Annotated[str, Option(help="resize | center_crop | texture_crop")] = "resize",
    mean: Annotated[str, Option(help="of an ONNX file's pixels, e.g. 0.485,0.456,0.406")] = "0,0,0",
    std: Annotated[str, Option(help="of an ONNX file's pixels")] = "1,1,1",
    fake_index: Annotated[int, Option(help="the output that is for fakes, of an ONNX file")] = 1,
) -> None:
    """A detector that is there already, as a finished run that every method can start from."""
    from data_prep.manifest import check_name
    from dflib import backbones
    from dflib.edge import scores
    from dflib.edge.adopt import onnx_file
    from dflib.study.grid import entries

    file, _, function = detector.rpartition(":")
    name = name and check_name(name)
    if detector.lower().endswith((".csv", ".parquet")):
        model = Path(weights) if weights else None
        typer.echo(scores.adopt(Path(detector), dataset=dataset, name=name, model=model))
        return
    if detector.endswith(".onnx"):
        how = {"mean": entries(mean, "mean"), "std": entries(std, "std"), "name": name}
        backbone = onnx_file(Path(detector), size=size, fake_index=fake_index, **how)
    else:
        if not file.endswith(".py"):
            expected = "FILE.py:function, FILE.onnx, or scores in FILE.csv or .parquet"
            raise InputError(f"{short(detector)}: expected {expected}")
        backbone = f"{backbones.kept(Path(file), name)}:{function}"
    chosen = {"backbone": backbone, "size": size, "mode": mode, "epochs": 0}
    if weights:
        chosen["pretrained"] = backbones.kept(Path(weights))
    words = [f"{key}={value}" for key, value in chosen.items()]
    typer.echo("to compress it: python -m dflib study --preset quick --dataset " + dataset)
    typer.echo("  --methods BL,CQ,CQ-S " + " ".join(f"--set {word}" for word in words))
    study(preset="quick", dataset=dataset, methods="BL", set_=words, retry_failed=True)


@app.command()
def leak(
    dataset: Annotated[str, Argument(help="name of a prepared dataset")],
    size: Annotated[int, Option(min=32, max=2048, help="pixels a side")] = 64,
    epochs: Annotated[int, Option(min=1)] = 20,
    seeds: Annotated[str, Option(help="each is a split and a training")] = "0,1,2,3,4",
) -> None:
    """How much of a score is the protocol's, `paper` or `strict`, whatever split there is."""
    from dflib import train
    from dflib.show import terminal
    from dflib.study import compare
    from dflib.study import leak as leaks
    from dflib.study.grid import entries

    how = {"size": size, "recipe": train.Recipe(epochs=epochs)}
    _, gaps = leaks.leak(dataset, seeds=entries(seeds, "seeds"), **how)
    row = {"dataset": dataset} | {metric: compare.spoken(gap) for metric, gap in gaps.items()}
    terminal.show([row], title="protocol paper minus strict: mean over seeds [95 % interval]")


@app.command()
def settings(method: Annotated[str | None, Argument(help="what it reads")] = None) -> None:
    """What `--set KEY=VALUE` can change: type, default, range, what it is for, source."""
    from dflib.show import terminal
    from dflib.study.methods import setting_rows

    terminal.show(setting_rows(method), title=f"settings of {method or 'all methods'}")


@app.command()
def doctor() -> None:
    """What this machine has, and whether a study runs well on it (exit status 1: it would not)."""
    from dflib.show import terminal
    from dflib.study import doctor as machine

    rows = machine.examine()
    terminal.show(rows, title="this machine")
    raise typer.Exit(any(row["state"] == machine.FAULT for row in rows))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    command_line(app)
