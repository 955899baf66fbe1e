"""Whether this machine runs a study well: `python -m dflib doctor`; what stops one at once."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_prep.errors import InputError
from data_prep.paths import data_root, outputs_root, usable
from dflib import measure

OK, NOTE, FAULT = "ok", "note", "fault"
ENOUGH = 2e9  # bytes of disk, and of memory, for a demo study
PACKAGES = ("torch", "torchvision", "onnxruntime", "dask", "papermill", "jupyterlab")


def examine() -> list[dict[str, str]]:
    """One row for each thing that a study needs: check, found, state (ok, note, fault), to do."""
    return [*_programs(), *_cards(), *_machine()]


def _row(check: str, found: str, todo: str = "", wrong: str = FAULT) -> dict[str, str]:
    """wrong: the state where there is something to do."""
    return {"check": check, "found": found, "state": wrong if todo else OK, "to do": todo}


def need_machine(*, batch: bool = True) -> None:
    """Raises `InputError` where a GPU is idle; for a batch on Windows, too."""
    if batch and platform.system() == "Windows":
        what = "a study (papermill over local sockets, Dask) does not run on Windows"
        raise InputError(f"{what}: use WSL. Notebooks by hand, predict and export do run")
    if problem := idle_gpu():
        go_on = "To go on with the CPU: --device cpu (CUDA_VISIBLE_DEVICES='')"
        raise InputError(f"{problem}. {go_on}")


def idle_gpu() -> str | None:
    """Why torch cannot use an NVIDIA card that is there; None where it can, or none is wanted."""
    names = nvidia_cards()
    if not names or os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return None
    import torch

    build = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{names[0]} is there, and {build} is built without CUDA: install a CUDA build"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
            why = "no card is visible"
        except Exception as error:  # of many kinds: old driver, no driver, no right to the device
            why = str(error).split(". ")[0].splitlines()[0]
        what = f"{names[0]} is there, and {build} (CUDA {torch.version.cuda}) cannot use it: {why}"
        return f"{what}. Update the driver, or install a torch that is built for an older CUDA"
    have = torch.cuda.get_arch_list()
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        if not _has_kernels(major, minor, have):
            card = f"{torch.cuda.get_device_name(i)} (sm_{major}{minor}; it has {', '.join(have)})"
            return f"{build} has no kernels for {card}"
    return None


def cards() -> int:
    """How many GPUs torch can use; it is slow to import, so only where one may be."""
    if not (nvidia_cards() or Path("/dev/kfd").exists()):  # of NVIDIA, of AMD
        return 0
    import torch

    return torch.cuda.device_count()


def nvidia_cards() -> list[str]:
    """What the driver, not torch, knows: "Tesla T4, 15360 MiB, driver 550.54" of each card."""
    query = "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"
    try:
        found = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, timeout=20, check=True
        )
        rows = [line.rsplit(",", 1) for line in found.stdout.splitlines() if "," in line]
        return [f"{name}, driver {driver.strip()}" for name, driver in rows]
    except (OSError, subprocess.SubprocessError):
        pass  # no such tool, or one without a card or a driver
    nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return [f"a card at {node}, driver unknown" for node in nodes]


def _has_kernels(major: int, minor: int, built: list[str]) -> bool:
    """Whether one of the builds ("sm_75", "compute_90") runs on a card of this capability."""
    for name in built:
        kind, _, digits = name.rstrip("af").partition("_")
        of = int(digits[:-1]), int(digits[-1])
        if of <= (major, minor) and (kind == "compute" or of[0] == major):
            return True
    return False


def _programs() -> Iterator[dict]:
    yield _row("Python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            yield _row(name, version(name))
        except PackageNotFoundError:
            yield _row(name, "missing", "pip install -r requirements.txt")
    for name, package in (("torch", "torch"), ("numpy", "numpy"), ("PIL", "pillow")):
        loaded = getattr(sys.modules.get(name), "__version__", "").split("+")[0]
        if loaded and version(package).split("+")[0] != loaded:
            found = f"{loaded} is loaded, {version(package)} is installed"
            yield _row(f"{package} in this process", found, "restart the kernel")
    command = [sys.executable, "-m", "ipykernel", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = f"{sys.executable}, ipykernel {done.stdout.strip() or done.stderr.strip()[-80:]}"
    yield _row("kernel", said, "pip install ipykernel" if done.returncode else "")
    browsers = [*map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]
    found = next(filter(None, browsers), "")
    yield _row("browser of the tests", found or "none", "" if found else "for make test", NOTE)


def _cards() -> Iterator[dict]:
    import torch

    yield _row("CUDA of torch", str(torch.version.cuda or "none: a CPU build"))
    if problem := idle_gpu():
        yield _row("GPU", problem, "or go on with the CPU: --device cpu")
        return
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        found = f"{card.name}, {card.total_memory / 1e9:.0f} GB, sm_{card.major}{card.minor}"
        try:
            image = torch.rand(8, 3, 64, 64, device=f"cuda:{i}")
            torch.nn.functional.conv2d(image, image[:, :, :3, :3]).sum().item()
        except RuntimeError as error:
            yield _row(f"GPU {i}", f"{found}: {str(error).splitlines()[0]}", "--device cpu")
        else:
            yield _row(f"GPU {i}", f"{found}, a convolution ran")


def _machine() -> Iterator[dict]:
    import psutil

    yield _row("processor", f"{measure.cpu_name()}, {len(measure.own_cores())} cores")
    free = psutil.virtual_memory().available
    few = f"{ENOUGH / 1e9:.0f} GB are needed: close programs" if free < ENOUGH else ""
    yield _row("free memory", f"{free / 1e9:.1f} GB", few, NOTE)
    for what, folder in (("data", data_root()), ("outputs", outputs_root())):
        try:
            free = shutil.disk_usage(usable(folder)).free
        except (OSError, InputError) as error:
            todo = f"mend it, or set $DFLIB_{what.upper()} to another folder"
            yield _row(f"{what} folder", str(error), todo)
        else:
            few = f"{ENOUGH / 1e9:.0f} GB are needed: free some" if free < ENOUGH else ""
            found = f"{folder}: written, locked, {free / 1e9:.1f} GB free"
            yield _row(f"{what} folder", found, few, NOTE)
