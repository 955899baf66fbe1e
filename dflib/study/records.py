"""Finished runs as they lie on disk: one schema of `result.json`, checked wherever one is read."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NotRequired

import pandas as pd
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from data_prep.errors import InputError, choose, short
from data_prep.paths import attached_roots, outputs_root, write_text
from dflib.study import methods
from dflib.study.settings import DEFAULTS

TIMINGS = ("train_s", "compress_s", "transfer_s")

log = logging.getLogger(__name__)
ENDS = 4096  # bytes at a file's beginning and end that tell whether it is as it was written
OLDER = "made by older code"


def cpu(timing: str) -> str:
    """The name of the CPU seconds beside a timing's.

    >>> cpu("train_s")
    'train_cpu_s'
    """
    return timing.replace("_s", "_cpu_s")


def _record(name: str, needed: dict, known: dict) -> type:
    """A JSON object of typed entries; what other versions of the code wrote besides is no fault."""
    found = TypedDict(name, {key: NotRequired[kind] for key, kind in known.items()} | needed)
    found.__pydantic_config__ = ConfigDict(extra="allow", strict=True)
    return found


def _of(names: str, kind: object) -> dict:
    return dict.fromkeys(names.split(), kind)


def _a_time(found: float) -> float:
    if found <= 0 or math.isinf(found):  # NaN: not timed
        raise ValueError("a time above 0 is expected")
    return found


def _with_all(found: dict) -> dict:
    if "all" not in found:
        raise ValueError("no entry `all`")
    return found


Size, Count = (Annotated[int, Field(ge=least, lt=2**62)] for least in (0, 1))
Time = Annotated[float, AfterValidator(_a_time)]
Share = Annotated[float, Field(ge=0, le=1)]
Ends = Annotated[list[float], Field(min_length=2, max_length=2)] | None
Pair = Annotated[list[str], Field(min_length=2)]
Params = _record(  # whatever a setting's limits were
    "Params",
    {"size": Annotated[int, Field(ge=1)], "mode": str},
    {k: int | None if v is None else type(v) for k, v in DEFAULTS.items()},
)
Times = _record(
    "Times",
    _of("p50 p95", Time) | _of("runtime cpu", str) | {"threads": int},
    _of("low high", Time) | {"busy": bool},
)
Cost = _record(  # what `measure.cost` finds
    "Cost",
    {"latency_ms": Times},
    _of("params macs file_bytes", Count)
    | _of("nonzero gzip_bytes shipped_bytes trainable_params", Size)
    | _of("peak_rss_mb", float | None),
)
METRICS = "accuracy balanced_accuracy auroc f1 precision recall tnr ap eer brier ece"
Scores = _record(  # what `metrics.evaluate` finds, of a generator or of all
    "Scores",
    {"n": Count, "n_real": Size, "n_fake": Size, "ci95": dict[str, Ends | dict[str, Ends]]},
    _of(METRICS, float | None) | {"tpr_at_fpr": dict[str, float | None]},
)
Result = _record(
    "Result",
    _of("run_id method dataset protocol preset command device", str)
    | {"rate": Annotated[float, Field(gt=0, lt=1)] | None, "seed": int, "params": Params}
    | {"parents": list[str], "threshold": Share, "timings": dict[str, float], "cost": Cost}
    | {"metrics": Annotated[dict[str, Scores], AfterValidator(_with_all)]},
    _of("source", str | None)
    | _of("deployed data_fingerprint commit", str)
    | _of("train_generators notes", list[str])
    | _of("versions files", dict[str, str])  # of the libraries; `stamp` of what others start from
    | {"schema": int, "classes": Pair, "train_images": Size | None, "threads": list[int]}
    | {"code": dict[str, int]},  # `methods.versions`
)
RESULT = TypeAdapter(Result)
FAILURE = TypeAdapter(_record("Failure", _of("run_id kind error", str), {}))


def read(folder: Path) -> dict:
    """A run's `result.json` and `folder`; raises `InputError` where there is no finished run."""
    folder = Path(folder)
    try:
        return RESULT.validate_json((folder / "result.json").read_bytes()) | {"folder": folder}
    except FileNotFoundError as error:
        wrong = "is no finished run: it has no result.json. python -m dflib results lists them"
        raise InputError(f"{folder} {wrong}") from error
    except (OSError, ValidationError) as error:
        mend = "the command that made the run makes it again"
        raise InputError(f"{folder}/result.json is damaged ({_why(error)}): {mend}") from error


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return short(f"{place}: {first['msg']}" if place else first["msg"])[1:-1]


def every(dataset: str | None = None) -> Iterator[dict]:
    """All finished runs as `read` gives them; what is damaged is named in a warning, and left out.

    Damaged are also predictions that cannot be read: all that compares runs reads them.
    """
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


@lru_cache(maxsize=4096)  # raises again, but what can be read is read once
def _readable(folder: Path, *_: int) -> bool:
    return len(predictions(folder)) > 0


def predictions(folder: Path) -> pd.DataFrame:
    """A finished run's test images: path, generator, label, score (P(fake)), group (scene)."""
    file = Path(folder) / "predictions.parquet"
    try:
        table = pd.read_parquet(file)
        if not (table["score"].between(0, 1).all() and table["label"].isin((0, 1)).all()):
            raise ValueError("a label that is not 0 or 1, or a score outside [0, 1]")
        return table.astype(dict.fromkeys(("path", "generator", "group"), object))
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no predictions to read: make the run again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{file} is damaged ({short(str(error))[1:-1]})"
        raise InputError(f"{why}, no predictions to read: make the run again") from error


