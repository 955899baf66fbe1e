"""What any detector said of images, from a table, as a finished run: it has intervals, paired tests
and a place in the figures like any other, though the detector itself is not here.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd

from data_prep import lists, manifest
from data_prep.errors import InputError, short
from data_prep.paths import images_root, outputs_root, write_text, written
from dflib import metrics
from dflib.study import compare, methods, records
from dflib.study.settings import DEFAULTS

log = logging.getLogger(__name__)
UNTIMED = {"p50": math.nan, "p95": math.nan, "runtime": "", "cpu": "", "threads": 0, "busy": True}
UNKNOWN = {"params": math.nan, "macs": math.nan, "file_bytes": math.nan, "latency_ms": UNTIMED}


def adopt(file: Path, *, dataset: str, name: str = "", model: Path | None = None) -> Path:
    """Scores of a CSV or parquet file as a finished run of `dataset`, strict protocol: its folder.

    Columns: path, label, score (P(fake), 0 to 1); generator, scene, split where there. The
    threshold is chosen on the images whose split is val; 0.5 without them. Where a BL was tested on
    these images, it is held against it, on its test images and with their generators and scenes.
    model: the detector's file, for its size. Raises `InputError` for what cannot be read, tells
    nothing, or labels an image unlike that BL.

    >>> adopt(Path("theirs.csv"), dataset="faces-140k")              # doctest: +SKIP
    """
    name, dataset = manifest.check_name(name or file.stem), manifest.check_name(dataset)
    if name.upper() in map(str.upper, methods.METHODS):  # folders that differ in case alone
        raise InputError(f"{name} is one of this workbook's methods: give another --name")
    if model and not model.is_file():
        raise InputError(f"--weights {model} is no file")
    table = _checked(file, dataset)
    test, val = table[table["split"] != "val"], table[table["split"] == "val"]
    if test["label"].nunique() < 2:
        what = "are all of one class" if len(test) else "are none: all have the split val or train"
        raise InputError(f"{file}: the images to test on {what}. Give both classes")
    base = _tested_on({*test["path"]}, dataset)
    if base:
        about = records.predictions(base["folder"]).drop(columns="score")
        test = about.merge(test[["path", "score", "label"]], on="path", suffixes=("", "_said"))
        wrong = test["label"] != test.pop("label_said")
        if wrong.any():
            what = f"{wrong.sum()} of {len(test)} labels are not those of {base['run_id']}"
            raise InputError(f"{file}: {what}, e.g. {short(test['path'][wrong].iloc[0])}")
    both = val["label"].nunique() == 2
    threshold = metrics.best_threshold(val["label"], val["score"]) if both else 0.5
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
    run_id = f"{name}-s{known['seed']}-{_hash(dataset + table.to_csv(index=False))}"
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


def _checked(file: Path, dataset: str) -> pd.DataFrame:
    """path, label (0, 1), score, generator, group and split ("", test or val) of each image."""
    needed, root = ("path", "label", "score"), None
    with suppress(InputError):
        root = images_root(dataset)
    hint = f"Name them {', '.join(needed)}, with commas."
    table = lists.read(file, root=root, needed=needed, hint=hint)
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
    fakes = table.loc[table["label"] == 1, "generator"].str.lower()
    if reserved := {*fakes} & {*manifest.RESERVED}:
        raise InputError(f"{file}: a fake's generator cannot be called {', '.join(reserved)}")
    table["split"] = [lists.split_of(word, file) for word in table["split"]]
    return table[table["split"] != "train"].rename(columns={"scene": "group"})


def _tested_on(paths: set[str], dataset: str) -> dict | None:
    """The newest BL of the dataset, strict protocol, whose test images are all among these; a
    warning says where none is, or others are left out."""
    runs = [r for r in compare.load(dataset).values() if r["method"] == "BL"]
    tested = [{*records.predictions(r["folder"])["path"]} for r in runs]
    same = [i for i, theirs in enumerate(tested) if theirs <= paths]
    if same and (others := len(paths) - len(tested[same[-1]])):
        what = "%d images that %s was not tested on are left out"
        log.warning(what, others, runs[same[-1]]["run_id"])
    if not same:
        most = max((len(theirs & paths) for theirs in tested), default=0)
        what = "held against no BL: %d of these %d images are among those that one was tested on"
        log.warning(what, most, len(paths))
    return runs[same[-1]] if same else None


def _hash(values: Iterable[str] | str) -> str:
    text = values if isinstance(values, str) else "\n".join(sorted(values))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
