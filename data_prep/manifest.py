"""The manifest: a row per image file. Scanned in parallel; unchanged files are not read again."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from operator import itemgetter
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from data_prep import paths
from data_prep.errors import InputError, short, shown
from data_prep.integrity import inspect_file

log = logging.getLogger(__name__)

# what the folders tell, and what the file does
ENTRY = ["path", "label", "generator", "split", "group", "testset"]
FACTS = ["width", "height", "mode", "format", "jpeg_quality", "coding", "bytes", "sha256", "phash"]
FACTS += ["status"]
COLUMNS = ENTRY + FACTS
NAMES = ["path", "generator", "group", "testset"]  # out of file names, whatever these hold
NUMBERS = ["width", "height", "jpeg_quality"]  # which a quarantined file may lack
RESERVED = ("real", "all", "macro", "seen", "unseen")  # stand beside generators in each result
STAMP = ["path", "size", "mtime_ns"]  # a file that has the same is not read again
MAX_NAME = 100  # bytes of a dataset's: files are named after it
MAX_BAD_SHARE = 0.05  # of a class; more than this stops
DECODING = 3  # version of how images are decoded and fitted: a change makes new caches, new runs
_SCAN = 4  # version of what `inspect_file` finds: a change makes every file read again
_SERIAL = 256  # fewer files than this are not worth starting processes for


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function, items: list, *, desc: str, serial: int = _SERIAL) -> list:
    """`[function(i) for i in items]` over all cores, in order; fewer than `serial` run here."""
    if len(items) < serial or cores() == 1:
        results = map(function, items)
    else:
        # joblib's processes are safe beside torch's threads, and need no `if __name__` guard
        jobs = Parallel(n_jobs=cores(), return_as="generator")
        results = jobs(delayed(function)(item) for item in items)
    return list(tqdm(results, total=len(items), desc=desc, leave=False, disable=None))


def make(
    name: str,
    root: Path,
    entries: Iterable[dict],
    *,
    kind: str = "deepfake",
    licence: str = "",
    force: bool = False,
) -> pd.DataFrame:
    """Scan the files of `entries`; write `<data root>/<name>/manifest.csv` and `dataset.json`.

    entries: one dict per image with ENTRY (path below `root`; split "": none given). kind: "source"
    for a transfer's. Files that cannot be used keep their row: status is the reason. `InputError`
    as of `claim` and `check`, for a generator's name that means something else, and no image.
    """
    claim(name, root, force=force)
    entries = sorted(entries, key=itemgetter("path"))
    if not entries:
        raise InputError(f"no files found below {root}")
    folder, root = paths.data_root() / name, Path(root).resolve()
    seen = _seen(entries, root)
    _check_generators(seen, root)
    folder.mkdir(parents=True, exist_ok=True)
    scan, csv = _last_scan(folder, root), folder / "manifest.csv"
    unchanged = scan.attrs.get("manifest") == [*_stamp(csv)] and seen.equals(scan[seen.columns])
    scan, read = (scan, 0) if unchanged else _scan(root, seen, scan)
    table, n = scan[COLUMNS], len(seen)
    log.info("%d files: %d read, %d unchanged since the last scan", n, read, n - read)
    home = folder.resolve()
    where = os.path.relpath(root, home) if root.is_relative_to(home) else str(root)
    about = {"name": name, "kind": kind, "root": where, "licence": licence}
    paths.write_text(folder / "dataset.json", json.dumps(about, indent=1))
    if not unchanged:
        paths.write_text(csv, table.to_csv(**paths.CSV))  # its presence means prepared
        scan.attrs = {"version": _SCAN, "root": str(root), "manifest": [*_stamp(csv)]}
        with paths.written(folder / "scan.parquet") as new:
            scan.to_parquet(new)
    check(table, name)
    if table["split"].nunique() > 1:
        from data_prep import duplicates  # here, because it loads scipy

        near = duplicates.report(table, table["split"])["near"]
        if near["across_splits"]:
            what = name, near["across_splits"], shown(" = ".join(near["example"]))
            log.warning("%s: %d picture(s) stand, nearly alike, in more than one split (%s)", *what)
    return table


def check_name(name: str) -> str:
    """The name, if it can be a dataset's; else `InputError`."""
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > MAX_NAME:
        rule = f"letters, digits, - _ . only, no dot first, at most {MAX_NAME} bytes"
        raise InputError(f"{short(name)} cannot be a dataset's name (nor a detector's): {rule}")
    return name


def claim(name: str, root: Path, *, force: bool = False, below: bool = False) -> None:
    """Raise `InputError` where the name cannot be a dataset's, or is that of images elsewhere.
    below: images anywhere below `root` are not elsewhere. force: replaces the dataset."""
    csv, root = paths.data_root() / check_name(name) / "manifest.csv", Path(root).resolve()
    try:
        here = paths.images_root(name).resolve() if csv.exists() else None
    except InputError:  # its dataset.json is damaged, and made again
        here = None
    if here and here != root and not force and not (below and here.is_relative_to(root)):
        how = "take another --name, or replace it with --force"
        raise InputError(f"{name!r} is there already, made from {here}: {how}")


def load(name: str) -> pd.DataFrame:
    """The manifest of a prepared dataset, every row of it (quarantined ones too)."""
    path = paths.dataset_folder(name) / "manifest.csv"
    text = dict.fromkeys(set(COLUMNS) - {"label", "bytes", *NUMBERS}, "str")
    how = {"usecols": COLUMNS, "dtype": text, "keep_default_na": False}
    how["na_values"] = dict.fromkeys(NUMBERS, [""])
    try:
        return pd.read_csv(paths.regular(path, 10**10), **how)
    except (OSError, ValueError) as error:  # not UTF-8, not a table, empty, of an older version
        again = "scan the images again with python -m data_prep"
        raise InputError(f"{path} is damaged, or of an older version ({error}): {again}") from error


