"""Published datasets: from their files, or from their publisher, to a manifest.

sources.toml says of each where it comes from, its licence and its layout. Fake is 1, always, from
an explicit mapping: in alphabetical order of folders it would be 0 in some of these sets.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import pandas as pd

from data_prep import download, manifest
from data_prep.errors import InputError, choose
from data_prep.folder import SPLITS, Reader, classes, stem
from data_prep.paths import KAGGLE, PUBLISHED, by_structure, data_root, subfolders

log = logging.getLogger(__name__)

REALS = ("real_RAISE_1k", "RAISE", "raise")  # the pairs, or the full RAISE of one's own
DEPTH = 6  # of the search for a layout: Kaggle's four folders, and the archive's own
BURST = 256  # RAISE ids are hexadecimal, some 65,000 apart; nearer ones are taken for one scene


@dataclass(frozen=True)
class Archive:
    """A public zip. members: only the files below these folders (by range requests); else all."""

    url: str
    md5: str | None = None
    sha256: str | None = None
    members: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.url.split("?")[0].rstrip("/").rsplit("/", 1)[-1].removesuffix(".zip")


@dataclass(frozen=True)
class Source:
    """A row of sources.toml, which tells of the fields; entries: from a layout to its rows."""

    name: str
    title: str
    address: str
    licence: str
    size: str
    layouts: Sequence[Sequence[str]]
    entries: Callable[[Path], Iterable[dict]]
    archives: Sequence[Archive] = ()
    by_hand: str = ""
    kind: str = "deepfake"
    packed: str = ""


def prepare(
    source: Source | str,
    given: Path | str | None = None,
    *,
    name: str | None = None,
    force: bool = False,
) -> pd.DataFrame:
    """The manifest of a known dataset (one of `SOURCES`, or its name).

    Of the files below `given`, else of what Kaggle mounts or was downloaded before, else after
    downloading. Raises `InputError` that says what was looked for, where, and how to get it, and as
    `manifest.make` does: `force` replaces a dataset of this name.

    >>> prepare("faces-140k", "Downloads")                           # doctest: +SKIP
    """
    source = SOURCES[source] if isinstance(source, str) else source
    name = manifest.check_name(source.name if name is None else name)
    home, base = data_root() / name / "files", Path(given) if given else KAGGLE
    root = find(source, base)
    if root is None:  # before anything is written
        manifest.claim(name, home, force=force, below=True)
        root = _unpacked(source, base, home)
    if root is None and given is None:
        root = find(source, home)
        if root is None and source.archives:
            root = find(source, fetch(source, home))
    if root is None:
        looked = home if source.archives and not given else base
        wanted = " or ".join(", ".join(layout) for layout in source.layouts)
        how = source.by_hand or f"See {source.address}."
        raise InputError(
            f"{source.name}: no folder with {wanted} below {looked}. {how} "
            f"Then: python -m data_prep {source.name} --from FOLDER"
        )
    about = {"kind": source.kind, "licence": source.licence, "force": force}
    return manifest.make(name, root, source.entries(root), **about)


def find(source: Source, base: Path) -> Path | None:
    """The nearest folder at or below `base` with one of the layouts: by structure, not by name."""

    def has_layout(folder: Path) -> bool:
        return any(all((folder / part).exists() for part in layout) for layout in source.layouts)

    return next(by_structure(base, has_layout, depth=DEPTH), None)


def fetch(source: Source, home: Path) -> Path:
    """Download the source's archives below `home`, and say first what they are; returns `home`."""
    about = (source.title, source.size, source.address, source.licence)
    log.warning("%s, %s, from %s. Licence: %s", *about)
    for archive in source.archives:
        folder = home / archive.name
        if archive.members:
            wanted = download.names_below(*archive.members)
            download.fetch_members(archive.url, folder, wanted=wanted)
        elif not folder.exists():
            file = home / f"{archive.name}.zip"
            download.fetch(archive.url, file, md5=archive.md5, sha256=archive.sha256)
            download.unpack(file, folder)
            file.unlink()  # its members are all there
    return home


def _unpacked(source: Source, base: Path, home: Path) -> Path | None:
    """The folder of a zip below `base` that holds the dataset, unpacked into `home`; else None."""
    for file in sorted(base.rglob(source.packed)) if source.packed and base.is_dir() else ():
        return find(source, download.unpack(file, home / "unpacked"))
    return None


def split_folders(
    root: Path, *, splits: Iterable[str], labels: Mapping[str, tuple[int, str]]
) -> Iterator[dict]:
    """Rows of `<split>/<class>/…`; labels: each class folder's label and generator."""
    read = _reader(labels, 0, f"Layout: {{{','.join(splits)}}}/{{{','.join(labels)}}}.")
    for folder in splits:
        yield from classes(root, root / folder, split=SPLITS.get(folder.lower(), ""), read=read)


def _reader(labels: Mapping[str, tuple[int, str]], place: int, hint: str) -> Reader:
    """Label and generator by the name of a file's first (place 0) or last (-1) folder."""
    name = lambda folders: folders[place] if folders else ""
    return lambda folders: labels[choose("class folder", name(folders), labels, hint=hint)]


