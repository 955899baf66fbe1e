"""How far a study is: told by the engine, or seen in its folder of outputs. Draws nothing."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress

from filelock import Timeout

from data_prep.errors import InputError
from data_prep.paths import lock
from dflib.study.engine import Plan, estimates, kind
from dflib.study.runs import Spec
from dflib.study.schedule import Estimates, longest_paths

STATES = ("done", "running", "failed", "blocked", "left", "waiting")


def spoken(seconds: float | None) -> str:
    """A time for reading.

    >>> spoken(45), spoken(700), spoken(12000), spoken(None)
    ('45 s', '12 min', '3 h 20 min', 'no run to learn from yet')
    """
    if seconds is None:
        return "no run to learn from yet"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """The state of each run of a plan by its id: the engine tells it, or `look` finds it.

    slots: runs that go on at the same time, at least as many as were ever seen running.

    >>> Progress(plan).look().summary()                             # doctest: +SKIP
    '3 of 8 done, 1 running, 4 waiting; about 12 min left'
    """

    def __init__(self, p: Plan, guess: Estimates | None = None, *, slots: int = 1) -> None:
        self.guess, self.slots, self.began = guess or estimates(p), slots, time.time()
        self.specs = {s.run_id: s for s in p}
        self.state = {s.run_id: "done" if s.finished() else "waiting" for s in p}
        self.since: dict[str, float] = {}  # of what runs

    def start(self, s: Spec, since: float | None = None) -> None:
        """A run has started."""
        self.state[s.run_id], self.since[s.run_id] = "running", since or time.time()
        self.slots = max(self.slots, len(self.running))

    def end(self, s: Spec, outcome: dict) -> None:
        """A run has ended, as `engine.run` tells it; what it took is learned."""
        self.state[s.run_id] = outcome["status"]
        if outcome["status"] == "done" and outcome["seconds"]:
            self.guess.learn(*kind(s), outcome["seconds"])

    def look(self) -> Progress:
        """Find the states in the outputs folder, whoever runs the study."""
        for run, s in self.specs.items():
            if self.state[run] == "done" or s.finished():
                self.state[run] = "done"
            elif _locked(s):
                self.start(s, self.since.get(run) or _started(s))
            else:
                lost = any(self.state[q.run_id] in ("failed", "blocked") for q in s.parents)
                self.state[run] = "failed" if s.failure() else "blocked" if lost else "waiting"
        return self

    @property
    def running(self) -> list[str]:
        return [run for run, state in self.state.items() if state == "running"]

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing can start."""
        return not {"running", "waiting"} & set(self.state.values())

    def seconds(self) -> dict[str, float | None]:
        """What each run that goes on or waits still takes; None where no run tells how long."""
        runs = {
            run: s for run, s in self.specs.items() if self.state[run] in ("running", "waiting")
        }
        takes = {run: self.guess(*kind(s)) for run, s in runs.items()}
        gone = {run: time.time() - self.since[run] for run in self.running}
        return {run: s and max(0.0, s - gone.get(run, 0.0)) for run, s in takes.items()}

    def seconds_left(self, devices: int | None = None) -> float | None:
        """Until the last run ends: all work over the devices (`slots`), or the longest path."""
        takes = self.seconds()
        if None in takes.values():
            return None
        parents = {run: [q.run_id for q in self.specs[run].parents] for run in takes}
        paths = longest_paths(parents, takes).values()
        return max([sum(takes.values()) / (devices or self.slots), *paths])

    def summary(self, devices: int | None = None) -> str:
        """One line: the counts, and the time left, which `devices` would take if it is given."""
        n = Counter(self.state.values())
        others = (f"{n[state]} {state}" for state in STATES[1:] if n[state])
        text = ", ".join([f"{n['done']} of {len(self.state)} done", *others])
        left = None if self.over else self.seconds_left(devices)
        if left is None:
            return text + (f"; {spoken(None)}" if devices and not self.over else "")
        on = f" on {devices} device{'s' * (devices > 1)}" if devices else ""
        return f"{text}; about {spoken(left)} left{on}"

    def rows(self) -> list[dict[str, str]]:
        """The plan for reading: each run, what it starts from, its state, what it still takes."""
        takes = {run: spoken(seconds) for run, seconds in self.seconds().items()}
        found = []
        for run, s in self.specs.items():
            row = {"run": run, "starts from": ", ".join(q.run_id for q in s.parents)}
            found.append(row | {"state": self.state[run], "estimate": takes.get(run, "")})
        return found


def _locked(s: Spec) -> bool:
    """Whether a process makes this run now: it holds the lock of the run's folder."""
    if not (s.folder / "lock").exists():
        return False
    try:
        lock(s.folder / "lock", timeout=0).release()
    except Timeout:
        return True
    except (OSError, InputError):  # not ours to ask, or without locks
        return False
    return False


def _started(s: Spec) -> float:
    """When the present attempt began, by its log; now, where that cannot be read."""
    with suppress(OSError, ValueError, IndexError):
        lines = (s.folder / "log.txt").read_text().splitlines()
        last = [line for line in lines if s.command() in line][-1]
        return time.mktime(time.strptime(last[:19], "%Y-%m-%d %H:%M:%S"))
    return time.time()
