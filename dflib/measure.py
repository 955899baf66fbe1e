"""What a detector costs: parameters, operations, bytes, latency, throughput, memory. Times and memory come from a fresh process.

`python -m dflib.measure FILE` is that process: it loads one file (`.onnx` in ONNX Runtime, `.safetensors` in PyTorch, `.pte` in ExecuTorch) and prints
JSON.
torch is imported only where it is what is measured, so that peak memory is the runtime's own. Two runs never time at once: `alone`.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_prep.errors import InputError

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
)
BATCH = 32  # for throughput
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


def cost(
    model, deployed: Path, *, checkpoint: Path | None = None, runs: int = 50, threads: int = 1
) -> dict:
    """The `cost` part of a result: params, nonzero, macs, file_bytes, gzip_bytes, and `profile` of the deployed file.

    checkpoint: a safetensors file to time in PyTorch as well (`latency_torch_ms`, `throughput_torch`): another runtime, see `speedup`.
    """
    from dflib.models import nonzero, parameters

    data = Path(deployed).read_bytes()
    measured = profile(deployed, runs=runs, threads=threads)
    result = {
        "params": parameters(model),
        "nonzero": nonzero(model),
        "macs": macs(model),
        "file_bytes": len(data),
    }
    result |= {"gzip_bytes": len(gzip.compress(data, compresslevel=6)), **measured}
    if checkpoint is not None:
        other = profile(checkpoint, runs=runs, threads=threads)
        result |= {"latency_torch_ms": other["latency_ms"], "throughput_torch": other["throughput"]}
    return result


def profile(path: Path, *, runs: int = 50, threads: int = 1) -> dict:
    """Latency at batch 1 (milliseconds) and peak resident memory (MB) there, then throughput at batch 32, in a fresh process.

    PyTorch runs the model as `models.fused` makes it, which is how `predict` runs it. After a warm-up, on `threads` pinned cores (those that are idlest), while no other run of this user is timed on the machine.
    Returns {"latency_ms": {p50, p95, runtime, threads, cpu}, "peak_rss_mb", "throughput": {images_per_s, batch}}.
    Raises `InputError` when the file cannot be run.
    """
    usual = {
        k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")
    }  # as whoever has the file would run it
    env = usual | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with alone():
        command = [
            sys.executable,
            "-m",
            "dflib.measure",
            str(path),
            str(runs),
            *map(str, idlest_cores(threads)),
        ]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{path} could not be measured: {(done.stderr.strip() or 'killed').splitlines()[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def preprocessing(images: Iterable[Path], *, size: int, mode: str = "resize") -> dict:
    """Milliseconds to read, decode and fit one image file, over the files given: {"p50", "p95", "images"}. Not part of any latency.

    >>> preprocessing([Path("photo.jpg")], size=224)                # doctest: +SKIP
    """
    from data_prep.cache import fit
    from data_prep.integrity import open_image, to_rgb

    steps = [
        lambda path=path: fit(to_rgb(open_image(path)), size=size, mode=mode) for path in images
    ]
    with alone():
        steps[0]()
        times = [_milliseconds(step) for step in steps]
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50": float(p50), "p95": float(p95), "images": len(times)}


def speedup(base: dict, other: dict) -> float:
    """How many times faster `other` is than `base`: the ratio of two `latency_ms`, by their medians.

    Raises `InputError` when the two were not taken in the same runtime, on the same processor, with as many threads.

    >>> here = {"runtime": "onnxruntime 1", "threads": 1, "cpu": "a CPU"}
    >>> speedup({"p50": 6.0, **here}, {"p50": 2.0, **here})
    3.0
    """
    for key in ("runtime", "threads", "cpu"):
        if base[key] != other[key]:
            raise InputError(
                f"no speed-up from {key} {base[key]!r} to {other[key]!r}: measure both under the same"
            )
    return base["p50"] / other["p50"]


@contextmanager
def alone() -> Iterator[None]:
    """Hold this user's timing lock of this machine: what is timed inside is not disturbed by another run that is timed."""
    from filelock import FileLock

    user = os.getuid() if hasattr(os, "getuid") else 0
    with FileLock(Path(tempfile.gettempdir()) / f"dflib-timing-{user}.lock"):
        yield


def idlest_cores(n: int) -> list[int]:
    """The n cores of this process that did the least in the last moments (another worker may be training)."""
    import psutil

    load = psutil.cpu_percent(interval=0.2, percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(load))
    return sorted(sorted(mine, key=lambda core: load[core] if core < len(load) else 0.0)[:n])


def cpu_name() -> str:
    """Model and the instruction sets that matter for small networks."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    have = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({' '.join(f for f in FLAGS if f in have) or 'flags unknown'})"


def _peak_rss_mb() -> float:
    """Peak resident memory of this process in 10^6 bytes (not `ru_maxrss` on Linux: that starts at the parent's)."""
    status = Path("/proc/self/status")
    if status.exists():
        high_water = next(
            line for line in status.read_text().splitlines() if line.startswith("VmHWM")
        )
        return int(high_water.split()[1]) * 1024 / 1e6
    import resource

    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / 1e6
    )


# pixels -> logits, shape of one image, the runtime's name
Runner = tuple[Callable[[np.ndarray], object], list[int], str]


def _onnx(path: Path, threads: int) -> Runner:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    node = session.get_inputs()[0]
    return (
        (lambda x: session.run(None, {node.name: x})),
        node.shape[1:],
        f"onnxruntime {ort.__version__}",
    )


def _torch(path: Path, threads: int) -> Runner:
    import torch

    from dflib.models import fused, load

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormal weights slow some CPUs tenfold
    model = load(path)
    shape, model = [3, model.arch.size, model.arch.size], fused(model)
    torch.inference_mode().__enter__()
    return (lambda x: model(torch.from_numpy(x))), shape, f"torch {torch.__version__}"


def _executorch(path: Path, threads: int) -> Runner:
    from importlib.metadata import version

    import torch

    from dflib.edge.files import ExecutorchModel, need_executorch

    need_executorch()
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(threads)  # safe while no program is loaded
    model = ExecutorchModel(path)
    shape = list(model.method.metadata.input_tensor_meta(0).sizes())[1:]
    return (lambda x: model(torch.from_numpy(x))), shape, f"executorch {version('executorch')}"


RUNNERS = {".onnx": _onnx, ".safetensors": _torch, ".pte": _executorch}


def _milliseconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - started)


def _main(path: Path, runs: int, cores: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    run, shape, runtime = RUNNERS[path.suffix](path, len(cores))
    one, many = (np.random.default_rng(0).random((n, *shape), dtype=np.float32) for n in (1, BATCH))
    for _ in range(_WARM_UP):
        run(one)
    p50, p95 = np.percentile([_milliseconds(lambda: run(one)) for _ in range(runs)], [50, 95])
    latency = {
        "p50": float(p50),
        "p95": float(p95),
        "runtime": runtime,
        "threads": len(cores),
        "cpu": cpu_name(),
    }
    result = {"latency_ms": latency, "peak_rss_mb": _peak_rss_mb()}
    run(many)
    batch_ms = np.median([_milliseconds(lambda: run(many)) for _ in range(max(1, runs // 16))])
    result["throughput"] = {"images_per_s": float(1e3 * BATCH / batch_ms), "batch": BATCH}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), [int(core) for core in sys.argv[3:]])
