"""The longest path against every chain there is; who can be alone; estimates from finished runs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflib.study import engine
from dflib.study.runs import spec
from dflib.study.schedule import Estimates, alone, longest_paths


@st.composite
def graphs(draw) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Up to 7 runs, each with parents among those before it, and their seconds."""
    names = "abcdefg"[: draw(st.integers(1, 7))]
    parents = {
        n: draw(st.lists(st.sampled_from(names[:i]), max_size=2, unique=True)) if i else []
        for i, n in enumerate(names)
    }
    return parents, {n: float(draw(st.integers(1, 9))) for n in names}


def chains(parents: dict[str, list[str]], run: str) -> list[list[str]]:
    """Every chain of children that starts with a run."""
    children = [other for other in parents if run in parents[other]]
    return [[run], *([run, *rest] for child in children for rest in chains(parents, child))]


@given(graphs())
def test_the_longest_path_is_that_of_all_chains(graph):
    parents, takes = graph
    paths = longest_paths(parents, takes)
    assert sorted(paths) == sorted(parents)
    for run, path in paths.items():
        assert path == max(sum(takes[r] for r in chain) for chain in chains(parents, run))


@given(graphs())
def test_alone_is_what_stands_in_one_chain_with_every_other(graph):
    parents, _ = graph
    tied = {tuple(sorted((run, r))) for run in parents for c in chains(parents, run) for r in c[1:]}
    others = {run: [tuple(sorted((run, r))) for r in parents if r != run] for run in parents}
    assert alone(parents) == {run for run, pairs in others.items() if tied.issuperset(pairs)}


def test_parents_that_are_done_count_for_nothing():
    assert longest_paths({"b": ["a"], "c": ["b"]}, {"b": 2.0, "c": 3.0}) == {"c": 3.0, "b": 5.0}
    assert (
        alone({"b": ["a"], "c": ["b"]}) == {"b", "c"} and alone({"b": ["a"], "c": ["a"]}) == set()
    )


@given(graphs(), st.integers(1, 3))
def test_no_order_of_starts_ends_much_sooner_than_the_longest_path_first(graph, workers):
    parents, takes = graph
    paths = longest_paths(parents, takes)

    def ends(order) -> float:
        """When the last run ends: the first in `order` whose parents are done takes a free worker."""
        free, done, waiting = [0.0] * workers, {}, list(order)
        while waiting:
            begins = lambda r: max([min(free), *(done[p] for p in parents[r])])
            ready = [r for r in waiting if all(p in done for p in parents[r])]
            run = min(ready, key=lambda r: (begins(r), waiting.index(r)))
            at = begins(run)
            free[free.index(min(free))] = done[run] = at + takes[run]
            waiting.remove(run)
        return max(done.values())

    best = min(ends(order) for order in itertools.islice(itertools.permutations(parents), 200))
    ours = ends(sorted(parents, key=lambda run: -paths[run]))
    assert ours <= best * (2 - 1 / workers) + 1e-9  # Graham's bound of list scheduling (1966)


def test_estimates_are_medians_of_like_runs_and_scale_to_unlike_ones(tiny_dataset, tiny_source):
    def ask(code: str, on: str = tiny_dataset, **settings) -> tuple:
        settings = {"limit": None} | settings
        return engine.kind(spec(code, preset="tiny", dataset=on, rate=0.9, settings=settings))

    baseline, guess = ask("BL"), Estimates()
    assert guess(*baseline) is None
    for seconds in (100.0, 300.0, 120.0):
        guess.learn(*baseline, seconds)
    assert guess(*baseline) == 120
    assert guess(*ask("BL", epochs=20)) == pytest.approx(1200)  # 2 in the preset
    assert guess(*ask("BL", size=64)) == pytest.approx(480)
    assert guess(*ask("BL", on=tiny_source)) == pytest.approx(120 * 160 / 240)  # its images
    assert guess(*ask("CPF")) == pytest.approx(60)  # no CPF yet: one epoch against two
    guess.learn(*ask("CPF"), 33.0)
    assert guess(*ask("CPF")) == 33 and guess(*baseline) == 120
