"""Finished runs as they lie on disk: one schema of `result.json`, checked wherever one is read."""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype
from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model

from data_prep.errors import InputError, choose, short
from data_prep.paths import outputs_root, regular, write_text
from dflib import measure
from dflib.study.methods import METHODS, fold, versions
from dflib.study.settings import DEFAULTS, MEASURES

log = logging.getLogger(__name__)
TIMINGS = ("train_s", "compress_s", "transfer_s")
ENDS = 4096  # bytes at a file's beginning and end that tell whether it is as it was written
OLDER = "made by older code"


def cpu(timing: str) -> str:
    """The name of the CPU seconds beside a timing's: "train_s" -> "train_cpu_s"."""
    return timing.replace("_s", "_cpu_s")


def _positive(found: float) -> float:
    if found <= 0 or math.isinf(found):
        raise ValueError("a number above 0 is expected")
    return found


def _with_all(found: dict) -> dict:
    if "all" not in found:
        raise ValueError("no entry `all`")
    return found


Size, Count = (Annotated[int, Field(ge=least, lt=2**62)] for least in (0, 1))
Time = Annotated[float, AfterValidator(_positive)]  # NaN: not timed,
Known = Count | Time  # or of a detector that is not here
Ends = Annotated[list[float], Field(min_length=2, max_length=2)] | None


class Record(BaseModel, extra="allow", strict=True):
    """A JSON object of typed entries; what other versions of the code wrote besides is no fault."""


# each setting as its type, whatever its limits were
Params = create_model(
    "Params",
    __base__=Record,
    **{k: (int | None if v is None else type(v), v) for k, v in DEFAULTS.items()}
    | {"size": (Count, ...), "mode": (str, ...)},
)


class Latency(Record):
    p50: Time
    p95: Time
    low: Time = 1.0  # its default is never read: an entry may be missing, and not be null
    high: Time = 1.0
    runtime: str
    cpu: str
    threads: int
    busy: bool = False


class Cost(Record):
    params: Known
    macs: Size | Time
    file_bytes: Known
    latency_ms: Latency
    nonzero: Size | None = None
    trainable_params: Size | None = None
    gzip_bytes: Size | None = None
    shipped_bytes: Size | None = None
    peak_rss_mb: float | None = None


class Scores(Record):
    n: Count
    n_real: Size
    n_fake: Size
    ci95: dict[str, Ends | dict[str, Ends]]
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    auroc: float | None = None
    f1: float | None = None


class Result(Record):
    run_id: str
    method: str
    dataset: str
    source: str | None = None
    protocol: str
    preset: str
    command: str
    device: str
    rate: Annotated[float, Field(gt=0, lt=1)] | None
    seed: int
    params: Params
    parents: list[str]
    threshold: Annotated[float, Field(ge=0, le=1)]
    timings: dict[str, float]
    cost: Cost
    metrics: Annotated[dict[str, Scores], AfterValidator(_with_all)]
    per_scene: Scores | None = None  # `metrics.per_scene`
    train_images: Size | None = None
    train_generators: list[str] = []
    classes: Annotated[list[str], Field(min_length=2)] = ["real", "fake"]
    data_fingerprint: str = ""
    deployed: str = ""
    threads: list[int] = []
    versions: dict[str, str] = {}  # of the libraries
    code: dict[str, int] = {}  # `methods.versions`
    commit: str = ""
    files: dict[str, str] = {}  # `stamp` of what others start from
    imported: str = ""  # the file of another detector's scores


class Failure(Record):
    run_id: str
    kind: str
    error: str


def read(folder: Path) -> dict:
    """A run's `result.json` and `folder`; raises `InputError` where there is no finished run."""
    folder = Path(folder)
    try:
        found = Result.model_validate_json(regular(folder / "result.json").read_bytes())
        return found.model_dump(exclude_unset=True) | {"folder": folder}
    except FileNotFoundError as error:
        wrong = "is no finished run: it has no result.json. python -m dflib results lists them"
        raise InputError(f"{folder} {wrong}") from error
    except OSError as error:
        why = error.strerror or type(error).__name__
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        why = short(": ".join([".".join(map(str, first["loc"])), first["msg"]]))[1:-1]
    mend = "the command that made the run makes it again"
    raise InputError(f"{folder}/result.json is damaged ({why}): {mend}")


