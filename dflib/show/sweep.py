"""Notebook 17: a study as a form, its plan and cost, who runs when, and the study itself as a process of its own. Thin widgets around plain functions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from html import escape
from pathlib import Path

import ipywidgets as w
import pandas as pd
from traitlets import TraitError

from data_prep.errors import InputError
from data_prep.paths import present, write_text
from dflib.show import plots
from dflib.study import grid, methods, runs, schedule
from dflib.study.engine import Plan
from dflib.study.progress import Progress, spoken

STATES = {
    "done": plots.BLUE,
    "running": "#56b4e9",
    "waiting": "#cccccc",
    "left": "#e69f00",
    "blocked": "#e69f00",
    "failed": plots.RED,
}
GUESS = 60.0  # seconds that a run counts as where no finished one tells


def table(p: Plan, guess: schedule.Estimates) -> pd.DataFrame:
    """The plan for reading: one row a run with its parents, its state in the outputs folder, and what it is likely to take."""
    states = Progress(p, guess).look().state
    rows = [
        {
            "run": s.run_id,
            "dataset": s.dataset,
            "starts from": ", ".join(q.run_id for q in s.parents),
            "state": states[s.run_id],
            "estimate": _estimate(s, states[s.run_id], guess),
        }
        for s in p
    ]
    return pd.DataFrame(rows)


def _estimate(s: runs.Spec, state: str, guess: schedule.Estimates) -> str:
    seconds = guess(s)
    return (
        ""
        if state == "done"
        else "no run to learn from yet"
        if seconds is None
        else spoken(seconds)
    )


def times(p: Plan, guess: schedule.Estimates) -> dict[str, float]:
    """Seconds that each run which is not finished is likely to take, by run id; `GUESS` where nothing is known."""
    return {s.run_id: guess(s) or GUESS for s in p if not s.finished()}


def cost(p: Plan, guess: schedule.Estimates, devices: int) -> str:
    """One sentence: how many runs, how many are left, what they cost in device time, and when `devices` of them would be through."""
    takes = times(p, guess)
    head = f"{len(p)} runs, {len(p) - len(takes)} finished"
    if not takes:
        return f"{head}: nothing is left to do."
    unknown = (
        ""
        if any(guess(s) for s in p)
        else f" (no run to learn from yet: each counts as {GUESS:g} s)"
    )
    through = max(end for *_, end in timeline(p, takes, devices))
    return f"{head}; the other {len(takes)} take about {spoken(sum(takes.values()))} of device time, {spoken(through)} on {devices} devices{unknown}."


def timeline(
    p: Plan, takes: Mapping[str, float], devices: int
) -> list[tuple[str, int, float, float]]:
    """(run, device, start, end) of the runs in `takes`, as the engine would order them; a parent that is not among them is done."""
    parents = {s.run_id: [q.run_id for q in s.parents] for s in p if s.run_id in takes}
    return schedule.simulate(parents, takes, takes.get, workers=devices)


def chart(p: Plan, takes: Mapping[str, float], devices: int) -> plots.Figure:
    """Who runs when: a bar a run on its device, in the colour of its method; the title says how busy the devices are."""
    events, method = timeline(p, takes, devices), {s.run_id: s.method for s in p}
    fig = plots.Figure(7.6, 1.3 + 0.42 * devices)
    ax = fig.subplots()
    for code in dict.fromkeys(method[run] for run, *_ in events):
        mine = [e for e in events if method[e[0]] == code]
        ax.barh(
            [d for _, d, _, _ in mine],
            [e - s for *_, s, e in mine],
            left=[s for *_, s, _ in mine],
            height=0.7,
            color=plots.appearance(code)[0],
            edgecolor=plots.PAPER,
            label=code,
        )
    ax.set(
        xlabel="seconds from the start",
        yticks=range(devices),
        yticklabels=[f"device {d + 1}" for d in range(devices)],
    )
    ax.invert_yaxis()
    if events:
        busy = schedule.utilisation(events, workers=devices)
        ax.set_title(
            f"through after {spoken(max(e for *_, e in events))}, devices busy {busy:.0%} of the time"
        )
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def states_bar(progress: Progress) -> plots.Figure:
    """How far a study is: one bar, a part for each state with its number."""
    fig = plots.Figure(7.6, 1.4)
    ax, left = fig.subplots(), 0
    for state, colour in STATES.items():
        n = sum(found == state for found in progress.state.values())
        if n:
            ax.barh([0], [n], left=left, color=colour, label=f"{n} {state}")
            left += n
    ax.set(yticks=[], xlabel="runs", xlim=(0, max(1, left)))
    ax.legend(ncols=len(STATES), loc="lower left", bbox_to_anchor=(0, 1))
    return fig


class Job:
    """`python -m dflib study` in a process of its own, from a grid file kept in the outputs folder. It goes on when this notebook is closed."""

    def __init__(self, options: dict, *more: str) -> None:
        folder = runs.outputs_root()
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.log = folder / "grid.yaml", folder / "study.log"
        write_text(self.file, grid.text(options))
        path = os.pathsep.join(
            filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
        )
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dflib", "study", "--grid", str(self.file.resolve()), *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End it; finished runs stay, and the same grid goes on."""
        if self.running:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()

    def wait(self) -> str:
        """What it said, once it has ended."""
        self.process.wait()
        return self.log.read_text(encoding="utf-8")


