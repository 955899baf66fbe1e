"""Folders of labelled images: the layouts that are known, and the walk through them."""

import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from data_prep import manifest, scenes
from data_prep.errors import InputError, choose, shown
from data_prep.paths import by_structure, is_junk, subfolders

# a folder's name, in lower case -> the split, and the generator where the name tells it
SPLITS = {"train": ("train", ""), "test": ("test", ""), "cnn_synth_testset": ("test", "")}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), ("val", ""))
SPLITS |= {"progan_train": ("train", "progan"), "progan_val": ("val", "progan")}
STRAY = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".pdf", ".log", ".py", ".zip")
STRAY += (".md5", ".sha1", ".sha256", ".db", ".ini")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How the folders above a file tell its label, generator and split (`SPLITS`)."""

    title: str
    # class folder, in lower case -> label and generator ("": another folder's name)
    labels: dict[str, tuple[int, str]] = field(default_factory=dict)
    # that other folder is the first below the class folder (None), or so many folders above it
    above: int | None = None
    scene: str = ""  # one of `scenes.RULES`; "" to find one


def _layout(title: str, real: str, fake: str, *more) -> Layout:
    return Layout(title, {real: (0, "real"), fake: (1, "")}, *more)


LAYOUTS = (
    _layout("real/, fake/<generator>/, optionally below train/, val/, test/", "real", "fake"),
    _layout("training_real/, training_fake/<generator>/", "training_real", "training_fake"),
    # beside reals of its own, each generator's numbers start again: a file is a scene
    _layout(
        "ForenSynths-like, <generator>/<class>/{0_real,1_fake}/", "0_real", "1_fake", 1, "file"
    ),
    _layout("GenImage-like, <generator>/{train,val}/{nature,ai}/", "nature", "ai", 0, "file"),
)


def prepare(
    path: Path | str,
    *,
    name: str,
    scene: str = "",
    leave_out: Collection[str] = (),
    force: bool = False,
) -> pd.DataFrame:
    """Scan a folder of images into the manifest of dataset `name`; the images stay where they are.

    Its layout is one of `LAYOUTS`, in any case, also some folders deeper. scene: a rule of
    `scenes.grouped`. leave_out: names of folders. `InputError` for what is not understood.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give the folder that holds real/ and fake/")
    root, layout = recognised(path)
    layout = replace(layout, scene=scene or layout.scene)
    return manifest.make(name, root, entries(root, layout, leave_out=leave_out), force=force)


def recognised(path: Path) -> tuple[Path, Layout]:
    """The folder that a layout of `LAYOUTS` starts from, at or below `path`, and this layout."""

    def layout_of(folder: Path) -> Layout | None:
        names = {f.name.lower() for f in subfolders(folder)}
        return next((known for known in LAYOUTS if names & known.labels.keys()), None)

    holder = by_structure(path, layout_of)
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
    Raises `InputError` for a folder that is neither a class, a split nor a generator."""
    found = []
    for here, files in _listed(root, labels=layout.labels, only=only, leave_out=leave_out):
        parts = here.relative_to(root).parts
        at = _class_at(parts, layout, only, hint=f"Layout: {layout.title}. Found below {root}.")
        above = [part for part in parts[:at] if part.lower() not in SPLITS and part not in only]
        found.append((parts, at, above, files))
    deepest = max((len(above) for _, _, above, _ in found), default=0)
    rows = []
    for parts, at, above, files in found:
        # strings, no paths: this loop is most of what a repeated scan costs
        row, start = _told(parts, at, above, layout, deepest), "/".join(parts)
        rows += [{"path": f"{start}/{file}", **row} for file in files]
    given = {row["split"] for row in rows}
    if "val" in given and "train" not in given:
        log.warning("%s has no train part: val trains instead", shown(root))
        rows = [row | {"split": "train"} if row["split"] == "val" else row for row in rows]
    generators = sorted({row["generator"] for row in rows if row["label"]})
    told = (shown(root), layout.title, len(generators), shown(", ".join(generators[:5])))
    log.info("%s read as: %s; %d generator(s) (%s)", *told)
    yield from scenes.grouped(rows, layout.scene)


def _class_at(parts: tuple[str, ...], layout: Layout, only: Collection[str], *, hint: str) -> int:
    """Which of a path's folders is the class folder; `InputError` for one the layout has not."""
    words = [part.lower() for part in parts]
    known = [i for i, word in enumerate(words) if word in layout.labels]
    if known and only:
        return known[-1]  # a published set may hold reals among its fakes
    other = [word for word in words[: known[0] if known else None] if word not in SPLITS]
    if not known:
        hint += f" Or leave it out: --leave-out {parts[0]}." if parts else ""
        if other:
            choose("class folder", other[0], layout.labels, hint=hint)
        raise InputError(f"{'/'.join(parts)}/ holds files without a class folder. {hint}")
    if other and layout.above is None:
        choose("split folder", other[0], SPLITS, hint=hint)
    return known[0]


