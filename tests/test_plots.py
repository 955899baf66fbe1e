"""Figures: they draw the numbers that they are given, from one run to many, and are shown once."""

import io
from functools import partial

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import result
from matplotlib.colors import to_hex
from sklearn import metrics as sk

from dflib.show import plots, words
from dflib.study import methods, runs


def table(*results):
    return pd.DataFrame([runs.flat(r) for r in results])


BL = result()
GRID = [
    result(m, r, seed, 1.2 - r, p50=3 - 2 * r)
    for m in ("CPF", "CKD")
    for r in (0.6, 0.9)
    for seed in (0, 1)
]
SETS = {
    "grid": [BL, *GRID, result("CQ")],
    "baseline only": [BL],
    "one run, no baseline": [GRID[0]],
    "transfers": [BL, result("TL+FT"), result("TL+KD", 0.6), result("TL+KD", 0.9)],
    "no intervals": [result(draws=0), result("CPF", 0.9, draws=0)],
    "an unknown method": [BL, result("NEW", 0.5)],
}
TABLES = {name: table(*results) for name, results in SETS.items()}
OF_RUNS = {
    "figure 1": plots.paper_figure,
    "figure 2": partial(plots.paper_figure, generators=("gan", "vae")),
    "figure 3": partial(plots.paper_figure, transfers=True),
    "images": partial(plots.against, at="train_images"),
    "rate": plots.against,
    "forest": plots.forest,
    **{cost: partial(plots.pareto, x=cost) for cost in plots.COSTS},
}


def drawn(ax, *, flat=False, of=("BL", "CPF", "CKD", "CQ")):
    """Where the markers of a panel stand, by method: finite values only."""
    colours = {to_hex(plots.appearance(m)[0]): m for m in of}
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
    (ax,) = draw(pd.DataFrame()).axes
    assert ax.texts[0].get_text() == "no finished runs to draw"


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
    heights = {max(line.get_ydata()) for line in ax.lines[:-1]}  # the last is the threshold
    assert sorted(heights) == pytest.approx([25, 100 / 3, 50])  # each image in a bin of its own
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
    last = 1 / (len(generators) + 1)  # of the images: its share of 40 fakes, beside 40 reals
    expected = [*words.trivial(0.5).values(), *words.trivial(last).values()]
    dotted = [[x for x in ax.lines if x.get_linestyle() == ":"] for ax in grid.axes]
    assert [d[0].get_ydata()[0] for d in dotted[:4]] == pytest.approx(expected) and not dotted[4]


def test_generators_that_no_run_was_trained_on_are_marked_in_each_figure():
    rows = table(*(r | {"train_generators": ["gan"]} for r in (BL, *GRID)))
    for draw in (plots.forest, partial(plots.paper_figure, generators=("gan", "vae"))):
        titles = " ".join(ax.get_title() for ax in draw(rows).axes)
        assert "vae (unseen)" in titles and "gan (unseen)" not in titles


def test_any_names_of_generators_can_be_drawn():
    names = ("sd/1.5", "sd/2.1", "a$_$b", "$")
    rows = table(*(result(m, r, generators=names) for m, r in (("BL", None), ("CPF", 0.6))))
    labels, of = np.repeat([0, 1], 8), ["real"] * 8 + [*names] * 2
    histogram = plots.score_histogram(labels, np.linspace(0, 1, 16), 0.5, of)
    paper = plots.paper_figure(rows, generators=names)
    for fig in (histogram, paper, forest := plots.forest(rows)):
        fig.savefig(io.BytesIO())
    titles = " ".join(ax.get_title() for ax in forest.axes).replace("\\$", "$")
    assert all(f"AUROC, {name}" in titles for name in names)


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


@given(st.integers(1, 300), st.integers(1, 300))
def test_one_answer_for_all_images_scores_what_scikit_learn_says(reals, fakes):
    labels, found = np.repeat([0, 1], [reals, fakes]), words.trivial(fakes / (reals + fakes))
    both = [np.full(len(labels), answer) for answer in (0, 1)]
    accuracy = max(sk.accuracy_score(labels, called) for called in both)
    f1 = max(sk.f1_score(labels, called) for called in both)
    assert found == pytest.approx({"accuracy": accuracy, "f1": f1})


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


def test_pareto_draws_no_spread_of_times_on_a_busy_machine():
    rows = TABLES["grid"].assign(latency_busy=np.arange(len(TABLES["grid"])) == 0)
    for x, drawn in (("latency_p50_ms", len(rows) - 1), ("macs", 0)):
        (ax,) = plots.pareto(rows.assign(latency_low_ms=1.0, latency_high_ms=2.0), x=x).axes
        lines = [line for c in ax.collections[1:] for line in c.get_segments()]
        level = [len(x) and x[0, 1] == x[1, 1] and x[0, 0] < x[1, 0] for x in lines]
        assert sum(level) == drawn


def test_methods_differ_in_colour_or_marker():
    looks = {plots.appearance(code) for code in methods.METHODS}
    assert len(looks) == len(methods.METHODS) and plots.appearance("BL") == (plots.RED, "*")


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


def test_perturbations_stand_in_the_given_order_a_line_each_run():
    parts = [  # below each other, with the index that each had
        pd.DataFrame(
            {"perturbation": ["", "jpeg-50", "blur-2"], "method": m, "rate": r, "value": v}
        )
        for m, r, v in (("CKD", 0.9, [0.9, 0.8, 0.7]), ("BL", np.nan, [0.8, 0.6, 0.5]))
    ]
    (ax,) = plots.against(pd.concat(parts), "perturbation", "value", title="lost").axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["as is", "jpeg-50", "blur-2"]
    assert drawn(ax) == {"CKD": [0.9, 0.8, 0.7], "BL": [0.8, 0.6, 0.5]}
    assert ax.get_ylabel() == "lost"


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
