"""Figures by seaborn: data frames in, a matplotlib `Figure` out. Nothing here reads runs.

Each method has one colour *and* marker in all figures (around the Okabe-Ito colours, safe for the
colour-blind). A column's 95 % interval stands in `COLUMN_low` and `COLUMN_high`.
"""

import io
import itertools
import os
import re
from collections.abc import Callable, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import DisplayHandle
from matplotlib import markers, ticker

from dflib.show.words import TRIVIAL, interval, marked, names, spoken_trivial, trivial
from dflib.study.methods import METHODS
from dflib.study.records import comparable

INK, PAPER, GRID = "#262626", "#ffffff", "#cccccc"  # seaborn's; a page swaps them, see inline_svg
GREY, RED, BLUE, ORANGE, GREEN = "#a3a8ae", "#d55e00", "#0072b2", "#e69f00", "#009e73"
COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#a6761d", "#8250df")
MARKERS = "osDv^PXhpdH<>"  # 13 of them, and 7 colours: each pair comes once in 91
STYLE = {
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.titleweight": "bold",
    "figure.dpi": 120,
    "svg.fonttype": "none",
    "svg.hashsalt": "dflib",
    "image.composite_image": False,  # each its own in SVG
}
COSTS = {  # column -> axis title, divisor
    "latency_p50_ms": ("median latency, ms (batch 1, 1 thread)", 1),
    "file_bytes": ("file, MB", 1e6),
    "macs": ("million multiply-accumulates an image", 1e6),
    "params": ("thousand parameters stored (zeros count)", 1e3),
}
CURVES = {"loss": ("loss", "val_loss"), "AUROC": ("val_auroc",)}  # panel -> columns of a history
sns.set_theme("paper", "whitegrid", COLOURS, font_scale=1.05, rc=STYLE)  # a notebook's own, too


def _figure(draw: Callable) -> Callable[..., plt.Figure]:
    """Say so where there is nothing to draw (None), and close the figure for pyplot, which would
    show it once more when the cell ends."""

    @wraps(draw)
    def drawn(*args, **options) -> plt.Figure:
        empty = isinstance(args[0], pd.DataFrame) and args[0].empty
        made = None if empty else draw(*args, **options)
        if made is None:
            made, ax = plt.subplots(figsize=(6.4, 1.5))
            ax.text(0.5, 0.5, "no finished runs to draw", ha="center", va="center")
            ax.axis("off")
        made.tight_layout()
        plt.close(made.figure)
        return made.figure

    return drawn


def inline_svg(fig: plt.Figure, prefix: str) -> str:
    """A figure as SVG to stand inside a page: ids begin with `prefix`, colours are the page's."""
    fig.savefig(text := io.StringIO(), format="svg", metadata={"Date": None}, transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg[svg.index("<svg") :])
    for ours, themed in ((INK, "currentColor"), (PAPER, "var(--paper)"), (GRID, "var(--grid)")):
        svg = svg.replace(ours, themed)
    size = r'width="([\d.]+)pt" height="[\d.]+pt"'
    return re.sub(size, r'style="width: \1pt" aria-hidden="true"', svg, count=1)


