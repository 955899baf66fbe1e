"""The engine: a graph of runs on Dask distributed. Notebooks are nodes, parents are edges.

A failed run is a record, not an exception: its children are `blocked`, everything else goes on.
"""

import itertools
import logging
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory

from filelock import Timeout

from data_prep.errors import InputError, check_rate, choose
from data_prep.paths import lock, outputs_root, usable
from dflib.measure import ONCE, own_cores
from dflib.study import doctor, forks, methods
from dflib.study.kernel import STOPPED, execute, hush, outcome
from dflib.study.runs import Run, Spec, spec

MEMORY_PER_WORKER = 4e9  # bytes; of a worker on the CPU
LOST_WORKER_RETRIES = 2
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GRACE = 30.0  # seconds after a budget's end in which a worker stops its run

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

    What is not given comes from the preset. request: as for `runs.spec`, which may raise. folds: of
    `methods.FOLDS`.

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
        from dflib import data

        key = methods.FOLDS[choose("kind of folds", folds, methods.FOLDS)]
        how = {"protocol": request.get("protocol", "strict")}
        known = data.trained_on(request.get("dataset") or usual.dataset, **how)
        variants = [settings | {key: generator} for generator in known]
    runs: dict[str, Spec] = {}

    def add(s: Spec) -> None:
        for parent in s.parents:
            add(parent)
        runs.setdefault(s.run_id, s)

    for seed, variant, code in itertools.product(seeds or usual.seeds, variants, codes):
        for rate in (rates or usual.rates) if methods.method(code).rated else (None,):
            add(spec(code, rate=rate, seed=seed, settings=variant, **request))
    return tuple(runs.values())


def start(method: str, **request) -> Run:
    """Begin (or find) the run that a notebook asks for (as for `runs.spec`); a missing parent is
    made first, and told; `InputError` when it fails.

    >>> run = start("CPF", dataset="demo", rate=0.9)                # doctest: +SKIP
    """
    wanted = spec(method, **request)
    doctor.need_machine(batch=False)
    for s in (s for s in wanted.parents if not s.finished()):
        needs = f"{wanted.run_id} needs {s.run_id}, which"
        sys.stdout.write(f"{needs} is not there yet: making it first ({s.notebook.name})\n")
        sys.stdout.flush()
        doctor.need_machine()
        made = execute(s)
        if made["status"] != "done":
            raise InputError(f"{needs} cannot be made: {made['error']}")
    return Run(wanted)


