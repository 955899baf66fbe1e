"""The engine: a graph of runs on Dask distributed. Notebooks are nodes, parents are edges; papermill executes them.

A failed run is a record, not an exception: its children are `blocked`, everything else goes on.
"""

from __future__ import annotations

import ast
import itertools
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import Popen
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import TextIO

from filelock import FileLock

from data_prep.errors import InputError, check_rate, choose
from data_prep.paths import outputs_root, write_text
from dflib.study import methods
from dflib.study.runs import Run, Spec, code_hash, rows, spec
from dflib.study.schedule import Estimates, Schedule

log = logging.getLogger(__name__)

MEMORY_PER_WORKER = 4e9  # bytes; of a worker on the CPU
# to glibc: freed blocks of up to 100 MB are kept for the next step; to ask for them again took 9 % of training at 64 px, and twice the time
# with the threshold that Dask sets for its workers
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_MMAP_THRESHOLD_": "100000000"}
LOST_WORKER_RETRIES = 2
LONELY = 60  # seconds without any worker, until that is said
GRACE = 30.0  # seconds after a budget's end in which a worker stops its run
STOPPED = "stopped at the end of the budget; it goes on from its last epoch"
SHORT_OF = re.compile(  # memory or disk, in the words of Python, torch, pyarrow, safetensors, ONNX Runtime: no fault of the notebook
    r"MemoryError|out of memory|allocate memory|bad_alloc|No space left|Disk quota|PytorchStreamWriter|SIGKILL|measured: killed"
)
DASHBOARD = find_spec("bokeh") is not None  # Dask's needs it


