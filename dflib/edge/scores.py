"""What any detector said of images, from a table, as a finished run: it has intervals, paired tests
and a place in the figures like any other, though the detector itself is not here.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from data_prep import lists, manifest
from data_prep.errors import InputError, short
from data_prep.paths import outputs_root, write_text, written
from dflib import metrics
from dflib.study import compare, methods, records
from dflib.study.settings import DEFAULTS

UNTIMED = {"p50": math.nan, "p95": math.nan, "runtime": "", "cpu": "", "threads": 0, "busy": True}
UNKNOWN = {"params": math.nan, "macs": math.nan, "file_bytes": math.nan, "latency_ms": UNTIMED}


def adopt(file: Path, *, dataset: str, name: str = "", model: Path | None = None) -> Path:
    """Scores of a CSV or parquet file as a finished run of `dataset`, strict protocol: its folder.

    Columns: path, label, score (P(fake), 0 to 1); generator, scene, split where there. The
    threshold is chosen on the images whose split is val; 0.5 without them. Where a BL was tested on
    the same paths, it is held against it, with that BL's names of generators and scenes. model: the
    detector's file, for its size. Raises `InputError` for what cannot be read, or tells nothing.

    >>> adopt(Path("theirs.csv"), dataset="faces-140k")              # doctest: +SKIP
    """
    name = manifest.check_name(name or file.stem)
    if name in methods.METHODS:
        raise InputError(f"{name} is one of this workbook's methods: give another --name")
    table = _checked(file)
    test, val = table[table["split"] != "val"], table[table["split"] == "val"]
    if test["label"].nunique() < 2:
        raise InputError(f"{file}: the images to test on are all of one class: give both")
    base = _tested_on({*test["path"]}, dataset)
    if base:
        about = records.predictions(base["folder"]).drop(columns="score")
        test = about.merge(test[["path", "score"]], on="path", validate="1:1")
    threshold = 0.5
    if val["label"].nunique() == 2:
        threshold = metrics.best_threshold(val["label"], val["score"])
    # what is not known is NaN; the settings are those of the BL, so they stand together
    known = {"params": {"size": DEFAULTS["size"], "mode": DEFAULTS["mode"]}, "seed": 0}
    known |= {"data_fingerprint": _hash(test["path"]), "code": {}, "parents": []}
    if base:
        known |= {key: base[key] for key in known if key in base} | {"parents": [base["run_id"]]}
    cost = UNKNOWN | ({"file_bytes": model.stat().st_size} if model else {})
    options = {"threshold": threshold, "groups": test["group"], "testsets": test.get("testset")}
    options["draws"] = known["params"].get("draws", DEFAULTS["draws"])
    scored = test["label"], test["score"], test["generator"]
    found = metrics.evaluate(*scored, **options)
    run_id = f"{name}-s{known['seed']}-{_hash(table.to_csv(index=False))}"
    result = {"schema": 2, "run_id": run_id, "method": name, "dataset": dataset, "rate": None}
    result |= {"protocol": "strict", "preset": "", "device": "", "source": None} | known
    result |= {"imported": file.name, "threshold": threshold, "metrics": found, "cost": cost}
    result["per_scene"] = metrics.per_scene(*scored, **options)
    result["timings"] = dict.fromkeys((*records.TIMINGS, "total_s"), math.nan)
    words = f"python -m dflib adopt {file.name} --dataset {dataset} --name {name}"
    folder = outputs_root() / dataset / "strict" / name / run_id
    folder.mkdir(parents=True, exist_ok=True)
    for what, part in (("predictions", test), ("validation", val)):
        with written(folder / f"{what}.parquet") as new:
            part.drop(columns="split", errors="ignore").to_parquet(new, index=False)
    write_text(folder / "result.json", json.dumps(result | {"command": words}, indent=1))
    return folder


def _checked(file: Path) -> pd.DataFrame:
    """path, label (0, 1), score, generator, group and split ("", test or val) of each image."""
    table = lists.read(file, needed=("path", "label", "score"))
    table["label"] = [lists.label_of(value, f"In {file}.") for value in table["label"]]
    scores = pd.to_numeric(table["score"], errors="coerce")
    wrong = ~scores.between(0, 1)
    if wrong.any():
        first = f"{short(table['score'][wrong].iloc[0])} of {short(table['path'][wrong].iloc[0])}"
        hint = "Expected P(fake), 0 to 1: of logits, 1 / (1 + exp(real - fake))."
        raise InputError(f"{file}: {wrong.sum()} score(s) are none, e.g. {first}. {hint}")
    table["score"] = scores.astype("float64")
    for column, other in (("generator", "fake"), ("scene", table["path"]), ("split", "")):
        given = table[column] if column in table else pd.Series("", table.index)
        table[column] = given.where(given != "", other)
    table["generator"] = table["generator"].where(table["label"] == 1, "real")
    table["split"] = [lists.split_of(word, file) for word in table["split"]]
    return table[table["split"] != "train"].rename(columns={"scene": "group"})


def _tested_on(paths: set[str], dataset: str) -> dict | None:
    """The newest BL of the dataset, strict protocol, that was tested on just these images."""
    runs = [r for r in compare.load(dataset).values() if r["method"] == "BL"]
    same = [r for r in runs if {*records.predictions(r["folder"])["path"]} == paths]
    return same[-1] if same else None


def _hash(values: Iterable[str] | str) -> str:
    text = values if isinstance(values, str) else "\n".join(sorted(values))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
