"""What a detector costs: parameters, operations, bytes, latency, memory.

Times and memory come from fresh processes, `python -m dflib.measure FILE`, which import no torch:
peak memory is the runtime's own. Two never time at once: `alone`.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from timeit import repeat

import numpy as np

from data_prep.errors import InputError
from data_prep.paths import lock

# instruction sets that matter for small networks
FLAGS = "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 amx_int8 asimddp i8mm bf16"
WARM_UP = 5
PROCESSES = 5  # one process differs from the next by more than its own runs do
ONCE = "DFLIB_TIMED_ONCE"  # in the environment of a run whose file is timed later, in turns
BUSY = 0.1  # share of the cores' time that other processes took meanwhile: above, times mislead


def macs(model) -> int:
    """Multiply-accumulate operations of convolutions and linear layers for one image."""
    if hasattr(model.features, "macs"):  # of a user's ONNX file
        return model.features.macs(model.arch.size)
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dflib.models import Detector

    with torch.device("meta"):  # shapes only: nothing is computed
        twin = Detector(model.arch).eval()
        image = torch.empty(1, 3, model.arch.size, model.arch.size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        twin(image)
    return counter.get_total_flops() // 2


def cost(model, deployed: Path, *, runs: int = 50) -> dict:
    """The `cost` part of a result: sizes, operations, and `profiles` of the deployed file."""
    from dflib.models import nonzero, parameters

    data = Path(deployed).read_bytes()
    return {
        "params": parameters(model),
        "nonzero": nonzero(model),
        "macs": macs(model),
        "file_bytes": len(data),
        "gzip_bytes": len(gzip.compress(data, compresslevel=6)),
        **profiles([deployed], runs=runs, processes=1 if ONCE in os.environ else PROCESSES)[0],
    }


def profiles(paths: Sequence[Path], *, runs: int = 50, processes: int = PROCESSES) -> list[dict]:
    """Latency at batch 1 (ms) and peak resident memory (MB) of files, `runs` of each in all.

    In so many fresh processes, in turns, on one pinned core (the idlest): in the first each file is
    alone, which shows its memory; in the others all follow each other. Of each file:
    {"latency_ms": {p50, low, high (median, least and largest of the processes' medians; of one
    process p50 alone), p95 (of all runs), busy (others used the cores), runtime, threads, cpu},
    "peak_rss_mb"}. Raises `InputError` when one cannot be run.

    >>> profiles([Path("a.onnx"), Path("b.onnx")])[0]["latency_ms"]["p50"]  # doctest: +SKIP
    """
    import psutil

    turns: list[list[dict]] = []
    with alone():
        load = dict(enumerate(psutil.cpu_percent(interval=0.2, percpu=True)))
        cores = [min(own_cores(), key=lambda core: load.get(core, 0.0))]  # others may be training
        psutil.cpu_percent(percpu=True)
        began, used = time.monotonic(), sum(os.times()[:4])
        for turn in range(processes):
            groups = [paths] if turn else [[path] for path in paths]
            apart = [_timed_apart(group, -(-runs // processes), cores) for group in groups]
            turns.append([timed for group in apart for timed in group])
        wall, own = time.monotonic() - began, sum(os.times()[:4]) - used
        percent = dict(enumerate(psutil.cpu_percent(percpu=True)))
    load = others_share([percent.get(core, 0.0) for core in own_cores()], wall, own)
    told = {"busy": load > BUSY, "threads": len(cores), "cpu": cpu_name()}
    found = []
    for each in zip(*turns, strict=True):
        medians = [float(np.median(turn["ms"])) for turn in each]
        latency = {"p50": float(np.median(medians))}
        if processes > 1:
            latency |= {"low": min(medians), "high": max(medians)}
        latency["p95"] = float(np.percentile([ms for turn in each for ms in turn["ms"]], 95))
        latency |= told | {"runtime": each[0]["runtime"]}
        found.append({"latency_ms": latency, "peak_rss_mb": each[0]["peak_rss_mb"]})
    return found


def others_share(percent: Sequence[float], wall: float, own: float) -> float:
    """Share of some cores' time that other processes took: of their load in %, in `wall` seconds
    of which this process and its children used `own` CPU seconds.

    >>> others_share([100.0, 50.0], wall=2.0, own=2.0)
    0.25
    """
    return max(0.0, sum(percent) / 100 - own / wall) / len(percent)


def _timed_apart(paths: Sequence[Path], runs: int, cores: list[int]) -> list[dict]:
    """What `main` tells of each file, in one fresh process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}  # as users run it
    env |= {"OMP_NUM_THREADS": str(len(cores)), "CUDA_VISIBLE_DEVICES": ""}
    words = [str(runs), ",".join(map(str, cores)), *map(str, paths)]
    command = [sys.executable, "-m", "dflib.measure", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "killed").splitlines()[-1]
        raise InputError(f"{', '.join(words[2:])} could not be measured: {reason}")
    return [json.loads(line) for line in done.stdout.splitlines()[-len(paths) :]]


def speed(mine: dict, theirs: dict) -> dict:
    """Is the first of two `latency_ms` faster? {"ratio", "low", "high", "words"}.

    ratio: how many times faster, by medians; low, high: what the spreads of the processes allow.
    words: "faster" | "slower" where the spreads are apart, else "not told apart": as for times of a
    busy machine, and of other runtimes, processors or numbers of threads.

    >>> here = {"runtime": "onnxruntime 1", "threads": 1, "cpu": "a CPU"}
    >>> speed(here | {"p50": 2.0, "low": 1.8, "high": 2.5}, here | {"p50": 6, "low": 5, "high": 9})
    {'ratio': 3.0, 'low': 2.0, 'high': 5.0, 'words': 'faster'}
    """
    alike = all(mine.get(key) == theirs.get(key) for key in ("runtime", "threads", "cpu"))
    ratio, low, high = theirs["p50"] / mine["p50"] if alike else np.nan, 0.0, np.inf
    if alike and not any(each.get("busy") or "low" not in each for each in (mine, theirs)):
        low, high = theirs["low"] / mine["high"], theirs["high"] / mine["low"]
    words = "faster" if low > 1 else "slower" if high < 1 else "not told apart"
    return {"ratio": ratio, "low": low, "high": high, "words": words}


@contextmanager
def alone() -> Iterator[None]:
    """Hold this user's timing lock of this machine: no other run that is timed disturbs."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    held = lock(Path(tempfile.gettempdir(), f"dflib-timing-{user}.lock"))
    try:
        yield
    finally:
        held.release()


def own_cores() -> list[int]:
    """The cores that this process may use."""
    every = range(os.cpu_count() or 1)
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*every]


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


def main() -> None:
    """A fresh process: RUNS CORE,… FILE …; prints a line of JSON for each file."""
    import onnxruntime as ort

    runs, cores, *paths = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores.count(",") + 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    for path in paths:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        node = session.get_inputs()[0]
        image = np.random.default_rng(0).random((1, *node.shape[1:]), dtype=np.float32)
        run = partial(session.run, None, {node.name: image})
        times = [1e3 * s for s in repeat(run, number=1, repeat=WARM_UP + int(runs))]
        told = {"ms": times[WARM_UP:], "runtime": f"onnxruntime {ort.__version__}"}
        sys.stdout.write(json.dumps(told | {"peak_rss_mb": _peak_rss_mb()}) + "\n")


if __name__ == "__main__":
    main()