def run(
    p: Plan,
    *,
    scheduler: str | None = None,
    budget: float | None = None,
    retry_failed: bool = True,
    once: bool = False,
    on_start: Callable[[Spec], None] = lambda s: None,
    on_outcome: Callable[[Spec, dict], None] = lambda s, o: None,
) -> dict[str, dict]:
    """Make every run of the plan on Dask; the `outcome` of each by its id.

    scheduler: a cluster's address; None starts one here, with a worker per GPU, or per core.
    budget: seconds; what still runs then is stopped, and left. once: the caller times the files in
    turns afterwards, so that here each is timed once. Raises `InputError` for a worker with other
    data or notebooks.
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
        forks.stop()
        return outcomes
    _sweep(usable(outputs_root()))
    events: SimpleQueue = SimpleQueue()
    scratch = {"prefix": ".study-", "dir": outputs_root(), "ignore_cleanup_errors": True}
    with (
        TemporaryDirectory(**scratch) as place,  # for what workers write beside their runs
        lock(Path(place) / "lock"),
        _client(scheduler, place, most=len(todo), once=once) as client,
    ):
        client.subscribe_topic("dflib", lambda event: events.put((event[1], None)))
        _submit(client, todo, events, sign=Path(place).name, ends=ends, retry_failed=retry_failed)
        while len(outcomes) < len(p) and time.time() < ends + GRACE:
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


def _sweep(root: Path) -> None:
    """Remove what killed studies left; a lock that is young may be about to be taken."""
    for file in root.glob(".study-*/lock"):
        with suppress(OSError, Timeout):
            if time.time() - file.stat().st_mtime > GRACE and lock(file, timeout=0):
                shutil.rmtree(file.parent, ignore_errors=True)


def behind(p: Plan) -> dict[str, int]:
    """Of each run by its id, how many runs the longest chain of its children has."""
    found = Counter()
    for s in reversed(p):
        for parent in s.parents:
            found[parent.run_id] = max(found[parent.run_id], found[s.run_id] + 1)
    return {s.run_id: found[s.run_id] for s in p}


def _submit(client, todo: dict[str, Spec], events: SimpleQueue, **options) -> None:
    """All runs at once: Dask starts a child after its parents, and the longest chain first."""
    first, futures = behind(tuple(todo.values())), {}
    roots = [run for run, s in todo.items() if not {q.run_id for q in s.parents} & {*todo}]
    for run, s in todo.items():
        whole = roots == [run] and THREADS[0] not in os.environ
        # of a Dask task, `_data_producer`: it waits in the scheduler for a free worker
        how = {"key": run, "pure": False, "priority": first[run], "_data_producer": True}
        needs = [futures[q.run_id] for q in s.parents if q.run_id in todo]
        futures[run] = client.submit(_node, s, needs, run_id=run, whole=whole, **options, **how)
        futures[run].add_done_callback(lambda f, run=run: events.put((run, f)))


def _node(
    s: Spec, parents: list[dict], *, run_id: str, whole: bool, sign: str, ends: float, **options
) -> dict:
    """One node of the graph, in its worker, after its parents. whole: all others wait for it, so it
    has all cores."""
    from distributed import get_worker

    bad = {q["run_id"]: q["status"] for q in parents if q["status"] != "done"}
    rest = ends - time.time()
    if set(bad.values()) - {"left"}:
        return outcome(s, "blocked", f"needs {', '.join(bad)}")
    if bad or rest <= 0:
        return outcome(s, "left", "not started: the budget does not reach")
    worker = get_worker()
    if why := _unlike(s, run_id, sign, worker.state.nthreads):
        mend = "Make it like this machine, or leave it out"
        raise InputError(f"worker {worker.address}: {why}. {mend}")
    worker.log_event("dflib", s.run_id)
    usual = {name: os.environ.pop(name) for name in THREADS if whole and name in os.environ}
    os.environ.update(dict.fromkeys(usual, str(len(own_cores()))))
    try:
        return execute(s, budget=rest, **options)
    finally:
        os.environ.update(usual)


def _unlike(s: Spec, run_id: str, sign: str, threads: int) -> str:
    """Why a worker would make another run than the one that was asked for, or put it elsewhere."""
    if threads > 1:  # papermill changes its process's folder
        return f"{threads} threads, take dask worker --nthreads 1"
    if not (outputs_root() / sign).exists():
        return f"outputs in {outputs_root()}, another folder"
    try:
        own = replace(s).run_id
    except InputError as error:
        return str(error)
    return "" if own == run_id else f"other data or another notebook, so {own} for {run_id}"


def _result(s: Spec, future) -> dict:
    """What a node of the graph gave, or why it gave nothing."""
    from distributed import KilledWorker

    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else future.status
    if isinstance(error, InputError):
        raise error
    if not isinstance(error, KilledWorker):
        return outcome(s, "failed", str(error))
    if error.task != s.run_id:
        return outcome(s, "blocked", f"needs {error.task}")
    return outcome(s, "failed", f"lost with its worker {LOST_WORKER_RETRIES + 1} times")


@contextmanager
def _client(scheduler: str | None, scratch: str, *, most: int, once: bool) -> Iterator:
    """Dask's client: of the cluster at that address, or of one that is started here."""
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if scheduler:
        try:
            client = Client(scheduler, timeout="10s")
        except OSError as error:
            text = f"no Dask scheduler answers at {scheduler} ({error})"
            raise InputError(f"{text}: start `dask scheduler`, or leave --scheduler out") from error
        with client:
            yield client
        return
    settings = {
        "scheduler.allowed-failures": LOST_WORKER_RETRIES,
        "scheduler.worker-saturation": 1.0,  # a run a worker; the others wait in order
        "worker.profile.enabled": False,  # it looks at each process a hundred times a second
        "nanny.pre-spawn-environ": {},  # would be set in this process, too, and stay
    }
    dask.config.set({f"distributed.{key}": value for key, value in settings.items()})
    dask.config.set({"temporary-directory": scratch})
    hush("distributed")
    each = {"nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    each |= {"local_directory": scratch, "preload": ["dflib.study.kernel"]}
    timed = {ONCE: "1"} if once and most > 1 else {}
    environments = enumerate(worker_environments(most))
    workers = {i: {"cls": Nanny, "options": each | {"env": env | timed}} for i, env in environments}
    place = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    head = {"cls": Scheduler, "options": place | {"dashboard": False}}
    with (
        forks.server(),
        SpecCluster(workers, head, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        yield client


def worker_environments(most: int) -> list[dict[str, str]]:
    """Environment of each local worker, for `most` runs at a time: a GPU, or a share of the cores:
    many workers of one thread waste less than one of many. `OMP_NUM_THREADS` overrules."""
    import psutil

    there = doctor.cards()
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = (given or [str(i) for i in range(there)])[: min(there, most)]
    cores, memory = len(own_cores()), int(psutil.virtual_memory().total / MEMORY_PER_WORKER)
    count = len(gpus) or max(1, min(most, cores, memory))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    env = dict.fromkeys(THREADS, threads)
    return [env | ({"CUDA_VISIBLE_DEVICES": gpus[i]} if gpus else {}) for i in range(count)]


def prepare_data(p: Plan) -> None:
    """Decode every dataset of the plan once, here, before many workers ask for it."""
    from data_prep.protocol import assign, decoded

    views = {(s.dataset, s.settings["size"], s.protocol, s.settings["mode"]) for s in p}
    for name, size, protocol, mode in sorted(views):
        assign(decoded(name, size, protocol, mode)[1], protocol)
