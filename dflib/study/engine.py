"""The engine: a graph of runs on Dask distributed. Notebooks are nodes, parents are edges.

A failed run is a record, not an exception: its children are `blocked`, everything else goes on.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import DEVNULL, STDOUT, Popen
from tempfile import NamedTemporaryFile

from data_prep.errors import InputError, check_rate, choose
from data_prep.paths import PROJECT, outputs_root
from dflib.study import doctor, methods
from dflib.study.kernel import STOPPED, execute, hush, outcome, thread_environment
from dflib.study.runs import Run, Spec, rows, spec
from dflib.study.schedule import Estimates, alone, longest_paths, work

log = logging.getLogger(__name__)

MEMORY_PER_WORKER = 4e9  # bytes; of a worker on the CPU
LOST_WORKER_RETRIES = 2
LONELY = 60  # seconds without any worker, until that is said
GRACE = 30.0  # seconds after a budget's end in which a worker stops its run
NOT_STARTED = "not started: the budget does not reach"

Plan = tuple[Spec, ...]  # the runs of a study, parents before children, each once


def plan(
    *,
    methods_: tuple[str, ...] | None = None,
    rates: tuple[float, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    folds: str | None = None,
    settings: dict | None = None,
    **request,
) -> Plan:
    """The study's runs: methods x rates x seeds (x folds), and the parents that they need.

    What is not given comes from the preset. request: preset, dataset, source, protocol, for `spec`.
    folds: "leave-one-out" trains without each generator in turn, "one-to-all" on each alone.
    Raises `InputError` as `runs.spec` does, or for a setting that no method of the study reads.

    >>> [s.run_id for s in plan(methods_=("BL", "CQ"))]              # doctest: +SKIP
    ['BL-s0-32px-3c1f9b2a', 'CQ-s0-32px-2753b0d5']
    """
    usual = methods.preset(request.get("preset", "demo"))
    codes, settings = methods_ or usual.methods, settings or {}
    read = [methods.method(code).keys for asked in codes for code in methods.lineage(asked)]
    for key in settings:
        choose("setting", key, dict.fromkeys(itertools.chain(*read)))
    for rate in rates or ():
        check_rate(rate)
    variants = [settings]
    if folds:
        from dflib.data import trained_on

        key = methods.FOLDS[choose("kind of folds", folds, methods.FOLDS)]
        protocol = request.get("protocol", "strict")
        found = trained_on(request.get("dataset") or usual.dataset, protocol=protocol)
        variants = [settings | {key: generator} for generator in found]
    runs: dict[str, Spec] = {}

    def add(s: Spec) -> None:
        for parent in s.parents:
            add(parent)
        runs.setdefault(s.run_id, s)

    for seed, variant, code in itertools.product(seeds or usual.seeds, variants, codes):
        for rate in (rates or usual.rates) if methods.method(code).rated else (None,):
            add(spec(code, rate=rate, seed=seed, settings=variant, **request))
    return tuple(runs.values())


def kind(s: Spec) -> tuple[str, str, float]:
    """What `Estimates` ask of a run: its method, dataset and work."""
    values = methods.relevant(s.method, s.settings)
    epochs = methods.planned_epochs(values)
    return s.method, s.dataset, work(s.dataset, values | {"planned_epochs": epochs})


def estimates(p: Plan) -> Estimates:
    """What finished runs teach, where any of the plan is left: `estimates(p)(*kind(run))`."""
    guess = Estimates()
    for row in rows() if not all(s.finished() for s in p) else ():
        if row.get("size") and row.get("total_s"):  # else it teaches nothing
            guess.learn(row["method"], row["dataset"], work(row["dataset"], row), row["total_s"])
    return guess


def start(method: str, **request) -> Run:
    """Begin (or find) the run that a notebook asks for; a missing parent is made first, and told.

    request: as for `spec`. Raises `InputError` as `spec` does, or when a parent fails.

    >>> run = start("CPF", dataset="demo", rate=0.9)                # doctest: +SKIP
    """
    wanted = spec(method, **request)
    doctor.need_machine(batch=False)
    for s in (s for s in wanted.parents if not s.finished()):
        needs = f"{wanted.run_id} needs {s.run_id}"
        sys.stdout.write(f"{needs}, which is not there yet: making it first ({s.notebook.name})\n")
        sys.stdout.flush()
        doctor.need_machine()
        made = execute(s)
        if made["status"] != "done":
            raise InputError(f"{needs}, which cannot be made: {made['error']}")
    return Run(wanted)


def background(command: str, log: Path) -> Popen:
    """A study as a process that outlives this one; what it says goes to the file `log`.

    command: as `Spec.command` gives it, "python -m dflib study …". Stop it with `terminate()`:
    finished runs stay, and the same command goes on.
    """
    words = [sys.executable, *shlex.split(command)[1:]]
    env = os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        streams = {"stdin": DEVNULL, "stdout": file, "stderr": STDOUT}
        return Popen(words, env=env, start_new_session=True, **streams)


def run(
    p: Plan,
    *,
    scheduler: str | None = None,
    budget: float | None = None,
    guess: Estimates | None = None,
    on_start: Callable[[Spec], None] = lambda s: None,
    on_outcome: Callable[[Spec, dict], None] = lambda s, o: None,
    **options,
) -> dict[str, dict]:
    """Make every run of the plan on Dask; the outcome of each by id (done, failed, blocked, left).

    scheduler: the address of a cluster; None starts one here: a worker per GPU, or per two cores.
    budget: seconds from now. What is likely to take longer than is left is not started (without any
    estimate it is); what still runs at the end is stopped. Both are left for the same command.
    guess: `estimates(p)`, unless given. options: `retry_failed` and `timeout` of `execute`.
    on_start, on_outcome: called in this process as each run starts and ends.
    """
    ends = time.time() + (math.inf if budget is None else budget)
    todo = {s.run_id: s for s in p if not s.finished()}
    outcomes: dict[str, dict] = {}

    def tell(s: Spec, found: dict) -> None:
        outcomes[s.run_id] = found
        on_outcome(s, found)

    for s in p:
        if s.run_id not in todo:
            tell(s, outcome(s))
    if not todo:
        return outcomes
    events: SimpleQueue = SimpleQueue()
    with _client(scheduler, most=len(todo)) as client:
        if scheduler:
            check_workers(client, p)
        client.subscribe_topic("dflib", lambda event: events.put((event[1], None)))
        _submit(client, todo, guess or estimates(p), events, ends=ends, **options)
        manned = time.time()
        while len(outcomes) < len(p) and time.time() < ends + GRACE:
            if client.nthreads():
                manned = time.time()
            elif time.time() > manned + LONELY:
                log.warning("no worker for %d s: the study waits for one", LONELY)
                manned = math.inf  # said once
            with suppress(Empty):
                run_id, future = events.get(timeout=1)
                if future:
                    tell(todo[run_id], _result(todo[run_id], future))
                elif run_id in todo:
                    on_start(todo[run_id])
    for s in todo.values():
        if s.run_id not in outcomes:
            tell(s, outcome(s, "left", STOPPED))
    return outcomes


def _submit(client, todo, guess, events, *, ends, **options) -> None:
    """All runs at once: Dask starts a child after its parents, and the longest path first."""
    from data_prep.manifest import cores

    parents = {run: [q.run_id for q in s.parents if q.run_id in todo] for run, s in todo.items()}
    known = {run: guess(*kind(s)) for run, s in todo.items()}  # of all, or of none
    paths = longest_paths(parents, {run: known[run] or kind(s)[2] for run, s in todo.items()})
    own = not (client.cluster is None or os.environ.get("OMP_NUM_THREADS"))
    at_ease = alone(parents) if own else ()
    futures: dict = {}
    for run, s in todo.items():
        options |= {"expected": known[run] or 0.0, "threads": cores() if run in at_ease else None}
        # of a Dask task, `_data_producer`: it waits in the scheduler for a free worker
        how = {"key": run, "pure": False, "priority": paths[run], "_data_producer": True}
        needs = [futures[q] for q in parents[run]]
        futures[run] = client.submit(_node, s, needs, ends=ends, **options, **how)
        futures[run].add_done_callback(lambda f, run=run: events.put((run, f)))


def _node(s: Spec, parents: list[dict], *, expected: float, ends: float, **options) -> dict:
    """One node of the graph, in its worker, after its parents."""
    from distributed import get_worker

    bad = {q["run_id"]: q["status"] for q in parents if q["status"] != "done"}
    rest = ends - time.time()
    if set(bad.values()) - {"left"}:
        return outcome(s, "blocked", f"needs {', '.join(bad)}")
    if bad or rest <= 0 or expected > rest:
        return outcome(s, "left", NOT_STARTED)
    worker = get_worker()
    if (seen := _seen([s])) != s.run_id:  # a worker that came after `check_workers`
        error = f"worker {worker.address} has other data or another notebook: {seen}"
        return outcome(s, "failed", error)
    worker.log_event("dflib", s.run_id)
    return execute(s, budget=None if math.isinf(rest) else rest, **options)


def _result(s: Spec, future) -> dict:
    """What a node of the graph gave, or why it gave nothing."""
    from distributed import KilledWorker

    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else future.status
    if not isinstance(error, KilledWorker):
        return outcome(s, "failed", str(error))
    if error.task != s.run_id:
        return outcome(s, "blocked", f"needs {error.task}")
    return outcome(s, "failed", f"lost with its worker {LOST_WORKER_RETRIES + 1} times")


def check_workers(client, p: Plan) -> None:
    """Raise `InputError` for a worker that would not make the same runs, or puts them elsewhere.

    Waits for a first worker where there is none yet; `_node` looks at those that come later.
    """
    if not client.nthreads():
        log.warning("no worker at %s yet: waiting for the first", client.scheduler.address)
        client.wait_for_workers(1)
    asked = list({(s.dataset, s.notebook): s for s in p}.values())
    outputs_root().mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=outputs_root(), prefix=".seen-") as sign:
        found = client.run(_seen, asked, Path(sign.name).name, on_error="return")
    for worker, seen in sorted(found.items()):
        if seen != _seen(asked):
            text = f"worker {worker}: {seen}. Here: {_seen(asked)}"
            raise InputError(f"{text}. Make them alike, or leave this worker out")


def _seen(asked: list[Spec], sign: str = "", dask_worker=None) -> str:
    """The runs that this process would make of others' requests, or why it cannot make them."""
    if dask_worker and dask_worker.state.nthreads > 1:  # papermill changes its process's folder
        return f"{dask_worker.state.nthreads} threads, take dask worker --nthreads 1"
    if sign and not (outputs_root() / sign).exists():
        return f"outputs in {outputs_root()}, another folder"
    try:
        return ", ".join(replace(s).run_id for s in asked)
    except InputError as error:
        return str(error)


