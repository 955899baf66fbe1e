"""Figures: they draw the numbers that they are given, from one run to many, and are shown once."""

from colorsys import rgb_to_hls
from functools import partial

import matplotlib as mpl
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from sklearn import metrics as sk

from data_prep.transform import GRID as PERTURBATIONS
from dflib import metrics
from dflib.show import plots, words
from dflib.study import methods, runs

GENERATORS = ("gan", "vae", "diffusion")


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
        "code": methods.versions(method) if method in methods.METHODS else {},
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
OF_RUNS = {
    "figure 1": plots.paper_figure,
    "figure 2": partial(plots.paper_figure, generators=("gan", "vae")),
    "figure 3": partial(plots.paper_figure, transfers=True),
    "images": partial(plots.against, at="train_images"),
    "rate": plots.against,
    "forest": plots.forest,
    **{cost: partial(plots.pareto, x=cost) for cost in plots.COSTS},
}


def drawn(ax, *, flat=False):
    """Where the markers of a panel stand, by method: finite values only, and their ends."""
    colours = {to_hex(plots.appearance(m)[0]): m for m in plots.LOOKS}
    value = lambda line: line.get_xdata() if flat else line.get_ydata()
    found = {}
    for line in ax.lines:
        if line.get_marker() not in ("", "None", None) and len(line.get_xdata()):
            found.setdefault(colours[to_hex(line.get_color())], []).extend(value(line))
    return {method: np.array(v)[np.isfinite(v)].tolist() for method, v in found.items()}


def red(ax):
    return [line for line in ax.lines if to_hex(line.get_color()) == plots.RED]


@pytest.mark.parametrize("draw", OF_RUNS.values(), ids=OF_RUNS)
def test_figures_of_runs_draw(draw):
    for rows in TABLES.values():
        draw(rows).draw_without_rendering()


def test_figures_of_one_run_draw():
    columns = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_auroc"]
    weights = {"before": np.arange(9.0), "after": np.zeros(0)}
    for fig in (
        plots.curves(pd.DataFrame([dict.fromkeys(columns, 1)])),
        plots.image_grid([np.zeros((8, 8, 3), np.uint8)] * 3, ["a", "b\nb", "a"], columns=2),
        plots.score_histogram([0, 1, 1], [0.1, 0.7, 0.9], 0.5),
        plots.score_histogram([0, 1, 1], [0.1, 0.7, 0.9], 0.5, ["real", "gan", "$vae"]),
        plots.histograms({"conv": weights, "head": weights}),
        plots.layer_bars({"a": 10, "b": 1000}),
    ):
        fig.draw_without_rendering()


def test_bars_of_layers_are_as_long_as_they_have_parameters():
    (ax,) = plots.layer_bars({"a": 10, "b": 1000}, {"a": 1, "b": 100}, label="trains").axes
    every, blue = ([bar.get_width() for bar in bars] for bars in ax.containers)
    assert every == [10, 1000] and blue == [1, 100]
    assert [t.get_text() for t in ax.texts] == ["1 of 10", "100 of 1,000"]
    assert ax.get_xlabel() == "parameters (1,010 in all; blue: trains)"


def test_scores_are_drawn_as_shares_of_their_generators():
    names = np.array(["real"] * 4 + ["gan"] * 2 + ["vae"] * 3)
    fig = plots.score_histogram(names != "real", np.linspace(0.01, 0.99, 9), 0.5, names)
    (ax,) = fig.axes
    real = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    assert real == pytest.approx(25)  # each of four images in a bin of its own
    assert [line.get_ydata().max() for line in ax.lines[:2]] == pytest.approx([50, 100 / 3])
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["real (4)", "gan (2)", "vae (3)"]


def test_the_papers_figure_draws_the_red_line_at_the_baseline():
    fig = plots.paper_figure(TABLES["grid"])
    all_ = BL["metrics"]["all"]
    values = [all_["accuracy"], all_["f1"], BL["timings"]["train_s"]]
    for ax, value in zip(fig.axes, values, strict=True):
        (line,) = red(ax)
        assert line.get_ydata() == pytest.approx([value, value])
    assert [ax.get_title() for ax in fig.axes] == ["accuracy", "F1", "compression time, s"]
    (only, *_) = plots.paper_figure(TABLES["grid"], ["vae"]).axes
    (line,) = red(only)
    assert line.get_ydata()[0] == BL["metrics"]["vae"]["accuracy"]


