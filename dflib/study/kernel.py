"""One run made here: papermill executes its notebook in a kernel. Which run, and when: `engine`."""

import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import TextIO
from uuid import uuid4

from data_prep.paths import lock, write_text
from dflib.study import forks, records
from dflib.study.runs import HELD, LOCKS, Spec

STOPPED = "stopped at the end of the budget; it goes on from its last epoch"
SHORT_OF = re.compile(  # memory or disk, in the words of Python, torch, pyarrow, ONNX Runtime, …
    r"MemoryError|out of memory|allocate memory|bad_alloc|No space left|Disk quota"
    r"|PytorchStreamWriter|SIGKILL|measured: killed"
)


def outcome(s: Spec, status: str = "done", error: str | None = None, seconds: float = 0.0) -> dict:
    """What became of a run."""
    return {"run_id": s.run_id, "status": status, "error": error, "seconds": seconds}


def execute(s: Spec, *, retry_failed: bool = True, budget: float = math.inf) -> dict:
    """Execute one run's notebook, here; its `outcome`: done; failed, with a record in
    `failed.json`; left, when `budget` seconds are over.

    A failure of kind `error` (the notebook raised) is tried again with `retry_failed` alone, of
    kind `died` (killed, or short of memory or disk) always. A second process waits for the first.
    """
    if s.finished():
        return outcome(s)
    try:
        s.folder.mkdir(parents=True, exist_ok=True)
        if own := LOCKS.pop(s.folder, None):  # begun by hand in this very process
            own.release()
        with lock(s.folder / "lock"):
            return _attempt(s, retry_failed, budget)
    except OSError as error:  # not even the record can be written: the run is tried again
        return outcome(s, "failed", f"{type(error).__name__}: {error}")


def _attempt(s: Spec, retry_failed: bool, budget: float) -> dict:
    """What `execute` does under the run's lock."""
    if s.finished():
        return outcome(s)
    earlier = s.failure()
    if earlier and earlier["kind"] != "died" and not retry_failed:
        again = "(from an earlier attempt: --retry-failed tries again)"
        return outcome(s, "failed", f"{earlier['error']} {again}")
    began = time.monotonic()
    records.clear(s.folder)
    _log(s, s.command())
    record = _run_notebook(s, began + budget)
    seconds = time.monotonic() - began
    if s.finished():  # what comes behind the result made none of it
        note = f"after the result was written: {record['error']}" if record else None
        return outcome(s, "done", note, seconds)
    if time.monotonic() >= began + budget:
        _log(s, STOPPED)
        return outcome(s, "left", STOPPED, seconds)
    if not record:  # papermill may take its kernel's end for the notebook's
        why = "its kernel was killed, or its last cell does not call run.finish(…)"
        text = f"{s.notebook.name} ended without writing result.json: {why}"
        record = {"kind": "died", "error": text}
    record |= {"run_id": s.run_id, "command": s.command()}
    with suppress(OSError):
        _log(s, record["error"])
        write_text(s.folder / "failed.json", json.dumps(record, indent=1))
    return outcome(s, "failed", record["error"], seconds)


def _log(s: Spec, text: str) -> None:
    with (s.folder / "log.txt").open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def _run_notebook(s: Spec, ends: float) -> dict | None:
    """Execute and keep the notebook; what failed, by `_record`. ends: by the monotonic clock."""
    import papermill
    from nbformat import ValidationError
    from papermill.exceptions import PapermillException

    hush("papermill", "traitlets", "asyncio")
    new, record = s.folder / "notebook.new.ipynb", None
    scratch = s.folder / "scratch"  # an interrupted run's goes with the next attempt
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        with (s.folder / "log.txt").open("a") as text:
            papermill.execute_notebook(
                str(_without_asides(s.notebook, scratch)),
                str(new),
                s.parameters(),
                cwd=str(s.notebook.parent),
                progress_bar=False,
                stdout_file=text,
                stderr_file=text,
                kernel_name="python3",
                language="python",  # whatever cleaners have left of the metadata
                kernel_manager_class=kernel_manager(text, s.folder),
                timeout_func=lambda cell: ends < math.inf and max(0.1, ends - time.monotonic()),
            )
    except (PapermillException, OSError, RuntimeError, ValidationError) as error:
        record = _record(error)
        with suppress(OSError):
            _log(s, traceback.format_exc())
        if record["kind"] == "died" and not hasattr(error, "ename"):
            new.unlink(missing_ok=True)  # cut while it was written, say
    shutil.rmtree(scratch, ignore_errors=True)
    if new.exists():
        new.replace(s.folder / "notebook.ipynb")
    return record


