"""The manifest: one row per image file, with what was found in it. Scanning is parallel, and unchanged files are not read again."""

from __future__ import annotations

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

from data_prep.errors import InputError
from data_prep.integrity import inspect_file
from data_prep.paths import data_root, dataset_folder, write_text

log = logging.getLogger(__name__)

ENTRY = ["path", "label", "generator", "split", "group"]  # what the folders tell
# what the file does
FACTS = ["width", "height", "mode", "format", "jpeg_quality", "bytes", "sha256", "phash", "status"]
COLUMNS = ENTRY + FACTS
MAX_BAD_SHARE = 0.05  # of a class; more than this stops
_TEXT = dict.fromkeys(
    ("path", "generator", "split", "group", "mode", "format", "sha256", "phash", "status"), "str"
)
DECODING = 2  # version of how images are decoded, made alike and fitted: a change makes new caches, and new runs
_SCAN = 2  # version of what `inspect_file` finds: a change makes every file read again
_SERIAL = 256  # fewer files than this are not worth starting processes for


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(
    function, items: list, *, desc: str, workers: int | None = None, serial: int = _SERIAL
) -> list:
    """`[function(i) for i in items]` over all cores, in order, with a progress bar; fewer than `serial` items run here."""
    workers = workers or cores()
    if len(items) < serial or workers == 1:
        results = map(function, items)
    else:  # joblib's own processes: safe beside the threads of torch and Jupyter, and a script needs no `if __name__` guard
        results = Parallel(n_jobs=workers, return_as="generator")(
            delayed(function)(item) for item in items
        )
    return list(tqdm(results, total=len(items), desc=desc, leave=False, disable=None))


def make(
    name: str, root: Path, entries: Iterable[dict], *, kind: str = "deepfake", licence: str = ""
) -> pd.DataFrame:
    """Scan the files of `entries` and write `<data root>/<name>/manifest.csv` and `dataset.json`.

    entries: one dict per image with path (relative to `root`), label (0 real, 1 fake), generator, split ("" = none given), group.
    kind: "deepfake", "source" for a transfer-learning source, "reals" for photographs alone. Files that cannot be used keep their row, with the reason as status.
    Raises `InputError` when there is no image, only one class, or more than 5 % of a class cannot be used (the manifest is written all the same).
    """
    check_name(name)
    entries = sorted(entries, key=itemgetter("path"))
    if not entries:
        raise InputError(f"no files found below {root}")
    for path in map(itemgetter("path"), entries):
        if not path.isascii() and path.encode(errors="replace") != os.fsencode(path):
            raise InputError(f"file name {path!a} below {root} is not UTF-8: rename it")
    folder = data_root() / name
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(root).resolve()
    seen = pd.DataFrame(entries, columns=ENTRY)
    seen["size"], seen["mtime_ns"] = zip(
        *(_stamp(f"{root}{os.sep}{p}") for p in seen["path"].tolist()), strict=True
    )
    last, csv = _last_scan(folder, root), folder / "manifest.csv"
    same = (
        last is not None
        and last.attrs["manifest"] == [*_stamp(csv)]
        and seen.equals(last[seen.columns])
    )
    scan = last if same else _scan(root, seen, last)
    read = scan.attrs.pop("read", 0)
    log.info(
        "%d files: %d read, %d unchanged since the last scan", len(seen), read, len(seen) - read
    )
    table = scan[COLUMNS]
    relative = os.path.relpath(root, folder.resolve())
    where = str(root) if relative.startswith("..") else relative
    about = {"name": name, "kind": kind, "root": where, "licence": licence}
    about["classes"] = {
        label: sorted(rows.unique()) for label, rows in table.groupby("label")["generator"]
    }
    write_text(folder / "dataset.json", json.dumps(about, indent=1))
    if not same:
        write_text(csv, table.to_csv(index=False))  # its presence means prepared
        scan.attrs = {"version": _SCAN, "root": str(root), "manifest": [*_stamp(csv)]}
        scan.to_parquet(folder / "scan.parquet.new")
        (folder / "scan.parquet.new").replace(folder / "scan.parquet")
    check(table, name, kind=kind)
    return table


