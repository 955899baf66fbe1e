"""How far a study is: told by the engine, or seen in its folder of outputs. Draws nothing."""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from filelock import Timeout

from data_prep.errors import InputError
from data_prep.paths import lock
from dflib.study import methods, records
from dflib.study.engine import Plan
from dflib.study.runs import Spec

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


class Estimates:
    """Seconds that runs are likely to take: at the median pace of those that are finished.

    A pace is seconds per epoch and pixel, of the method on this dataset, else of any method on it.
    """

    def __init__(self, results: Iterable[dict]) -> None:
        self.paces: dict[tuple, list[float]] = defaultdict(list)
        for r in results:
            self.learn(r)

    def learn(self, r: dict) -> None:
        """Take in how long a finished run took, by its result."""
        params, seconds = r["params"], r["timings"].get("total_s", 0)
        for kind in (r["method"], "any") if seconds > 0 else ():  # NaN: of scores alone
            self.paces[kind, r["dataset"], params.get("limit")].append(seconds / _work(params))

    def __call__(self, s: Spec) -> float | None:
        """None where nothing is known yet."""
        place = s.dataset, s.settings["limit"]
        paces = self.paces.get((s.method, *place)) or self.paces.get(("any", *place))
        work = _work(methods.relevant(s.method, s.settings))
        return statistics.median(paces) * work if paces else None


def _work(params: dict) -> int:
    """Pixels of an image times the epochs that a run trains, all its stages together."""
    epochs = params.get("distill_epochs") or params.get("epochs", 0)
    epochs += params.get("step_epochs", 0) * (params.get("prune_steps", 1) - 1)
    epochs += params.get("finetune_epochs", 0) + params.get("transfer_epochs", 0)
    return params["size"] ** 2 * max(1, epochs)


class Progress:
    """The state of each run of a plan by its id: the engine tells it, or `look` finds it.

    >>> Progress(plan).look().summary()                             # doctest: +SKIP
    '3 of 8 done, 1 running, 4 waiting; about 12 min left'
    """

    def __init__(self, p: Plan) -> None:
        self.guess, self.began = Estimates(records.every()), time.time()
        self.specs = {s.run_id: s for s in p}
        self.state = {s.run_id: "done" if s.finished() else "waiting" for s in p}

    def start(self, s: Spec) -> None:
        """A run has started."""
        self.state[s.run_id] = "running"

    def end(self, s: Spec, outcome: dict) -> None:
        """A run has ended, as `engine.run` tells it; what it took is learned."""
        self.state[s.run_id] = outcome["status"]
        if outcome["status"] == "done" and outcome["seconds"]:  # made, not found
            self.guess.learn(records.read(s.folder))

    def look(self) -> "Progress":
        """Find the states in the outputs folder, whoever runs the study."""
        for run, s in self.specs.items():
            if self.state[run] == "done" or s.finished():
                self.state[run] = "done"
            elif _locked(s.folder / "lock"):
                self.state[run] = "running"
            else:
                lost = any(self.state[q.run_id] in ("failed", "blocked") for q in s.parents)
                self.state[run] = "failed" if s.failure() else "blocked" if lost else "waiting"
        return self

    @property
    def running(self) -> list[str]:
        return [run for run, state in self.state.items() if state == "running"]

    def seconds(self) -> dict[str, float | None]:
        """What each run that goes on or waits takes in all; None where no run tells how long."""
        unfinished = (run for run, state in self.state.items() if state in ("running", "waiting"))
        return {run: self.guess(self.specs[run]) for run in unfinished}

    def summary(self, devices: int | None = None) -> str:
        """One line: the counts, and the time left: on `devices`, or at as many runs as go on."""
        n = Counter(self.state.values())
        others = (f"{n[state]} {state}" for state in STATES[1:] if n[state])
        text = ", ".join([f"{n['done']} of {len(self.state)} done", *others])
        takes = self.seconds().values()
        if not takes or None in takes:
            return text + (f"; {spoken(None)}" if devices and takes else "")
        on = f" on {devices} device{'s' * (devices > 1)}" if devices else ""
        return f"{text}; about {spoken(sum(takes) / (devices or len(self.running) or 1))} left{on}"

    def rows(self) -> list[dict[str, str]]:
        """The plan for reading: each run, what it starts from, its state, what it takes."""
        takes = {run: spoken(seconds) for run, seconds in self.seconds().items()}
        found = []
        for run, s in self.specs.items():
            row = {"run": run, "starts from": ", ".join(q.run_id for q in s.parents)}
            found.append(row | {"state": self.state[run], "estimate": takes.get(run, "")})
        return found


def _locked(file: Path) -> bool:
    """Whether a process makes this run now: it holds the lock of the run's folder."""
    try:
        if file.exists():
            lock(file, timeout=0).release()
    except Timeout:
        return True
    except (OSError, InputError):  # not ours to ask, or without locks
        pass
    return False
