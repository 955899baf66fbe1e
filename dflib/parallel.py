"""One training on several devices: a process for each, with torch's launcher and DistributedDataParallel. Nothing forks: it works in notebooks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from data_prep.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from dflib.data import Dataset
    from dflib.train import Recipe


def die_with_parent(parent: int) -> None:
    """End this process when its parent (a process id) ends, however: nothing may train on beside the next attempt.

    Linux does it at once; a kernel that looks after its parent itself does so only while it gets to run Python code.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # too late for the signal
        os._exit(1)


def check_devices(devices: int) -> int:
    """`devices` itself; raises `InputError` when there are not so many GPUs, or cores where there is no GPU."""
    import torch

    from data_prep.manifest import cores

    there, what = (torch.cuda.device_count(), "GPUs") if torch.cuda.is_available() else (cores(), "CPU cores")
    if devices > there:
        raise InputError(f"devices={devices} is more than the {there} {what} that are here: --set devices={there}")
    return devices


def fit(
    model: nn.Module, data: Dataset, recipe: Recipe, *, devices: int, on_epoch: Callable[[pd.DataFrame], None] | None = None, **options
) -> pd.DataFrame:  # fmt: skip
    """`train.fit` with each batch shared by so many devices; the model is trained in place, as there (options: `loss`, `after_step`, `checkpoint`).

    Gradients are those of the whole batch. BatchNorm too sees it on GPUs (SyncBatchNorm); on the CPU each process normalises its own part, and
    the first one's running statistics are kept. Raises `InputError` for more devices than there are, and as `train.fit` does.
    """
    import cloudpickle
    import pandas as pd
    import torch
    from torch import multiprocessing as mp

    check_devices(devices)
    with TemporaryDirectory(prefix="dflib-") as place:
        job = Path(place)
        (job / "job").write_bytes(cloudpickle.dumps((model.cpu(), data, recipe, options)))  # takes a notebook's lambdas
        rows = mp.get_context("spawn").SimpleQueue()
        context = mp.spawn(_work, (devices, place, rows, os.getpid()), nprocs=devices, join=False)
        try:
            ended = False
            while not ended:
                ended = context.join(timeout=0.2)
                while not rows.empty():
                    row = rows.get()
                    if on_epoch:
                        on_epoch(row)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            if (job / "error").exists():
                raise InputError((job / "error").read_text()) from error
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error
        finally:
            for process in context.processes:
                process.kill()
                process.join()
        done = torch.load(job / "done", weights_only=True)
    model.load_state_dict(done["model"])
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return pd.DataFrame(done["history"])


def _work(rank: int, devices: int, place: str, rows, parent: int) -> None:
    """One device's part, in its process."""
    die_with_parent(parent)
    import cloudpickle
    import torch
    from torch import distributed

    from dflib import train

    job = Path(place)
    model, data, recipe, options = cloudpickle.loads((job / "job").read_bytes())
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{job / 'meeting'}", rank=rank, world_size=devices)
    try:
        history = train.fit(model, data, recipe, on_epoch=None if rank else rows.put, device=device, **options)
    except InputError as error:
        (job / "error").write_text(str(error))
        raise
    if rank == 0:
        weights = {k: v.cpu() for k, v in model.state_dict().items()}
        torch.save({"model": weights, "history": history.to_dict("list")}, job / "done")
    distributed.destroy_process_group()
