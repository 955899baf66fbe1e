"""What a detector costs: parameters, operations, bytes, latency, memory. Times and memory come from a fresh process.

`python -m dflib.measure FILE` is that process: it loads one file (`.onnx` in ONNX Runtime, `.safetensors` in PyTorch) and prints JSON.
torch is imported only where it is what is measured, so that peak memory is the runtime's own.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from data_prep.errors import InputError

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16")
_WARM_UP = 5


def macs(model) -> int:
    """Multiply-accumulate operations of the convolutions and linear layers for one image (torch's own counter, halved).

    >>> from dflib.models import Detector, architecture
    >>> round(macs(Detector(architecture("BL"))) / 1e9, 2)
    8.53
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dflib.models import Detector

    with torch.device("meta"):  # shapes only: nothing is computed
        twin = Detector(model.arch).eval()
        image = torch.empty(1, 3, model.arch.size, model.arch.size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        twin(image)
    return counter.get_total_flops() // 2


def cost(model, deployed: Path, *, checkpoint: Path | None = None, runs: int = 50, threads: int = 1) -> dict:
    """The `cost` part of a result: params, nonzero, macs, file_bytes, gzip_bytes, latency_ms, peak_rss_mb of the deployed file.

    checkpoint: a safetensors file to time in PyTorch as well (`latency_torch_ms`). Speed-ups are to be taken inside one runtime only.
    """
    from dflib.models import nonzero, parameters

    data = Path(deployed).read_bytes()
    measured = profile(deployed, runs=runs, threads=threads)
    result = {"params": parameters(model), "nonzero": nonzero(model), "macs": macs(model), "file_bytes": len(data)}
    result |= {"gzip_bytes": len(gzip.compress(data, compresslevel=6)), **measured}
    if checkpoint is not None:
        result["latency_torch_ms"] = profile(checkpoint, runs=runs, threads=threads)["latency_ms"]
    return result


def profile(path: Path, *, runs: int = 50, threads: int = 1) -> dict:
    """Latency at batch 1 (milliseconds, after a warm-up, threads pinned) and peak resident memory (MB), in a fresh process.

    Returns {"latency_ms": {p50, p95, runtime, threads, cpu}, "peak_rss_mb"}. Raises `InputError` when the file cannot be run.
    """
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "dflib.measure", str(path), str(runs), str(threads)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{path} could not be measured: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def cpu_name() -> str:
    """Model and the instruction sets that matter for small networks."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    have = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({' '.join(f for f in FLAGS if f in have) or 'flags unknown'})"


def _pin(threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _peak_rss_mb() -> float:
    """Peak resident memory of this process in 10^6 bytes (not `ru_maxrss` on Linux: that starts at the parent's)."""
    status = Path("/proc/self/status")
    if status.exists():
        high_water = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(high_water.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _onnx(path: Path, threads: int):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    node = session.get_inputs()[0]
    image = np.random.default_rng(0).random((1, *node.shape[1:]), dtype=np.float32)
    return (lambda: session.run(None, {node.name: image})), f"onnxruntime {ort.__version__}"


def _torch(path: Path, threads: int):
    import torch

    from dflib.models import load

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormal weights slow some CPUs tenfold
    model = load(path)
    image = torch.rand(1, 3, model.arch.size, model.arch.size)
    torch.inference_mode().__enter__()
    return (lambda: model(image)), f"torch {torch.__version__}"


def _main(path: Path, runs: int, threads: int) -> None:
    _pin(threads)
    step, runtime = (_onnx if path.suffix == ".onnx" else _torch)(path, threads)
    for _ in range(_WARM_UP):
        step()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - started))
    p50, p95 = np.percentile(times, [50, 95])
    latency = {"p50": float(p50), "p95": float(p95), "runtime": runtime, "threads": threads, "cpu": cpu_name()}
    sys.stdout.write(json.dumps({"latency_ms": latency, "peak_rss_mb": _peak_rss_mb()}) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
