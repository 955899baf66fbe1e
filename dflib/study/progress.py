"""How far a study is: its states, what runs, the time left; told by the engine, or seen in the outputs folder (`--watch`). Starts nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from contextlib import suppress

from filelock import FileLock, Timeout
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dflib.study.engine import Plan, estimates
from dflib.study.runs import Spec
from dflib.study.schedule import Estimates, Schedule

log = logging.getLogger(__name__)

STATES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "blocked": "yellow",
    "left": "yellow",
    "waiting": "dim",
}
SHOWN = 8  # running runs in the terminal
REPORT_EVERY = 60.0  # seconds at least between two reports


def spoken(seconds: float) -> str:
    """A time for reading.

    >>> spoken(45), spoken(700), spoken(12000)
    ('45 s', '12 min', '3 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """The state of each run of a plan, by run id. The engine tells it (`start`, `end`), or `look` finds it in the outputs folder.

    slots: runs that go on at the same time, for the time left; at least as many as were ever seen running.

    >>> Progress(plan).look().summary()                             # doctest: +SKIP
    '3 of 8 done, 1 running, 4 waiting; about 12 min left'
    """

    def __init__(self, p: Plan, guess: Estimates | None = None, *, slots: int = 1) -> None:
        self.plan, self.guess, self.slots, self.dashboard = p, guess or estimates(p), slots, ""
        self.state = {s.run_id: "done" if s.finished() else "waiting" for s in p}
        self.since: dict[str, float] = {}  # of the running ones
        self.specs = {s.run_id: s for s in p}
        self.began = time.time()

    def start(self, s: Spec) -> None:
        """A run has started."""
        self.state[s.run_id], self.since[s.run_id] = "running", time.time()
        self.slots = max(self.slots, len(self.running))

    def end(self, s: Spec, outcome: dict) -> None:
        """A run has ended, as `study.run` tells it."""
        self.state[s.run_id] = outcome["status"]

    def look(self) -> Progress:
        """Find the states in the outputs folder, whoever runs the study."""
        for run, s in self.specs.items():
            if self.state[run] == "done":
                continue
            if s.finished():
                self.state[run] = "done"
            elif _locked(s):
                if self.state[run] != "running":
                    self.start(s)
                    self.since[run] = _started(s)
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

    def seconds_left(self) -> float | None:
        """Until the last run ends: all work over the slots, or the longest path, whichever is longer; None where no run tells how long one takes."""
        open_ = {
            run: s for run, s in self.specs.items() if self.state[run] in ("running", "waiting")
        }
        takes = {}
        for run, s in open_.items():
            if (seconds := self.guess(s)) is None:
                return None
            gone = time.time() - self.since[run] if self.state[run] == "running" else 0.0
            takes[run] = max(0.0, seconds - gone)
        paths = Schedule(
            {run: [q.run_id for q in s.parents] for run, s in open_.items()}, takes.get
        ).path
        return max([sum(takes.values()) / self.slots, *paths.values()], default=0.0)

    def summary(self) -> str:
        """One line."""
        counts = Counter(self.state.values())
        words = [f"{counts['done']} of {len(self.state)} done"]
        words += [
            f"{counts[state]} {state}" for state in STATES if state != "done" and counts[state]
        ]
        left = None if self.over else self.seconds_left()
        return ", ".join(words) + ("" if left is None else f"; about {spoken(left)} left")

    def render(self) -> Group:
        """For a terminal: bar, counts, time left, the running runs with their logs, the dashboard."""
        ended = sum(state not in ("running", "waiting") for state in self.state.values())
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            "study",
            ProgressBar(len(self.state), ended, width=40),
            f"{spoken(time.time() - self.began)}",
        )
        runs = Table.grid(padding=(0, 2))
        for run in self.running[:SHOWN]:
            expected = self.guess(self.specs[run])
            of = "" if expected is None else f" of about {spoken(expected)}"
            text = Text(run, style=STATES["running"])
            runs.add_row(
                text,
                spoken(time.time() - self.since[run]) + of,
                Text(str(self.specs[run].folder / "log.txt"), style="dim", overflow="fold"),
            )
        if len(self.running) > SHOWN:
            runs.add_row(f"and {len(self.running) - SHOWN} more")
        return Group(
            bar,
            Text(self.summary()),
            runs,
            *([Text(f"Dask: {self.dashboard}")] if self.dashboard else []),
        )


def _locked(s: Spec) -> bool:
    """Whether a process makes this run now: it holds the lock of the run's folder."""
    path = s.folder / "lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to ask
        return False


def _started(s: Spec) -> float:
    """When the present attempt began, by its log; now, where that cannot be read."""
    with suppress(OSError, ValueError):
        lines = [
            line for line in (s.folder / "log.txt").read_text().splitlines() if s.command() in line
        ]
        return (
            time.mktime(time.strptime(lines[-1][:19], "%Y-%m-%d %H:%M:%S"))
            if lines
            else time.time()
        )
    return time.time()


class Report:
    """Writes `report.html` in the background when called, at most once a minute and 3 % of the time; a failure is logged, never raised."""

    def __init__(self) -> None:
        self.thread, self.next = threading.Thread(), time.monotonic() + REPORT_EVERY

    def __call__(self) -> None:
        if time.monotonic() >= self.next and not self.thread.is_alive():
            self.thread = threading.Thread(target=self._write, daemon=True)
            self.thread.start()

    def wait(self) -> None:
        """Until the one that is being written is there."""
        if self.thread.is_alive():
            self.thread.join()

    def _write(self) -> None:
        from dflib.show import report

        started = time.monotonic()
        try:
            report.write()
        except Exception:  # whatever it is, the study goes on; the last report tells
            log.debug("report.html is not refreshed", exc_info=True)
        self.next = time.monotonic() + max(REPORT_EVERY, 30 * (time.monotonic() - started))