def dogs_vs_cats(root: Path) -> Iterator[dict]:
    """Rows of Microsoft's layout, Kaggle's or the competition's. Cats are class 0, dogs 1."""
    cat, dog = (0, "cats"), (1, "dogs")
    if (root / "PetImages").is_dir():
        labels = {"Cat": cat, "Dog": dog}
        for row in split_folders(root, splits=["PetImages"], labels=labels):
            # Cat/1.jpg and Dog/1.jpg are two scenes
            yield row | {"group": f"{row['generator']}.{row['group']}"}
    elif (root / "train" / "cats").is_dir():
        labels = {"cats": cat, "dogs": dog}
        yield from split_folders(root, splits=["train", "test"], labels=labels)
    else:
        for row in classes(root, root / "train", read=lambda parts: cat, flat=True):
            if not (match := re.match(r"(cat|dog)\.\d+\.", Path(row["path"]).name)):
                called = "the competition's files are called cat.0.jpg and dog.0.jpg"
                raise InputError(f"{root / row['path']}: no label in its name; {called}")
            label, generator = cat if match[1] == "cat" else dog
            yield row | {"label": label, "generator": generator}


def synthbuster(root: Path) -> Iterator[dict]:
    """Rows of `synthbuster/<generator>/<RAISE id>.png` (fake) and of the photographs beside it.

    One id is one scene in all folders. The photographs are the pairs, or a full RAISE of one's own.
    """
    nested = root / "synthbuster" / "synthbuster"
    rows = _photographs(root)
    for folder in subfolders(nested if nested.is_dir() else nested.parent):
        label = (1, folder.name)
        rows += classes(root, folder, read=lambda parts, label=label: label, flat=True)
    return _in_bursts(rows)


def raise_(root: Path) -> Iterator[dict]:
    """Rows of all photographs below `real_RAISE_1k/` or `RAISE/`, TIFF or PNG."""
    return _in_bursts(_photographs(root))


def _photographs(root: Path) -> list[dict]:
    folder = next(root / name for name in REALS if (root / name).is_dir())
    return list(classes(root, folder, read=lambda parts: (0, "real"), flat=True))


def _in_bursts(rows: list[dict]) -> Iterator[dict]:
    scene = bursts(row["group"] for row in rows)
    return (row | {"group": scene[row["group"]]} for row in rows)


def bursts(ids: Iterable[str]) -> dict[str, str]:
    """The scene of each RAISE id (r…t): the first of a run of ids less than `BURST` apart.

    >>> bursts(["r000da54ft", "r000da550t", "r001d260dt"])
    {'r000da54ft': 'r000da54ft', 'r000da550t': 'r000da54ft', 'r001d260dt': 'r001d260dt'}
    """
    scenes, first, last = {}, "", -BURST
    for each in sorted(set(ids)):
        scenes[each] = each
        if match := re.fullmatch(r"r([0-9a-f]+)t", each):
            number = int(match[1], 16)
            first = first if number - last < BURST else each
            scenes[each], last = first, number
    return scenes


def forensynths(root: Path, *, trained: str, tested: Sequence[str]) -> Iterator[dict]:
    """Rows of `progan_train/<class>/…`, `progan_val/…` and the generators of `CNN_synth_testset/`.

    trained: a class, "" for all. tested: `<generator>` or `<generator>/<class>`. Each ends in
    `{0_real,1_fake}`. Without progan_train (74 GB) progan_val is what there is to train on.
    """
    present = [name for name in ("progan_train", "progan_val") if (root / name).is_dir()]
    if present == ["progan_val"]:
        what = "progan_train is not there: the few images of progan_val train instead. %s"
        log.warning(what, SOURCES["forensynths"].by_hand)
    for archive in present:
        split = "val" if archive == "progan_val" and len(present) == 2 else "train"
        yield from _zero_one(root, _inner(root / archive) / trained, split, "progan")
    for place in tested:
        folder = _inner(root / "CNN_synth_testset") / place
        generator = place.split("/")[0]  # each is tested against reals of its own
        yield from _zero_one(root, folder, "test", generator, testset=generator)


def _zero_one(root: Path, folder: Path, split: str, generator: str, **more: str) -> Iterator[dict]:
    if not folder.is_dir():
        raise InputError(f"forensynths: {folder} is missing: download or unpack it again")
    labels = {"0_real": (0, "real"), "1_fake": (1, generator)}
    read = _reader(labels, -1, f"Found below {folder}.")
    for row in classes(root, folder, split=split, read=read, flat=True):
        yield (
            row | more | {"group": stem(row["path"])}
        )  # the same number in two folders is two scenes


def _inner(folder: Path) -> Path:
    """The folder of an archive's content: this one, or one more of such a name."""
    below = subfolders(folder)
    start = f"{folder.name.split('_')[0]}_"
    return below[0] if len(below) == 1 and below[0].name.startswith(start) else folder


_ENTRIES = {"synthbuster": synthbuster, "raise": raise_, "forensynths": forensynths}
_ENTRIES |= {"dogs-vs-cats": dogs_vs_cats}


def _source(name: str, row: dict) -> Source:
    own = {field.name for field in fields(Source)}
    options = {key: value for key, value in row.items() if key not in own | {"everything"}}
    about = {key: row[key] for key in own & set(row)}
    about |= {"name": name, "archives": [Archive(**each) for each in row.get("archives", ())]}
    return Source(entries=partial(_ENTRIES.get(name, split_folders), **options), **about)


SOURCES = {name: _source(name, row) for name, row in PUBLISHED.items()}
_row = PUBLISHED["forensynths"]
FORENSYNTHS_ALL = _source("forensynths", _row | _row["everything"])