def every(dataset: str | None = None) -> Iterator[dict]:
    """All finished runs as `read` gives them; damaged ones are named in a warning, and left out."""
    for folder in folders():
        try:
            found, table = read(folder), folder / "predictions.parquet"
            if table.exists():
                stat = table.stat()
                _readable(folder, stat.st_mtime_ns, stat.st_size)
        except InputError as error:
            log.warning("left out: %s: %s", folder, str(error).removeprefix(f"{folder}/"))
            continue
        if dataset in (None, found["dataset"]):
            yield found


def by_age() -> dict[str, dict]:
    """Finished runs by run id, the oldest first; `params` has what parents decided for it, too."""
    made = lambda r: (r["folder"] / "result.json").stat().st_mtime
    known = {r["run_id"]: r for r in sorted(every(), key=made)}
    return {run_id: r | {"params": _inherited(r, known)} for run_id, r in known.items()}


def _inherited(result: dict, every: Mapping[str, dict]) -> dict:
    known = result["params"]
    for parent in (every[i] for i in result["parents"] if i in every):
        known = _inherited(parent, every) | known
    return known


@lru_cache(maxsize=4096)  # raises again, but what can be read is read once
def _readable(folder: Path, *_: int) -> bool:
    return len(predictions(folder)) > 0


def predictions(folder: Path) -> pd.DataFrame:
    """A finished run's test images: path, generator, label, score (P(fake)), group (scene)."""
    file = Path(folder) / "predictions.parquet"
    try:
        table = pd.read_parquet(file)
        if not (table["score"].between(0, 1).all() and {*table["label"]} == {0, 1}):
            raise ValueError("a label that is not 0 or 1, no other, or a score outside [0, 1]")
        names = ["path", "generator", "group"]
        path, generator, group = (infer_dtype(table[name]) for name in names)
        text = path == generator == "string" and group in ("string", "integer")
        if not text or table[names].isna().any(axis=None):
            raise ValueError(f"{', '.join(names)}: not all are text")
        return table.astype(dict.fromkeys(names, object))
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no predictions to read: make the run again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{file} is damaged ({short(str(error))[1:-1]})"
        raise InputError(f"{why}, no predictions to read: make the run again") from error


def older(result: dict) -> bool:
    """Whether code of other versions made a result: then it counts among its like alone."""
    if result.get("imported"):
        return False
    return result["method"] not in METHODS or result.get("code") != versions(result["method"])


def decides(params: dict, but: Iterable[str] = ()) -> dict:
    """The settings that decide a run; its record, maybe of older code, may lack some defaults."""
    named = (DEFAULTS | params).items()
    return {k: v for k, v in named if k not in {*MEASURES, *but} and (k in DEFAULTS or v)}


def but_seed(result: dict) -> tuple:
    """What runs have in common that differ in their seed alone; first their order in tables."""
    method, params = result["method"], result["params"]
    order = [*METHODS, method].index(method)  # behind the table where it is not in it
    images = params.get("target_images") or math.inf
    settings = str(sorted(decides(params).items()))
    code = str(sorted(result.get("code", {}).items()))  # older runs are no seeds of newer ones
    data = result.get("source") or "", result.get("data_fingerprint", "")
    return order, result["rate"] or 0, images, method, *data, settings, code


def stamp(file: Path) -> str:
    """A file's size and a hash of its two ends, which a power cut changes; "" for no file."""
    try:
        with regular(file, 2**62).open("rb") as content:
            ends = content.read(ENDS)
            size = content.seek(0, os.SEEK_END)
            content.seek(max(0, size - ENDS))
            ends += content.read(ENDS)
    except OSError:
        return ""
    return f"{size}-{hashlib.sha256(ends).hexdigest()[:12]}"


def whole(folder: Path) -> bool:
    """Whether a run is done: a result that can be read, and its files as they were written."""
    try:
        files = read(folder).get("files", {})
    except InputError:
        return False
    return all(stamp(folder / name) == written for name, written in files.items())


