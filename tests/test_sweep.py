"""Notebook 17's functions and form: the plan's numbers are the engine's own, controls and YAML say the same, the study is a real process."""

from __future__ import annotations

import json

import pytest
from matplotlib.patches import Rectangle
from test_plots import result

from data_prep.errors import InputError
from dflib.show import sweep
from dflib.study import engine, grid
from dflib.study.progress import Progress
from dflib.study.schedule import Estimates


@pytest.fixture
def options(tiny_dataset, tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "outputs"))
    return {
        "preset": "tiny",
        "dataset": (tiny_dataset,),
        "methods": ("BL", "CPF", "CQ"),
        "rates": (0.6, 0.9),
        "seeds": (0, 1),
    }


def finish(*specs) -> None:
    """Leave a finished run of each."""
    for s in specs:
        s.folder.mkdir(parents=True)
        own = {
            "run_id": s.run_id,
            "dataset": s.dataset,
            "params": s.settings,
            "parents": [p.run_id for p in s.parents],
        }
        (s.folder / "result.json").write_text(json.dumps(result(s.method, s.rate, s.seed) | own))


def taught(plan: engine.Plan, seconds: float) -> Estimates:
    guess = Estimates()
    for s in plan:
        guess.learn(s, seconds)
    return guess


def test_the_cost_is_the_sum_of_what_is_left_and_the_end_of_the_timeline(options):
    plan = grid.plan(options)
    assert "each counts as 60 s" in sweep.cost(plan, Estimates(), 2)
    guess = taught(plan, 120.0)
    assert (
        sweep.cost(plan, guess, 1)
        == "8 runs, 0 finished; the other 8 take about 16 min of device time, 16 min on 1 devices."
    )
    assert "8 min on 2 devices" in sweep.cost(plan, guess, 2)
    assert "4 min on 64 devices" in sweep.cost(plan, guess, 64)  # BL, then its children
    finish(*plan.specs[:4])
    assert sweep.cost(plan, guess, 1).startswith("8 runs, 4 finished; the other 4 take about 8 min")
    assert sweep.table(plan, guess)["state"].tolist() == ["done"] * 4 + ["waiting"] * 4
    assert sweep.table(plan, guess)["estimate"].tolist() == [""] * 4 + ["2 min"] * 4
    finish(*plan.specs[4:])
    assert sweep.cost(plan, guess, 1) == "8 runs, 8 finished: nothing is left to do."


def test_a_chart_has_a_bar_for_each_run(options):
    plan = grid.plan(options)
    takes = sweep.times(plan, taught(plan, 10.0))
    fig = sweep.chart(plan, takes, 2)
    assert sum(isinstance(p, Rectangle) for p in fig.axes[0].patches) == len(plan)
    assert fig.axes[0].get_title() == "through after 40 s, devices busy 100% of the time"
    sweep.chart(plan, {}, 2).draw_without_rendering()
    bar = sweep.states_bar(Progress(plan))
    assert [p.get_width() for p in bar.axes[0].patches] == [8]


def test_controls_and_yaml_follow_each_other(options, tiny_source):
    form = sweep.Sweep(options)
    assert (
        form.options() == {"preset": "tiny", "protocol": "strict"} | options
        or form.options() == options
    )
    assert (form.preset.value, form.rates.value, form.seeds.value) == ("tiny", "0.6, 0.9", "0, 1")
    assert form.methods.value == options["methods"] and form.dataset.value == options["dataset"]
    form.methods.value = ("BL",)
    form.seeds.value = "7"
    found = form.options()
    assert (found["methods"], found["seeds"], found["rates"]) == (("BL",), (7,), (0.6, 0.9))
    form.yaml.value = grid.text(options | {"methods": ("CQ",), "set": {"epochs": 1}})
    assert form.methods.value == ("CQ",)
    form.seeds.value = "1"
    assert form.options()["set"] == {"epochs": 1}  # what has no control is kept
    assert "--set epochs=1" in form.plan.value and "2 runs, 0 finished" in form.plan.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: tny", "did you mean &#x27;tiny&#x27;"),
        ("metods: [BL]", "did you mean &#x27;methods&#x27;"),
        ("a: [", "is no YAML"),
        ("rates: [95]\nmethods: [CPF]", "did you mean 0.95"),
        ("dataset: <b>x</b>", "unknown dataset &#x27;&lt;b&gt;x&lt;/b&gt;&#x27;"),
    ],
)
def test_a_slip_is_told_in_the_form_and_mended_there(options, text, message):
    form = sweep.Sweep(options)
    form.yaml.value = text
    assert message in form.plan.value and 'role="alert"' in form.plan.value
    form.yaml.value = grid.text(options)
    assert "8 runs, 0 finished" in form.plan.value and not form.start.disabled


def test_numbers_that_are_none_are_told(options):
    form = sweep.Sweep(options)
    form.rates.value = "high"
    assert "is no float" in form.plan.value
    form.rates.value = "0.5"
    assert form.options()["rates"] == (0.5,)


def test_the_button_starts_a_study_and_its_end_is_told(options):
    options = options | {"methods": ("BL", "CQ"), "seeds": (0,)}
    finish(*grid.plan(options))
    form = sweep.Sweep(options)
    form.start.click()
    assert form.start.disabled and not form.stop.disabled
    form.worker.join()
    assert form.job.process.returncode == 0, form.job.wait()
    assert "2 of 2 done" in form.view.value and "status 0" in form.view.value
    assert "2 found finished" in form.job.wait() and not form.start.disabled
    assert grid.read(form.job.file) == form.options()


def test_a_stopped_study_ends_with_what_it_started(options):
    job = sweep.Job(options)
    assert job.running
    job.stop()
    assert not job.running and job.process.returncode != 0
    job.stop()


def test_a_grid_that_cannot_be_is_refused_by_the_process_too(options):
    job = sweep.Job(options | {"rates": (95.0,)})
    assert "did you mean 0.95" in job.wait() and job.process.returncode == 2
    with pytest.raises(InputError, match=r"did you mean 0\.95"):
        grid.plan(options | {"rates": (95.0,)})