@pytest.mark.parametrize(
    "generators", [("gan",), ("gan", "vae"), ("gan", "vae", "cvae", "diffusion")]
)
def test_accuracy_and_f1_stand_above_what_one_answer_for_all_images_scores(generators):
    rows = table(
        result(generators=generators),
        *(GRID if len(generators) == 2 else [result("CQ", generators=generators)]),
    )
    grid = plots.paper_figure(rows, ("all", generators[-1]))
    share = 1 / len(generators)  # of the 40 fakes, beside 40 reals
    last = share / (1 + share)
    expected = [0.5, 2 / 3, max(last, 1 - last), 2 * last / (1 + last)]
    dotted = [[x for x in ax.lines if x.get_linestyle() == ":"] for ax in grid.axes]
    assert [d[0].get_ydata()[0] for d in dotted[:4]] == pytest.approx(expected) and not dotted[4]


def test_generators_that_no_run_was_trained_on_are_marked_in_each_figure():
    rows = table(*(r | {"train_generators": ["gan"]} for r in (BL, *GRID)))
    for draw in (plots.forest, partial(plots.paper_figure, generators=("gan", "vae"))):
        titles = " ".join(ax.get_title() for ax in draw(rows).axes)
        assert "vae (unseen)" in titles and "gan (unseen)" not in titles


def test_the_papers_figure_shows_every_run_and_no_line_without_a_baseline():
    rows = TABLES["grid"]
    ax = plots.paper_figure(rows).axes[0]
    dots = np.concatenate([np.asarray(c.get_offsets())[:, 1] for c in ax.collections])
    assert np.sort(dots) == pytest.approx(np.sort(rows.loc[rows["method"] != "BL", "accuracy"]))
    assert not any(red(ax) for ax in plots.paper_figure(TABLES["one run, no baseline"]).axes)


def test_transfers_and_compressions_have_figures_of_their_own():
    rows = table(BL, *GRID, result("TL+FT"), result("TL+KD", 0.9))
    named = lambda ax: [t.get_text() for t in ax.get_xticklabels()]
    assert named(plots.paper_figure(rows).axes[0]) == ["CPF", "CKD"]
    fig = plots.paper_figure(rows, ("gan", "vae"), transfers=True)
    assert named(fig.axes[-1]) == ["TL+FT", "TL+KD"]
    titles = ["accuracy, gan", "F1, gan", "accuracy, vae", "F1, vae", "transfer time, s"]
    assert [ax.get_title() for ax in fig.axes] == titles


def test_against_rate_draws_means_over_seeds_with_the_given_intervals():
    rows = TABLES["grid"]
    (ax,) = plots.against(rows).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0%", "60%", "90%"]
    means = rows.groupby(["method", "rate"], dropna=False)[["auroc", "auroc_low", "auroc_high"]]
    means = means.mean().reset_index()
    for method, values in drawn(ax).items():
        assert values == pytest.approx(means.loc[means["method"] == method, "auroc"].to_list())
    bars = [tuple(line.get_ydata()) for line in ax.lines if line.get_marker() in ("", "None")]
    for ends in means[["auroc_low", "auroc_high"]].itertuples(index=False):
        assert any(bar == pytest.approx(ends) for bar in bars)


def test_against_images_means_over_seeds_at_each_number_of_images():
    few = [result("TL+FT", seed=seed, skill=skill) for seed, skill in ((0, 0.5), (1, 1.0))]
    few = [r | {"train_images": 50} for r in few]
    more = result("TL+FT", skill=1.5) | {"train_images": 800}
    rated = [result("TL+KD", rate) | {"train_images": 50} for rate in (0.6, 0.9)]
    (ax,) = plots.against(table(*few, more, *rated), "train_images").axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["50", "800"]
    auroc = lambda r: r["metrics"]["all"]["auroc"]
    found = drawn(ax)
    assert found["TL+FT"] == pytest.approx([np.mean([*map(auroc, few)]), auroc(more)])
    assert found["TL+KD"] == pytest.approx([auroc(rated[1])])  # of rated methods the highest rate