def clear(folder: Path) -> None:
    """Make room where a run is not done: a damaged result takes all that was made with it away."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(folder / "result.json"):
        return
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif old.name not in ("lock", "log.txt"):
            old.unlink()


def failure(folder: Path) -> dict | None:
    """The `failed.json` of a run folder; None where there is none that can be read."""
    try:
        text = regular(Path(folder) / "failed.json").read_bytes()
        return Failure.model_validate_json(text).model_dump()
    except (OSError, ValidationError):
        return None


def find(name: str) -> Path:
    """The folder of a finished run, by its path, its id or how that begins, `latest`, or `best` (of
    those with the latest's validation images); `InputError` for another, or one with no model."""
    folder, alone = _found(name), ""
    with suppress(InputError):  # a damaged one is told where it is read
        alone = read(folder).get("imported")
    if alone:
        raise InputError(f"{folder.name} has another detector's scores alone: there is no model")
    return folder


def _found(name: str) -> Path:
    if name and (Path(name) / "result.json").exists():
        return Path(name)
    runs = by_age().values() if name in ("best", "latest") else ()
    if runs := [r for r in runs if not r.get("imported")]:
        found = runs[-1]
        if name == "best":  # scores on other validation images cannot be compared
            told = ("dataset", "protocol", "data_fingerprint")
            images = lambda r: [*map(r.get, told), r["params"].get("limit"), fold(r["params"])]
            like = (images(found), older(found))
            found = best(r for r in runs if (images(r), older(r)) == like)
        folder = found["folder"]
        log.warning("%s: %s (validation AUROC %.3f)", name, folder.name, validated(folder))
        return folder
    known = {f.name: f for f in folders()}
    alike = [run for run in known if name and run.startswith(name)]
    if len(alike) > 1 and name not in known:
        raise InputError(f"run {name!r} is how {len(alike)} begin: {', '.join(alike[:5])} …")
    word = alike[0] if len(alike) == 1 else Path(name).name or name
    return known[choose("run", word, known, hint="python -m dflib results lists them.")]


def best(results: Iterable[dict]) -> dict:
    """The run to take: of files at most a quarter as large as BL's (else of all) the best on
    validation images, in the mean over seeds; of those seeds the best."""
    results = list(results)
    results = [r for r in results if not r.get("imported")] or results  # no model to take
    sizes = [r["cost"]["file_bytes"] for r in results if r["method"] == "BL"]
    most = max(sizes, default=math.inf) / 4
    small = [r for r in results if r["cost"]["file_bytes"] <= most] or results
    quality = lambda r: np.nan_to_num(validated(r["folder"]), nan=-1.0)
    groups: dict[tuple, list[dict]] = {}
    for r in small:
        groups.setdefault(but_seed(r), []).append(r)
    seeds = max(groups.values(), key=lambda group: np.mean([*map(quality, group)]))
    return max(seeds, key=quality)


@lru_cache(maxsize=4096)
def validated(folder: Path) -> float:
    """A finished run's AUROC on its validation images; NaN where they are not there."""
    from sklearn.metrics import roc_auc_score

    try:
        known = pd.read_parquet(folder / "validation.parquet")
        return float(roc_auc_score(known["label"], known["score"]))
    except (OSError, ValueError, KeyError):
        return math.nan


def folders() -> list[Path]:
    """All finished runs, by dataset, protocol, method and id."""
    return sorted(file.parent for file in outputs_root().glob("*/*/*/*/result.json"))


def results(dataset: str | None = None) -> pd.DataFrame:
    """All finished runs, a row each (`flat`, and folder), by dataset, protocol and seed."""
    rows = [flat(result) | {"folder": str(result["folder"])} for result in every(dataset)]
    table, by = pd.DataFrame(rows), ["dataset", "protocol", "seed"]
    return table if table.empty else table.sort_values(by, kind="stable", ignore_index=True)


def comparable(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Rows of `results` whose times can be compared, and their unit: seconds where all had as many
    threads, else CPU seconds, where all were made on a CPU that told them."""
    if rows["threads"].nunique() <= 1:
        return rows, "s"
    times = rows.reindex(columns=[*map(cpu, TIMINGS)]).set_axis(TIMINGS, axis=1)
    if times.isna().any(axis=None) or not rows["on_cpu"].all():
        return rows, "s (threads differ)"
    return rows.assign(**times), "CPU s"


def flat(result: dict) -> dict:
    """A result as one row: request, costs, timings, metrics with their intervals."""
    params, cost, latency = result["params"], result["cost"], result["cost"]["latency_ms"]
    asked = ("run_id", "method", "rate", "seed", "dataset", "protocol", "preset", "command")
    row = {key: result[key] for key in (*asked, "device", "threshold")}
    row |= {key: result.get(key) for key in ("source", "train_images")}
    row |= {key: params.get(key) for key in ("size", "mode", "limit", "target_images")}
    row |= result["timings"] | {"parents": ",".join(result["parents"]), "older": older(result)}
    row |= {"threads": " and ".join(map(str, result.get("threads", ())))}
    row |= {"on_cpu": result["device"] == latency.get("cpu"), "fold": fold(params)}
    sizes = ("params", "nonzero", "trainable_params", "file_bytes", "gzip_bytes", "shipped_bytes")
    row |= {key: cost.get(key) for key in (*sizes, "macs", "peak_rss_mb")}
    row |= {f"latency_{key}_ms": latency.get(key) for key in ("p50", "p95", "low", "high")}
    row["latency_busy"] = latency.get("busy")
    known = result.get("train_generators", result["metrics"])
    unseen = ",".join(sorted({*result["metrics"]} - {"all", "macro", *known}))
    row["unseen"] = None if result.get("imported") else unseen
    if scenes := result.get("per_scene"):
        row["auroc_per_scene"] = scenes["auroc"]
        ends = scenes["ci95"].get("auroc") or (None, None)
        row["auroc_per_scene_low"], row["auroc_per_scene_high"] = ends
    for generator, values in result["metrics"].items():
        prefix = "" if generator == "all" else f"{generator}/"
        others = [metric for metric, value in values.items() if isinstance(value, float)]
        row[f"{prefix}fake_share"] = values["n_fake"] / values["n"]
        for metric in ("accuracy", "f1", "auroc", *(others if generator == "all" else ())):
            row[prefix + metric] = values.get(metric)
            if isinstance(interval := values["ci95"].get(metric), list):
                row[f"{prefix}{metric}_low"], row[f"{prefix}{metric}_high"] = interval
    return row


def time_again(names: Sequence[str]) -> list[dict]:
    """Time the deployed files of finished runs in turns, and rewrite their `cost.latency_ms` alone;
    a row for each, with its speed beside the first's (`measure.speed`).

    Raises `InputError`, with nothing written, for an unknown run, or a file that cannot be run.
    """
    folders = list(dict.fromkeys(find(name.strip()) for name in names))
    results = [read(folder) for folder in folders]
    files = [r["folder"] / r.get("deployed", "") for r in results]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file.parent.name} has no deployed file to time: make the run again")
    most = max(r["params"].get("latency_runs", DEFAULTS["latency_runs"]) for r in results)
    timed = [found["latency_ms"] for found in measure.profiles(files, runs=most)]
    rows = []
    for result, latency in zip(results, timed, strict=True):
        result["cost"]["latency_ms"] = latency
        folder = result.pop("folder")
        made = (folder / "result.json").stat()
        write_text(folder / "result.json", json.dumps(result, indent=1))
        os.utime(folder / "result.json", ns=(made.st_atime_ns, made.st_mtime_ns))  # as of `by_age`
        speed = measure.speed(latency, timed[0])
        row = {"run": folder.name, "ms": round(latency["p50"], 3)}
        row["five processes"] = f"{latency['low']:.3f} to {latency['high']:.3f}"
        row |= {"p95": round(latency["p95"], 3), "busy": "yes" if latency["busy"] else "no"}
        rows.append(row | {"speed": f"{speed['ratio']:.2f} times as fast: {speed['words']}"})
    return rows
