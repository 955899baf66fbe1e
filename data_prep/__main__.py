"""Command line: `python -m data_prep demo | folder PATH --name NAME | faces-140k | dogs-vs-cats | list`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from data_prep import dogs_vs_cats, faces_140k, folder, manifest, paths
from data_prep.errors import command_line

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
From = Annotated[Path | None, typer.Option("--from", help="folder where the files already are")]
console = Console()


@app.command()
def demo(seed: int = 0) -> None:
    """Make the offline demo data: photographs' patches against four small generators, and a source task for transfer learning."""
    from data_prep import demo as maker  # here, because it loads torch

    for table, name in zip(maker.prepare(seed=seed), ("demo", "demo-source"), strict=True):
        _show(table, name)


@app.command("folder")
def folder_(path: Path, name: Annotated[str, typer.Option(help="what to call the dataset")]) -> None:
    """Your own images: real/ and fake/<generator>/, optionally below train/, val/, test/."""
    _show(folder.prepare(path, name=name), name)


@app.command("faces-140k")
def faces_140k_(source: From = None, name: str = faces_140k.NAME) -> None:
    """140k Real and Fake Faces, in its Kaggle layout."""
    _show(faces_140k.prepare(source, name=name), name)


@app.command("dogs-vs-cats")
def dogs_vs_cats_(source: From = None, name: str = dogs_vs_cats.NAME) -> None:
    """Dogs vs cats, the paper's source task, in its Kaggle layout."""
    _show(dogs_vs_cats.prepare(source, name=name), name)


@app.command("list")
def list_() -> None:
    """Every dataset: here or not, how many images, how to get it."""
    table = Table("dataset", "images", "generators", "how to get it")
    for name in sorted({*paths.present(), *paths.HOW_TO_GET}):
        if name in paths.present():
            rows = manifest.load(name)
            ok = rows[rows["status"] == "ok"]
            table.add_row(
                name, f"{len(ok)}", ", ".join(sorted(ok["generator"].unique())), f"here: {paths.data_root() / name}"
            )
        else:
            table.add_row(name, "-", "", paths.HOW_TO_GET[name])
    console.print(table)


def _show(rows: pd.DataFrame, name: str) -> None:
    counts = manifest.counts(rows)
    table = Table(
        "label", "generator", *map(str, counts.columns), title=f"{name}: {paths.data_root() / name / 'manifest.csv'}"
    )
    for (label, generator), row in counts.iterrows():
        table.add_row(str(label), generator, *map(str, row))
    console.print(table)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command_line(app)
