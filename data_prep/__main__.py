"""Command line: `python -m data_prep demo | folder PATH --name NAME | synthbuster | raise | forensynths | faces-140k | deepfake-real | dogs-vs-cats | list | audit NAME`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Column, Table

from data_prep import (
    deepfake_real,
    dogs_vs_cats,
    faces_140k,
    folder,
    forensynths,
    manifest,
    paths,
    raise_,
    synthbuster,
)
from data_prep.errors import command_line

MODULES = (synthbuster, raise_, forensynths, faces_140k, deepfake_real, dogs_vs_cats)
SOURCES = {module.SOURCE.name: module.SOURCE for module in MODULES}

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False
)
From = Annotated[Path | None, typer.Option("--from", help="folder where the files already are")]
Name = Annotated[
    str | None, typer.Option(help="what to call the dataset; its usual name by default")
]
console = Console(width=None if sys.stdout.isatty() else 160)


@app.command()
def demo(seed: int = 0) -> None:
    """Make the offline demo data: photographs' patches against four small generators, and a source task for transfer learning."""
    from data_prep import demo as maker  # here, because it loads torch

    for table, name in zip(maker.prepare(seed=seed), ("demo", "demo-source"), strict=True):
        _show(table, name)


@app.command("folder")
def folder_(
    path: Path, name: Annotated[str, typer.Option(help="what to call the dataset")]
) -> None:
    """Your own images: real/ and fake/<generator>/, optionally below train/, val/, test/."""
    _show(folder.prepare(path, name=name), name)


def _add(module) -> None:
    source = module.SOURCE

    @app.command(source.name, help=f"{source.title}: {source.size}. {source.address}")
    def command(given: From = None, name: Name = None) -> None:
        _show(module.prepare(given, name=name), name or source.name)


for _module in MODULES:
    if _module is not forensynths:
        _add(_module)


@app.command(
    "forensynths",
    help=f"{forensynths.SOURCE.title}: {forensynths.SOURCE.size}. {forensynths.SOURCE.address}",
)
def forensynths_(
    given: From = None,
    name: Name = None,
    everything: Annotated[
        bool, typer.Option("--all", help="all 13 test generators, all ProGAN classes")
    ] = False,
) -> None:
    _show(
        forensynths.prepare(given, name=name, everything=everything),
        name or forensynths.SOURCE.name,
    )


@app.command("list")
def list_() -> None:
    """Every dataset: here or not, images per split and generator, licence, size, address, how to get it."""
    name_, address = (
        Column(title, overflow="fold") for title in ("dataset", "address")
    )  # never cut what a user will copy
    table = Table(
        name_, "here", "images per split and generator", "licence", "size", address, show_lines=True
    )
    for name in sorted({*paths.present(), *paths.HOW_TO_GET}):
        source, here = SOURCES.get(name), name in paths.present()
        licence = (
            source.licence if source else paths.describe(name).get("licence", "") if here else ""
        )
        table.add_row(
            name,
            "yes" if here else "no",
            _per_generator(manifest.load(name)) if here else f"get it: {paths.HOW_TO_GET[name]}",
            licence,
            source.size if source else "",
            source.address if source else str(paths.data_root() / name) if here else "made here",
        )
    console.print(table)


@app.command("audit")
def audit_(
    name: str,
    sample: Annotated[int, typer.Option(min=20, help="images looked at per generator")] = 300,
) -> None:
    """Look for give-aways, copies and shared scenes: outputs/audit-NAME.html and .json, and a verdict."""
    from data_prep import audit  # here, because it loads scipy, scikit-learn and matplotlib

    found, page = audit.write(name, sample=sample)
    console.print(found.verdict, f"page: {page}", sep="\n", highlight=False, soft_wrap=True)


def _per_generator(rows: pd.DataFrame) -> str:
    counts = manifest.counts(rows)
    return "\n".join(
        f"{generator}: " + ", ".join(f"{n} {split}" for split, n in row.items() if n)
        for (_, generator), row in counts.iterrows()
    )


def _show(rows: pd.DataFrame, name: str) -> None:
    counts = manifest.counts(rows)
    table = Table(
        "label",
        "generator",
        *map(str, counts.columns),
        title=f"{name}: {paths.data_root() / name / 'manifest.csv'}",
    )
    for (label, generator), row in counts.iterrows():
        table.add_row(str(label), generator, *map(str, row))
    console.print(table)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command_line(app)
