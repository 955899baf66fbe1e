"""Which run starts next: the longest path, against every possible order; estimates from finished runs; what a budget leaves."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflib.study import engine
from dflib.study.runs import spec
from dflib.study.schedule import Estimates, Schedule, simulate, utilisation

CHAINS = {"a": [], "b": [], "c": ["b"], "d": ["c"], "e": ["a"]}
TAKES = {"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0, "e": 1.0}


@st.composite
def graphs(draw) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Up to 7 runs, each with parents among those before it, and their seconds."""
    names = "abcdefg"[: draw(st.integers(1, 7))]
    parents = {
        n: draw(st.lists(st.sampled_from(names[:i]), max_size=2, unique=True)) if i else []
        for i, n in enumerate(names)
    }
    return parents, {n: float(draw(st.integers(1, 9))) for n in names}


def makespan(parents: dict, takes: dict, order: list[str], workers: int) -> float:
    """When the last run ends, if the runs start in a given order, each as soon as a worker and its parents are ready."""
    free, ends = [0.0] * workers, {}
    for run in order:
        start = max([min(free), *(ends[p] for p in parents[run])])
        free[free.index(min(free))] = ends[run] = start + takes[run]
    return max(ends.values())


def test_the_longest_path_starts_first_and_children_wait():
    order = Schedule(CHAINS, TAKES.get)
    assert [order.start(), order.start(), order.start()] == ["b", "a", None]
    order.done("a")
    assert order.start() == "e"
    order.done("b")
    assert order.start() == "c" and order.start() is None
    assert list(order.left) == ["d"]


@given(graphs(), st.integers(1, 3))
def test_every_run_starts_once_and_no_order_ends_much_sooner(graph, workers):
    parents, takes = graph
    events = simulate(parents, takes, takes.get, workers=workers)
    starts, ends = (
        {run: start for run, _, start, _ in events},
        {run: end for run, _, _, end in events},
    )
    assert sorted(starts) == sorted(parents) and all(
        ends[p] <= starts[run] for run in parents for p in parents[run]
    )
    for worker in range(workers):
        mine = sorted((start, end) for _, w, start, end in events if w == worker)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(mine))
    took, busy = max(ends.values()), utilisation(events, workers=workers)
    assert busy == pytest.approx(sum(takes.values()) / (workers * took))
    orders = [
        o
        for o in itertools.permutations(parents)
        if all(o.index(p) < o.index(r) for r in o for p in parents[r])
    ]
    best = min(makespan(parents, takes, list(o), workers) for o in orders[:200])
    assert took <= best * (2 - 1 / workers) + 1e-9  # Graham's bound of list scheduling (1966)
    if workers == 1:
        assert busy == pytest.approx(1)


def test_a_failed_run_takes_its_descendants_along_and_nothing_else():
    order = Schedule(CHAINS, TAKES.get)
    assert order.start() == "b"
    assert order.failed("b") == ["c", "d"]
    assert order.start() == "a" and order.start() is None
    order.done("a")
    assert order.start() == "e" and not order.left


def test_what_does_not_fit_is_not_started_until_an_estimate_gets_shorter():
    takes = dict(TAKES)
    order = Schedule(CHAINS, takes.get)
    assert order.start(within=2.5) == "b"
    assert order.start(within=2.5) is None and set(order.left) == {"a", "c", "d", "e"}
    takes["a"] = 1.0
    order.rank()
    assert order.start(within=2.0) == "a"
    assert (
        Schedule({"a": []}, lambda run: None).start(within=1.0) == "a"
    )  # somebody must be the first
    assert Schedule({"a": []}, lambda run: None).start(within=0.0) is None


def test_a_real_plan_keeps_its_workers_busy(tiny_dataset, tiny_source):
    plan = engine.plan(
        preset="tiny",
        dataset=tiny_dataset,
        source=tiny_source,
        methods_=("CPF", "CKD", "TL+P+A"),
        rates=(0.6, 0.9),
        seeds=range(60),
    )
    parents = {s.run_id: [p.run_id for p in s.parents] for s in plan}
    takes = {run: 10.0 + i % 17 for i, run in enumerate(parents)}
    assert utilisation(simulate(parents, takes, lambda run: None, workers=16), workers=16) > 0.95


def row(s, seconds: float, **changes) -> dict:
    values = {k: s.settings[k] for k in ("size", "limit", "target_images")}
    epochs = s.settings["epochs" if s.method == "BL" else "finetune_epochs"]
    return (
        {"method": s.method, "dataset": s.dataset, "total_s": seconds, "planned_epochs": epochs}
        | values
        | changes
    )


def test_estimates_are_medians_of_like_runs_and_scale_to_unlike_ones(tiny_dataset, tiny_source):
    ask = lambda code, on=tiny_dataset, **settings: spec(
        code, preset="tiny", dataset=on, rate=0.9, settings={"limit": None} | settings
    )
    baseline = ask("BL")
    assert Estimates()(baseline) is None
    guess = Estimates([row(baseline, 100.0), row(baseline, 300.0), row(baseline, 120.0)])
    assert guess(baseline) == 120
    assert guess(ask("BL", epochs=20)) == pytest.approx(1200)  # 2 in the preset
    assert guess(ask("BL", size=64)) == pytest.approx(480)
    assert guess(ask("BL", on=tiny_source)) == pytest.approx(120 * 160 / 240)  # its images
    assert guess(ask("CPF")) == pytest.approx(60)  # no CPF yet: one epoch against two
    guess.learn(ask("CPF"), 33.0)
    assert guess(ask("CPF")) == 33 and guess(baseline) == 120
