"""Published datasets (sources.toml): from their files, or their publisher, to a manifest. Fake is 1
by an explicit mapping: in alphabetical order of folders it would be 0 in some of these sets."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pandas as pd

from data_prep import download, lists, manifest
from data_prep.errors import InputError
from data_prep.folder import Layout, entries
from data_prep.paths import KAGGLE, PUBLISHED, by_structure, data_root

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source(Layout):
    """A row of sources.toml, which tells of the fields."""

    name: str = ""
    address: str = ""
    licence: str = ""
    size: str = ""
    layouts: Sequence[Sequence[str]] = ()
    also: Sequence[str] = ()
    hub: dict[str, str] = field(default_factory=dict)
    archives: Sequence[dict] = ()  # url, and md5 or members
    by_hand: str = ""
    kind: str = "deepfake"


SOURCES = {name: Source(name=name, **row) for name, row in PUBLISHED.items()}


def prepare(
    source: Source | str,
    given: Path | str | None = None,
    *,
    name: str | None = None,
    force: bool = False,
    per_class: int = 1000,
) -> pd.DataFrame:
    """The manifest of a known dataset (one of `SOURCES`, or its name).

    Of the files below `given`, else of what Kaggle mounts or was downloaded before, else after
    downloading; of a set of the hub, `per_class` reals and fakes are streamed. `InputError` says
    what was looked for, where, and how to get it.
    """
    source = SOURCES[source] if isinstance(source, str) else source
    name = manifest.check_name(source.name if name is None else name)
    about = {"licence": source.licence, "force": force}
    if source.hub:
        hub = dict(source.hub)
        columns = (hub["image_column"], "label", hub["generator_column"])
        place = str(given or hub["source"])
        return lists.huggingface(place, name=name, columns=columns, per_class=per_class, **about)
    home, base = data_root() / name / "files", Path(given or KAGGLE)
    root = find(source, base)
    if root is None and given is None:
        manifest.claim(name, home, force=force, below=True)  # before anything is written
        root = find(source, home)
        if root is None and source.archives:
            root = find(source, fetch(source, home))
    if root is None:
        looked = home if source.archives and not given else base
        wanted = " or ".join(", ".join(layout) for layout in source.layouts)
        how = source.by_hand or f"See {source.address}."
        then = f"Then: python -m data_prep {source.name} --from FOLDER"
        raise InputError(f"{source.name}: no folder with {wanted} below {looked}. {how} {then}")
    rows = entries(root, source, only=_parts(source, root))
    return manifest.make(name, root, rows, kind=source.kind, **about)


def find(source: Source, base: Path) -> Path | None:
    """The nearest folder at or below `base` with one of the source's layouts."""
    return by_structure(base, lambda folder: _parts(source, folder) is not None)


def _parts(source: Source, folder: Path) -> list[str] | None:
    """The folders directly in `folder` to read (none: all), where it has one of the layouts."""
    for layout in source.layouts:
        if all(next(folder.glob(part), None) for part in layout):
            if "*" in layout[0]:
                return []
            also = [name for name in source.also if (folder / name).is_dir()]
            return [part.split("/")[0] for part in layout] + also
    return None


def fetch(source: Source, home: Path) -> Path:
    """Download the source's archives below `home`, and say first what they are; returns `home`."""
    about = (source.title, source.size, source.address, source.licence)
    log.warning("%s, %s, from %s. Licence: %s", *about)
    for archive in source.archives:
        folder = home / PurePosixPath(urlsplit(archive["url"]).path).stem
        if "members" in archive:
            download.fetch_members(archive["url"], folder, below=archive["members"])
        elif not folder.exists():
            file = home / f"{folder.name}.zip"
            download.fetch(archive["url"], file, md5=archive.get("md5"))
            download.unpack(file, folder)
            file.unlink()  # its members are all there
    return home
