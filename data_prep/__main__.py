"""Prepare datasets: python -m data_prep demo | folder | list | audit | a published dataset."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Column, Table

from data_prep import folder, lists, manifest, paths, sources
from data_prep.errors import command_line, shown

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False
)
From = Annotated[Path | None, typer.Option("--from", help="folder where the files already are")]
Images = Annotated[Path, typer.Option(help="folder that the list's paths start from")]
Name = Annotated[str, typer.Option(help="what to call the dataset")]
Force = Annotated[bool, typer.Option("--force", help="replace a dataset made from other images")]
Scene = Annotated[str, typer.Option(help="stem, parent, file or a regular expression with a group")]
LeaveOut = Annotated[list[str] | None, typer.Option(help="a folder that is not read; repeatable")]
Sample = Annotated[int, typer.Option(min=20, help="images looked at per generator")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1)]
PerClass = Annotated[int, typer.Option(min=1, help="images of each class, where a set is streamed")]
width = None if sys.stdout.isatty() else 160
console = Console(width=width, markup=False, emoji=False, highlight=False)  # names are data


@app.command()
def demo(seed: Seed = 0, force: Force = False) -> None:
    """Make the offline demo data: photographs against four small generators, and a source task."""
    from data_prep import demo as maker  # here, because it loads torch

    tables = maker.prepare(seed=seed, force=force)
    for table, name in zip(tables, ("demo", "demo-source"), strict=True):
        _show(table, name)


@app.command("folder")
def folder_(
    path: Path, name: Name, scene: Scene = "", leave_out: LeaveOut = None, force: Force = False
) -> None:
    """Your own images: real/ and fake/<generator>/, optionally with train/, val/, test/; or in
    the layout of a published set: {0_real,1_fake}, {nature,ai}, training_{real,fake}."""
    how = {"scene": scene, "leave_out": leave_out or (), "force": force}
    _show(folder.prepare(path, name=name, **how), name)


@app.command("list-file")
def list_file(
    file: Path,
    images: Images,
    name: Name,
    path_column: str = "path",
    label_column: str = "label",
    generator_column: str = "generator",
    split_column: str = "split",
    scene_column: str = "scene",
    scene: Scene = "",
    force: Force = False,
) -> None:
    """Images that a CSV or parquet file lists: path and label; generator, split, scene if told."""
    given = (path_column, label_column, generator_column, split_column, scene_column)
    columns = dict(zip(lists.COLUMNS, given, strict=True))
    _show(lists.prepare(file, images, name=name, columns=columns, scene=scene, force=force), name)


@app.command()
def huggingface(
    source: str,
    name: Name,
    image_column: str = "image",
    label_column: str = "label",
    generator_column: str = "",
    split: str = "train",
    per_class: PerClass = 1000,
    force: Force = False,
) -> None:
    """A set of the Hugging Face hub, or a local folder of parquet files, streamed."""
    columns = (image_column, label_column, generator_column)
    options = {"split": split, "per_class": per_class, "force": force}
    _show(lists.huggingface(source, name=name, columns=columns, **options), name)


def _add(source: sources.Source) -> None:
    @app.command(source.name, help=f"{source.title}: {source.size}. {source.address}")
    def published(
        given: From = None,
        name: Name = source.name,
        per_class: PerClass = 1000,
        force: Force = False,
    ) -> None:
        _show(sources.prepare(source, given, name=name, per_class=per_class, force=force), name)


for _source in sources.SOURCES.values():
    _add(_source)


@app.command("list")
def list_() -> None:
    """Every dataset: here or not, usable images, licence, size, address."""
    titles = ("dataset", "here", "usable images", "licence", "size", "address")
    # never cut what a user will copy
    table = Table(*(Column(title, overflow="fold") for title in titles), show_lines=True)
    present = paths.present()
    for name in sorted({*present, *paths.HOW_TO_GET}):
        row = ["no", f"get it: {paths.HOW_TO_GET.get(name)}", "", "", "made here"]
        if name in present:
            usable = int((manifest.load(name)["status"] == "ok").sum())
            licence = paths.describe(name).get("licence", "")
            row = ["yes", str(usable), licence, "", str(paths.data_root() / name)]
        if source := sources.SOURCES.get(name):
            row[2:] = source.licence, source.size, source.address
        table.add_row(name, *row)
    console.print(table)


@app.command()
def audit(name: str, sample: Sample = 300) -> None:
    """Look for give-aways, copies, shared scenes: outputs/audit-NAME.html, .json, a verdict."""
    from data_prep import audit_page  # here, because it loads scipy, scikit-learn and seaborn

    found, page = audit_page.write(name, sample=sample)
    console.print(found.verdict, f"page: {page}", sep="\n", soft_wrap=True)


def _show(rows: pd.DataFrame, name: str) -> None:
    counts = manifest.counts(rows).reset_index()
    title = f"{name}: {paths.data_root() / name / 'manifest.csv'}"
    table = Table(*(Column(c, overflow="fold") for c in counts.columns), title=title)
    for row in counts.itertuples(index=False):
        table.add_row(*map(shown, row))
    console.print(table)
    todo = f"study --preset {'demo' if name == 'demo' else 'quick'} --dataset"
    todo = "test --run best --dataset" if rows["label"].nunique() == 1 else todo
    todo = "study --methods TL+FT --source" if paths.describe(name)["kind"] == "source" else todo
    console.print(f"next: python -m dflib {todo} {name}", soft_wrap=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command_line(app)
