"""The manifest: one row per image file, with what was found in it. Scanning is parallel, and unchanged files are not read again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from data_prep.errors import InputError
from data_prep.integrity import inspect_file
from data_prep.paths import data_root, dataset_folder, write_text

log = logging.getLogger(__name__)

COLUMNS = [
    "path",
    "label",
    "generator",
    "split",
    "group",
    "width",
    "height",
    "mode",
    "format",
    "jpeg_quality",
    "bytes",
    "sha256",
    "phash",
    "status",
]
MAX_BAD_SHARE = 0.05  # of a class; more than this stops
_TEXT = dict.fromkeys(("path", "generator", "split", "group", "mode", "format", "sha256", "phash", "status"), "str")
DECODING = 2  # version of how images are decoded, made alike and fitted: a change makes new caches, and new runs
_SCAN = 2  # version of what `inspect_file` finds: a change makes every file read again
_SERIAL = 256  # fewer files than this are not worth starting processes for


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function, items: list, *, desc: str, workers: int | None = None, serial: int = _SERIAL) -> list:
    """`[function(i) for i in items]` over all cores, in order, with a progress bar; fewer than `serial` items run here."""
    workers = workers or cores()
    if len(items) < serial or workers == 1:
        results = map(function, items)
    else:  # joblib's own processes: safe beside the threads of torch and Jupyter, and a script needs no `if __name__` guard
        results = Parallel(n_jobs=workers, return_as="generator")(delayed(function)(item) for item in items)
    return list(tqdm(results, total=len(items), desc=desc, leave=False, disable=None))


def make(name: str, root: Path, entries: Iterable[dict], *, kind: str = "deepfake", licence: str = "") -> pd.DataFrame:
    """Scan the files of `entries` and write `<data root>/<name>/manifest.csv` and `dataset.json`.

    entries: one dict per image with path (relative to `root`), label (0 real, 1 fake), generator, split ("" = none given), group.
    kind: "deepfake", "source" for a transfer-learning source, "reals" for photographs alone. Files that cannot be used keep their row, with the reason as status.
    Raises `InputError` when there is no image, only one class, or more than 5 % of a class cannot be used (the manifest is written all the same).
    """
    check_name(name)
    entries = list(entries)
    for entry in entries:
        if entry["path"].encode(errors="replace") != os.fsencode(entry["path"]):
            raise InputError(f"file name {entry['path']!a} below {root} is not UTF-8: rename it")
    entries = pd.DataFrame(entries, columns=["path", "label", "generator", "split", "group"])
    if entries.empty:
        raise InputError(f"no files found below {root}")
    folder = data_root() / name
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(root).resolve()
    facts = _scan(root, entries["path"].tolist(), folder)
    table = pd.concat([entries, facts], axis=1)[COLUMNS]
    table = table.sort_values("path", kind="stable", ignore_index=True)
    relative = os.path.relpath(root, folder.resolve())
    where = str(root) if relative.startswith("..") else relative
    about = {"name": name, "kind": kind, "root": where, "licence": licence}
    about["classes"] = table.groupby("label")["generator"].unique().map(sorted).map(list).to_dict()
    write_text(folder / "dataset.json", json.dumps(about, indent=1))
    write_text(folder / "manifest.csv", table.to_csv(index=False))  # last: its presence means prepared
    check(table, name, kind=kind)
    return table


def check_name(name: str) -> str:
    """The name, if it can be a dataset's; else `InputError`."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} cannot be a dataset's name: letters, digits, - _ . only, and no dot first")
    return name


def load(name: str) -> pd.DataFrame:
    """The manifest of a prepared dataset, every row of it (quarantined ones too)."""
    path = dataset_folder(name) / "manifest.csv"
    numbers = {c: [""] for c in ("width", "height", "jpeg_quality")}
    try:
        table = pd.read_csv(path, dtype=_TEXT, keep_default_na=False, na_values=numbers)
    except ValueError as error:  # not UTF-8, not a table, or empty
        raise InputError(f"{path} is damaged ({error}): make it again with python -m data_prep") from error
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
            "%s: %d file(s) of %s quarantined: %s (e.g. %s)", name, len(rows), generator, status, rows["path"].iloc[0]
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
    return hashlib.sha256(f"{DECODING}\n{table[columns].to_csv(index=False)}".encode()).hexdigest()[:16]


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Usable images per generator and split, and the number quarantined."""
    ok = table[table["status"] == "ok"]
    result = ok.assign(split=ok["split"].replace("", "(none given)")).pivot_table(
        index=["label", "generator"], columns="split", values="path", aggfunc="count", fill_value=0
    )
    quarantined = (table["status"] != "ok").groupby([table["label"], table["generator"]]).sum()
    return result.reindex(quarantined.index, fill_value=0).assign(quarantined=quarantined).astype(int)


def _scan(root: Path, paths: list[str], folder: Path) -> pd.DataFrame:
    """Facts of each file, in the order of `paths`; files with the same size and time as at the last scan are not read."""
    stamps = [_stamp(root / p) for p in paths]
    known = _last_scan(folder, root)
    fresh = [p for p, s in zip(paths, stamps, strict=True) if (p, *s) not in known]
    found = parallel(inspect_file, [root / p for p in fresh], desc="scanning")
    facts = dict(zip(fresh, found, strict=True))
    rows = [facts[p] if p in facts else known[(p, *s)] for p, s in zip(paths, stamps, strict=True)]
    log.info("%d files: %d read, %d unchanged since the last scan", len(paths), len(fresh), len(paths) - len(fresh))
    scan = pd.DataFrame(rows)
    for column in ("width", "height", "jpeg_quality"):
        scan[column] = scan[column].astype("Int64")
    record = scan.assign(
        path=paths, size=[s[0] for s in stamps], mtime_ns=[s[1] for s in stamps], root=str(root), version=_SCAN
    )
    record.to_parquet(folder / "scan.parquet.new")
    (folder / "scan.parquet.new").replace(folder / "scan.parquet")
    return scan


def _last_scan(folder: Path, root: Path) -> dict[tuple, dict]:
    try:
        record = pd.read_parquet(folder / "scan.parquet")
    except (OSError, ValueError):  # none yet, or damaged: every file is read
        return {}
    if "version" not in record or (record["version"] != _SCAN).any():
        return {}
    record = record[record["root"] == str(root)]
    keys = zip(record["path"], record["size"], record["mtime_ns"], strict=True)
    facts = (
        record.drop(columns=["path", "size", "mtime_ns", "root", "version"])
        .astype(object)
        .where(lambda f: f.notna(), None)
    )
    return dict(zip(keys, facts.to_dict("records"), strict=True))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)
