"""What runs take, learned from finished ones; the longest path of a graph. No Dask, no run here."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain

from data_prep.errors import InputError

TRAINS = 0.6  # share of a dataset's images that trains, where only their number is known
QUICKEST = 5.0  # seconds: no run is faster, however little it trains


def work(dataset: str, values: Mapping) -> float:
    """Training images x pixels x epochs, by `size`, `limit`, `target_images`, `planned_epochs`."""
    limits = [2 * values[k] for k in ("limit", "target_images") if (values[k] or 0) > 0]
    images = min([TRAINS * _images(dataset), *limits])
    return images * values["size"] ** 2 * max(1, values["planned_epochs"])


@lru_cache(maxsize=64)
def _images(dataset: str) -> int:
    """Usable images of a dataset; a thousand for one that is not here (any more)."""
    from data_prep import manifest

    try:
        return int((manifest.load(dataset)["status"] == "ok").sum())
    except InputError:
        return 1000


class Estimates:
    """Seconds that runs are likely to take: the median of like ones by `work`, else scaled.

    Learned from the nearest kind: the method on this dataset, the method elsewhere, any method.

    >>> guess = Estimates()
    >>> guess.learn("CPF", "demo", 1e6, 20.0)
    >>> guess("CPF", "demo", 1e6), guess("CPF", "other", 3e6)
    (20.0, 60.0)
    """

    def __init__(self) -> None:
        self.known: dict[tuple, list[tuple[float, float]]] = defaultdict(list)  # (work, seconds)
        self.told: dict[tuple, float] = {}

    def learn(self, method: str, dataset: str, amount: float, seconds: float) -> None:
        """Take in that a run of so much work took so long."""
        self.told.clear()
        for kind in ((method, dataset), (method,), ()):
            self.known[kind].append((amount, seconds))

    def __call__(self, method: str, dataset: str, amount: float) -> float | None:
        """None where nothing is known yet."""
        if (method, dataset, amount) not in self.told and self.known:
            near = self.known.get((method, dataset), [])
            far = near or self.known.get((method,)) or self.known[()]
            alike = [seconds for a, seconds in near if 0.8 < a / amount < 1.25]
            scaled = max(QUICKEST, statistics.median(seconds * amount / a for a, seconds in far))
            self.told[method, dataset, amount] = statistics.median(alike or [scaled])
        return self.told.get((method, dataset, amount))


def longest_paths(parents: Mapping[str, Iterable[str]], seconds: Mapping[str, float]) -> dict:
    """Seconds from each run's start to the end of the longest chain of children behind it.

    parents: of each run, parents before children; those that are no keys count as done.

    >>> longest_paths({"a": [], "b": ["a"], "c": ["a"]}, {"a": 1, "b": 2, "c": 5})
    {'c': 5, 'b': 2, 'a': 6}
    """
    behind, paths = Counter(), {}
    for run in reversed(parents):
        paths[run] = seconds[run] + behind[run]
        for parent in parents[run]:
            behind[parent] = max(behind[parent], paths[run])
    return paths


def alone(parents: Mapping[str, Iterable[str]]) -> set[str]:
    """Runs beside which no other can go on: each other one is an ancestor or a descendant.

    >>> alone({"a": [], "b": ["a"], "c": ["a"]})
    {'a'}
    """
    above: dict[str, set[str]] = {}
    for run, those in parents.items():
        near = set(those) & above.keys()
        above[run] = near.union(*(above[parent] for parent in near))
    below = Counter(chain(*above.values()))
    return {run for run in parents if len(above[run]) + below[run] == len(parents) - 1}
