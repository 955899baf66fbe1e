"""Figures: they draw what they are given, from one run to many, and leave nothing behind."""

from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.text import Text

from dflib import metrics
from dflib.show import plots
from dflib.study import methods, runs

TEXT = ["run_id", "method", "dataset", "command"]


def result(method="BL", rate=None, seed=0, skill=1.0, generators=("gan", "vae"), draws=30, **cost):
    """A `result.json` of random scores, with the real metrics."""
    rng = np.random.default_rng(int(100 * skill) + seed)
    names = np.array(
        ["real"] * 40 + [generators[i % len(generators)] for i in range(40)], dtype=object
    )
    labels = (names != "real").astype(int)
    scores = 1 / (1 + np.exp(-rng.normal(skill * (2 * labels - 1), 1)))
    numbers = {
        "params": 1000,
        "nonzero": 500,
        "macs": 10**6,
        "file_bytes": 4 * 10**6,
        "peak_rss_mb": 90.0,
        "p50": 2.0,
    } | cost
    latency = {
        "p50": numbers.pop("p50"),
        "p95": 9.0,
        "runtime": "onnxruntime 1",
        "threads": 1,
        "cpu": "a CPU",
    }
    name = f"{plots.run_label(method, rate)}-s{seed}".replace(" ", "-r").replace("%", "")
    return {
        "run_id": name,
        "method": method,
        "rate": rate,
        "seed": seed,
        "dataset": "faces",
        "protocol": "strict",
        "preset": "tiny",
        "device": "a CPU",
        "threshold": 0.5,
        "command": f"python -m dflib study --methods {method}",
        "parents": [],
        "data_fingerprint": "0",
        "train_images": 200 + 100 * seed,
        "params": {"size": 32, "mode": "resize", "limit": None, "target_images": None},
        "versions": {"python": "3.11", "torch": "2"},
        "timings": {
            "train_s": 60.0 if method == "BL" else 0.0,
            "compress_s": 0.0 if method == "BL" else 7.0,
            "transfer_s": 0.0,
            "total_s": 70.0,
        },
        "cost": numbers | {"latency_ms": latency},
        "metrics": metrics.evaluate(labels, scores, names, threshold=0.5, draws=draws),
    }


def table(*results):
    return pd.DataFrame([runs.flat(r) for r in results])


BL = result()
GRID = [
    result(m, r, seed, 1.2 - r, p50=3 - 2 * r)
    for m in ("CPF", "CKD")
    for r in (0.6, 0.9)
    for seed in (0, 1)
]
TABLES = {
    "grid": table(BL, *GRID, result("CQ")),
    "baseline only": table(BL),
    "one run, no baseline": table(GRID[0]),
    "transfers": table(
        BL,
        *(
            result(m, None if m == "TL+FT" else r, s)
            for m in ("TL+FT", "TL+KD")
            for r in (0.6, 0.9)
            for s in (0, 1)
        ),
    ),
    "no rates": table(BL, result("CQ"), result("TL+FT")),
    "no intervals": table(result(draws=0), result("CPF", 0.9, draws=0)),
    "an unknown method": table(BL, result("NEW", 0.5)),
    "nothing": pd.DataFrame(),
}
OF_RUNS = [
    plots.paper_figure,
    partial(plots.paper_figure, transfers=True),
    partial(plots.paper_figure, generators=("gan", "vae")),
    plots.against_images,
    plots.against_rate,
    plots.generators,
    *[lambda rows, x=x: plots.pareto(rows, x) for x in plots.COSTS],
]


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_figures_of_runs_draw(rows):
    for draw in OF_RUNS:
        draw(rows).draw_without_rendering()