def check(table: pd.DataFrame, name: str) -> None:
    """Log what is quarantined, and a class that is absent; `InputError` for one over 5 % bad."""
    bad, csv = table[table["status"] != "ok"], paths.data_root() / name / "manifest.csv"
    for (generator, status), rows in bad.groupby(["generator", "status"]):
        what = (name, len(rows), shown(generator), shown(status), shown(rows["path"].iloc[0]))
        log.warning("%s: %d file(s) of %s quarantined: %s (e.g. %s)", *what)
    for label, others in ((0, "fakes"), (1, "reals")):
        n = int((table["label"] == label).sum())
        reasons = bad.loc[bad["label"] == label, "status"].value_counts()
        if not n:
            log.warning("%s holds only %s: it can be tested, not trained on", name, others)
        elif reasons.sum() > MAX_BAD_SHARE * n:
            what = f"{name}: {reasons.sum()} of {n} images with label {label} cannot be used"
            why = f"(more than {MAX_BAD_SHARE:.0%}): {reasons.to_dict()}"
            mend = f"Mend or remove them (reasons in {csv}, column status), then scan again."
            raise InputError(f"{what} {why}. {mend}")


def fingerprint(table: pd.DataFrame) -> str:
    """Hash of all that decides what a detector sees: what the folders tell, contents, decoding."""
    told = ENTRY if table["testset"].any() else ENTRY[:-1]  # as before there was such a column
    text = table[[*told, "sha256", "status"]].to_csv(index=False)
    return hashlib.sha256(f"{DECODING}\n{text}".encode()).hexdigest()[:16]


def fingerprint_of(name: str) -> str:
    """`fingerprint(load(name))`, computed once in a process while the manifest stays as it is."""
    csv = paths.dataset_folder(name) / "manifest.csv"
    stat = csv.stat()
    return _fingerprint(name, csv, (stat.st_ino, stat.st_size, stat.st_mtime_ns), DECODING)


@lru_cache(maxsize=64)
def _fingerprint(name: str, *_: object) -> str:
    return fingerprint(load(name))


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Usable images per generator and split, and the number quarantined."""
    place = table["split"].replace("", "(none given)").where(table["status"] == "ok", "quarantined")
    found = pd.crosstab([table["label"], table["generator"]], place)
    splits = sorted(set(found.columns) - {"quarantined"})
    return found.reindex(columns=[*splits, "quarantined"], fill_value=0)


def _check_generators(seen: pd.DataFrame, root: Path) -> None:
    for row in seen.drop_duplicates(["label", "generator"]).itertuples():
        name, word = row.generator, row.label == 1 and row.generator.lower() in RESERVED
        if word or "," in name or name != name.strip() or not name.isprintable():
            what = f"{name!r} (e.g. {row.path} below {root}) cannot be a generator's name"
            rule = "no comma, no blank at an end, all of it printable, and not"
            raise InputError(f"{what}: {rule} {', '.join(RESERVED)}. Rename its folder")


def _seen(entries: list[dict], root: Path) -> pd.DataFrame:
    """What the folders tell, names as text that any file can hold; each file's size and time."""
    texts = [entry | {key: paths.as_text(entry.get(key, "")) for key in NAMES} for entry in entries]
    stamps = [_stamp(f"{root}{os.sep}{text['path']}") for text in texts]
    seen = pd.DataFrame(texts, columns=ENTRY)
    seen["size"], seen["mtime_ns"] = zip(*stamps, strict=True)
    return seen


def _scan(root: Path, seen: pd.DataFrame, last: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """`seen` with the facts of each file, and how many were read: those that `last` lacks."""
    known = seen[STAMP].merge(last[[*STAMP, *FACTS]], on=STAMP).set_index("path")[FACTS]
    fresh = seen.loc[~seen["path"].isin(known.index), "path"].tolist()
    found = parallel(inspect_file, [root / path for path in fresh], desc="scanning")
    found = pd.DataFrame(found, columns=FACTS, index=fresh).astype(dict.fromkeys(NUMBERS, "Int64"))
    scan = seen.join(pd.concat([known, found]) if len(known) else found, on="path")
    scan["bytes"] = pd.to_numeric(scan["bytes"]).fillna(0).astype(int)
    again = scan["status"].str.startswith(("unreadable", "needs ", "bomb"))
    scan.loc[again, "mtime_ns"] = -2  # to be tried again next time
    return scan, len(fresh)


def _last_scan(folder: Path, root: Path) -> pd.DataFrame:
    """What the last scan of the same folder found: the manifest, each file's size and time."""
    try:
        last = pd.read_parquet(folder / "scan.parquet")
    except (OSError, ValueError):  # none yet, or damaged: every file is read
        last = pd.DataFrame()
    if (last.attrs.get("version"), last.attrs.get("root")) == (_SCAN, str(root)):
        return last
    return pd.DataFrame(columns=[*ENTRY, *STAMP[1:], *FACTS])


def _stamp(path: Path | str) -> tuple[int, int]:
    """Size and time of last change of a file; (-1, -1) for one that cannot be asked."""
    try:
        stat = os.stat(path)  # noqa: PTH116 (a path object for each file costs more than asking)
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)