def _without_asides(notebook: Path, place: Path) -> Path:
    """A copy of the notebook; a sentence stands for each cell tagged `aside`: an experiment."""
    import nbformat

    book = nbformat.read(notebook, as_version=4)
    for k, cell in enumerate(book.cells):
        if "aside" in cell.metadata.get("tags", ()):
            text = f"*An experiment, left out of batches: run it by hand in {notebook.name}.*"
            book.cells[k] = nbformat.v4.new_markdown_cell(text, id=cell.id)
    nbformat.write(book, place / notebook.name)
    return place / notebook.name


def _record(error: Exception) -> dict:
    """What `failed.json` keeps of an error: its kind (error or died), and a line of it."""
    from nbclient.exceptions import DeadKernelError

    if isinstance(error, DeadKernelError):
        return {"kind": "died", "error": "the kernel died: killed, or out of memory?"}
    raised = hasattr(error, "ename")  # by a cell
    text = f"{error.ename}: {error.evalue}" if raised else f"{type(error).__name__}: {error}"
    kind = "error" if raised and not SHORT_OF.search(text) else "died"
    return {"kind": kind, "error": text.splitlines()[0][:500]}


def kernel_manager(log_file: TextIO, folder: Path | None = None) -> type:
    """A kernel manager of this very Python; `log_file` takes what the process itself says. folder:
    of the run whose lock this process has for the kernel."""
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from jupyter_client.channels import AsyncZMQSocketChannel
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    class Provisioner(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **options) -> dict:
            with suppress(OSError, KeyError):  # no server, or it was killed
                self.process = forks.Fork(cmd[3:], log_file.name, options["env"])
                self.pid = self.pgid = self.process.pid
                return self.connection_info
            code = f"import dflib.study.forks as f; f.die_with_parent({os.getpid()})"
            cmd = [*cmd, f"--IPKernelApp.exec_lines={code}"]
            return await super().launch_kernel(cmd, **options)

    class Channel(AsyncZMQSocketChannel):
        """Looks again each second: a widget's message can swallow the wake-up call of a reply."""

        async def get_msg(self, timeout: float | None = None) -> dict:
            ends = math.inf if timeout is None else time.monotonic() + timeout
            while ends > time.monotonic() + 1:
                with suppress(Empty):
                    return await super().get_msg(1)
            return await super().get_msg(max(0.0, ends - time.monotonic()))

    class Client(AsyncKernelClient):
        shell_channel_class = iopub_channel_class = Channel

    class KernelManager(AsyncKernelManager):
        def __init__(self, **options) -> None:
            super().__init__(**options)
            self.client_factory = Client
            if sys.platform == "linux":  # names that are no files; TCP ports race among many
                self.transport, self.ip = "ipc", f"@dflib-{uuid4().hex}"

        @property
        def kernel_spec(self) -> KernelSpec:
            """Whatever is installed as "python3": it may be another Python, or a broken one."""
            words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=words, display_name="Python 3", language="python")

        async def start_kernel(self, **options) -> None:
            if folder:
                self.connection_file = str(folder / "scratch" / "kernel.json")
            options |= {"env": _environment(folder), "stdout": log_file, "stderr": log_file}
            self.provisioner = Provisioner(kernel_spec=self.kernel_spec, parent=self)
            await super().start_kernel(**options)

    return KernelManager


def _environment(folder: Path | None) -> dict[str, str]:
    """Of a kernel: it leaves no files about."""
    env = forks.environment() | {"TQDM_DISABLE": "1"}  # nobody watches: no dead bars
    if folder:
        env |= {HELD: str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "scratch")}
    return env


def dask_setup(worker) -> None:
    """Called by Dask in each worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    sys.modules["rfc3987_syntax"] = None  # jsonschema's, for IRIs: two seconds to import


def hush(*names: str) -> None:
    """Keep what libraries log in normal work out of the user's sight."""
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