def test_figures_of_one_run_draw():
    rng = np.random.default_rng(0)
    columns = [
        "epoch",
        "lr",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "val_auroc",
        "seconds",
    ]
    weights = {"conv.weight": rng.normal(size=(4, 3)), "fc.weight": rng.normal(size=9)}
    figures = [
        plots.curves(pd.DataFrame([dict.fromkeys(columns, 1)])),
        plots.image_grid([np.zeros((8, 8, 3), np.uint8)] * 3, ["a", "b\nb", "c"], columns=2),
        plots.score_histogram([0, 1, 1], [0.1, 0.7, 0.9], 0.5),
        plots.score_histogram([0, 1, 1], [0.1, 0.7, 0.9], 0.5, ["real", "gan", "$vae"]),
        plots.weight_histograms(weights, {k: v * (abs(v) > 0.5) for k, v in weights.items()}),
        plots.layer_bars({"a": 10, "b": 1000}),
        plots.layer_bars({"a": 10, "b": 1000}, {"a": 1, "b": 100}),
        plots.softened([-2.0, 3.0], [1, 4.5]),
        plots.quantization_grid(rng.normal(size=50), 3),
    ]
    for fig in figures:
        fig.draw_without_rendering()


def test_weight_tensors_may_have_gradients():
    torch = pytest.importorskip("torch")
    weights = {"w": torch.nn.Parameter(torch.tensor([0.0, 1.0, 0.0, 2.0]))}
    (ax,) = plots.weight_histograms(weights, weights).axes
    assert "50% zero" in ax.get_title()


def test_the_papers_figure_draws_the_red_line_at_the_baseline():
    rows = TABLES["grid"]
    axes = plots.paper_figure(rows).axes
    expected = [
        BL["metrics"]["all"]["accuracy"],
        BL["metrics"]["all"]["f1"],
        BL["timings"]["train_s"],
    ]
    for ax, value in zip(axes, expected, strict=True):
        (line,) = [each for each in ax.lines if each.get_label() == "BL"]
        assert line.get_ydata() == pytest.approx([value, value])
        assert line.get_color() == plots.RED
    only = plots.paper_figure(rows, ["vae"]).axes[0]
    line = next(each for each in only.lines if each.get_label() == "BL")
    assert line.get_ydata()[0] == BL["metrics"]["vae"]["accuracy"]


def test_the_papers_figure_shows_every_run_and_no_line_without_a_baseline():
    points = [
        line
        for line in plots.paper_figure(TABLES["grid"]).axes[0].lines
        if line.get_marker() in list(plots.MARKERS)
    ]
    shown = np.sort(np.concatenate([line.get_ydata() for line in points]))
    rows = TABLES["grid"]
    assert shown == pytest.approx(np.sort(rows.loc[rows["method"] != "BL", "accuracy"]))
    axes = plots.paper_figure(TABLES["one run, no baseline"]).axes
    assert not [line for ax in axes for line in ax.lines if line.get_label() == "BL"]


def test_transfers_and_compressions_have_figures_of_their_own():
    rows = table(BL, *GRID, result("TL+FT"), result("TL+KD", 0.9))
    named = lambda fig: [t.get_text() for t in fig.axes[0].get_xticklabels()]
    assert named(plots.paper_figure(rows)) == ["CPF", "CKD"]
    fig = plots.paper_figure(rows, ("gan", "vae"), transfers=True)
    assert named(fig) == ["TL+FT", "TL+KD"]
    titles = ["accuracy, gan", "F1, gan", "transfer time, s", "accuracy, vae", "F1, vae"]
    assert sorted(ax.get_title() for ax in fig.axes) == sorted(titles)
    (ax,) = (ax for ax in fig.axes if ax.get_title() == "F1, vae")
    (line,) = (each for each in ax.lines if each.get_label() == "BL")
    assert line.get_ydata()[0] == BL["metrics"]["vae"]["f1"]