def appearance(method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in all figures; BL is red as in the paper."""
    if method == "BL":
        return RED, "*"
    place = [*METHODS].index(method) if method in METHODS else sum(method.encode())
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def _looks(rows: pd.DataFrame, key: str) -> tuple[dict, dict]:
    """Colours and markers, for seaborn, of the methods or runs in column `key`."""
    looks = {name: appearance(m) for name, m in zip(rows[key], rows["method"], strict=True)}
    star = markers.MarkerStyle("*").scaled(1.6)  # as large as the others
    shapes = {name: star if marker == "*" else marker for name, (_, marker) in looks.items()}
    return {name: colour for name, (colour, _) in looks.items()}, shapes


def _plain(name: str) -> str:
    """A generator's name, no formula of matplotlib's."""
    return name.replace("$", r"\$")


def _log(axis, values: pd.Series) -> None:
    """A log axis with a few round ticks, over however many decades."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    wide = values.max() > 10 * values.min()
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)) if wide else ticker.MaxNLocator(5))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows by method (unknown ones last) and rate, with their names in column `run`."""
    order = [*METHODS, *sorted(set(rows["method"]) - set(METHODS))]
    rows = rows.assign(run=names(rows), rate=rows["rate"].astype(float))
    place = np.lexsort([rows["rate"].fillna(0), rows["method"].map(order.index)])
    return rows.iloc[place].reset_index(drop=True)


def metric_table(result: dict) -> pd.DataFrame:
    """A result's metrics for reading: a row each generator (unseen ones are marked), "all" last;
    the last column is what one answer for all images scores."""
    found = result["metrics"]
    order = sorted(found, key=lambda name: (name == "all", name == "macro", name))
    known = {"all", "macro", *result.get("train_generators", order)}
    shown = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
    shown |= {"accuracy": "accuracy", "f1": "F1"}
    rows = {}
    for name in order:
        m = found[name]
        row = {title: interval(m.get(key), m["ci95"].get(key)) for key, title in shown.items()}
        row[TRIVIAL] = spoken_trivial(m["n_fake"] / m["n"])
        rows[name if name in known else f"{name} (unseen)"] = row
    return pd.DataFrame(rows).T.rename_axis("generator")


def dominated(cost: Sequence[float], score: Sequence[float]) -> np.ndarray:
    """True where another point costs no more and scores no less, and is better in one of them."""
    cost, score = np.asarray(cost, float), np.asarray(score, float)
    as_good = (cost[:, None] <= cost) & (score[:, None] >= score)  # [i, j]: i as good as j
    return (as_good & ((cost[:, None] < cost) | (score[:, None] > score))).any(axis=0)


def _ends(rows: pd.DataFrame, metric: str, **more) -> pd.DataFrame:
    """The rows with a metric as `value`, and `low` and `high` (else the value itself)."""
    columns = [metric, f"{metric}_low", f"{metric}_high"]
    value, low, high = rows.reindex(columns=columns).to_numpy(dtype=float).T
    return rows.assign(value=value, low=np.fmin(low, value), high=np.fmax(high, value), **more)


def live_curve() -> Callable[[pd.DataFrame], None] | None:
    """`on_epoch` of `train.fit` in a notebook: one figure that grows with the training. None in a
    batch: nobody watches."""
    if os.environ.get("TQDM_DISABLE"):
        return None
    handle = DisplayHandle()
    show = itertools.chain([handle.display], itertools.repeat(handle.update))
    return lambda history: next(show)(curves(history))


@_figure
def curves(history: pd.DataFrame):
    """Loss and validation AUROC over the epochs of a training history; nothing without one."""
    if history.empty:
        return None
    table = history.melt("epoch", ["loss", "val_loss", "val_auroc"], "curve")
    table["images"] = np.where(table["curve"].str.startswith("val_"), "validation", "training")
    look = {"palette": {"training": BLUE, "validation": ORANGE}, "dashes": False}
    look |= {"markers": {"training": "o", "validation": "s"}, "hue": "images", "style": "images"}
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 2.6))
    for ax, (title, these) in zip(axes, CURVES.items(), strict=True):
        shown, legend = table[table["curve"].isin(these)], "loss" in these
        sns.lineplot(shown, x="epoch", y="value", legend=legend, **look, ax=ax)
        ax.set(title=title, ylabel="")
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))
    return fig


@_figure
def image_grid(images: Sequence, titles: Sequence[str], columns: int = 8, **look):
    """Images (H x W x 3, uint8) in rows of `columns`, each below its title; look: for imshow."""
    columns = max(1, min(columns, len(images)))
    rows, side = -(-len(images) // columns), min(2, 8 / columns)
    shapes = [np.divide(np.shape(image)[:2], max(np.shape(image)[:2])) for image in images]
    head = (0.1 + 0.16 * (1 + max(title.count("\n") for title in titles))) / side  # of a title
    step = head + max(tall for tall, _ in shapes)
    fig, ax = plt.subplots(figsize=(columns * side, rows * side * step))
    for k, (image, title, (tall, wide)) in enumerate(zip(images, titles, shapes, strict=True)):
        x, y = 1.06 * (k % columns), step * (k // columns)
        ax.imshow(image, extent=(x, x + wide, y + tall, y), interpolation="nearest", **look)
        ax.text(x + wide / 2, y - 0.04 / side, title, fontsize=8, ha="center", va="bottom")
    ax.set(xlim=(0, 1.06 * columns - 0.06), ylim=(rows * step - head, -head))
    ax.axis("off")
    return fig


@_figure
def score_histogram(labels, scores, threshold: float, generators=None):
    """How P(fake) spreads over real images and over fakes (of each generator, where given)."""
    fakes = "fake" if generators is None else [*map(_plain, generators)]
    names = np.where(np.asarray(labels) == 0, "real", fakes)
    order = ["real", *sorted(set(names) - {"real"})]
    counted = {name: f"{name} ({(names == name).sum()})" for name in order}
    table = pd.DataFrame({"score": np.asarray(scores, float), "": [counted[n] for n in names]})
    look = {"hue": "", "hue_order": [*counted.values()], "element": "step", "fill": False}
    bins = {"bins": 25, "binrange": (0, 1), "stat": "percent", "common_norm": False}
    grid = sns.displot(table, x="score", **look, **bins, height=3.4, aspect=1.4)
    grid.refline(x=threshold, color=INK)
    return grid.set_axis_labels(f"P(fake), threshold {threshold:.3f}", "% of its images")


@_figure
def layer_bars(counts: dict[str, int], nonzero: dict[str, int] | None = None, *, label="not zero"):
    """Parameters of each layer, the first on top; with `nonzero`, what is not zero in colour."""
    fig, ax = plt.subplots(figsize=(6.4, 0.27 * len(counts) + 1))
    for part, colour in ((counts, GRID), (nonzero or counts, BLUE)):
        sns.barplot(part, orient="y", color=colour, saturation=1, ax=ax)
    pair = lambda name: f"{nonzero[name]:,} of " if nonzero else ""
    texts = [f"{pair(name)}{n:,}" for name, n in counts.items()]
    ax.bar_label(ax.containers[0], texts, padding=3, fontsize=8)
    ax.margins(x=0.25)
    blue = f"; blue: {label}" if nonzero else ""
    ax.set(xlabel=f"parameters ({sum(counts.values()):,} in all{blue})", ylabel="")
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    return fig


def _points(rows: pd.DataFrame, at: str, key: str, *, flat=False, **options) -> sns.FacetGrid:
    """A panel each `panel`: at each `at` (down where `flat`) the means over the rows of a `key`,
    with their 95 % intervals averaged: the median and the range of three rows, for seaborn."""
    colours, shapes = _looks(rows, key)
    by = list(dict.fromkeys(("panel", key, "method", at)))
    means = rows.groupby(by, sort=False)[["value", "low", "high"]].mean()
    three = means.melt(ignore_index=False, value_name="95 %").reset_index()
    axes = {"col": "panel", "x": "95 %" if flat else at, "y": at if flat else "95 %"}
    look = {"hue": key, "hue_order": [*colours], "palette": colours, "markers": [*shapes.values()]}
    size = {"linewidth": 1.2, "markersize": 6, "dodge": 0.5 * (len(colours) > 1 and not flat)}
    given = {"kind": "point", "estimator": "median", "errorbar": ("pi", 100)}
    grid = sns.catplot(three, **axes, **look, **size, **given, **options)
    return grid.set_titles("{col_name}").set_axis_labels("", "")


def _baseline(ax, rows: pd.DataFrame, metric: str, side: str = "h") -> None:
    """BL's red line (mean over its runs) with its interval as a band."""
    found = _ends(rows[rows["method"] == "BL"], metric)[["value", "low", "high"]].mean()
    if found.notna().all():
        getattr(ax, f"ax{side}span")(found["low"], found["high"], color=RED, alpha=0.1, linewidth=0)
        getattr(ax, f"ax{side}line")(found["value"], color=RED, linewidth=1.5, zorder=1)


