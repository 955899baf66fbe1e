"""A server that imports what notebooks need once, ahead, and forks their kernels; on Linux."""

import atexit
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

from data_prep.paths import PROJECT

SERVER = "DFLIB_KERNEL_SERVER"  # in the environment of who may ask it: its address
# what it imports (none of these may ask for a GPU: a fork could not use it then)
AHEAD = "torch._dynamo ipykernel.kernelapp ipywidgets seaborn torchvision"
AHEAD += " dflib.lowrank dflib.study.chain dflib.study.robustness"  # and what these import
# to glibc: freed blocks are kept for the next step; Dask's threshold doubles a training's time
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_MMAP_THRESHOLD_": "100000000"}
_started: list[subprocess.Popen] = []  # by this process: one


def environment() -> dict[str, str]:
    """Of what executes notebooks: it takes this very package."""
    above = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, (str(PROJECT), above)))
    return os.environ | KEEP_MEMORY | {"PYTHONPATH": path}


def start() -> None:
    """Start the server, unless there is one: it ends with `stop`, or with this process."""
    if SERVER in os.environ or sys.platform != "linux":
        return
    address = f"dflib-{uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"\0{address}")  # a name that is no file
        door.listen()
        code = f"import dflib.study.forks as f; f.die_with_parent({os.getpid()}); f.serve({{}})"
        words = [sys.executable, "-c", code.format(door.fileno())]
        own = {"stdin": subprocess.DEVNULL, "pass_fds": [door.fileno()]}
        own["env"] = environment() | {"OMP_NUM_THREADS": "1"}
        _started.append(subprocess.Popen(words, **own))
    os.environ[SERVER] = address


def stop() -> None:
    """End the server that this process has started, and its kernels with it."""
    while _started:
        os.environ.pop(SERVER, None)
        _started[-1].kill()
        _started.pop().wait()


@contextmanager
def server() -> Iterator[None]:
    """`start`, and `stop` in the end."""
    start()
    try:
        yield
    finally:
        stop()


def die_with_parent(parent: int) -> None:
    """End this process when its parent (a process id) ends, however: at once, on Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # too late for the signal
        os._exit(1)


def serve(door: int) -> None:
    """The server, at a socket that listens: forks a kernel for each of this user's requests (what
    `Fork` sends), tells its process id, and its status when it has ended; kills it when who asked
    is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    atexit.register(os._exit, 0)  # the last to be called; what libraries tear down takes a second
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel has it
    os.dup2(2, 1)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = gettempdir()  # else torch._dynamo makes a folder
    for name in AHEAD.split():
        import_module(name)
    kernels = {}
    with socket.socket(fileno=door) as door, selectors.DefaultSelector() as events:
        events.register(door, selectors.EVENT_READ)
        while True:
            for key, _ in events.select(0.05 if kernels else None):
                if key.fileobj is not door:  # who asked is gone
                    events.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
                    continue
                asker, parent, request = door.accept()[0], os.getpid(), ""
                asker.settimeout(1)
                user = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                if struct.unpack("3i", user)[1] == os.getuid():
                    with suppress(OSError):
                        request = asker.makefile().readline()
                if not request.endswith("\n"):  # a stranger's, cut, or nothing comes
                    asker.close()
                    continue
                if (pid := os.fork()) == 0:
                    return _kernel(parent, *json.loads(request))
                with suppress(OSError):
                    asker.sendall(f"{pid}\n".encode())
                kernels[pid] = asker
                events.register(asker, selectors.EVENT_READ, pid)
            _bury(kernels, events)


def _bury(kernels: dict[int, socket.socket], events: selectors.BaseSelector) -> None:
    """Tell who asked for them of kernels that have ended."""
    for pid, asker in [*kernels.items()]:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del kernels[pid]
            with suppress(KeyError, OSError):  # unregistered, gone
                events.unregister(asker)
                asker.sendall(f"{status}\n".encode())
            asker.close()


def _kernel(parent: int, words: list[str], log: str, env: dict, folder: str) -> None:
    """What the server's child becomes."""
    import torch
    from ipykernel.kernelapp import launch_new_instance

    die_with_parent(parent)
    os.setsid()  # signals to its group reach what it starts
    with Path(log).open("ab") as file, Path(os.devnull).open() as nothing:
        for stream, number in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(stream.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    if threads := env.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    os.chdir(folder)
    launch_new_instance([*words, f"--IPKernelApp.parent_handle={parent}"])


class Fork:
    """A kernel that the server forks for this process: what Jupyter asks of a `Popen`. Raises
    `KeyError` without a server, `OSError` where none answers."""

    stdin = stdout = stderr = status = None

    def __init__(self, words: list[str], log: str, env: dict[str, str]) -> None:
        address = f"\0{os.environ[SERVER]}"
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(address)
        self.server.sendall((json.dumps([words, log, env, str(Path.cwd())]) + "\n").encode())
        self.told = self.server.makefile()
        if not (answer := self.told.readline()):
            raise ChildProcessError("the server of kernels was killed")
        self.pid = int(answer)

    def poll(self) -> int | None:
        if self.status is None and select.select([self.server], [], [], 0)[0]:
            self.status = int(self.told.readline() or signal.SIGKILL)
            self.server.close()
        return self.status

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.05)
        return self.status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