def test_against_images_means_over_seeds_at_each_number_of_images():
    runs_ = [result("TL+FT", None, seed, skill) for seed, skill in ((0, 0.5), (1, 1.0))]
    for r, n in zip(runs_, (50, 50), strict=True):
        r["train_images"] = n
    more = result("TL+FT", skill=1.5) | {"train_images": 800}
    (ax,) = plots.against_images(table(*runs_, more)).axes
    line = next(c for c in ax.containers if c.get_label() == "TL+FT").lines[0]
    assert line.get_xdata() == pytest.approx([50, 800])
    both = [r["metrics"]["all"]["auroc"] for r in runs_]
    assert line.get_ydata() == pytest.approx([np.mean(both), more["metrics"]["all"]["auroc"]])


def test_forest_draws_each_row_once_in_each_panel():
    rows = pd.DataFrame(
        {
            "method": ["BL", "CPF"],
            "rate": [None, 0.9],
            "a": [0.8, 0.7],
            "a_low": [0.7, np.nan],
            "a_high": [0.9, np.nan],
            "b": [0.1, -0.2],
        }
    )
    fig = plots.forest(rows, {"a": "first", "b": "second"}, lines=[0, -0.02])
    assert [ax.get_xlabel() for ax in fig.axes] == ["first", "second"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["BL", "CPF 90%"]
    ends = [segment[:, 0].tolist() for c in fig.axes[0].collections for segment in c.get_segments()]
    assert np.allclose(ends, [[0.7, 0.9], [0.7, 0.7]])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_dominated_is_what_the_definition_says(points):
    beats = lambda a, b: a[0] <= b[0] and a[1] >= b[1] and a != b
    expected = [any(beats(other, point) for other in points) for point in points]
    assert plots.dominated(*zip(*points, strict=True)).tolist() == expected


def test_pareto_pales_exactly_the_beaten_runs_and_keeps_their_colours():
    rows = TABLES["grid"]
    fig = plots.pareto(rows)
    beaten = plots.dominated(rows["latency_p50_ms"], rows["auroc"])
    assert 0 < beaten.sum() < len(rows)
    points = [line for line in fig.axes[0].lines if line.get_marker() not in ("", "None", None)]
    for line, method, pale in zip(points, rows["method"], beaten, strict=True):
        assert (line.get_alpha() < 1) == pale
        assert (to_hex(line.get_color()), line.get_marker()) == plots.appearance(method)
    assert len(fig.axes[0].texts) == len(rows)


def test_pareto_draws_a_panel_for_each_cost_that_is_known():
    rows = TABLES["grid"].assign(gzip_bytes=np.nan)
    axes = plots.pareto(rows, ["latency_p50_ms", "gzip_bytes", "macs"], "accuracy").axes
    assert [ax.get_xlabel() for ax in axes] == [
        plots.COSTS[x][0] for x in ("latency_p50_ms", "macs")
    ]
    assert [len(ax.texts) for ax in axes] == [len(rows)] * 2
    assert len({ax.get_ylim() for ax in axes}) == 1
    assert not plots.pareto(rows, ["gzip_bytes"]).axes  # says that there is nothing to draw


def test_names_of_runs_far_apart_do_not_touch():
    rows = table(
        BL,
        *[
            result("CKD", rate, skill=2 - rate, p50=3 * (1 - rate))
            for rate in (0.1, 0.3, 0.5, 0.7, 0.9)
        ],
    )
    fig = plots.pareto(rows)
    fig.draw_without_rendering()
    boxes = [Text.get_window_extent(note) for note in fig.axes[0].texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_methods_differ_in_colour_or_marker_and_keep_both(monkeypatch):
    looks = {code: plots.appearance(code) for code in methods.METHODS}
    assert len(set(looks.values())) == len(looks)
    assert looks["BL"] == (plots.RED, "*")
    more = {f"X{i}": methods.Method(f"X{i}", "x", "02_baseline") for i in range(20)}
    monkeypatch.setattr(plots, "METHODS", methods.METHODS | more)
    assert {code: plots.appearance(code) for code in looks} == looks
    assert len({plots.appearance(code) for code in plots.METHODS}) == len(plots.METHODS)


def test_metric_table_has_a_row_for_each_generator_and_all_last():
    shown = plots.metric_table(BL)
    assert list(shown.index) == ["gan", "vae", "macro", "all"]
    assert list(shown.columns) == ["accuracy", "balanced accuracy", "F1", "AUROC"]
    low, high = BL["metrics"]["all"]["ci95"]["auroc"]
    assert (
        shown.loc["all", "AUROC"] == f"{BL['metrics']['all']['auroc']:.3f} [{low:.2f}, {high:.2f}]"
    )
    assert plots.metric_table(result(draws=0)).loc["all", "AUROC"].count("[") == 0
    assert plots.interval(None, None) == "–"


def test_softened_probabilities_are_the_softmax():
    heights = [bar.get_height() for bar in plots.softened([1.0, 3.0], [2.0]).axes[0].patches]
    assert heights == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e)])