@dataclass(frozen=True)
class Plan:
    """The runs of a study, parents before children, each once."""

    specs: tuple[Spec, ...]

    def __iter__(self) -> Iterator[Spec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def plan(
    *,
    preset: str = "demo",
    dataset: str | None = None,
    source: str | None = None,
    protocol: str = "strict",
    methods_: tuple[str, ...] | None = None,
    rates: tuple[float, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    settings: dict | None = None,
    folds: str | None = None,
) -> Plan:
    """The study's runs: methods x rates x seeds (x folds), and the parents that they need. What is not given comes from the preset.

    folds: "leave-one-out" trains without each generator in turn, "one-to-all" on each alone; the test keeps all of them.

    Raises `InputError` as `runs.spec` does, or for a setting that no method of the study reads.
    """
    check(preset=preset, protocol=protocol, methods_=methods_, rates=rates, settings=settings)
    usual = methods.preset(preset)
    wanted = methods_ or usual.methods
    found: dict[str, Spec] = {}
    variants = [settings or {}]
    if folds:
        from dflib.data import trained_on

        key = methods.FOLDS[choose("kind of folds", folds, methods.FOLDS)]
        variants = [
            variants[0] | {key: g} for g in trained_on(dataset or usual.dataset, protocol=protocol)
        ]

    def add(s: Spec) -> None:
        for parent in s.parents:
            add(parent)
        found.setdefault(s.run_id, s)

    for seed, variant in itertools.product(seeds if seeds is not None else usual.seeds, variants):
        for code in wanted:
            for rate in (rates or usual.rates) if methods.method(code).rated else (None,):
                add(
                    spec(
                        code,
                        preset=preset,
                        dataset=dataset,
                        source=source,
                        protocol=protocol,
                        rate=rate,
                        seed=seed,
                        settings=variant,
                    )
                )
    return Plan(tuple(found.values()))


def check(
    *,
    preset: str,
    protocol: str,
    methods_: tuple[str, ...] | None,
    rates: tuple[float, ...] | None,
    settings: dict | None,
) -> None:
    """Raise `InputError` for what is wrong in a request whatever the data are: before anything is made for it."""
    from data_prep.protocol import PROTOCOLS

    rows = [methods.method(code) for code in methods_ or methods.preset(preset).methods]
    read = {
        key
        for row in rows
        for code in methods.lineage(row.code)
        for key in methods.method(code).keys
    }
    for key in settings or {}:
        choose("setting", key, read)
    methods.settings(preset, settings)
    choose("protocol", protocol, PROTOCOLS)
    if rates and any(row.rated for row in rows):
        for rate in rates:
            check_rate(rate)


def estimate(p: Plan) -> dict[str, float | None]:
    """Seconds that each run that is not finished is likely to take (`schedule.Estimates`); None where nothing is known yet."""
    left = [s for s in p if not s.finished()]
    guess = Estimates(rows() if left else ())
    return dict.fromkeys((s.run_id for s in p), None) | {s.run_id: guess(s) for s in left}


def estimates(p: Plan) -> Estimates:
    """What finished runs teach, where any of the plan is left to be made."""
    return Estimates() if all(s.finished() for s in p) else Estimates(rows())


def execute(
    s: Spec,
    *,
    retry_failed: bool = True,
    timeout: float | None = None,
    budget: float | None = None,
    threads: int | None = None,
) -> dict:
    """Execute one run's notebook with papermill, here; returns {"run_id", "status", "error", "seconds"}.

    threads: that its kernel computes with; None: as this process would.

    status: done (also when it was finished before: then seconds is 0), or failed. Why is in `failed.json`, by its kind: `error` (the notebook
    raised) and `timeout` (it took more than `timeout` seconds) are only reported the next time unless `retry_failed`; `died` (killed, or short of
    memory or disk) is tried again. After `budget` seconds the run is stopped without a record, and its status is left. Two processes that ask for the same run wait for each other, and the second finds it done.
    """
    outcome = {"run_id": s.run_id, "status": "done", "error": None, "seconds": 0.0}
    if s.finished():
        return outcome
    check_parameters(s)
    try:
        return outcome | _execute(s, retry_failed, timeout, budget, threads)
    except (
        OSError
    ) as error:  # not even the record of the failure can be written: the run is tried again
        return outcome | {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def start(method: str, **request) -> Run:
    """Begin (or find) the run that a notebook asks for; a missing parent is made first, by its own notebook, and that is printed.

    request: as for `spec`. Raises `InputError` as `spec` does, or when a parent fails.

    >>> run = start("CPF", dataset="demo", rate=0.9)                # doctest: +SKIP
    """
    wanted = spec(method, **request)
    for parent in wanted.parents:
        if not parent.finished():
            text = f"{wanted.run_id} needs {parent.run_id}, which is not there yet: making it first ({parent.notebook.name})"
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
            outcome = execute(parent)
            if outcome["status"] != "done":
                raise InputError(
                    f"{wanted.run_id} cannot start: its parent {parent.run_id} failed: {outcome['error']}"
                )
    return Run(wanted)


def _execute(
    s: Spec, retry_failed: bool, timeout: float | None, budget: float | None, threads: int | None
) -> dict:
    """What `execute` adds to an outcome, under the run's lock."""
    s.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(s.folder / "lock"):
        if s.finished():
            return {}
        earlier = s.failure()
        if earlier and earlier["kind"] != "died" and not retry_failed:
            return {
                "status": "failed",
                "error": earlier["error"]
                + " (from an earlier attempt: --retry-failed tries again)",
            }
        started = time.perf_counter()
        _log(s, s.command())
        limit = min((seconds for seconds in (timeout, budget) if seconds is not None), default=None)
        record = _run_notebook(s, limit, threads)
        seconds = time.perf_counter() - started
        if record is None or (
            record["kind"] != "error" and s.finished()
        ):  # what was cut off then was only its end
            return {"seconds": seconds}
        if record["kind"] == "timeout" and limit == budget:
            _log(s, STOPPED)
            return {"status": "left", "error": STOPPED, "seconds": seconds}
        failed = {"status": "failed", "error": record["error"], "seconds": seconds}
        with suppress(OSError):
            _log(s, f"{record['error']}\n{record.get('traceback', '')}")
            write_text(
                s.folder / "failed.json",
                json.dumps({"run_id": s.run_id, **record, "command": s.command()}, indent=1),
            )
        return failed


def run(
    p: Plan,
    *,
    scheduler: str | None = None,
    retry_failed: bool = False,
    timeout: float | None = None,
    budget: float | None = None,
    guess: Estimates | None = None,
    on_dashboard: Callable[[str], None] = lambda link: None,
    on_start: Callable[[Spec], None] = lambda s: None,
    on_outcome: Callable[[Spec, dict], None] = lambda s, o: None,
) -> dict[str, dict]:
    """Make every run of the plan on Dask, the longest path first; returns the outcome of each by run id (done | failed | blocked | left).

    scheduler: the address of an existing cluster; None starts one here: a worker per GPU, or per two cores.
    timeout: seconds that each run may take.
    budget: seconds from now. What is likely to take longer than is left is not started (without any estimate it is); what still runs at the
    end is stopped, and goes on from its last epoch the next time. Both have the status left.
    guess: `estimates(p)`, unless given. on_dashboard: called with the address of Dask's dashboard, where it is served (bokeh).
    on_start, on_outcome: called in this process as each run starts and ends.
    """
    from data_prep.manifest import cores

    ends = math.inf if budget is None else time.monotonic() + budget
    outcomes: dict[str, dict] = {}

    def tell(s: Spec, outcome: dict) -> None:
        outcomes[s.run_id] = {
            "run_id": s.run_id,
            "status": "done",
            "error": None,
            "seconds": 0.0,
        } | outcome
        on_outcome(s, outcomes[s.run_id])

    todo = {s.run_id: s for s in p if not s.finished()}
    for s in p:
        if s.run_id not in todo:
            tell(s, {})
    if not todo:
        return outcomes
    for s in todo.values():
        check_parameters(s)
    guess = guess or estimates(p)
    order = Schedule(
        {run: [q.run_id for q in s.parents] for run, s in todo.items()},
        lambda run: guess(todo[run]),
    )
    ended: SimpleQueue = SimpleQueue()
    with _client(scheduler, most=len(todo)) as client:
        if scheduler:
            check_workers(client, p)
        running: dict[str, Spec] = {}
        manned = time.monotonic()  # when there last was a worker
        on_dashboard(client.dashboard_link if scheduler or DASHBOARD else "")
        while running or order.ready:
            now = time.monotonic()
            threads = sum(client.nthreads().values())  # workers may come and go
            free = threads - len(running)
            if threads:
                manned = now
            elif now > manned + LONELY:
                log.warning(
                    "no worker for %d s: the study waits for one (%s); stop it, and the same command goes on",
                    LONELY,
                    scheduler or "its own do not come back",
                )
                manned = math.inf  # said once
            while (free > 0 or now >= ends) and (run_id := order.start(within=ends - now)):
                rest = None if budget is None else ends - now
                alone = not (
                    scheduler or running or order.ready or os.environ.get("OMP_NUM_THREADS")
                )
                share = cores() if alone else None  # nothing can start beside it
                future = client.submit(
                    _node, todo[run_id], retry_failed, timeout, rest, share, key=run_id, pure=False
                )
                future.add_done_callback(ended.put)
                running[run_id], free = future, free - 1
                on_start(todo[run_id])
            try:
                future = ended.get(timeout=1)
            except Empty:
                if now >= ends + GRACE:
                    break
                continue
            s = todo[future.key]
            del running[s.run_id]
            tell(
                s,
                future.result()
                if future.status == "finished"
                else {"status": "failed", "error": _lost(future)},
            )
            status, seconds = outcomes[s.run_id]["status"], outcomes[s.run_id]["seconds"]
            if status == "done":
                if seconds:  # not found finished: made by another study meanwhile
                    guess.learn(s, seconds)
                order.done(s.run_id)
                order.rank()
            elif status != "left":
                for child in order.failed(s.run_id):
                    needs = [
                        q
                        for q in order.parents[child]
                        if outcomes.get(q, {}).get("status") not in (None, "done")
                    ]
                    tell(todo[child], {"status": "blocked", "error": f"needs {', '.join(needs)}"})
    for run_id in running:
        tell(todo[run_id], {"status": "left", "error": STOPPED})
    for run_id in order.left:
        tell(todo[run_id], {"status": "left", "error": "not started: the budget does not reach"})
    return outcomes


def _lost(future) -> str:
    """Why a node of the graph has no outcome: its worker died more often than allowed, or something raised outside the notebook."""
    from distributed import KilledWorker

    if future.status == "error" and not isinstance(error := future.exception(), KilledWorker):
        return f"{type(error).__name__}: {error}"
    return f"lost with its worker {LOST_WORKER_RETRIES + 1} times ({future.status})"


def _node(
    s: Spec,
    retry_failed: bool,
    timeout: float | None,
    budget: float | None,
    threads: int | None = None,
) -> dict:
    """One node of the graph, in its worker."""
    if (
        here := _told(lambda: replace(s).run_id)
    ) != s.run_id:  # a worker that came after `check_workers`
        from distributed import get_worker

        error = f"worker {get_worker().address} has other data or another notebook, and would make: {here}"
        return {"run_id": s.run_id, "status": "failed", "error": error, "seconds": 0.0}
    return execute(s, retry_failed=retry_failed, timeout=timeout, budget=budget, threads=threads)


def check_workers(client, p: Plan) -> None:
    """Raise `InputError` for a worker that lacks the data, the notebooks or the outputs that this process has, or has others.

    Waits for a first worker where there is none yet; `_node` looks at those that come later.
    """
    if not client.nthreads():
        log.warning("no worker at %s yet: waiting for the first", client.scheduler.address)
        client.wait_for_workers(1)
    for worker, threads in client.nthreads().items():
        if threads > 1:  # papermill changes the directory of its process
            raise InputError(
                f"worker {worker} has {threads} threads, one run a worker is made: dask worker --nthreads 1"
            )
    asked = list({(s.dataset, s.notebook): s for s in p}.values())
    outputs_root().mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=outputs_root(), prefix=".seen-") as sign:
        mine = _found(asked, Path(sign.name).name)
        theirs = client.run(_found, asked, Path(sign.name).name, on_error="return")
    for worker, facts in sorted(theirs.items()):
        if isinstance(facts, BaseException):
            raise InputError(f"worker {worker} cannot make runs: {type(facts).__name__}: {facts}")
        for what, value in facts.items():
            if value != mine[what]:
                raise InputError(
                    f"worker {worker}, {what}: {value}. Here: {mine[what]}. Make them alike, or leave this worker out"
                )


def _found(asked: list[Spec], sign: str) -> dict[str, str]:
    """What decides the result of runs beside their requests, and whether the outputs are the asker's, as this process finds it."""
    found = {
        "outputs": "the same folder"
        if (outputs_root() / sign).exists()
        else f"{outputs_root()}, another folder"
    }
    for s in map(replace, asked):
        found[f"dataset {s.dataset}"] = _told(lambda s=s: f"fingerprint {s.fingerprint}")
        found[f"notebook {s.notebook.name}"] = _told(lambda s=s: f"version {code_hash(s.notebook)}")
    return found


def _told(find: Callable[[], str]) -> str:
    """What `find` returns, or the error that it raises, as text."""
    try:
        return find()
    except InputError as error:
        return str(error)


def _log(s: Spec, text: str) -> None:
    with (s.folder / "log.txt").open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def check_parameters(s: Spec) -> None:
    """Raise `InputError` for a parameter that the run's notebook does not have (papermill itself would only warn)."""
    for name in s.parameters():
        choose(
            f"parameter of {s.notebook.name}",
            name,
            _known_parameters(s.notebook, s.notebook.stat().st_mtime_ns),
        )


@lru_cache(maxsize=64)
def _known_parameters(notebook: Path, _: int) -> tuple[str, ...]:
    """Names that the cell tagged `parameters` assigns (importing papermill takes longer than the rest of a plan)."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assigned = [node for node in ast.parse("\n".join(code)).body if isinstance(node, ast.Assign)]
    return tuple(
        target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)
    )


def _run_notebook(s: Spec, timeout: float | None, threads: int | None) -> dict | None:
    """Execute and keep the notebook; None when its last cell wrote the result, else what went wrong."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from nbformat import ValidationError
    from papermill.exceptions import PapermillException, PapermillExecutionError

    new, kernel, record = s.folder / "notebook.new.ipynb", _Kernel(timeout), None
    try:
        with (
            (s.folder / "log.txt").open("a") as text,
            TemporaryDirectory(prefix="dflib-") as sockets,
            _quiet("papermill", "traitlets", "asyncio"),
            kernel.watched(),
        ):
            papermill.execute_notebook(
                str(s.notebook),
                str(new),
                s.parameters(),
                cwd=str(s.notebook.parent),
                progress_bar=False,
                stdout_file=text,
                stderr_file=text,
                kernel_name="python3",
                kernel_manager_class=_kernel_manager(text, sockets, kernel.started, threads),
            )
    except PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
        kind = "died" if SHORT_OF.search(what) else "error"
        record = {
            "kind": kind,
            "error": what.splitlines()[0][:500],
            "cell": error.exec_count,
            "traceback": error.traceback,
        }
    except DeadKernelError as error:
        record = {"kind": "died", "error": f"the kernel died ({error}): killed, or out of memory?"}
    except (PapermillException, OSError, RuntimeError, ValidationError) as error:
        new.unlink(missing_ok=True)  # cut while it was written, say
        record = {
            "kind": "died",
            "error": f"{type(error).__name__}: {error}"[:500],
            "traceback": traceback.format_exc(),
        }
    if new.exists():
        new.replace(s.folder / "notebook.ipynb")
    if kernel.late:
        return {"kind": "timeout", "error": f"stopped after {timeout:g} s, the limit of --timeout"}
    if record is None and not s.finished():
        if kernel.killed():  # papermill may take its kernel's end for the notebook's
            return {"kind": "died", "error": "the kernel was killed: out of memory?"}
        why = f"{s.notebook.name} ended without writing result.json: its last cell must call run.finish(…)"
        return {"kind": "error", "error": why}
    return record


class _Kernel:
    """The process of a run's kernel: killed, with what it started, `timeout` seconds after its start."""

    def __init__(self, timeout: float | None) -> None:
        self.late, self.process = False, None
        self.timer = threading.Timer(timeout, self.stop) if timeout else None

    def started(self, process: Popen) -> None:
        self.process = process
        if self.timer:
            self.timer.start()

    def stop(self) -> None:
        self.late = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a kernel leads a group of its own

    def killed(self) -> bool:
        return self.process is not None and self.process.returncode == -signal.SIGKILL

    @contextmanager
    def watched(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self.timer:
                self.timer.cancel()


def _kernel_manager(
    log_file: TextIO, sockets: str, started: Callable[[Popen], None], threads: int | None = None
) -> type:
    """A kernel manager over ipc sockets in a folder of their own (TCP ports race when many kernels start at once).

    What the kernel process itself says on its way out goes to the run's log. started: called with the kernel's process.
    """
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from jupyter_client.channels import AsyncZMQSocketChannel
    from jupyter_client.manager import AsyncKernelManager

    class Channel(AsyncZMQSocketChannel):
        """Looks again each second: a widget's message that is sent while one waits for a reply can swallow the reply's wake-up call."""

        async def get_msg(self, timeout: float | None = None) -> dict:
            while timeout is None:
                try:
                    return await super().get_msg(1)
                except Empty:
                    continue
            return await super().get_msg(timeout)

    class Client(AsyncKernelClient):
        shell_channel_class = iopub_channel_class = Channel

    class IPCKernelManager(AsyncKernelManager):
        def __init__(self, **options) -> None:
            super().__init__(**options)
            self.transport, self.ip, self.client_factory = "ipc", f"{sockets}/kernel", Client

        async def _async_launch_kernel(self, kernel_cmd: list[str], **options) -> None:
            env = dict(options.get("env", os.environ))
            env["TQDM_DISABLE"] = "1"  # nobody watches: no dead bars in the notebook
            env |= _thread_environment(threads) if threads else {}
            env |= KEEP_MEMORY
            cmd = [
                *kernel_cmd,
                f"--IPKernelApp.exec_lines=__import__('dflib.study.orphans').study.orphans.die_with_parent({os.getpid()})",
            ]
            await super()._async_launch_kernel(
                cmd, **(options | {"stdout": log_file, "stderr": log_file, "env": env})
            )
            started(self.provisioner.process)

        _launch_kernel = _async_launch_kernel

    return IPCKernelManager


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep what a library logs in normal work out of the user's sight."""
    levels = {n: logging.getLogger(n).level for n in names}
    for n in names:
        logging.getLogger(n).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for n, level in levels.items():
            logging.getLogger(n).setLevel(level)


@contextmanager
def _client(scheduler: str | None, *, most: int):
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    quietly = {
        "distributed.worker.profile.enabled": False,  # it asks each process a hundred times a second what it does
        "distributed.nanny.pre-spawn-environ": {},  # one thread each: would be set in this process, too, and stay
    }
    dask.config.set({"distributed.scheduler.allowed-failures": LOST_WORKER_RETRIES} | quietly)
    if scheduler:
        try:
            with Client(scheduler, timeout="10s") as client:
                yield client
        except OSError as error:
            raise InputError(
                f"no Dask scheduler answers at {scheduler} ({error}): start one with `dask scheduler`, or leave --scheduler out"
            ) from error
        return
    workers = {
        i: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "env": env,
                "memory_limit": 0,
                "silence_logs": logging.CRITICAL,
            },
        }
        for i, env in enumerate(worker_environments(most))
    }
    quiet = _quiet(
        "distributed",
        "distributed.scheduler",
        "distributed.nanny",
        "distributed.core",
        "distributed.http.proxy",
        "distributed.worker",
    )
    head = {
        "cls": Scheduler,
        "options": {
            "dashboard": DASHBOARD,
            "dashboard_address": "127.0.0.1:0",
            "port": 0,
            "host": "127.0.0.1",
        },
    }
    with (
        quiet,
        SpecCluster(workers=workers, scheduler=head, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        yield client


def worker_environments(most: int) -> list[dict[str, str]]:
    """Environment of each local worker, for `most` runs at the same time: a GPU each where there are GPUs, else an equal share of the cores.

    On the CPU many workers of one thread waste less than one worker of many (loading and drawing use one thread), but each needs its
    memory; a run beside which nothing can start has all cores (`run`). `OMP_NUM_THREADS` overrides the number of threads. Raises `InputError`
    when `CUDA_VISIBLE_DEVICES` names more GPUs than there are.
    """
    import psutil
    import torch

    from data_prep.manifest import cores

    given, there = os.environ.get("CUDA_VISIBLE_DEVICES", ""), torch.cuda.device_count()
    gpus = [g for g in given.split(",") if g not in ("", "-1")] or [str(i) for i in range(there)]
    if len(gpus) > there:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES={given} asks for {len(gpus)} GPUs, {there} are there: name those, or -1 for none"
        )
    memory = int(psutil.virtual_memory().total / MEMORY_PER_WORKER)
    gpus = gpus[:most]
    count = len(gpus) or max(1, min(most, cores(), memory))
    threads = os.environ.get("OMP_NUM_THREADS") or str(
        max(1, cores() // count)
    )  # who sets it has a reason
    env = _thread_environment(threads)
    return [env | ({"CUDA_VISIBLE_DEVICES": gpus[i]} if gpus else {}) for i in range(count)]


def _thread_environment(threads: int | str) -> dict[str, str]:
    return dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )


def prepare_data(p: Plan) -> None:
    """Decode every dataset of the plan once, here, before many workers ask for it."""
    for name, protocol, size, mode in sorted(
        {(s.dataset, s.protocol, s.settings["size"], s.settings["mode"]) for s in p}
    ):
        from dflib.data import open as open_data

        open_data(name, size=size, protocol=protocol, mode=mode)
