"""Images that a list labels, and sets of the Hugging Face hub, to a manifest."""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pandas as pd

from data_prep import folder, manifest, scenes
from data_prep.errors import InputError, choose, short
from data_prep.integrity import BadImage, read_file
from data_prep.paths import data_root, regular

LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "authentic": 0}
LABELS |= {"synthetic": 1, "generated": 1}
LABELS |= {word: label for known in folder.LAYOUTS for word, (label, _) in known.labels.items()}
COLUMNS = ("path", "label", "generator", "split", "scene")  # the last three may be missing
log = logging.getLogger(__name__)


def prepare(
    file: Path,
    images: Path,
    *,
    name: str,
    columns: dict[str, str] | None = None,
    scene: str = "",
    force: bool = False,
) -> pd.DataFrame:
    """The manifest of the images that a CSV or parquet file lists, by paths below `images`.

    columns: what the file calls `COLUMNS`. scene: a rule, in place of a column. Raises
    `InputError` for what is not there, unknown, outside `images` or listed twice.
    """
    if not images.is_dir():
        raise InputError(f"{images} is not a folder: give the one that the list's paths start from")
    table = read(file, columns, root=Path(os.path.normpath(images.absolute())))
    rows = [_row(row, file) for row in table.to_dict("records")]
    rows = rows if "scene" in table and not scene else scenes.grouped(rows, scene)
    return manifest.make(name, images, rows, force=force)


def read(
    file: Path,
    columns: dict[str, str] | None = None,
    *,
    root: Path | None = None,
    needed: Sequence[str] = COLUMNS[:2],
    hint: str = "Say which it is: --{}-column NAME.",
) -> pd.DataFrame:
    """A CSV (commas, semicolons or tabs) or parquet file as text, the needed columns and the known
    ones that it has; paths as a manifest has them, below `root`. columns: what the file calls them.
    `InputError` for what is not there or a path that stands in it twice."""
    try:
        regular(file, 2 * 10**9)
        if file.suffix.lower() == ".parquet":
            found = pd.read_parquet(file)
            table = found.astype("str").where(found.notna(), "")
        else:
            head, *more = pd.read_csv(file, nrows=0).columns
            sep = "," if more else (re.search("[;\t]", head) or ",")[0]
            table = pd.read_csv(file, sep=sep, dtype="str", keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as CSV (in UTF-8) or parquet: {error}") from error
    names = {ours: (columns or {}).get(ours, ours) for ours in (*needed, *COLUMNS[2:])}
    for ours, name in names.items():
        if name not in table and (ours in needed or name != ours):
            found = list(table.columns)
            choose(f"column for the {ours}", name, found, hint=hint.format(ours))
    table = pd.DataFrame({ours: table[name] for ours, name in names.items() if name in table})
    if table.empty:
        raise InputError(f"{file} lists no images")
    start = f"{root.as_posix()}/" if root else ""
    slashes = (p if "/" in p else p.replace("\\", "/") for p in table["path"])
    table["path"] = [str(PurePosixPath(p)).removeprefix(start) for p in slashes]
    twice = [*table.loc[table["path"].duplicated(), "path"]]
    if twice:
        raise InputError(f"{file}: {len(twice)} path(s) stand in it twice (e.g. {short(twice[0])})")
    return table


def split_of(word: str, file: Path) -> str:
    """train, val or test for a word that means one, "" for none; else `InputError`."""
    known = {"": ("", "")} | folder.SPLITS
    return known[choose("split", word.lower(), known, hint=f"In {file}.")][0]


def _row(row: dict, file: Path) -> dict:
    label, path = label_of(row["label"], f"In {file}."), PurePosixPath(row["path"])
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{file}: path {short(row['path'])} is not one below --images")
    generator = row.get("generator") or "fake"
    known = {"path": str(path), "label": label, "split": split_of(row.get("split", ""), file)}
    known["group"] = row.get("scene") or str(path)  # a scene that is not told is its own
    return known | {"generator": generator if label else "real", "folder": path.parent.name}


def label_of(value: object, hint: str) -> int:
    """0 for a word (or number) that means real, 1 for one that means fake; else `InputError`."""
    return LABELS[choose("label", str(value).strip().lower(), LABELS, hint=hint)]


def huggingface(
    source: str,
    *,
    name: str,
    columns: tuple[str, str, str] = ("image", "label", ""),
    split: str = "train",
    per_class: int = 1000,
    licence: str = "",
    force: bool = False,
) -> pd.DataFrame:
    """The manifest of the first `per_class` real and fake images of a set of the hub, or of a
    folder of parquet files: streamed, and written as they are to `<data root>/<name>/files/`.

    columns: of the image, the label, the generator ("": none). A second call takes what is there;
    `force` fetches again. `InputError` without `datasets`, for an unknown column or label.
    """
    home = data_root() / manifest.check_name(name) / "files"
    manifest.claim(name, home, force=force)
    if home.exists() and not force:
        log.warning("%s is there already, and taken as it is: --force fetches again", home)
    else:
        fresh = home.with_name("files.new")
        shutil.rmtree(fresh, ignore_errors=True)  # of an earlier call that was cut
        left = {0: per_class, 1: per_class}
        for number, (label, generator, data, suffix) in enumerate(_stream(source, split, columns)):
            if left[label]:
                left[label] -= 1
                place = fresh / ("fake" if label else "real") / (generator if label else "")
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number:08d}{suffix}").write_bytes(data)
            if not any(left.values()):
                break
        if not fresh.exists():
            raise InputError(f"{source}, split {split!r}, holds no images")
        shutil.rmtree(home, ignore_errors=True)
        fresh.rename(home)
    rows = folder.entries(home, folder.LAYOUTS[0])
    return manifest.make(name, home, rows, licence=licence, force=force)


def _stream(
    source: str, split: str, columns: tuple[str, str, str]
) -> Iterator[tuple[int, str, bytes, str]]:
    """Label, generator, bytes and suffix of each image."""
    try:
        import datasets  # here: an extra
    except ImportError as error:
        raise InputError('datasets is not installed: pip install -e ".[datasets]"') from error
    image, label, generator = columns
    try:
        rows = datasets.load_dataset(source, split=split, streaming=True)
        features = rows.features or {}
        rows = rows.cast_column(image, datasets.Image(decode=False))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{source}, split {split!r}, cannot be opened: {error}") from error
    for column in filter(None, columns):
        choose("column", column, list(features), hint=f"In {source}.")
    words = getattr(features[label], "names", None)
    for row in rows:
        value, cell = row[label], row[image] or {"bytes": b"", "path": ""}
        value = words[value] if words and value in range(len(words)) else value  # -1: unknown
        data, path = cell["bytes"], cell["path"] or ""
        name = re.sub(r"^\.|[/\0]", "_", str(row[generator])) if generator else "fake"
        with suppress(BadImage):  # an empty file then, which is quarantined
            data = read_file(path) if data is None else data
        yield label_of(value, f"In {source}."), name, data or b"", PurePosixPath(path).suffix[:9]