def test_figures_leave_no_trace_and_show_once():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    fig = plots.layer_bars({"a": 1})
    data, size = fig._repr_mimebundle_(include=None, exclude=None)
    assert data["image/png"].startswith("iVBOR")
    assert size["image/png"]["width"] == 640
    assert dict(mpl.rcParams) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []  # pyplot, which notebooks print from, does not know it


def test_live_curve_does_nothing_outside_a_notebook(capsys):
    plots.LiveCurve()(pd.DataFrame({"epoch": [1]}))
    assert capsys.readouterr().out == ""


def test_live_curve_is_throttled_and_ends_with_the_last_epoch(monkeypatch):
    import IPython
    import IPython.display

    class Shell:
        kernel, hooks = object(), []

        class events:  # noqa: N801 (IPython's name)
            register = staticmethod(lambda name, hook: Shell.hooks.append((name, hook)))

    shown = []

    class Handle:
        def display(self, fig):
            pass

        def update(self, length):
            shown.append(length)

    clock = iter([0.0, 0.0, 1.0, 1.5, 2.5, 2.5, 3.0, 3.0, 3.0])
    monkeypatch.setattr(IPython, "get_ipython", lambda: Shell)
    monkeypatch.setattr(IPython.display, "DisplayHandle", Handle)
    monkeypatch.setattr(plots, "curves", len)
    monkeypatch.setattr(plots.time, "monotonic", lambda: next(clock))
    live = plots.LiveCurve()
    for epochs in range(1, 6):
        live(pd.DataFrame({"epoch": range(epochs)}))
    assert shown == [1, 4]
    ((name, hook),) = Shell.hooks
    assert name == "post_run_cell"
    hook(None)
    hook(None)
    assert shown == [1, 4, 5]


def test_a_techniques_methods_share_a_hue_and_transfers_are_triangles():
    from colorsys import rgb_to_hls

    from matplotlib.colors import to_rgb

    hue = lambda code: 360 * rgb_to_hls(*to_rgb(plots.appearance(code)[0]))[0]
    for family, (low, high) in {
        ("CPF", "CPF-S", "SCRATCH", "TL+P+FT", "TL+P+A"): (180, 240),
        ("CKD", "CKD-0", "TL+KD", "TL+KD+A"): (20, 55),
        ("CQ", "CQ-S", "TL+FT+Q"): (100, 170),
    }.items():
        assert all(low < hue(code) < high for code in family)
    for code, row in methods.METHODS.items():
        assert (plots.appearance(code)[1] in "^v<>") == row.transfers


def test_a_log_axis_that_a_notebook_draws_is_readable():
    with matplotlib.rc_context():
        plots.use_style()
        fig = pyplot.figure()
        axis = fig.add_subplot()
        axis.semilogy([1, 10, 1000])
        fig.canvas.draw()
        written = [text for text in axis.get_yticklabels() if "$" in text.get_text()]
        assert written and all(text.get_parse_math() for text in written)
        pyplot.close(fig)
