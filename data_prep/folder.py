"""Folders of labelled images: one table of the layouts that are known, and the walk through them."""

import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep import manifest
from data_prep.errors import InputError, choose, shown
from data_prep.paths import by_structure, is_junk, subfolders

# a folder's name, in lower case -> the split, and the generator where the name tells it
SPLITS = {"train": ("train", ""), "test": ("test", ""), "cnn_synth_testset": ("test", "")}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), ("val", ""))
SPLITS |= {"progan_train": ("train", "progan"), "progan_val": ("val", "progan")}
STRAY = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".pdf", ".log", ".py", ".zip")
STRAY += (".md5", ".sha1", ".sha256", ".db", ".ini")
DEPTH = 6  # of the search for a layout: Kaggle's four folders, and the archive's own
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How the folders above a file tell its label, generator and split (`SPLITS`).

    labels: class folder, in lower case -> label and generator ("": another folder's name).
    above: that other folder is the first below the class folder (None), or stands above it, with
    so many folders of classes between.
    """

    title: str
    labels: dict[str, tuple[int, str]]
    above: int | None = None


def _layout(title: str, real: str, fake: str, above: int | None = None) -> Layout:
    return Layout(title, {real: (0, "real"), fake: (1, "")}, above)


LAYOUTS = (
    _layout("real/, fake/<generator>/, optionally below train/, val/, test/", "real", "fake"),
    _layout("training_real/, training_fake/<generator>/", "training_real", "training_fake"),
    _layout("ForenSynths-like, <generator>/<class>/{0_real,1_fake}/", "0_real", "1_fake", 1),
    _layout("GenImage-like, <generator>/{train,val}/{nature,ai}/", "nature", "ai", 0),
)


def prepare(
    path: Path | str, *, name: str, leave_out: Collection[str] = (), force: bool = False
) -> pd.DataFrame:
    """Scan a folder of images into the manifest of dataset `name`; the images stay where they are.

    Its layout is one of `LAYOUTS`, in any case, also some folders deeper. leave_out: names of
    folders that are not read. Raises `InputError` for a missing folder, an unknown class folder, no
    images, and as `manifest.make` does: `force` replaces a dataset of this name.

    >>> prepare("my-images", name="mine")                            # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give the folder that holds real/ and fake/")
    root, layout = recognised(path)
    return manifest.make(name, root, entries(root, layout, leave_out=leave_out), force=force)


def recognised(path: Path) -> tuple[Path, Layout]:
    """The folder that a layout of `LAYOUTS` starts from, at or below `path`, and this layout."""

    def layout_of(folder: Path) -> Layout | None:
        names = {f.name.lower() for f in subfolders(folder)}
        return next((known for known in LAYOUTS if names & known.labels.keys()), None)

    holder = next(by_structure(path, layout_of, depth=DEPTH), None)
    if holder is None:
        can = "; ".join(known.title for known in LAYOUTS)
        found = ", ".join(shown(f.name) for f in subfolders(path)[:5]) or "no folders"
        what = f"no class folder below {path} (there: {found}): images have no label"
        raise InputError(f"{what}. Layouts that can be read: {can}")
    layout = layout_of(holder)
    while layout.above is None and path != holder and len(below := subfolders(path)) == 1:
        if below[0].name.lower() in SPLITS:
            break
        path = below[0]  # one folder too deep
    return path, layout


def entries(
    root: Path, layout: Layout, *, only: Collection[str] = (), leave_out: Collection[str] = ()
) -> Iterator[dict]:
    """One dict per file below `root`, as `manifest.make` takes them. only: folders directly in it.

    Files with the same stem are one scene (Synthbuster's convention), within a split where the
    folders give splits; where numbers start again in each generator's folder, each file is one.
    Raises `InputError` for a folder that is neither a class, a split nor a generator.
    """
    found = []
    for here, files in _listed(root, labels=layout.labels, only=only, leave_out=leave_out):
        parts = here.relative_to(root).parts
        words = [part.lower() for part in parts]
        at = next((i for i, word in enumerate(words) if word in layout.labels), None)
        splits = [SPLITS[word] for word in words[:at] if word in SPLITS]
        above = [part for part in parts[:at] if part.lower() not in SPLITS and part not in only]
        _check(root, parts, at, layout, above, len(files))
        found.append((parts, at, splits, above, files))
    deepest = max((len(above) for _, _, _, above, _ in found), default=0)
    rows = []
    for parts, at, splits, above, files in found:
        label, generator = layout.labels[parts[at].lower()]
        split = splits[0][0] if splits else ""
        row = {"label": label, "split": split, "testset": ""}
        if layout.above is None:
            below = [part for part in parts[at:] if part.lower() != parts[at].lower()]
            own = below[0] if below else "fake"
        else:
            known = [name for _, name in splits if name]
            place = max(0, deepest - 1 - layout.above)
            own = (known or above[place:] or above[-1:] or ["fake"])[0]
            row["testset"] = "" if split in ("train", "val") else own  # has reals of its own
        row["generator"] = generator or own
        start = "/".join(parts)
        scene = f"{split}/" if split and layout.above is None else ""
        scene = f"{start}/" if layout.above is not None else scene
        for file in files:  # strings, no paths: this loop is most of what a repeated scan costs
            rows.append({"path": f"{start}/{file}", **row, "group": scene + stem(file)})
    given = {row["split"] for row in rows}
    if "val" in given and "train" not in given:
        log.warning("%s has no train part: val trains instead", shown(root))
        rows = [row | {"split": "train"} if row["split"] == "val" else row for row in rows]
    generators = sorted({row["generator"] for row in rows if row["label"]})
    told = (shown(root), layout.title, len(generators), shown(", ".join(generators[:5])))
    log.info("%s read as: %s; %d generator(s) (%s)", *told)
    yield from rows


def _check(
    root: Path, parts: tuple[str, ...], at: int | None, layout: Layout, above: list[str], n: int
) -> None:
    """Raise `InputError` for a folder with files that the layout does not know."""
    hint = f"Layout: {layout.title}. Found below {root}."
    if at is None and not parts:
        how = "put real photographs into real/ and each generator's images into fake/<generator>/"
        raise InputError(f"images stand directly in the folder: {how}")
    if at is None and not above:
        what = f"{'/'.join(parts)}/ below {root} holds {n} file(s) without a class folder"
        raise InputError(f"{what}: give them one, or leave them out with --leave-out {parts[0]}")
    if at is None:
        choose("class folder", above[0].lower(), layout.labels, hint=hint)
    elif above and layout.above is None:
        choose("split folder", above[0].lower(), SPLITS, hint=hint)


def stem(file: str) -> str:
    """A file's name (or path) without its suffix."""
    return file.rpartition(".")[0] or file


def walk(folder: Path) -> Iterator[Path]:
    """Every file below that may be an image, sorted, and none twice because of a link.

    Left out, and told in the log: what is hidden or a system's own (`paths.is_junk`), files of
    `STRAY` kinds, unreadable folders.
    """
    for here, files in _listed(folder):
        yield from map(here.joinpath, files)


def _listed(
    folder: Path,
    *,
    labels: Collection[str] = (),
    only: Collection[str] = (),
    leave_out: Collection[str] = (),
) -> Iterator[tuple[Path, list[str]]]:
    """As `walk`, by folder; labels: files beside folders are strays until a class folder comes."""
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
        place = Path(here).relative_to(folder)
        if only and not place.parts:
            folders[:], files = [f for f in folders if f in only], []
        reasons = {f: "hidden or a system's own" for f in folders if is_junk(f)}
        reasons |= {f: "left out as asked" for f in folders if f in leave_out}
        lost += [f"{Path(here, f)}: {reason}" for f, reason in sorted(reasons.items())]
        folders[:] = sorted(set(folders) - set(reasons))
        classed = any(part.lower() in labels for part in place.parts)
        beside = bool(labels and folders and not classed)
        left = {f for f in files if beside or f.startswith(".") or f.lower().endswith(STRAY)}
        strays += [str(place / f) for f in sorted(left)]
        if kept := sorted(set(files) - left):
            yield Path(here), kept
    _report(strays[:1], len(strays), "stray file(s)", folder)
    _report(lost, len(lost), "folder(s)", folder)


def _report(named: list[str], n: int, what: str, folder: Path) -> None:
    if n:
        told = (n, what, shown(folder), shown("; ".join(named)))
        log.warning("%d %s below %s left out (e.g. %s)", *told)
