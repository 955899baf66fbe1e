"""Your own images, `real/` and `fake/<generator>/`; and the walk through any labelled folders."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from data_prep import manifest
from data_prep.errors import InputError, choose, shown
from data_prep.paths import subfolders

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_TEXTS = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".pdf", ".log")
STRAY = (*_TEXTS, ".md5", ".sha1", ".sha256", ".db", ".ini", ".py", ".zip")
Reader = Callable[[tuple[str, ...]], tuple[int, str]]  # from folders to label, generator
log = logging.getLogger(__name__)


def prepare(path: Path | str, *, name: str, force: bool = False) -> pd.DataFrame:
    """Scan a folder of images into the manifest of dataset `name`; the images stay where they are.

    Layout: `real/**`, `fake/<generator>/**` (images directly in `fake/` count as generator "fake"),
    each optionally below a split folder (`SPLITS`).
    Raises `InputError` for a missing folder, an unknown class folder, no images, and as
    `manifest.make` does: `force` replaces a dataset of this name.

    >>> prepare("my-images", name="mine")                            # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give the folder that holds real/ and fake/")
    return manifest.make(name, path, entries(path), force=force)


def entries(root: Path) -> Iterator[dict]:
    """One dict per file (path, label, generator, split, group), as `manifest.make` takes them."""
    top = {f.name.lower(): f for f in subfolders(root)}
    if not set(top) & set(SPLITS):
        yield from classes(root, root, split="", read=_real_or_fake)
        return
    _report(sorted(f.name for f in root.iterdir() if f.is_file()), root)
    hint = f"Found below {root}; class folders stand inside the split folders."
    for name, folder in top.items():
        split = SPLITS[choose("split folder", name, SPLITS, hint=hint)]
        yield from classes(root, folder, split=split, read=_real_or_fake)


def classes(
    root: Path, folder: Path, *, read: Reader, split: str = "", flat: bool = False
) -> Iterator[dict]:
    """Entries of all files below `folder`, which lies in `root`.

    read: from a file's folders below `folder` to (label, generator). flat: files beside folders
    there count; else they are strays. Files with the same stem are one scene (Synthbuster's
    convention), within a split where the folders give splits.
    """
    for here, files in _listed(folder, classes_only=not flat):
        label, generator = read(here.relative_to(folder).parts)
        below, scene = here.relative_to(root).as_posix(), f"{split}/" if split else ""
        start = "" if below == "." else f"{below}/"
        row = {"label": label, "generator": generator, "split": split}
        for file in files:  # strings, no paths: this loop is most of what a repeated scan costs
            yield {"path": start + file, **row, "group": scene + stem(file)}


def stem(file: str) -> str:
    """A file's name (or path) without its suffix."""
    return file.rpartition(".")[0] or file


def walk(folder: Path) -> Iterator[Path]:
    """Every file below that may be an image, sorted, and none twice because of a link.

    Left out, and told in the log: what is hidden, files of `STRAY` kinds, unreadable folders.
    """
    for here, files in _listed(folder):
        yield from map(here.joinpath, files)


def _listed(folder: Path, *, classes_only: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """As `walk`, by folder; classes_only: files beside class folders are strays."""
    seen: set[str] = set()
    strays: list[str] = []
    lost: list[str] = []  # folders, each with its reason
    unreadable = lambda error: lost.append(f"{error.filename}: {error.strerror}")
    for here, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(here)
        if real in seen:
            lost.append(f"{here}: a link to a folder that is walked already")
            folders.clear()
            continue
        seen.add(real)
        hidden = {f for f in folders if f.startswith(".")}
        lost += [f"{Path(here, f)}: hidden" for f in sorted(hidden)]
        folders[:] = sorted(set(folders) - hidden)
        beside = classes_only and Path(here) == folder and bool(folders)
        left = {f for f in files if beside or f.startswith(".") or f.lower().endswith(STRAY)}
        strays += [str((Path(here) / f).relative_to(folder)) for f in sorted(left)]
        if kept := sorted(set(files) - left):
            yield Path(here), kept
    _report(strays, folder)
    _report(lost, folder, "folder(s)")


def _report(left: list[str], folder: Path, what: str = "stray file(s)") -> None:
    if left:
        told = (len(left), what, shown(folder), shown(left[0]))
        log.warning("%d %s below %s left out (e.g. %s)", *told)
    for each in left[1:] if what == "folder(s)" else ():  # a whole folder is worth a line
        log.warning("left out: %s", shown(each))


def _real_or_fake(parts: tuple[str, ...]) -> tuple[int, str]:
    if not parts:
        how = "put real photographs into real/ and each generator's images into fake/<generator>/"
        raise InputError(f"images stand directly in the folder: {how}")
    hint = "Layout: real/, fake/<generator>/, optionally below train/, val/, test/."
    if choose("class folder", parts[0].lower(), ["real", "fake"], hint=hint) == "real":
        return 0, "real"
    return 1, parts[1] if len(parts) > 1 else "fake"