@_figure
def paper_figure(rows: pd.DataFrame, generators: Sequence[str] = ("all",), *, transfers=False):
    """The paper's Figures 1 and 2 (`transfers`: 3): accuracy and F1 on each generator's fakes, and
    the time that the method took, over rates and seeds. BL (its training time) is the red line;
    dotted: what one answer for all images scores."""
    panels = {}
    for name in generators:
        of = "" if name == "all" else f", {_plain(marked(rows, name))}"
        for metric, title in (("accuracy", "accuracy"), ("f1", "F1")):
            panels[metric if name == "all" else f"{name}/{metric}"] = title + of
    spent, title = ("transfer_s", "transfer") if transfers else ("compress_s", "compression")
    rows, unit = comparable(rows)
    panels[spent] = f"{title} time, {unit}"
    seconds = rows[spent].where(rows["method"] != "BL", rows["train_s"]).replace(0, np.nan)
    rows = in_order(rows.assign(**{spent: seconds})).fillna({"rate": 0})
    moved = rows["method"].isin([code for code in METHODS if METHODS[code].transfers])
    others = rows[(rows["method"] != "BL") & (moved == transfers)]
    if others.empty:
        return None
    each = [_ends(others, column, panel=title) for column, title in panels.items()]
    long, wrap = pd.concat(each, ignore_index=True), 3 if len(panels) == 3 else 2
    shape = {"col": "panel", "col_wrap": wrap, "sharey": False, "height": 3, "aspect": 3 / wrap}
    place = {"x": "method", "y": "value", "order": long["method"].unique()}
    box = {"hue": "method", "palette": _looks(long, "method")[0], "legend": False, "fill": False}
    grid = sns.catplot(long, kind="box", **place, **shape, **box, width=0.6, showfliers=False)
    dots = {"hue": "rate", "palette": f"blend:{GREY},{COLOURS[-1]}", "size": 4, "jitter": 0.1}
    grid.map_dataframe(sns.stripplot, **place, **dots)
    for ax, column in zip(grid.axes, panels, strict=True):
        _baseline(ax, rows, column)
        ax.tick_params(axis="x", rotation=60)
        name, _, metric = column.rpartition("/")
        shares = rows.get(f"{name}/fake_share".removeprefix("/"), pd.Series(dtype=float))
        if column != spent and shares.notna().any():
            ax.axhline(trivial(shares.mean())[metric], color=INK, linestyle=":", linewidth=1.2)
    _log(ax.yaxis, seconds.dropna())
    return grid.set_titles("{col_name}").set_axis_labels("", "").add_legend(title="removed")