@contextmanager
def _client(scheduler: str | None, *, most: int) -> Iterator:
    """Dask's client: of the cluster at that address, or of one that is started here."""
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if scheduler:
        try:
            with Client(scheduler, timeout="10s") as client:
                yield client
        except OSError as error:
            text = f"no Dask scheduler answers at {scheduler} ({error})"
            raise InputError(f"{text}: start `dask scheduler`, or leave --scheduler out") from error
        return
    settings = {
        "scheduler.allowed-failures": LOST_WORKER_RETRIES,
        "scheduler.worker-saturation": 1.0,  # a run a worker; the others wait in order
        "worker.profile.enabled": False,  # it looks at each process a hundred times a second
        "nanny.pre-spawn-environ": {},  # would be set in this process, too, and stay
    }
    dask.config.set({f"distributed.{key}": value for key, value in settings.items()})
    hush("distributed")
    each = {"nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    environments = enumerate(worker_environments(most))
    workers = {i: {"cls": Nanny, "options": each | {"env": env}} for i, env in environments}
    place = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    head = {"cls": Scheduler, "options": place | {"dashboard": False}}
    with (
        SpecCluster(workers, head, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        yield client


def worker_environments(most: int) -> list[dict[str, str]]:
    """Environment of each local worker, for `most` runs at a time: a GPU, or a share of the cores.

    On the CPU many workers of one thread waste less than one of many (loading and drawing use one),
    but each needs its memory. `OMP_NUM_THREADS` counts more.
    """
    import psutil
    import torch

    from data_prep.manifest import cores

    there = torch.cuda.device_count()
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = (given or [str(i) for i in range(there)])[: min(there, most)]
    memory = int(psutil.virtual_memory().total / MEMORY_PER_WORKER)
    count = len(gpus) or max(1, min(most, cores(), memory))
    env = thread_environment(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // count))
    return [env | ({"CUDA_VISIBLE_DEVICES": gpus[i]} if gpus else {}) for i in range(count)]


def prepare_data(p: Plan) -> None:
    """Decode every dataset of the plan once, here, before many workers ask for it."""
    from dflib.data import open as open_data

    views = {(s.dataset, s.protocol, s.settings["size"], s.settings["mode"]) for s in p}
    for name, protocol, size, mode in sorted(views):
        open_data(name, size=size, protocol=protocol, mode=mode)