def check_name(name: str) -> str:
    """The name, if it can be a dataset's; else `InputError`."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(
            f"{name!r} cannot be a dataset's name: letters, digits, - _ . only, and no dot first"
        )
    return name


def load(name: str) -> pd.DataFrame:
    """The manifest of a prepared dataset, every row of it (quarantined ones too)."""
    path = dataset_folder(name) / "manifest.csv"
    numbers = {c: [""] for c in ("width", "height", "jpeg_quality")}
    try:
        table = pd.read_csv(path, dtype=_TEXT, keep_default_na=False, na_values=numbers)
    except ValueError as error:  # not UTF-8, not a table, or empty
        raise InputError(
            f"{path} is damaged ({error}): make it again with python -m data_prep"
        ) from error
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise InputError(
            f"manifest of {name!r} lacks the column(s) {', '.join(missing)}: make it again with python -m data_prep"
        )
    return table


def check(table: pd.DataFrame, name: str, *, kind: str = "deepfake") -> None:
    """Log what is quarantined; raise `InputError` when a class is absent (fakes may be, of kind "reals") or more than 5 % of one cannot be used."""
    bad = table[table["status"] != "ok"]
    for (generator, status), rows in bad.groupby(["generator", "status"]):
        log.warning(
            "%s: %d file(s) of %s quarantined: %s (e.g. %s)",
            name,
            len(rows),
            generator,
            status,
            rows["path"].iloc[0],
        )
    for label in (0,) if kind == "reals" else (0, 1):
        rows = table[table["label"] == label]
        quarantined = int((rows["status"] != "ok").sum())
        if len(rows) == quarantined:
            raise InputError(
                f"{name}: no usable image with label {label} ({len(rows)} files, all quarantined)"
                if len(rows)
                else f"{name}: no image with label {label}; both classes are needed"
            )
        if quarantined > MAX_BAD_SHARE * len(rows):
            reasons = rows.loc[rows["status"] != "ok", "status"].value_counts().to_dict()
            raise InputError(
                f"{name}: {quarantined} of {len(rows)} images with label {label} cannot be used (more than {MAX_BAD_SHARE:.0%}): {reasons}. "
                f"Mend or remove them (reasons in {data_root() / name / 'manifest.csv'}, column status), then scan again."
            )


def fingerprint(table: pd.DataFrame) -> str:
    """Hash of all that decides what a detector sees: paths, labels, generators, splits, groups, contents, status, and how they are decoded."""
    columns = ["path", "label", "generator", "split", "group", "sha256", "status"]
    return hashlib.sha256(f"{DECODING}\n{table[columns].to_csv(index=False)}".encode()).hexdigest()[
        :16
    ]


def fingerprint_of(name: str) -> str:
    """`fingerprint(load(name))`: computed once in a process for as long as the manifest stays as it is."""
    csv = f"{data_root()}{os.sep}{name}{os.sep}manifest.csv"
    try:
        stat = os.stat(csv)  # noqa: PTH116 (a plan of thousands of runs asks this of each)
    except OSError:
        stat = (dataset_folder(name) / "manifest.csv").stat()  # says what is missing
    return _fingerprint(name, csv, (stat.st_ino, stat.st_size, stat.st_mtime_ns), DECODING)


@lru_cache(maxsize=64)
def _fingerprint(name: str, *_: object) -> str:
    return fingerprint(load(name))


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Usable images per generator and split, and the number quarantined."""
    ok = table[table["status"] == "ok"]
    result = ok.assign(split=ok["split"].replace("", "(none given)")).pivot_table(
        index=["label", "generator"], columns="split", values="path", aggfunc="count", fill_value=0
    )
    quarantined = (table["status"] != "ok").groupby([table["label"], table["generator"]]).sum()
    return (
        result.reindex(quarantined.index, fill_value=0).assign(quarantined=quarantined).astype(int)
    )


def _scan(root: Path, seen: pd.DataFrame, last: pd.DataFrame | None) -> pd.DataFrame:
    """`seen` with the facts of each file; those with the same size and time as in `last` are not read."""
    stamp = ["path", "size", "mtime_ns"]
    known = {}
    if last is not None:
        facts = last[FACTS].astype(object).where(lambda f: f.notna(), None).to_dict("records")
        known = dict(zip(last[stamp].itertuples(index=False, name=None), facts, strict=True))
    keys = list(seen[stamp].itertuples(index=False, name=None))
    fresh = [key[0] for key in keys if key not in known]
    found = parallel(inspect_file, [root / p for p in fresh], desc="scanning")
    facts = dict(zip(fresh, found, strict=True))
    scan = seen.join(
        pd.DataFrame(
            [facts[key[0]] if key[0] in facts else known[key] for key in keys], columns=FACTS
        )
    )
    scan = scan.astype(dict.fromkeys(("width", "height", "jpeg_quality"), "Int64"))
    scan.loc[
        scan["status"].str.startswith("unreadable"), "mtime_ns"
    ] = -2  # to be tried again next time
    scan.attrs["read"] = len(fresh)
    return scan


def _last_scan(folder: Path, root: Path) -> pd.DataFrame | None:
    """What the last scan of the same folder found (the manifest, and each file's size and time); None if there is none."""
    try:
        last = pd.read_parquet(folder / "scan.parquet")
    except (OSError, ValueError):  # none yet, or damaged: every file is read
        return None
    return (
        last if (last.attrs.get("version"), last.attrs.get("root")) == (_SCAN, str(root)) else None
    )


def _stamp(path: Path | str) -> tuple[int, int]:
    """Size and time of last change of a file; those of one that cannot be asked are equal to each other."""
    try:
        stat = os.stat(path)  # noqa: PTH116 (a path object for each file costs more than asking)
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)
