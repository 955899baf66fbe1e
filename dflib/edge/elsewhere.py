"""A finished detector on images that it was not made for: `python -m dflib test`.

It keeps its own threshold. What it scores there is a record in its run's folder, `tests/NAME.json`
with `tests/NAME.parquet`, which the matrix "trained on, tested on" is made of.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from data_prep import manifest
from data_prep.errors import InputError
from data_prep.paths import regular, write_text, written
from dflib import data, metrics, train
from dflib.edge.predict import Predictor
from dflib.study import records, runs
from dflib.study.tables import interval

log = logging.getLogger(__name__)
FIGURES = {  # of a record: its title
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "per_scene": "AUROC per scene",
    "false_alarms": "false alarms",  # of real images alone
    "found": "fakes found",  # of fakes alone
}


def test(run: str, dataset: str, *, split: str | None = None) -> dict:
    """Score a run, or a model file, on a part of a prepared dataset; writes and returns the record.

    split: test | val | train | all; None: test where the dataset gives it, or is the run's own,
    else all. The record holds `metrics.evaluate`, or, of images of one class, `one_class`. Raises
    `InputError` for an unknown run or set, and for images that it may have trained on.

    >>> test("BL-s0-32px-4a29162b", "unseen-faces")["metrics"]["all"]["auroc"]  # doctest: +SKIP
    """
    detector, table = Predictor(run), manifest.load(dataset)
    home, folder = _made_for(run)
    own = dataset in (home["dataset"], home.get("source"))
    if own and split not in (None, "test"):
        made = f"{detector.name} was made from {dataset}"
        raise InputError(f"{made}: its {split} part proves nothing, take test")
    given = (table["split"] == "test").any()
    made = own and next(r for r in _lineage(home) if r["dataset"] == dataset)
    if own and not given and made["data_fingerprint"] != manifest.fingerprint(table):
        again = "it may have trained on what would be the test part now: make it again"
        raise InputError(f"{dataset} has changed since {detector.name} was made: {again}")
    split = split or ("test" if own or given else "all")
    how = {"size": detector.size, "protocol": home["protocol"], "mode": detector.mode}
    part = data.part(dataset, split=split, **how)
    scores = train.predict(detector.forward, part)  # as `predict` gives it
    columns = {"generator": part.generators, "label": part.labels, "score": scores}
    columns |= {"group": part.groups, "testset": part.testsets}
    record = {"run_id": detector.name, "trained_on": home["dataset"], "dataset": dataset}
    record |= {"part": split, "n": len(part), "threshold": detector.threshold}
    record |= {"data_fingerprint": manifest.fingerprint(table), "commit": runs.commit()}
    at = {"threshold": detector.threshold, "groups": part.groups}
    if len(set(part.labels)) == 2:
        at |= {"testsets": part.testsets}
        scored = part.labels, scores, part.generators
        record["metrics"] = metrics.evaluate(*scored, **at)
        if scenes := metrics.per_scene(*scored, **at):
            found = {"value": scenes["auroc"], "ci95": scenes["ci95"]["auroc"]}
            record["metrics"]["all"]["per_scene"] = found
    else:
        record |= one_class(part.labels, scores, **at)
    folder.mkdir(exist_ok=True)
    with written(folder / f"{dataset}.parquet") as new:
        part.table[["path"]].assign(**columns).to_parquet(new, index=False)
    write_text(folder / f"{dataset}.json", json.dumps(record, indent=1))
    return record


def known(run: str, dataset: str) -> dict | None:
    """The record of a run on a dataset as it is today; None where `test` has to make it.

    >>> known("BL-s0-32px-4a29162b", "unseen-faces")  # doctest: +SKIP
    """
    try:
        record = json.loads(regular(_made_for(run)[1] / f"{dataset}.json").read_text("utf-8"))
        same = record["data_fingerprint"] == manifest.fingerprint_of(dataset)
        return record if same and record["part"] in ("test", "all") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def one_class(labels, scores, *, threshold: float, groups) -> dict:
    """What images of one class can tell, {"false_alarms" | "found": {value, ci95, scenes}}: the
    share called fake, by scene (Student's t); Clopper and Pearson's bound where all are alike. One
    scene has no interval.

    >>> one_class([0] * 20, [0.1] * 20, threshold=0.5, groups=range(20))["false_alarms"]["ci95"]
    [0.0, 0.1684...]
    """
    called = pd.Series(np.asarray(scores) >= threshold, dtype=float)
    by_scene = called.groupby(np.asarray(groups)).agg(["sum", "count"])
    value, n = called.mean(), len(by_scene)
    ends = None  # of one scene
    if value in (0, 1):
        ends = [*map(float, stats.binomtest(int(n * value), n).proportion_ci())]
    elif n > 1:
        off = by_scene["sum"] - value * by_scene["count"]  # a ratio's error, scene by scene
        error = np.sqrt((off**2).sum() * n / (n - 1)) / len(called)
        half = stats.t.ppf(0.975, n - 1) * error if error > 1e-9 else 1 - 0.025 ** (1 / n)
        ends = [float(max(0, value - half)), float(min(1, value + half))]
    found = {"value": float(value), "ci95": ends, "scenes": n}
    return {"found" if labels[0] else "false_alarms": found}


def every(results: Iterable[dict]) -> pd.DataFrame:
    """All records of finished runs: their `rows`, with method, rate and seed."""
    found = []
    for result in results:
        about = {key: result[key] for key in ("run_id", "method", "rate", "seed")}
        for file in sorted((Path(result["folder"]) / "tests").glob("*.json")):
            try:
                made = rows(json.loads(regular(file).read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                log.warning("%s is damaged: delete it, and test again", file)
                continue
            found += [row | about for row in made]
    return pd.DataFrame(found)


def rows(record: dict) -> list[dict]:
    """A record as rows, one a generator ("all", too): run_id, trained_on, dataset, part, generator,
    n, and of FIGURES what is there, each with _low and _high."""
    about = {key: record[key] for key in ("run_id", "trained_on", "dataset", "part")}
    found = []
    for generator, numbers in record.get("metrics", {"all": record}).items():
        row = about | {"generator": generator, "n": numbers["n"]}
        for name in FIGURES:
            value = numbers.get(name)
            if isinstance(value, dict):
                row |= interval(name, {"mean": value["value"], "ci95": value["ci95"]})
            elif name in numbers:
                row |= interval(name, {"mean": value, "ci95": numbers["ci95"][name]})
        found.append(row)
    return found


def _lineage(result: dict) -> Iterator[dict]:
    """A run's record, and those of the runs that it starts from."""
    yield result
    for parent in result["parents"]:
        yield from _lineage(records.read(runs.find(parent)))


def _made_for(run: str) -> tuple[dict, Path]:
    """Dataset and protocol that a detector was made with, and where its records go."""
    if Path(run).is_file():
        return {"dataset": "", "protocol": "strict"}, Path(f"{run}.tests")
    folder = runs.find(run)
    return records.read(folder), folder / "tests"
