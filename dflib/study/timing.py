"""Finished runs timed again, in turns: their times become comparable. How to time: `measure`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_prep.errors import InputError
from data_prep.paths import write_text
from dflib import measure
from dflib.study import records
from dflib.study.settings import DEFAULTS


def again(names: Sequence[str]) -> list[dict]:
    """Time the deployed files of finished runs in turns, and rewrite their `cost.latency_ms` alone;
    a row for each, with its speed beside the first's (`measure.speed`).

    Raises `InputError`, with nothing written, for an unknown run, or a file that cannot be run.
    """
    folders = list(dict.fromkeys(records.find(name.strip()) for name in names))
    results = [records.read(folder) for folder in folders]
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
        write_text(folder / "result.json", json.dumps(result, indent=1))
        speed = measure.speed(latency, timed[0])
        row = {"run": folder.name, "ms": round(latency["p50"], 3)}
        row["five processes"] = f"{latency['low']:.3f} to {latency['high']:.3f}"
        row |= {"p95": round(latency["p95"], 3), "busy": "yes" if latency["busy"] else "no"}
        rows.append(row | {"speed": f"{speed['ratio']:.2f} times as fast: {speed['words']}"})
    return rows
