"""Which run starts next: what runs take (learned from finished ones), the longest path first, what still fits a budget. Knows nothing of Dask."""

from __future__ import annotations

import heapq
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from data_prep.errors import InputError
from dflib.study import methods
from dflib.study.runs import Spec

TRAINS = 0.6  # share of a dataset's images that trains, where only their number is known
QUICKEST = 5.0  # seconds: no run is faster, however little it trains


class Estimates:
    """Seconds that runs are likely to take: the median of finished ones alike, else of the nearest kind there is, scaled by the work.

    Alike: method, dataset and work (training images x pixels x epochs). Then: the method on this dataset; the method elsewhere; any method.

    >>> Estimates(runs.rows())(spec("CPF", rate=0.9))            # doctest: +SKIP
    41.3
    """

    def __init__(self, rows: Iterable[Mapping] = ()) -> None:
        self.known: dict[tuple, list[tuple[float, float]]] = defaultdict(
            list
        )  # kind -> (work, seconds)
        self._told: dict[tuple, float] = {}
        for row in rows:
            if row.get("size") and row.get("total_s"):  # else it teaches nothing
                self._add(row["method"], row["dataset"], row["total_s"], work(row["dataset"], row))

    def learn(self, s: Spec, seconds: float) -> None:
        """Take in what a run took."""
        self._add(s.method, s.dataset, seconds, _work_of(s))
        self._told.clear()

    def _add(self, method: str, dataset: str, seconds: float, amount: float) -> None:
        for kind in ((method, dataset), (method,), ()):
            self.known[kind].append((amount, seconds))

    def __call__(self, s: Spec) -> float | None:
        """None where nothing is known yet."""
        kind = next((k for k in ((s.method, s.dataset), (s.method,), ()) if k in self.known), None)
        if kind is None:
            return None
        asked = (*kind, wanted := _work_of(s))
        if asked not in self._told:
            self._told[asked] = _scaled(self.known[kind], wanted, exact=len(kind) == 2)
        return self._told[asked]


def _scaled(known: list[tuple[float, float]], wanted: float, *, exact: bool) -> float:
    alike = [seconds for amount, seconds in known if exact and 0.8 < amount / wanted < 1.25]
    if alike:
        return statistics.median(alike)
    return max(QUICKEST, statistics.median(seconds * wanted / amount for amount, seconds in known))


def work(dataset: str, values: Mapping) -> float:
    """Training images x pixels x epochs of a run, from its request (`size`, `limit`, `target_images`, `planned_epochs`)."""
    limits = [2 * values[k] for k in ("limit", "target_images") if values[k] and values[k] > 0]
    return (
        min(TRAINS * _images(dataset), *limits, math.inf)
        * values["size"] ** 2
        * max(1, values["planned_epochs"])
    )


def _work_of(s: Spec) -> float:
    values = methods.relevant(s.method, s.settings)
    return work(s.dataset, values | {"planned_epochs": methods.planned_epochs(values)})


@lru_cache(maxsize=64)
def _images(dataset: str) -> int:
    """Usable images of a dataset; a thousand for one that is not here (any more)."""
    from data_prep import manifest

    try:
        return int((manifest.load(dataset)["status"] == "ok").sum())
    except InputError:
        return 1000


class Schedule:
    """Runs that are not started yet; of those whose parents are done, `start` gives the one with the longest path to the study's end.

    parents: of each run by id, parents first; those that are not among the runs are taken as done.
    seconds: what a run is likely to take; None, and it counts as a typical one.

    >>> order = Schedule({"a": [], "b": [], "c": ["b"]}, {"a": 3, "b": 2, "c": 2}.get)
    >>> order.start(), order.start(), order.start()
    ('b', 'a', None)
    >>> order.done("b"), order.start()
    (None, 'c')
    """

    def __init__(
        self, parents: Mapping[str, Iterable[str]], seconds: Callable[[str], float | None]
    ) -> None:
        self.parents = {run: [p for p in those if p in parents] for run, those in parents.items()}
        self.children: dict[str, list[str]] = defaultdict(list)
        for run, those in self.parents.items():
            for parent in those:
                self.children[parent].append(run)
        self.waits = {run: len(those) for run, those in self.parents.items()}
        self.left = dict.fromkeys(parents)  # neither started nor blocked
        self.seconds = seconds
        self.rank()

    def rank(self) -> None:
        """Put the runs in order again: after an estimate has changed."""
        guess = {run: self.seconds(run) for run in self.parents}
        known = [s for s in guess.values() if s is not None]
        typical = statistics.median(known) if known else 1.0
        self.takes, self.path = guess, {}
        for run in reversed(self.parents):
            longest = max((self.path[child] for child in self.children[run]), default=0.0)
            self.path[run] = longest + (typical if guess[run] is None else guess[run])
        self.place = {run: i for i, run in enumerate(self.parents)}
        self.ready = [self._key(run) for run in self.left if not self.waits[run]]
        heapq.heapify(self.ready)

    def _key(self, run: str) -> tuple[float, int, str]:
        return (-self.path[run], self.place[run], run)

    def start(self, within: float = math.inf) -> str | None:
        """The run to start now, of those that take at most `within` seconds; None when there is none. One without an estimate fits any time but none."""
        while self.ready:
            run = heapq.heappop(self.ready)[2]
            if (
                within > 0 and (self.takes[run] or 0.0) <= within
            ):  # the time left only gets shorter: what is too long now is so for good
                del self.left[run]
                return run
        return None

    def done(self, run: str) -> None:
        """Its children may start."""
        for child in self.children[run]:
            self.waits[child] -= 1
            if not self.waits[child]:
                heapq.heappush(self.ready, self._key(child))

    def failed(self, run: str) -> list[str]:
        """Its descendants, which can never start, parents first."""
        lost, found = {run}, []
        for other in list(self.left):
            if lost.intersection(self.parents[other]):
                lost.add(other)
                found.append(other)
                del self.left[other]
        return found


def simulate(
    parents: Mapping[str, Iterable[str]],
    takes: Mapping[str, float],
    guess: Callable[[str], float | None],
    *,
    workers: int,
    between: float = 0.0,
) -> list[tuple[str, int, float, float]]:
    """What a study would do, in virtual time: (run, worker, start, end) in the order of the starts. `Schedule` decides, no run is made.

    takes: true seconds of each run. guess: what is known of them beforehand. between: seconds that a worker waits for its next run.

    >>> simulate({"a": [], "b": ["a"]}, {"a": 1, "b": 3}, lambda run: None, workers=2)
    [('a', 0, 0.0, 1.0), ('b', 0, 1.0, 4.0)]
    """
    order, now, running, free, done = Schedule(parents, guess), 0.0, [], list(range(workers)), []
    while True:
        while free and (run := order.start()):
            worker, start = heapq.heappop(free), now + between
            heapq.heappush(running, (start + takes[run], run, worker))
            done.append((run, worker, start, start + takes[run]))
        if not running:
            break
        now, run, worker = heapq.heappop(running)
        heapq.heappush(free, worker)
        order.done(run)
    if order.left:
        raise InputError(
            f"{len(order.left)} runs never start: a parent comes after its child, or is missing"
        )
    return done


def utilisation(events: Iterable[tuple[str, int, float, float]], *, workers: int) -> float:
    """Share of the workers' time that runs fill until the last one ends.

    >>> utilisation([("a", 0, 0.0, 1.0), ("b", 0, 1.0, 4.0)], workers=2)
    0.5
    """
    times = [(start, end) for _, _, start, end in events]
    return sum(end - start for start, end in times) / (workers * max(end for _, end in times))
