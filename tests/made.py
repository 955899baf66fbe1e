"""What several test files call: processes, networks with a past, records of runs, odd JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from dflib import export, metrics, models, train
from dflib.show import words
from dflib.study import methods, runs

LATENCY = {"p95": 9.0, "runtime": "onnxruntime 1", "threads": 1, "cpu": "a CPU"}
ABOUT = {"dataset": "faces", "protocol": "strict", "preset": "tiny", "device": "a CPU"}
ABOUT |= {"threshold": 0.5, "parents": [], "data_fingerprint": "0", "source": None}
ABOUT |= {"versions": {"python": "3.11", "torch": "2"}}
PARAMS = {"size": 32, "mode": "resize", "limit": None, "target_images": None}
SIZES = {"params": 1000, "nonzero": 500, "macs": 10**6, "file_bytes": 4 * 10**6}
SIZES |= {"gzip_bytes": 1, "trainable_params": 10, "shipped_bytes": 5, "peak_rss_mb": 90.0}


def python(*words: object, text=True, timeout=900, **env: str) -> subprocess.CompletedProcess:
    """`python WORDS` as a process of its own."""
    how = {"env": os.environ | env, "text": text, "timeout": timeout, "check": False}
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, **how)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def lived_in(arch: models.Architecture, seed: int = 0) -> models.Detector:
    """A network that was not trained, with BatchNorm statistics and scales of its own."""
    with train.seeded(seed):
        model = models.Detector(arch).train()
        model(torch.rand(16, 3, arch.size, arch.size))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.1)
    return model.eval()


def finished(model, code, dataset, *, rate=None, protocol="strict", int8=None, **own) -> runs.Run:
    """A finished run of this model; int8(ONNX file, new file, train part) makes what it deploys."""
    request = {"preset": "tiny", "dataset": dataset, "protocol": protocol, "rate": rate}
    run = runs.Run(runs.spec(code, **request, settings={"latency_runs": 1} | own))
    deployed = None
    if int8:
        run.folder.mkdir(parents=True, exist_ok=True)
        float_file = export.to_onnx(model, run.folder / "model.onnx")
        deployed = int8(float_file, run.folder / "model.int8.onnx", run.data.train)
    run.finish(model, deployed=deployed)
    return run


def untrained(dataset: str, **options) -> runs.Run:
    """A finished BL, of a small network that was not trained: its scores lie near the threshold."""
    return finished(lived_in(models.student(0.9, size=32)), "BL", dataset, **options)


def result(method="BL", rate=None, seed=0, skill=1.0, generators=("gan", "vae"), draws=30, **cost):
    """A `result.json` of random scores, with the real metrics."""
    rng = np.random.default_rng(int(100 * skill) + seed)
    fakes = [generators[i % len(generators)] for i in range(40)]
    names = np.array(["real"] * 40 + fakes, dtype=object)
    labels = (names != "real").astype(int)
    scores = 1 / (1 + np.exp(-rng.normal(skill * (2 * labels - 1), 1)))
    numbers = SIZES | {"p50": 2.0} | cost
    latency = {"p50": numbers.pop("p50")} | LATENCY
    took = {"train_s": 60.0, "compress_s": 0.0} if method == "BL" else {"compress_s": 7.0}
    name = f"{words.run_label(method, rate)}-s{seed}".replace(" ", "-r").replace("%", "")
    return ABOUT | {
        "run_id": name,
        "method": method,
        "rate": rate,
        "seed": seed,
        "command": f"python -m dflib study --methods {method}",
        "params": PARAMS,
        "train_images": 200 + 100 * seed,
        "code": methods.versions(method) if method in methods.METHODS else {},
        "timings": {"train_s": 0.0, "transfer_s": 2.0, "total_s": 70.0} | took,
        "cost": numbers | {"latency_ms": latency},
        "metrics": metrics.evaluate(labels, scores, names, threshold=0.5, draws=draws),
    }


def store(root: Path, record: dict, scores: dict | None = None, known: dict | None = None) -> Path:
    """Write a finished run with its scores of test and validation images; returns its folder."""
    folder = root.joinpath(*(record[k] for k in ("dataset", "protocol", "method", "run_id")))
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record))
    for name, table in (("predictions", scores), ("validation", known)):
        if table is not None:
            pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    return folder


@st.composite
def mutated(draw, text: str, values: st.SearchStrategy) -> str:
    """JSON with some of its values replaced, repeated or gone; or with other characters."""
    if draw(st.integers(0, 4)) == 0:
        at, what = draw(st.integers(0, len(text))), draw(st.text(max_size=4) | st.just("[" * 5000))
        return text[:at] + what + text[at + draw(st.integers(0, 8)) :]
    whole = [json.loads(text)]
    for _ in range(draw(st.integers(1, 3))):
        places, todo = [], [whole]
        for node in todo:  # grows meanwhile
            keys = range(len(node)) if isinstance(node, list) else list(node)
            places += [(node, key) for key in keys]
            todo += [node[key] for key in keys if isinstance(node[key], list | dict)]
        node, key = places[draw(st.integers(0, len(places) - 1))]
        if draw(st.booleans()) and isinstance(node, list) and node is not whole:
            node.insert(key, node[key])
        elif draw(st.integers(0, 5)) == 0 and node is not whole:
            del node[key]
        else:
            node[key] = draw(values)
    return json.dumps(whole[0])