def older(result: dict) -> bool:
    """Whether code of other versions made a result: then it counts among its like alone."""
    known = result["method"] in methods.METHODS
    return not known or result.get("code") != methods.versions(result["method"])


def stamp(file: Path) -> str:
    """Tells whether a file is there as it was written: its size, and a hash of its two ends.

    A file that was emptied, cut, or filled with zeros by a power cut has another one; "" for none.
    """
    try:
        with file.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            ends = content.read(ENDS)
            content.seek(max(0, size - ENDS))
            ends += content.read(ENDS)
    except OSError:
        return ""
    return f"{size}-{hashlib.sha256(ends).hexdigest()[:12]}"


def kept(file: Path) -> str:
    """`stamp` of a file that is safe on the disk."""
    with file.open("rb+") as content:
        os.fsync(content.fileno())
    return stamp(file)


def note(folder: Path, text: str) -> None:
    """Add a sentence to what a finished run says of itself."""
    result = read(folder)
    result |= {"notes": [*result.get("notes", ()), text]}
    del result["folder"]
    write_text(folder / "result.json", json.dumps(result, indent=1))


def whole(folder: Path) -> bool:
    """Whether a run is done: a result that can be read, and its files as they were written."""
    if not (folder / "result.json").exists():
        return False
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
        return FAILURE.validate_json((Path(folder) / "failed.json").read_bytes())
    except (OSError, ValidationError):
        return None


def find(name: str) -> Path:
    """The folder of a finished run, by its id or path; raises `InputError` with the nearest id."""
    folder = Path(name)
    if name and (folder / "result.json").exists():
        return folder
    known = {f.name: f for f in folders()}
    return known[choose("run", folder.name, known, hint="python -m dflib results lists them.")]


def folders() -> list[Path]:
    """All finished runs, here and attached, each once; by dataset, protocol, method and id."""
    found = {}
    for root in (*attached_roots()[::-1], outputs_root()):  # one's own count most
        found |= {f.parent.relative_to(root): f.parent for f in root.glob("*/*/*/*/result.json")}
    return [found[place] for place in sorted(found)]


def own(folder: Path) -> Path:
    """The run's folder below the outputs root, to write to: an attached run is copied there."""
    here = outputs_root().joinpath(*folder.parts[-4:])
    attached = any(folder.is_relative_to(root) for root in attached_roots())
    if not attached or (here / "result.json").exists():
        return folder
    new = here.with_name(here.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(folder, new)
    shutil.rmtree(here, ignore_errors=True)  # an attempt from before the other was attached
    return new.replace(here)


def results(dataset: str | None = None) -> pd.DataFrame:
    """`rows` as a table, by dataset, protocol and seed."""
    table, by = pd.DataFrame(rows(dataset)), ["dataset", "protocol", "seed"]
    return table if table.empty else table.sort_values(by, kind="stable", ignore_index=True)


def rows(dataset: str | None = None) -> list[dict]:
    """All finished runs (`every`), one a row, as `flat` gives it."""
    return [flat(result) | {"folder": str(result["folder"])} for result in every(dataset)]


def comparable(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Rows of `results` whose times can be held against each other, and the times' unit.

    Wall clock where all had as many threads, else CPU seconds; where these are not known, or a GPU
    was used by some alone, the unit says that the threads differ.
    """
    if rows["threads"].nunique() <= 1 or not rows["on_cpu"].any():
        return rows, "s"
    times = rows.reindex(columns=[*map(cpu, TIMINGS)]).set_axis(TIMINGS, axis=1)
    if times.isna().any(axis=None) or not rows["on_cpu"].all():
        return rows, "s (threads differ)"
    return rows.assign(**times), "CPU s"


def flat(result: dict) -> dict:
    """A result as one row: request, costs, timings, metrics with their intervals."""
    params, cost = result["params"], result["cost"]
    asked = ("run_id", "method", "rate", "seed", "dataset", "protocol", "preset", "command")
    row = {key: result[key] for key in (*asked, "device", "threshold")}
    row |= {key: result.get(key) for key in ("source", "train_images")}
    row |= {key: params.get(key) for key in ("size", "mode", "limit", "target_images")}
    row |= result["timings"] | {"parents": ",".join(result["parents"]), "older": older(result)}
    row |= {"threads": " and ".join(map(str, result.get("threads", ())))}
    row["on_cpu"] = result["device"] == cost["latency_ms"].get("cpu")
    row |= {"fold": methods.fold(params), "planned_epochs": methods.planned_epochs(params)}
    sizes = ("params", "nonzero", "trainable_params", "file_bytes", "gzip_bytes", "shipped_bytes")
    row |= {key: cost.get(key) for key in (*sizes, "macs", "peak_rss_mb")}
    latency = cost["latency_ms"]
    row |= {f"latency_{key}_ms": latency.get(key) for key in ("p50", "p95", "low", "high")}
    row["latency_busy"] = latency.get("busy")
    known = result.get("train_generators", result["metrics"])
    row["unseen"] = ",".join(sorted({*result["metrics"]} - {"all", "macro", *known}))
    for generator, values in result["metrics"].items():
        prefix = "" if generator == "all" else f"{generator}/"
        others = [metric for metric, value in values.items() if isinstance(value, float)]
        row[f"{prefix}fake_share"] = values["n_fake"] / values["n"]
        for metric in ("accuracy", "f1", "auroc", *(others if generator == "all" else ())):
            row[prefix + metric] = values.get(metric)
            if isinstance(interval := values["ci95"].get(metric), list):
                row[f"{prefix}{metric}_low"], row[f"{prefix}{metric}_high"] = interval
    return row
