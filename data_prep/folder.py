"""Your own images: `real/` and `fake/<generator>/`, optionally below `train/`, `val/` (or `valid/`) and `test/`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from data_prep import manifest
from data_prep.errors import InputError, choose

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
STRAY = (
    ".txt",
    ".md",
    ".csv",
    ".json",
    ".xml",
    ".html",
    ".pdf",
    ".md5",
    ".sha1",
    ".sha256",
    ".db",
    ".ini",
    ".log",
    ".py",
    ".zip",
)
log = logging.getLogger(__name__)


def prepare(path: Path | str, *, name: str) -> pd.DataFrame:
    """Scan a folder of images into the manifest of dataset `name`; the images stay where they are.

    Layout: `real/**`, `fake/<generator>/**` (images directly in `fake/` count as generator "fake"), optionally each below a split folder.
    Raises `InputError` for a missing folder, an unknown class folder (with the nearest valid name), or no images.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give the folder that holds real/ and fake/")
    return manifest.make(name, path, entries(path))


def entries(root: Path) -> Iterator[dict]:
    """One dict per file (path, label, generator, split, group), as `manifest.make` takes them."""
    top = {f.name.lower(): f for f in subfolders(root)}
    if set(top) & set(SPLITS):
        _report(sorted(f.name for f in root.iterdir() if f.is_file()), root)
        for folder in top.values():
            choose(
                "split folder",
                folder.name.lower(),
                SPLITS,
                hint=f"Found below {root}; class folders stand inside the split folders.",
            )
            yield from classes(root, folder, split=SPLITS[folder.name.lower()], read=_real_or_fake)
    else:
        yield from classes(root, root, split="", read=_real_or_fake)


def classes(
    root: Path, folder: Path, *, split: str, read: Callable[[tuple[str, ...]], tuple[int, str]]
) -> Iterator[dict]:
    """Walk `folder`; `read` maps a file's folders below it to (label, generator), or raises `InputError`.

    Scenes: files with the same stem are one scene (Synthbuster's convention), within a split where the folders give splits.
    """
    for here, files in _listed(folder, classes_only=True):
        label, generator = read(here.relative_to(folder).parts)
        below, scene = here.relative_to(root).as_posix(), f"{split}/" if split else ""
        start = "" if below == "." else f"{below}/"
        for file in files:  # strings, no paths: this loop is most of what a repeated scan costs
            group = scene + (file.rpartition(".")[0] or file)
            yield {
                "path": start + file,
                "label": label,
                "generator": generator,
                "split": split,
                "group": group,
            }


def row(root: Path, file: Path, label: int, generator: str, split: str, group: str) -> dict:
    """One entry as `manifest.make` takes them."""
    path = file.relative_to(root).as_posix()
    return {"path": path, "label": label, "generator": generator, "split": split, "group": group}


def walk(folder: Path) -> Iterator[Path]:
    """Every file below that may be an image, sorted; a folder that links back above itself is not entered twice.

    Left out, and counted in the log: hidden files, and those of `STRAY` kinds.
    """
    for here, files in _listed(folder):
        yield from map(here.joinpath, files)


def _listed(folder: Path, *, classes_only: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """As `walk`, each folder with the names of its files (none without any); classes_only leaves out files that lie beside class folders."""
    seen: set[str] = set()
    strays: list[str] = []
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        beside = classes_only and Path(here) == folder and bool(folders)
        kept = (
            []
            if beside
            else [f for f in files if not f.startswith(".") and not f.lower().endswith(STRAY)]
        )
        if len(kept) < len(files):
            strays += [
                str((Path(here) / f).relative_to(folder)) for f in sorted({*files} - {*kept})
            ]
        if kept:
            yield Path(here), sorted(kept)
    _report(strays, folder)


def _report(strays: list[str], folder: Path) -> None:
    if strays:
        log.warning("%d stray file(s) below %s left out (e.g. %s)", len(strays), folder, strays[0])


def subfolders(folder: Path) -> list[Path]:
    """Folders directly below, hidden ones left out, sorted."""
    with os.scandir(
        folder
    ) as found:  # knows folders from files without asking about each of 100,000
        return sorted(Path(f.path) for f in found if f.is_dir() and not f.name.startswith("."))


def _real_or_fake(parts: tuple[str, ...]) -> tuple[int, str]:
    if not parts:
        raise InputError(
            "images stand directly in the folder: put real photographs into real/ and each generator's images into fake/<generator>/"
        )
    kind = choose(
        "class folder",
        parts[0].lower(),
        ["real", "fake"],
        hint="Layout: real/, fake/<generator>/, optionally below train/, val/, test/.",
    )
    if kind == "real":
        return 0, "real"
    return 1, parts[1] if len(parts) > 1 else "fake"