def test_forest_draws_each_row_once_in_each_panel():
    known = {"method": ["BL", "CPF"], "rate": [None, 0.9], "a": [0.8, 0.7], "b": [0.1, -0.2]}
    rows = pd.DataFrame(known | {"a_low": [0.7, np.nan], "a_high": [0.9, np.nan]})
    fig = plots.forest(rows, {"a": "first", "b": "second"}, lines=[0, -0.02])
    assert [ax.get_title() for ax in fig.axes] == ["first", "second"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["BL", "CPF 90%"]
    assert [drawn(ax, flat=True) for ax in fig.axes] == [
        {"BL": [0.8], "CPF": [0.7]},
        {"BL": [0.1], "CPF": [-0.2]},
    ]
    bars = [line for line in fig.axes[0].lines if line.get_marker() in ("", "None")]
    ends = [line.get_xdata() for line in bars if len(set(line.get_ydata())) == 1]
    ends = [sorted(each) for each in ends if np.isfinite(each).all()]
    assert ends == [pytest.approx([0.7, 0.9]), pytest.approx([0.7, 0.7])]
    styles = [line.get_linestyle() for line in bars if len(set(line.get_xdata())) == 1]
    assert styles[-2:] == ["-", "--"]


def test_forest_averages_seeds_and_shows_each_generator_unless_told_otherwise():
    rows = TABLES["grid"]
    fig = plots.forest(rows)
    assert [ax.get_title() for ax in fig.axes] == ["AUROC, gan", "AUROC, vae"]
    mean = rows.groupby(["method", "rate"])["vae/auroc"].mean()
    assert drawn(fig.axes[1], flat=True)["CPF"] == pytest.approx(mean["CPF"].to_list())
    named = plots.forest(rows.assign(name=rows["method"]), {"auroc": "AUROC"}).axes[0]
    assert [t.get_text() for t in named.get_yticklabels()] == ["BL", "CPF", "CKD", "CQ"]


@given(st.integers(1, 300), st.integers(1, 300))
def test_one_answer_for_all_images_scores_what_scikit_learn_says(reals, fakes):
    labels = np.repeat([0, 1], [reals, fakes])
    for name, found in words.one_answer(reals, fakes).items():
        called = np.full(len(labels), name == "always fake")
        theirs = {"accuracy": sk.accuracy_score(labels, called), "f1": sk.f1_score(labels, called)}
        assert found == pytest.approx(theirs)
    best = max(each["accuracy"] for each in words.one_answer(reals, fakes).values())
    assert best == pytest.approx(max(reals, fakes) / (reals + fakes))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_dominated_is_what_the_definition_says(points):
    beats = lambda a, b: a[0] <= b[0] and a[1] >= b[1] and a != b
    expected = [any(beats(other, point) for other in points) for point in points]
    assert plots.dominated(*zip(*points, strict=True)).tolist() == expected


def test_pareto_pales_exactly_the_beaten_runs_and_names_the_others():
    rows = plots.in_order(TABLES["grid"])
    (ax,) = plots.pareto(rows).axes
    beaten = plots.dominated(rows["latency_p50_ms"], rows["auroc"])
    assert 0 < beaten.sum() < len(rows)
    dots = next(c for c in ax.collections if len(c.get_offsets()) == len(rows))
    assert np.asarray(dots.get_offsets()) == pytest.approx(rows[["latency_p50_ms", "auroc"]])
    assert (dots.get_alpha() < 1).tolist() == beaten.tolist()
    colours = [to_hex(c) for c in dots.get_facecolors()]
    assert colours == [plots.appearance(method)[0] for method in rows["method"]]
    front = rows.loc[~beaten].set_index(["latency_p50_ms", "auroc"])["run"].to_dict()
    assert {t.xy: t.get_text() for t in ax.texts} == front  # its line ends at its own marker
    placed = [t.get_position() for t in sorted(ax.texts, key=lambda t: t.xy)]
    assert placed == sorted(placed) and all(y > 1 for _, y in placed)  # none upon another
    assert ax.get_xlabel() == plots.COSTS["latency_p50_ms"][0] and ax.get_xscale() == "log"


def test_methods_differ_in_colour_or_marker_a_technique_has_a_hue_and_transfers_are_triangles():
    looks = {code: plots.appearance(code) for code in methods.METHODS}
    assert len(set(looks.values())) == len(looks) and looks["BL"] == (plots.RED, "*")
    assert not {plots.appearance(f"X{i}") for i in range(9)} & set(looks.values())
    hue = lambda code: 360 * rgb_to_hls(*to_rgb(looks[code][0]))[0]
    for family, (low, high) in {
        ("CPF", "CPF-S", "SCRATCH", "TL+P+FT", "TL+P+A"): (180, 240),
        ("CKD", "CKD-0", "TL+KD", "TL+KD+A"): (20, 55),
        ("CQ", "CQ-S", "TL+FT+Q"): (100, 170),
    }.items():
        assert all(low < hue(code) < high for code in family)
    for code, method in methods.METHODS.items():
        assert (looks[code][1] in "^v<>") == method.transfers


def test_rows_are_put_in_the_order_of_the_methods_whatever_their_index():
    rows = pd.DataFrame({"method": ["NEW", "CKD", "CKD", "BL"], "rate": [0.5, 0.9, 0.6, None]})
    found = plots.in_order(rows.set_axis([0, 0, 1, 1]))
    assert found["run"].to_list() == ["BL", "CKD 60%", "CKD 90%", "NEW 50%"]


def test_metric_table_has_a_row_for_each_generator_and_all_last():
    shown, auroc = plots.metric_table(BL), BL["metrics"]["all"]
    assert list(shown.index) == ["gan", "vae", "macro", "all"]
    assert list(shown.columns) == ["AUROC", "balanced accuracy", "accuracy", "F1", words.TRIVIAL]
    assert shown.loc["all", words.TRIVIAL] == "0.500, 0.667"
    marked = plots.metric_table(BL | {"train_generators": ["gan"]})
    assert list(marked.index) == ["gan", "vae (unseen)", "macro", "all"]
    low, high = auroc["ci95"]["auroc"]
    assert shown.loc["all", "AUROC"] == f"{auroc['auroc']:.3f} [{low:.2f}, {high:.2f}]"
    assert "[" not in plots.metric_table(result(draws=0)).loc["all", "AUROC"]
    assert plots.interval(None, None) == "–"


def test_the_heat_map_writes_each_value_with_its_interval_and_what_was_seen():
    rng = np.random.default_rng(0)
    rows = [
        {
            "method": m,
            "rate": r,
            "train": a,
            "test": b,
            "seen": a == b,
            "auroc": rng.uniform(0.3, 0.9),
        }
        for m, r in (("CKD", 0.9), ("BL", None))
        for a in GENERATORS
        for b in GENERATORS
    ]
    cells = pd.DataFrame(rows).assign(
        auroc_low=lambda c: c["auroc"] - 0.04, auroc_high=lambda c: c["auroc"] + 0.05
    )
    cells.loc[0, ["auroc_low", "auroc_high"]] = np.nan
    (ax,) = plots.heat_map(cells).axes
    across = [t.get_text() for t in ax.get_xticklabels()]
    down = [t.get_text() for t in ax.get_yticklabels()]
    assert down == [f"{run}, {train}" for run in ("BL", "CKD 90%") for train in GENERATORS]
    texts = {(int(y), int(x)): t.get_text() for t in ax.texts for x, y in [t.get_position()]}
    for c in cells.itertuples():
        at = down.index(f"{plots.run_label(c.method, c.rate)}, {c.train}"), across.index(c.test)
        text = plots.interval(c.auroc, (c.auroc_low, c.auroc_high)).replace(" ", "\n", 1)
        assert texts[at] == text + " seen" * c.seen
        assert ax.collections[0].get_array()[at] == c.auroc


def test_the_reliability_diagram_draws_the_bins_and_where_calibrated_ones_would_lie():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    labels = rng.random(20_000) < scores
    part = metrics.reliability(labels, scores)
    few = metrics.reliability(labels[:3], scores[:3])  # with empty bins
    parts = {"calibrated": part, "not": metrics.reliability(labels, scores**3), "few": few}
    good, bad, _ = plots.reliability(parts).axes
    inside = []
    for ax in (good, bad):
        (x, y), spans = ax.lines[1].get_data(), ax.collections[0].get_segments()
        assert len(x) == len(spans) == 15
        inside.append(
            np.mean([a[1] <= value <= b[1] for value, (a, b) in zip(y, spans, strict=True)])
        )
    assert good.lines[1].get_ydata() == pytest.approx(part["observed"])
    assert inside[0] >= 0.85 and inside[1] < 0.3


def test_robustness_has_a_panel_a_kind_from_mild_to_strong():
    rng = np.random.default_rng(0)
    parts = [  # below each other, with the index that each had
        pd.DataFrame({"perturbation": ("", *PERTURBATIONS), "method": m, "rate": r}).assign(
            value=rng.random(1 + len(PERTURBATIONS))
        )
        for m, r in (("CKD", 0.9), ("BL", np.nan))
    ]
    axes = plots.robustness(pd.concat(parts)).axes
    kinds = dict.fromkeys(how.partition("-")[0] for how in PERTURBATIONS)
    assert [ax.get_title() for ax in axes] == [plots.PERTURBED.get(k, k) for k in kinds]
    for ax, kind in zip(axes, kinds, strict=True):
        steps = ["", *(how for how in PERTURBATIONS if how.startswith(f"{kind}-"))]
        ticks = [t.get_text() for t in ax.get_xticklabels()]
        assert ticks == ["as is", *(how.partition("-")[2] for how in steps[1:])]
        for method, part in zip(("CKD", "BL"), parts, strict=True):
            expected = part.set_index("perturbation").loc[steps, "value"]
            assert drawn(ax)[method] == pytest.approx(expected.to_list())


def test_images_share_the_limits_that_they_are_given():
    spectra = [np.eye(8) * (i + 1) for i in range(3)]
    axes = plots.image_grid(spectra, GENERATORS, 2, cmap="PuOr", vmin=-2, vmax=2).axes
    assert [ax.get_title() for ax in axes] == list(GENERATORS)
    assert {ax.images[0].get_clim() for ax in axes} == {(-2, 2)}
    assert all((ax.images[0].get_array() == s).all() for ax, s in zip(axes, spectra, strict=True))


@pytest.mark.parametrize("draw", [plots.heat_map, plots.robustness, *OF_RUNS.values()])
def test_nothing_to_draw_says_so(draw):
    (ax,) = draw(pd.DataFrame()).axes
    assert ax.texts[0].get_text() == "no finished runs to draw"


def test_figures_leave_no_trace():
    before = dict(mpl.rcParams)
    plots.layer_bars({"a": 1})
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []  # pyplot, which notebooks show from, does not know it


def test_svg_takes_the_colours_of_its_page_and_has_ids_of_its_own():
    svg = plots.inline_svg(plots.pareto(TABLES["grid"]), "p1-")
    assert all(themed in svg for themed in ("currentColor", "var(--paper)", "var(--grid)"))
    assert not [ours for ours in (plots.INK, plots.PAPER, plots.GRID) if ours in svg]
    ids = svg.split(' id="')[1:]
    assert ids and all(each.startswith("p1-") for each in ids)


def test_a_notebook_shows_each_figure_once():
    cells = [
        "import pandas as pd\nfrom dflib.show import plots\nplots.layer_bars({'a': 1})",
        "fig = plots.layer_bars({'a': 1})",
        "display(fig)",
        "plots.pareto(pd.DataFrame())",
        "show = plots.live_curve()\nnames = ('loss', 'accuracy', 'val_loss', 'val_accuracy', "
        "'val_auroc')\nrows = [dict.fromkeys(names, 1) | {'epoch': i} for i in (1, 2)]\n"
        "show(pd.DataFrame(rows[:1]))\nshow(pd.DataFrame(rows))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    images = [["image/png" in o.get("data", ()) for o in cell.outputs] for cell in notebook.cells]
    assert images == [[True], [], [True], [True], [True]]
