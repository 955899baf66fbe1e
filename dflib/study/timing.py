"""Finished runs timed again, in turns: their times become comparable. How to time: `measure`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_prep.errors import InputError
from data_prep.paths import write_text
from dflib import measure
from dflib.study import runs
from dflib.study.settings import DEFAULTS


def again(names: Sequence[str]) -> list[dict]:
    """Time the deployed files of finished runs in turns, and rewrite their `cost.latency_ms` alone.

    A row for each: run, median, spread and 95th percentile in ms, and its speed beside the first's
    (`measure.speed`). Raises `InputError` for an unknown run, or a file that cannot be run; then
    nothing is written.

    >>> again(["BL-s0-32px-0a1b2c3d", "CQ-s0-32px-4e5f6a7b"])  # doctest: +SKIP
    """
    if not names:
        raise InputError("no run to time: give --run RUN,RUN; python -m dflib results lists them")
    folders = list(dict.fromkeys(runs.own(runs.find(name.strip())) for name in names))
    results = [runs.read(folder) for folder in folders]
    asked = [r["params"].get("latency_runs", DEFAULTS["latency_runs"]) for r in results]
    files = [folder / r.get("deployed", "") for folder, r in zip(folders, results, strict=True)]
    for folder, file in zip(folders, files, strict=True):
        if not file.is_file():
            raise InputError(f"{folder.name} has no deployed file to time: make the run again")
    timed = [found["latency_ms"] for found in measure.profiles(files, runs=max(asked))]
    rows = []
    for folder, result, latency in zip(folders, results, timed, strict=True):
        result["cost"]["latency_ms"] = latency
        text = json.dumps({k: v for k, v in result.items() if k != "folder"}, indent=1)
        write_text(folder / "result.json", text)
        speed = measure.speed(latency, timed[0])
        row = {"run": folder.name, "ms": round(latency["p50"], 3)}
        row["five processes"] = f"{latency['low']:.3f} to {latency['high']:.3f}"
        row |= {"p95": round(latency["p95"], 3), "busy": "yes" if latency["busy"] else "no"}
        beside = f"{speed['ratio']:.2f} times as fast: {speed['words']}"
        rows.append(row | {f"beside {folders[0].name}": beside if rows else ""})
    return rows
