"""What a dataset is, in data: where it comes from, its licence, its layout. One way from there to a manifest for all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep import download, manifest
from data_prep.errors import InputError
from data_prep.folder import subfolders
from data_prep.paths import KAGGLE, data_root

log = logging.getLogger(__name__)

DEPTH = 6  # of the search for a layout: Kaggle's four folders, and the archive's own


@dataclass(frozen=True)
class Archive:
    """A public zip. members: only the files below these folders (by range requests); empty means all of it, with its checksum."""

    url: str
    md5: str | None = None
    sha256: str | None = None
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.url.split("?")[0].rstrip("/").rsplit("/", 1)[-1].removesuffix(".zip")


@dataclass(frozen=True)
class Source:
    """A dataset that we know. layouts: sets of folders (or files), one of which shows that a folder is it.

    entries: from that folder to the rows that `manifest.make` takes. by_hand: what to fetch where a login is needed.
    """

    name: str
    title: str
    address: str
    licence: str
    size: str
    layouts: tuple[tuple[str, ...], ...]
    entries: Callable[[Path], Iterable[dict]]
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""
    kind: str = "deepfake"


def prepare(
    source: Source, given: Path | str | None = None, *, name: str | None = None
) -> pd.DataFrame:
    """The manifest of a known dataset: of the files below `given`, else of what Kaggle mounts or was downloaded before, else after downloading.

    Raises `InputError` that says what was looked for, where, and how to get it.
    """
    name = manifest.check_name(source.name if name is None else name)
    home = data_root() / name / "files"
    root = find(source, Path(given)) if given else find(source, KAGGLE) or find(source, home)
    if root is None and given is None and source.archives:
        root = find(source, fetch(source, home))
    if root is None:
        looked = Path(given) if given else home if source.archives else KAGGLE
        wanted = " or ".join(", ".join(layout) for layout in source.layouts)
        raise InputError(
            f"{source.name}: no folder with {wanted} below {looked}. {source.by_hand or f'See {source.address}.'} Then: python -m data_prep {source.name} --from FOLDER"
        )
    return manifest.make(name, root, source.entries(root), kind=source.kind, licence=source.licence)


def find(source: Source, base: Path) -> Path | None:
    """The nearest folder at or below `base` that has one of the source's layouts, by structure and not by name; None if there is none."""
    level = [base] if base.is_dir() else []
    for _ in range(DEPTH + 1):
        for folder in level:
            if any(all((folder / part).exists() for part in layout) for layout in source.layouts):
                return folder
        level = [s for folder in level for s in subfolders(folder)]
    return None


def fetch(source: Source, home: Path) -> Path:
    """Download the source's archives below `home`, saying first what they are and under which licence; returns `home`."""
    log.warning(
        "%s, %s, from %s. Licence: %s", source.title, source.size, source.address, source.licence
    )
    for archive in source.archives:
        if archive.members:
            wanted = download.names_below(*archive.members)
            download.fetch_members(archive.url, home / archive.name, wanted=wanted)
        elif not (home / archive.name).exists():
            zipped = download.fetch(
                archive.url, home / f"{archive.name}.zip", md5=archive.md5, sha256=archive.sha256
            )
            download.unpack(zipped, home / archive.name)
            zipped.unlink()  # its members are all there
    return home