@_figure
def pareto(rows: pd.DataFrame, x: str = "latency_p50_ms"):
    """Each run's AUROC against one of COSTS, with intervals and spreads (but of a busy machine) in
    grey; the line joins and names those that no other beats in both. Beaten runs are pale."""
    title, unit = COSTS[x]
    rows = in_order(rows)
    rows = _ends(rows, "auroc", cost=rows[x].astype(float).replace(0, np.nan) / unit)
    rows = rows.dropna(subset=["cost", "value"], ignore_index=True)
    if rows.empty:
        return None
    beaten, (colours, shapes) = dominated(rows["cost"], rows["value"]), _looks(rows, "method")
    look = {"hue": "method", "palette": colours, "style": "method", "markers": shapes, "s": 60}
    grid = sns.relplot(rows, x="cost", y="value", **look, height=4, aspect=1.4)
    grid.ax.collections[0].set_alpha(np.where(beaten, 0.4, 1))
    grid.ax.vlines(rows["cost"], rows["low"], rows["high"], GREY, linewidth=0.8, zorder=0)
    ends = [x.replace("p50", end) for end in ("low", "high")]  # bytes and operations have none
    busy = rows.reindex(columns=["latency_busy"])["latency_busy"].eq(True)
    spread = rows.reindex(columns=ends).astype(float).mask(busy, axis=0) / unit
    grid.ax.hlines(rows["value"], *spread.to_numpy().T, GREY, linewidth=0.8, zorder=0)
    front = rows[~beaten].sort_values("cost", kind="stable")
    grid.ax.step(front["cost"], front["value"], ":", color=INK, linewidth=1, where="post")
    look = {"rotation": 35, "fontsize": 8, "arrowprops": {"arrowstyle": "-", "color": GREY}}
    for i, (name, *point) in enumerate(front[["run", "cost", "value"]].to_numpy()):
        place = {"xytext": ((i + 0.5) / len(front), 1.03), "textcoords": "axes fraction"}
        grid.ax.annotate(name, point, **place, **look)  # from each name a line to its marker
    _log(grid.ax.xaxis, rows["cost"])
    return grid.set_axis_labels(title, "AUROC")


