"""What a detector costs: parameters, operations, bytes, latency, throughput, memory.

Times and memory come from a fresh process, `python -m dflib.measure FILE`, which imports torch only
where that is what is measured: peak memory is the runtime's own. Two never time at once: `alone`.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from timeit import repeat

import numpy as np

from data_prep.errors import InputError, choose

# instruction sets that matter for small networks
FLAGS = "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 amx_int8 asimddp i8mm bf16"
BATCH = 32  # for throughput
WARM_UP = 5


def macs(model) -> int:
    """Multiply-accumulate operations of convolutions and linear layers for one image.

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


def cost(model, deployed: Path, *, checkpoint: Path | None = None, runs: int = 50) -> dict:
    """The `cost` part of a result: sizes, operations, and `profile` of the deployed file.

    checkpoint: a safetensors file to time in PyTorch as well (another runtime, see `speedup`).
    """
    from dflib.models import nonzero, parameters

    data = Path(deployed).read_bytes()
    result = {
        "params": parameters(model),
        "nonzero": nonzero(model),
        "macs": macs(model),
        "file_bytes": len(data),
        "gzip_bytes": len(gzip.compress(data, compresslevel=6)),
        **profile(deployed, runs=runs),
    }
    if checkpoint:
        result["latency_torch_ms"] = profile(checkpoint, runs=runs)["latency_ms"]
    return result


def profile(path: Path, *, runs: int = 50, threads: int = 1) -> dict:
    """Latency at batch 1 (ms), peak resident memory there (MB), throughput at batch 32 of a file.

    In a fresh process, on `threads` pinned cores (the idlest), while no other run of this user is
    timed; PyTorch runs `models.fused`. Returns {"latency_ms": {p50, p95, runtime, threads, cpu},
    "peak_rss_mb", "throughput": {images_per_s, batch}}. Raises `InputError` when it cannot be run.

    >>> profile(Path("model.onnx"))["latency_ms"]["p50"]  # doctest: +SKIP
    """
    module = RUNNERS[choose("format", Path(path).suffix, RUNNERS)].__module__
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}  # as users run it
    env |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with alone():
        words = (path, runs, *idlest_cores(threads))
        command = [sys.executable, "-m", module, *map(str, words)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "killed").splitlines()[-1]
        raise InputError(f"{path} could not be measured: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def preprocessing(images: Sequence[Path], *, size: int, mode: str = "resize") -> dict:
    """Milliseconds to read, decode and fit an image file: {"p50", "p95", "images"}.

    >>> preprocessing([Path("photo.jpg")], size=224)  # doctest: +SKIP
    """
    from data_prep.cache import fit
    from data_prep.integrity import open_image, to_rgb

    prepare = lambda path: fit(to_rgb(open_image(path)), size=size, mode=mode)
    with alone():
        prepare(images[0])
        times = [ms for path in images for ms in _timed(partial(prepare, path))]
    return _percentiles(times) | {"images": len(times)}


def speedup(base: dict, other: dict) -> float:
    """How many times faster `other` is than `base`: the ratio of two `latency_ms`, by medians.

    Raises `InputError` for two of other runtimes, processors or numbers of threads.

    >>> here = {"runtime": "onnxruntime 1", "threads": 1, "cpu": "a CPU"}
    >>> speedup({"p50": 6.0, **here}, {"p50": 2.0, **here})
    3.0
    """
    for key in ("runtime", "threads", "cpu"):
        if base[key] != other[key]:
            change = f"{key} {base[key]!r} to {other[key]!r}"
            raise InputError(f"no speed-up from {change}: measure both under the same")
    return base["p50"] / other["p50"]


@contextmanager
def alone() -> Iterator[None]:
    """Hold this user's timing lock of this machine: no other run that is timed disturbs."""
    from filelock import FileLock

    user = os.getuid() if hasattr(os, "getuid") else 0
    with FileLock(f"{tempfile.gettempdir()}/dflib-timing-{user}.lock"):
        yield


def idlest_cores(n: int) -> list[int]:
    """The n cores of this process that did the least just now (another worker may be training)."""
    import psutil

    load = dict(enumerate(psutil.cpu_percent(interval=0.2, percpu=True)))
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else load
    return sorted(sorted(mine, key=lambda core: load.get(core, 0.0))[:n])


def cpu_name() -> str:
    """The processor's model, and its `instruction_sets`."""
    name = _cpu("model name") or platform.processor() or platform.machine()
    return f"{name} ({' '.join(instruction_sets()) or 'flags unknown'})"


def instruction_sets() -> list[str]:
    """Those of `FLAGS` that the processor has; none where the system does not tell (/proc)."""
    have = (_cpu("flags") or _cpu("Features")).split()
    return [flag for flag in FLAGS.split() if flag in have]


def _cpu(field: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {k.strip(): v.strip() for k, _, v in (x.partition(":") for x in lines)}.get(field, "")


def _peak_rss_mb() -> float:
    """Peak resident memory of this process in 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` starts at the parent's on Linux
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


Runner = tuple[Callable[[np.ndarray], object], list[int], str]  # pixels -> logits, shape, runtime


def _onnx(path: Path, threads: int) -> Runner:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    node = session.get_inputs()[0]
    run = lambda x: session.run(None, {node.name: x})
    return run, node.shape[1:], f"onnxruntime {ort.__version__}"


def _torch(path: Path, threads: int) -> Runner:
    import torch

    from dflib.models import fused, load

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormal weights slow some CPUs tenfold
    torch.inference_mode().__enter__()
    model = load(path)
    shape, network = [3, model.arch.size, model.arch.size], fused(model)
    return (lambda x: network(torch.from_numpy(x))), shape, f"torch {torch.__version__}"


RUNNERS = {".onnx": _onnx, ".safetensors": _torch}  # dflib.edge.files adds ExecuTorch's


def _timed(step: Callable[[], object], times: int = 1) -> list[float]:
    """Milliseconds of each of so many calls."""
    return [1e3 * seconds for seconds in repeat(step, number=1, repeat=times)]


def _percentiles(milliseconds: list[float]) -> dict:
    return {f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95)}


def main() -> None:
    """The fresh process: FILE RUNS CORE …; prints what `profile` returns, as JSON."""
    path, runs, *cores = sys.argv[1:]
    runs, cores = int(runs), [*map(int, cores)]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    run, shape, runtime = RUNNERS[Path(path).suffix](Path(path), len(cores))
    one, many = (np.random.default_rng(0).random((n, *shape), dtype=np.float32) for n in (1, BATCH))
    _timed(partial(run, one), WARM_UP)
    latency = _percentiles(_timed(partial(run, one), runs))
    latency |= {"runtime": runtime, "threads": len(cores), "cpu": cpu_name()}
    result = {"latency_ms": latency, "peak_rss_mb": _peak_rss_mb()}
    batch_ms = np.median(_timed(partial(run, many), 1 + max(1, runs // 16))[1:])
    result["throughput"] = {"images_per_s": float(1e3 * BATCH / batch_ms), "batch": BATCH}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