class Sweep:
    """The form: controls and the same as YAML, each following the other; plan, cost, start, watch. `box` is what is shown."""

    def __init__(self, options: dict) -> None:
        wide = {
            "layout": w.Layout(width="min(100%, 420px)"),
            "style": {"description_width": "90px"},
        }
        self.preset = w.Dropdown(options=list(methods.PRESETS), description="Preset:", **wide)
        self.dataset = w.SelectMultiple(options=present(), rows=3, description="Datasets:", **wide)
        self.methods = w.SelectMultiple(
            options=list(methods.METHODS), rows=6, description="Methods:", **wide
        )
        self.rates = w.Text(
            description="Rates:", placeholder="0.6, 0.9", continuous_update=False, **wide
        )
        self.seeds = w.Text(
            description="Seeds:", placeholder="0, 1, 2", continuous_update=False, **wide
        )
        self.protocol = w.Dropdown(options=["strict", "paper"], description="Protocol:", **wide)
        self.devices = w.BoundedIntText(2, min=1, max=64, description="Devices:", **wide)
        self.yaml = w.Textarea(
            rows=9,
            description="YAML:",
            continuous_update=False,
            layout=w.Layout(width="min(100%, 520px)"),
        )
        self.plan, self.view = w.HTML(), w.HTML(layout={"min_height": "60px"})
        self.start, self.stop = (
            w.Button(description="Start", button_style="primary"),
            w.Button(description="Stop", disabled=True),
        )
        self.job: Job | None = None
        self.worker: threading.Thread | None = None
        self._busy = False
        for control in (
            self.preset,
            self.dataset,
            self.methods,
            self.rates,
            self.seeds,
            self.protocol,
        ):
            control.observe(lambda _: self._from_controls(), "value")
        self.yaml.observe(lambda _: self._from_yaml(), "value")
        self.devices.observe(lambda _: self._plan(), "value")
        self.start.on_click(lambda _: self.begin())
        self.stop.on_click(lambda _: self.job and self.job.stop())
        controls = w.VBox(
            [
                self.preset,
                self.dataset,
                self.methods,
                self.rates,
                self.seeds,
                self.protocol,
                self.devices,
            ]
        )
        row = w.Layout(flex_flow="row wrap", grid_gap="4px 16px")
        self.box = w.VBox(
            [
                w.HBox([controls, self.yaml], layout=row),
                self.plan,
                w.HBox([self.start, self.stop]),
                self.view,
            ]
        )
        self.yaml.value = grid.text(options)

    def options(self) -> dict:
        """What the form asks for; raises `InputError` as `grid.parse` does."""
        return grid.parse(self.yaml.value, "below")

    def _from_controls(self) -> None:
        if self._busy:
            return
        try:
            kept = {k: v for k, v in self.options().items() if k in ("source", "folds", "set")}
        except InputError:
            kept = {}
        found = {
            "preset": self.preset.value,
            "dataset": self.dataset.value,
            "protocol": self.protocol.value,
            "methods": self.methods.value,
        }
        lists = {"rates": f"[{self.rates.value}]", "seeds": f"[{self.seeds.value}]"}
        try:
            found |= grid.parse(
                "\n".join(f"{k}: {v}" for k, v in lists.items() if v != "[]") or "preset: tiny",
                "form",
            )
        except InputError as error:
            self.plan.value = _note(str(error))
            return
        self.yaml.value = grid.text(kept | found | {"preset": self.preset.value})

    def _from_yaml(self) -> None:
        try:
            options = self.options()
        except InputError as error:
            self.plan.value = _note(str(error))
            return
        self._busy = True
        try:
            usual = methods.preset(options.get("preset", "demo"))
            self.preset.value = options.get("preset", "demo")
            self.dataset.value = [
                d for d in options.get("dataset", (usual.dataset,)) if d in self.dataset.options
            ]
            self.methods.value = [
                m for m in options.get("methods", usual.methods) if m in methods.METHODS
            ]
            self.rates.value = ", ".join(f"{r:g}" for r in options.get("rates", ()))
            self.seeds.value = ", ".join(map(str, options.get("seeds", ())))
            self.protocol.value = options.get("protocol", "strict")
        except (InputError, TraitError):
            pass  # the plan says what is wrong
        finally:
            self._busy = False
        self._plan()

    def _plan(self) -> None:
        try:
            p = grid.plan(self.options())
        except InputError as error:
            self.start.disabled, self.plan.value = True, _note(str(error))
            return
        from dflib.study.engine import estimates

        guess = estimates(p)
        shown = table(p, guess)
        counts = shown["state"].value_counts().to_dict()
        self.start.disabled = bool(self.job and self.job.running)
        command = " ".join(["python -m dflib study", *grid.words(self.options())])
        states = ", ".join(f"{n} {state}" for state, n in counts.items())
        self.plan.value = f"<p>{escape(cost(p, guess, self.devices.value))}<br><small>{escape(states)}</small></p><p><code>{escape(command)}</code></p>"

    def begin(self) -> None:
        """Start the study, unless it runs; `worker.join()` waits for it."""
        if self.job and self.job.running:
            return
        p = grid.plan(self.options())
        self.job = Job(self.options())
        self.start.disabled, self.stop.disabled = True, False
        self.worker = threading.Thread(
            target=self._follow, args=(self.job, Progress(p)), daemon=True
        )
        self.worker.start()

    def _follow(self, job: Job, progress: Progress) -> None:
        wait = threading.Event()
        while job.running:
            self._show(progress.look(), "running")
            wait.wait(2)
        self._show(
            progress.look(), f"ended with status {job.process.returncode}; what it said: {job.log}"
        )
        self.start.disabled, self.stop.disabled = False, True
        self._plan()

    def _show(self, progress: Progress, text: str) -> None:
        done = sum(state == "done" for state in progress.state.values())
        logs = "".join(
            f"<li>{escape(r)}: {escape(str(progress.specs[r].folder / 'log.txt'))}</li>"
            for r in progress.running
        )
        self.view.value = (
            f'<div role="status"><progress value="{done}" max="{len(progress.state)}" aria-label="finished runs"></progress> '
            f"{escape(progress.summary())}<br><small>{escape(text)}</small><ul>{logs}</ul></div>"
        )


def _note(text: str) -> str:
    return f'<p role="alert" style="border-left: 4px solid {plots.RED}; padding: 4px 10px">{escape(text)}</p>'