@_figure
def against(rows: pd.DataFrame, at: str = "rate", value: str = "auroc", *, title: str = "AUROC"):
    """A value against the share of parameters removed (`at` "rate"; BL as a red line), the number
    of target images ("train_images"; the highest rate), or what was done to the test images
    ("perturbation"): means over runs, with their 95 % intervals averaged."""
    rows = _ends(in_order(rows), value, panel="").fillna({"rate": 0}).dropna(subset=[at])
    key, below, write = "method", "parameters removed (by CPF: set to zero)", "{:.0%}".format
    if at == "train_images":
        rows = rows[rows["rate"] == rows.groupby("method")["rate"].transform("max")]
        below, write = "training images of the target", "{:,.0f}".format
    if at == "perturbation":
        rows = rows.replace({at: {"": "as is"}})
        key, below, write = "run", "", str
    line = {"linestyle": "none" if at == "perturbation" else "-"}
    grid = _points(rows, at, key, formatter=write, height=3.6, aspect=1.5, **line)
    if at == "rate":
        _baseline(grid.ax, rows, value)
    grid.tick_params("x", rotation=60 if at == "perturbation" else 0)
    return grid.set_axis_labels(below, title)


@_figure
def forest(rows: pd.DataFrame, columns: dict[str, str] | None = None, lines: Sequence[float] = ()):
    """A line each run with its value and interval, a panel a column {column: its title}; by default
    the AUROC on each test generator's fakes. Runs of one name (column `name`; else their method and
    rate) are averaged. lines: where to draw some, the first solid; else BL's."""
    if columns is None:
        found = rows.filter(regex=r"^(?!macro/).+/auroc$")
        columns = {c: f"AUROC, {_plain(marked(rows, c.removesuffix('/auroc')))}" for c in found}
    rows = rows.assign(run=rows["name"]) if "name" in rows else in_order(rows)
    long = pd.concat([_ends(rows, column, panel=title) for column, title in columns.items()])
    tall = 0.9 + rows["run"].nunique() * (0.08 + 0.16 * (1 + rows["run"].str.count("\n").max()))
    size = {"height": tall, "aspect": min(5, 9 / len(columns)) / tall}
    look = {"sharex": False, "linestyle": "none", "legend": False}
    grid = _points(long, "run", "run", flat=True, **size, **look)
    for k, x in enumerate(lines):
        grid.refline(x=x, color=INK, linestyle="--" if k else "-")
    for ax, column in zip(grid.axes.flat, columns, strict=True):
        ax.locator_params(axis="x", nbins=5)
        if not lines:
            _baseline(ax, rows, column, "v")
    return grid