def _told(parts: tuple[str, ...], at: int, above: list[str], layout: Layout, deepest: int) -> dict:
    """Label, generator, split, testset and folder of the files in a place. at: which of its folders
    is the class folder; above: those above it, but for splits; deepest: the most that stand so."""
    label, generator = layout.labels[parts[at].lower()]
    outer = parts[:at] + parts[at + 1 :] if layout.above is None else parts[:at]
    splits = [SPLITS[part.lower()] for part in outer if part.lower() in SPLITS]
    below = [part for part in parts[at + 1 :] if part.lower() not in SPLITS]
    row = {"label": label, "testset": ""}
    row["split"] = splits[0][0] if splits else ""
    if layout.above is None:
        own = below[0] if below else "fake"
        below = below if generator else below[1:]
    else:
        known = [name for _, name in splits if name]
        first = max(0, deepest - 1 - layout.above)
        own = (known or above[first:] or above[-1:] or ["fake"])[0]
        row["testset"] = "" if row["split"] in ("train", "val") else own  # it has reals of its own
    return row | {"generator": generator or own, "folder": below[-1] if below else ""}


def walk(folder: Path) -> Iterator[Path]:
    """Every file below that may be an image, sorted, and none twice because of a link. Left out,
    and told in the log: junk (`paths.is_junk`), files of `STRAY` kinds, unreadable folders."""
    for here, files in _listed(folder):
        yield from map(here.joinpath, files)


def _listed(
    root: Path,
    *,
    labels: Collection[str] = (),
    only: Collection[str] = (),
    leave_out: Collection[str] = (),
) -> Iterator[tuple[Path, list[str]]]:
    """As `walk`, by folder; labels: files beside folders are strays until a class folder comes."""
    seen, strays, lost, names = set(), [], [], set()
    unreadable = lambda error: lost.append(f"{error.filename}: {error.strerror}")
    for here, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(here)
        if real in seen:
            lost.append(f"{here}: a link to a folder that is walked already")
            folders.clear()
            continue
        seen.add(real)
        place = Path(here).relative_to(root)
        if only and not place.parts:
            folders[:], files = [f for f in folders if f in only], []
        names |= {*folders}
        reasons = {f: "hidden or a system's own" for f in folders if is_junk(f)}
        reasons |= {f: "left out as asked" for f in folders if f in leave_out}
        lost += [f"{Path(here, f)}: {reason}" for f, reason in sorted(reasons.items())]
        folders[:] = sorted(set(folders) - set(reasons))
        beside = labels and folders and not {part.lower() for part in place.parts} & set(labels)
        left = {f for f in files if beside or f.startswith(".") or f.lower().endswith(STRAY)}
        strays += [str(place / f) for f in sorted(left)]
        if kept := sorted(set(files) - left):
            yield Path(here), kept
    for name in leave_out:
        choose("folder to leave out", name, names)
    for what, named in (("stray file(s)", strays), ("folder(s)", lost)):
        if named:
            told = (len(named), what, shown(root), shown("; ".join(named[:9])))
            log.warning("%d %s below %s left out (e.g. %s)", *told)
