"""Figures: data in, a matplotlib `Figure` out. Nothing here reads runs.

pyplot is not used, so no figure is ever shown by itself: a notebook shows it once, as a cell's last expression or with `display`.
One style for all; each method has one colour *and* marker in every figure (around the Okabe-Ito colours, safe for the colour-blind).
"""

from __future__ import annotations

import base64
import io
import re
import time
import zlib
from collections.abc import Callable, Sequence
from functools import wraps

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import figure, ticker
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from dflib.quantize import quantize_array
from dflib.study.methods import METHODS

INK, PAPER, GRID, GREY, RED = (
    "#24292f",
    "#fffffe",
    "#d8dbdf",
    "#a3a8ae",
    "#d55e00",
)  # the report swaps the first three
BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"
COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#a6761d", "#8250df")
MARKERS = "osDv^PXhpdH<>8"
LOOKS = {  # a hue for each technique, a marker for each variant; triangles: transferred
    "BL": (RED, "*"),
    "CPF": (BLUE, "o"),
    "CPF-S": ("#5465c9", "s"),
    "SCRATCH": ("#7fa8d1", "D"),
    "TL+P+FT": ("#56b4e9", ">"),
    "TL+P+A": ("#0e8a9e", "v"),
    "CKD": (ORANGE, "p"),
    "CKD-0": ("#a87b1d", "d"),
    "TL+KD": ("#eec643", "^"),
    "TL+KD+A": ("#b5651d", "<"),
    "CQ": (GREEN, "P"),
    "CQ-S": ("#4f7f52", "X"),
    "TL+FT+Q": ("#6cc7a4", "<"),
    "LRF": ("#8250df", "h"),
    "CPKDQ": ("#a3336f", "H"),
    "chain": ("#7d6b78", "8"),
    "TL+FT": ("#cc79a7", "^"),
}
STYLE = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    **dict.fromkeys(
        ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "hatch.color"), PAPER
    ),
    **dict.fromkeys(("axes.titlesize", "axes.labelsize"), 10),
    **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 9),
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "dflib",
    "text.parse_math": False,  # names are data
}
COSTS = {  # column -> axis title, divisor
    "latency_p50_ms": ("median latency, ms (batch 1, 1 thread)", 1),
    "file_bytes": ("file, MB", 1e6),
    "gzip_bytes": ("gzipped file, MB", 1e6),
    "macs": ("million multiply-accumulates an image", 1e6),
    "params": ("thousand parameters stored (zeros count)", 1e3),
}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "auroc": "AUROC",
}
SIDES = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)])


class Figure(figure.Figure):
    """Keeps our style however late it is drawn (ticks are made while drawing); sharp in a notebook, at its size in inches."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")

    def draw(self, renderer) -> None:
        with mpl.rc_context(STYLE):
            super().draw(renderer)

    def _repr_mimebundle_(self, **_) -> tuple[dict, dict]:
        self.savefig(png := io.BytesIO(), format="png", dpi=200)
        size = dict(
            zip(
                ("width", "height"),
                (100 * self.get_size_inches()).astype(int).tolist(),
                strict=True,
            )
        )
        return {"image/png": base64.b64encode(png.getvalue()).decode()}, {"image/png": size}


def inline_svg(fig: Figure, prefix: str) -> str:
    """A figure as SVG to stand inside a page: its ids begin with `prefix`, and --paper, --grid and the text's colour of the page replace ours.

    >>> inline_svg(Figure(2, 1), "a-").startswith("<svg")
    True
    """
    fig.savefig(text := io.StringIO(), format="svg", metadata={"Date": None}, transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg[svg.index("<svg") :])
    for ours, themed in ((INK, "currentColor"), (PAPER, "var(--paper)"), (GRID, "var(--grid)")):
        svg = svg.replace(ours, themed)
    return re.sub(
        r'width="([\d.]+)pt" height="[\d.]+pt"',
        r'style="width: \1pt" aria-hidden="true"',
        svg,
        count=1,
    )


def use_style() -> None:
    """Give the same look to figures that a notebook draws itself (their log axes need mathematics: 10 to the power of …)."""
    mpl.rcParams.update(STYLE | {"text.parse_math": True})


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(draw)
    def styled(*args, **options) -> Figure:
        with mpl.rc_context(STYLE):
            if any(isinstance(a, pd.DataFrame) and a.empty for a in (*args, *options.values())):
                return _nothing()
            return draw(*args, **options)

    return styled


def _nothing(text: str = "no finished runs to draw") -> Figure:
    fig = Figure(6.4, 1.5)
    fig.text(0.5, 0.5, text, ha="center", va="center")
    return fig


def appearance(method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every figure; BL is the red one, as in the paper."""
    if method in LOOKS:
        return LOOKS[method]
    spare = [
        (colour, marker)
        for marker in MARKERS
        for colour in COLOURS
        if (colour, marker) not in LOOKS.values()
    ]
    new = [code for code in METHODS if code not in LOOKS]
    return spare[
        (new.index(method) if method in new else len(new) + zlib.crc32(method.encode()))
        % len(spare)
    ]


class LiveCurve:
    """`on_epoch` of `train.fit`: in a notebook one display that grows with the training, elsewhere nothing.

    Drawn at most every two seconds; what is still waiting is drawn when the cell ends, so that the last epoch is always there.
    """

    def __init__(self) -> None:
        from IPython import get_ipython
        from IPython.display import DisplayHandle

        self.shell, self.handle, self.waiting, self.next = (
            get_ipython(),
            DisplayHandle(),
            None,
            None,
        )

    def __call__(self, history: pd.DataFrame) -> None:
        if hasattr(self.shell, "kernel"):
            self.waiting = history
            if self.next is None:
                self.handle.display(_nothing("training"))
                self.shell.events.register("post_run_cell", self.draw)
            if time.monotonic() >= (self.next or 0):
                self.draw()

    def draw(self, *_) -> None:
        if self.waiting is not None:
            self.handle.update(curves(self.waiting))
            self.waiting, self.next = None, time.monotonic() + 2


@_styled
def curves(history: pd.DataFrame) -> Figure:
    """Loss (left), accuracy and AUROC (right) over the epochs of a training history."""
    fig = Figure(8, 3.2)
    for ax, title, columns in zip(
        fig.subplots(1, 2), ("loss", "accuracy, AUROC"), ("loss", "accuracy"), strict=True
    ):
        ax.plot(
            history["epoch"],
            history[columns],
            "--",
            color=BLUE,
            label="training",
            marker="o",
            markersize=3,
        )
        ax.plot(
            history["epoch"],
            history[f"val_{columns}"],
            color=ORANGE,
            label="validation",
            marker="s",
            markersize=3,
        )
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    ax.plot(
        history["epoch"],
        history["val_auroc"],
        color=GREEN,
        label="validation AUROC",
        marker="D",
        markersize=3,
    )
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


@_styled
def image_grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 8) -> Figure:
    """Images (uint8, H x W x 3) in rows of `columns`, each below its title, pixels as they are."""
    columns = max(1, min(columns, len(images)))
    rows, lines = (
        max(1, -(-len(images) // columns)),
        max([str(t).count("\n") + 1 for t in titles], default=1),
    )
    side = min(2, 8 / columns)
    fig = Figure(side * columns, rows * (side + 0.17 * lines))
    for i, ax in enumerate(fig.subplots(rows, columns, squeeze=False).ravel()):
        ax.axis("off")
        if i < len(images):
            ax.imshow(images[i], interpolation="nearest")
            ax.set_title(titles[i], fontsize=8, fontweight="normal", pad=3)
    return fig


@_styled
def score_histogram(labels, scores, threshold: float, generators=None) -> Figure:
    """How P(fake) spreads over real images and over fakes (of each generator, where given), with the decision threshold."""
    labels, scores, edges = np.asarray(labels), np.asarray(scores, float), np.linspace(0, 1, 26)
    names = np.where(
        labels == 0, "real", "fake" if generators is None else np.asarray(generators, dtype=object)
    )
    fig = Figure(6.4, 3.4)
    ax = fig.subplots()
    for i, name in enumerate(["real", *sorted(set(names[labels == 1]))]):
        share = 100 * np.histogram(scores[names == name], edges)[0] / max(1, (names == name).sum())
        look = (
            {"linestyle": ("-.", "-", "--", ":")[i % 4], "linewidth": 1.8}
            if i
            else {"fill": True, "alpha": 0.35}
        )
        ax.stairs(
            share, edges, color=COLOURS[i % 7], label=f"{name} ({(names == name).sum()})", **look
        )
    ax.axvline(
        threshold, color=INK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.3f}"
    )
    ax.set(xlabel="P(fake)", ylabel="% of its images", xlim=(0, 1))
    fig.legend(loc="outside upper center", ncols=4)
    return fig


def interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """A value with its 95 % interval: "0.912 [0.88, 0.94]"; without one the value alone, and a dash for no value."""
    if value is None or pd.isna(value):
        return "–"
    known = bounds is not None and not pd.isna(list(bounds)).any()
    return f"{value:.3f} [{bounds[0]:.2f}, {bounds[1]:.2f}]" if known else f"{value:.3f}"


def metric_table(result: dict) -> pd.DataFrame:
    """A result's metrics for reading: one row a generator, "all" last, 95 % intervals in brackets."""
    order = sorted(
        result["metrics"].items(), key=lambda item: (item[0] == "all", item[0] == "macro", item[0])
    )
    table = {
        name: {t: interval(m.get(k), m["ci95"].get(k)) for k, t in METRICS.items()}
        for name, m in order
    }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("generator")


def _array(tensor) -> np.ndarray:
    return np.asarray(
        tensor.detach().cpu().float() if hasattr(tensor, "detach") else tensor, dtype=float
    ).ravel()


@_styled
def weight_histograms(before: dict, after: dict, names: Sequence[str] | None = None) -> Figure:
    """Each layer's weights before and after; zeros are counted in the title and not drawn (they would dwarf the rest)."""
    names = [n for n in before if n in after] if names is None else list(names)
    columns = max(1, min(3, len(names)))
    rows = max(1, -(-len(names) // columns))
    fig = Figure(max(4, 2.7 * columns), 1.9 * rows + 0.5)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.axis("off")
    for i, (name, ax) in enumerate(zip(names, axes, strict=False)):
        old, new = _array(before[name]), _array(after[name])
        edges = np.histogram_bin_edges(np.concatenate([old, new]), 50)
        ax.hist(old[old != 0], edges, color=GREY, alpha=0.5, label="before" if i == 0 else None)
        ax.hist(
            new[new != 0],
            edges,
            histtype="step",
            color=BLUE,
            linewidth=1.5,
            label="after" if i == 0 else None,
        )
        ax.set_title(f"{name}\n{np.mean(new == 0):.0%} zero", fontsize=9, fontweight="normal")
        ax.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
    fig.legend(loc="outside lower center", ncols=2)
    return fig


@_styled
def layer_bars(
    counts: dict[str, int], nonzero: dict[str, int] | None = None, *, label: str = "not zero"
) -> Figure:
    """Parameters of each layer, the first on top; with `nonzero`, what is not zero in colour before the rest in grey."""
    names, most = list(counts), max([1, *counts.values()])
    fig = Figure(6.4, 0.27 * len(names) + 1)
    ax = fig.subplots()
    ax.barh(names, list(counts.values()), color=GRID if nonzero else BLUE, label="all")
    if nonzero:
        ax.barh(names, [nonzero.get(n, 0) for n in names], color=BLUE, label=label)
        fig.legend(loc="outside upper right", ncols=2)
    for name in names:
        kept = f"{nonzero.get(name, 0):,} of " if nonzero else ""
        ax.text(counts[name] + most / 100, name, f"{kept}{counts[name]:,}", va="center", fontsize=8)
    ax.set(
        xlabel=f"parameters ({sum(counts.values()):,} in all)",
        xlim=(0, 1.4 * most),
        ylim=(len(names) - 0.4, -0.6),
    )
    ax.grid(visible=False)
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    return fig


@_styled
def softened(logits: Sequence[float], temperatures: Sequence[float]) -> Figure:
    """How temperature T softens a teacher's two logits (real, fake) into probabilities: softmax(logits / T)."""
    logits = _array(logits)
    z = logits / np.asarray(temperatures, float)[:, None]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    fig = Figure(6.4, 3)
    ax = fig.subplots()
    for k, (name, hatch) in enumerate((("real", ""), ("fake", "//"))):
        x = np.arange(len(p)) + 0.4 * k - 0.2
        bars = ax.bar(x, p[:, k], 0.38, color=COLOURS[k], hatch=hatch, label=f"P({name})")
        ax.bar_label(bars, [f"{v:.3f}" for v in p[:, k]], fontsize=8, padding=1)
    ax.set_xticks(range(len(p)), [f"T = {t:g}" for t in temperatures])
    ax.set(
        ylabel="probability",
        ylim=(0, 1.12),
        title=f"logits {logits[0]:.3g} (real), {logits[1]:.3g} (fake)",
    )
    fig.legend(loc="outside lower center", ncols=2)
    return fig


@_styled
def quantization_grid(values, bits: int) -> Figure:
    """Values against what `bits` bits make of them (left), and the rounding errors (right), at most half a step each."""
    values = np.sort(_array(values))
    q, step = quantize_array(values, bits=bits)
    error = step * q - values
    fig = Figure(8, 3)
    left, right = fig.subplots(1, 2)
    left.plot(values, values, color=GREY, linewidth=1, label="exact")
    left.plot(values, step * q, ".", color=BLUE, markersize=3, label=f"{bits} bits")
    left.set(
        title=f"{2**bits - 1} levels, {step:.2g} apart", xlabel="value", ylabel="quantized value"
    )
    left.legend()
    right.hist(error, 40, color=ORANGE)
    for edge in (-step / 2, step / 2):
        right.axvline(edge, color=INK, linestyle="--", linewidth=1)
    right.set(
        title=f"error, RMS {np.sqrt(np.mean(error**2)):.2g}",
        xlabel="quantized - value (dashed: half a step)",
    )
    right.xaxis.set_major_locator(ticker.MaxNLocator(5))
    return fig


def run_label(method: str, rate: float | None) -> str:
    """A run's short name in figures and sentences: "CKD 90%", "BL"."""
    return method if rate is None or pd.isna(rate) else f"{method} {100 * rate:g}%"


def by_method(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each method, in the order of the table of methods; unknown methods last."""
    present = set(rows["method"])
    order = [m for m in METHODS if m in present] + sorted(present - set(METHODS))
    return {m: rows[rows["method"] == m] for m in order}


def _values(rows: pd.DataFrame, metric: str) -> tuple[pd.Series, np.ndarray]:
    """A metric (NaN where runs lack it) and the distances down and up to the ends of its interval (0 where there is none)."""
    value, low, high = (
        rows.reindex(columns=[metric + end]).astype(float).iloc[:, 0]
        for end in ("", "_low", "_high")
    )
    return value, np.nan_to_num(np.stack([value - low, high - value])).clip(0)


def _baseline(ax, rows: pd.DataFrame, metric: str) -> None:
    """The red line of BL (mean over its runs), its interval as a band, its value beside the panel."""
    value, bars = _values(rows[rows["method"] == "BL"], metric)
    if value.notna().any():
        mean, (down, up) = value.mean(), bars.mean(axis=1)
        ax.axhspan(mean - down, mean + up, color=RED, alpha=0.1, linewidth=0)
        ax.axhline(mean, color=RED, linewidth=1.5, label="BL")
        ax.text(
            1.02,
            mean,
            f"BL\n{mean:.3g}",
            transform=ax.get_yaxis_transform(),
            color=RED,
            va="center",
            fontsize=8,
        )


def _log(axis, values: pd.Series) -> None:
    """A log axis with a few round ticks, over however many decades."""
    axis._set_axes_scale("log")
    span = values.max() / values.min()
    subs = (1,) if span > 200 else (1, 2, 5) if span > 10 else (1, 1.5, 2, 3, 5, 7)
    axis.set_major_locator(ticker.LogLocator(subs=subs) if span > 2.5 else ticker.MaxNLocator(4))
    axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


@_styled
def paper_figure(
    rows: pd.DataFrame, generators: Sequence[str] = ("all",), *, transfers: bool = False
) -> Figure:
    """The paper's Figures 1 and 2 (`transfers`: 3): accuracy and F1 on each generator's fakes, and the time that the method took.

    A box over rates and seeds for each method, BL as a red line (among the times: its training). Markers are single runs, from the lowest rate
    (left) to the highest (right).
    """
    known = (
        {m for m in METHODS if METHODS[m].transfers}
        if transfers
        else set(METHODS) - {m for m in METHODS if METHODS[m].transfers}
    )
    rows = rows[
        rows["method"].isin(known | {"BL"}) | (~rows["method"].isin(METHODS) & (not transfers))
    ]
    groups, seconds = by_method(rows), "transfer_s" if transfers else "compress_s"
    groups.pop("BL", None)
    if transfers and not groups:
        return _nothing("no finished transfers to draw")
    rows = rows.assign(
        **{seconds: rows[seconds].where(rows["method"] != "BL", rows["train_s"]).replace(0, np.nan)}
    )
    titles = {seconds: f"{'transfer' if transfers else 'compression'} time, s"}
    for name in generators:
        column, where = ("", "") if name == "all" else (f"{name}/", f", {name}")
        titles |= {f"{column}accuracy": f"accuracy{where}", f"{column}f1": f"F1{where}"}
    columns, slanted = list(titles)[1:], len("".join(groups)) > 16
    fig = Figure(9, (2.8 if len(generators) > 1 else 3.6) * len(generators) + 0.7 * slanted)
    axes = fig.subplot_mosaic(
        [[*pair, seconds] for pair in zip(columns[::2], columns[1::2], strict=True)]
    )
    for metric, ax in axes.items():
        _boxes(ax, rows, groups, metric)
        _baseline(ax, rows, metric)
        ax.set_xticks(range(len(groups)), groups, rotation=60 if slanted else 0)
        ax.set(title=titles[metric], xlim=(-0.6, max(0.6, len(groups) - 0.4)))
    if rows[seconds].notna().any():
        _log(axes[seconds].yaxis, rows[seconds])
    return fig


def _boxes(ax, rows: pd.DataFrame, groups: dict[str, pd.DataFrame], metric: str) -> None:
    """A box over each method's runs, and the runs themselves from the lowest rate (left) to the highest."""
    for i, (method, mine) in enumerate(groups.items()):
        (colour, marker), (values, _) = appearance(method), _values(rows.loc[mine.index], metric)
        rate = mine["rate"].astype(float) - mine["rate"].astype(float).min()
        line = {"color": colour, "linewidth": 1.2}
        ax.boxplot(
            values.dropna(),
            positions=[i],
            widths=0.62,
            showfliers=False,
            manage_ticks=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops=line,
        )
        place = i + 0.4 * rate / rate.max() - 0.2 if rate.max() > 0 else np.full(len(mine), i)
        ax.plot(
            place,
            values,
            marker,
            color=colour,
            markersize=5,
            markeredgecolor=PAPER,
            markeredgewidth=0.5,
        )


def dominated(cost: Sequence[float], score: Sequence[float]) -> np.ndarray:
    """True where another point costs no more and scores no less, and is better in one of the two."""
    cost, score = np.asarray(cost, float), np.asarray(score, float)
    as_good = (cost[:, None] <= cost) & (
        score[:, None] >= score
    )  # [i, j]: i is as good as j in both
    return (as_good & ((cost[:, None] < cost) | (score[:, None] > score))).any(axis=0)


@_styled
def pareto(
    rows: pd.DataFrame, x: str | Sequence[str] = "latency_p50_ms", y: str = "auroc"
) -> Figure:
    """What each run scores (with its 95 % interval) against what it costs; the line joins those that no other beats in both.

    x: one or several of latency_p50_ms | file_bytes | gzip_bytes | macs | params, a panel each. Beaten runs are pale; past 14 runs only
    those on the line are named.
    """
    costs = [x] if isinstance(x, str) else list(x)
    rows = rows[_values(rows, y)[0].notna()]
    drawn = {
        cost: found
        for cost in costs
        if len(found := rows[_values(rows, cost)[0] > 0].reset_index(drop=True))
    }
    if not drawn:
        return _nothing()
    fig = Figure(5.8 if len(drawn) == 1 else 4.2 * len(drawn), 4)
    axes = fig.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    named = [
        _front(ax, found, cost, y) for ax, (cost, found) in zip(axes, drawn.items(), strict=True)
    ]
    axes[0].set_ylabel(METRICS.get(y, y))
    fig.draw_without_rendering()  # from here on the layout is known
    for ax, what in zip(axes, named, strict=True):
        _place_labels(ax, *what)
    return fig


def _front(ax, rows: pd.DataFrame, x: str, y: str) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """One panel; returns the points, their bars and the names that they are to have."""
    title, unit = COSTS[x]
    (cost, _), (score, bars) = _values(rows, x), _values(rows, y)
    cost, beaten = cost / unit, dominated(cost, score)
    front = cost[~beaten].sort_values(kind="stable").index
    ax.step(
        cost[front], score[front], where="post", color=INK, linewidth=1, linestyle=":", zorder=1
    )
    for i in rows.index:
        colour, marker = appearance(rows["method"][i])
        ax.errorbar(
            cost[i],
            score[i],
            bars[:, [i]],
            fmt=marker,
            color=colour,
            alpha=0.35 if beaten[i] else 1,
            markersize=11 if marker == "*" else 7,
            elinewidth=1,
            markeredgecolor=PAPER,
            zorder=2 if beaten[i] else 3,
        )
    _log(ax.xaxis, cost)
    room = max(1.15, (cost.max() / cost.min()) ** 0.12)
    ax.set(xlabel=title, xlim=(cost.min() / room, cost.max() * room))
    names = {
        i: run_label(rows["method"][i], rows["rate"][i])
        for i in (rows.index if len(rows) <= 14 else front)
    }
    return np.stack([cost, score], axis=1), bars, names


def _place_labels(ax, points: np.ndarray, bars: np.ndarray, names: dict[int, str]) -> None:
    """Name points, each at the nearest place that is free of points, bars and other names."""
    dot, at = ax.figure.dpi / 72, ax.transData.transform(points)
    low, high = (
        ax.transData.transform(points + np.stack([0 * b, b], axis=1)) for b in (-bars[0], bars[1])
    )
    taken = [Bbox([a - dot, b + dot]) for a, b in zip(low, high, strict=True)]
    taken += [Bbox([p - 4 * dot, p + 4 * dot]) for p in at]
    shared = lambda a, b: getattr(Bbox.intersection(a, b), "size", np.zeros(2)).prod()
    for i, name in names.items():
        note = ax.annotate(
            name,
            points[i],
            (0, 0),
            textcoords="offset points",
            fontsize=9,
            in_layout=False,
            path_effects=[withStroke(linewidth=2, foreground=PAPER)],
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6},
        )
        size = mpl.text.Text.get_window_extent(note).size
        corners = [
            d * dot * side - size * (1 - side) / 2 for d in (6, 14, 24, 36, 50) for side in SIDES
        ]
        boxes = [Bbox.from_bounds(*(at[i] + corner), *size) for corner in corners]
        clash = [
            size.prod() - shared(box, ax.bbox) + sum(shared(box, other) for other in taken)
            for box in boxes
        ]
        best = int(np.argmin(np.round(clash, 3)))
        note.set_position(corners[best] / dot)
        taken.append(boxes[best])


@_styled
def against_rate(rows: pd.DataFrame, metric: str = "auroc") -> Figure:
    """A metric against the share of parameters removed; BL as a band, methods without a rate as dashed lines.

    Markers: means over seeds, with the runs' 95 % intervals averaged. Dots: single seeds, where there are several.
    """
    fig = Figure(5.8, 3.3 + 0.2 * -(-rows["method"].nunique() // 5))
    ax = fig.subplots()
    _baseline(ax, rows, metric)
    rows = rows[rows["method"] != "BL"].assign(x=lambda r: 100 * r["rate"].astype(float))
    rated = list(by_method(rows.dropna(subset=["x"])))
    for method, mine in by_method(rows).items():
        (colour, _), (values, _) = appearance(method), _values(mine, metric)
        if method not in rated:
            ax.axhline(values.mean(), color=colour, linestyle="--", linewidth=1.2, label=method)
            continue
        _over(
            ax,
            mine.assign(x=mine["x"] + 0.6 * (rated.index(method) - (len(rated) - 1) / 2)),
            metric,
        )
    ax.set_xticks(sorted(rows["x"].dropna().unique()))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g} %")
    ax.set(xlabel="parameters removed (by CPF: set to zero)", ylabel=METRICS.get(metric, metric))
    fig.legend(loc="outside upper center", ncols=5)
    return fig


def _over(ax, mine: pd.DataFrame, metric: str) -> None:
    """One method's line over column `x`: means over seeds, the runs' 95 % intervals averaged, single seeds as dots."""
    method = mine["method"].iloc[0]
    (colour, marker), (values, bars) = appearance(method), _values(mine, metric)
    mean = pd.DataFrame({"value": values, "down": bars[0], "up": bars[1]}).groupby(mine["x"]).mean()
    ax.errorbar(
        mean.index,
        mean["value"],
        mean[["down", "up"]].T,
        color=colour,
        marker=marker,
        markersize=7,
        elinewidth=1,
        capsize=2,
        markeredgecolor=PAPER,
        label=method,
        zorder=3,
    )
    if mine["seed"].nunique() > 1:
        ax.plot(mine["x"], values, ".", color=colour, markersize=4, alpha=0.6)


@_styled
def against_images(rows: pd.DataFrame, metric: str = "auroc") -> Figure:
    """A metric against the number of target images that a run was trained on: one line a method, BL being the one from nothing.

    Markers: means over seeds, with the runs' 95 % intervals averaged; dots: single seeds. Of rated methods the highest rate.
    """
    fig = Figure(5.8, 3.5)
    ax, groups = fig.subplots(), by_method(rows.dropna(subset=["train_images"]))
    for i, mine in enumerate(groups.values()):
        top = mine[mine["rate"].isna() | (mine["rate"] == mine["rate"].max())]
        _over(
            ax,
            top.assign(x=top["train_images"].astype(float) * 1.03 ** (i - (len(groups) - 1) / 2)),
            metric,
        )
    _log(ax.xaxis, rows["train_images"].astype(float))
    counts = sorted(rows["train_images"].dropna().unique())
    ax.set_xticks(counts, [f"{n:,.0f}" for n in counts])
    ax.set(xlabel="training images of the target", ylabel=METRICS.get(metric, metric))
    fig.legend(loc="outside upper center", ncols=5)
    return fig


@_styled
def forest(rows: pd.DataFrame, columns: dict[str, str], lines: Sequence[float] = ()) -> Figure:
    """Each row's value with its interval, a line a row and a panel a column ({column: its title}; intervals in `_low` and `_high`).

    lines: where to draw vertical lines, the first solid, the others dashed. Without any, the first BL among the rows has its interval as a band.
    A column `name` stands for the runs' own names.
    """
    names = rows.get(
        "name", [run_label(m, r) for m, r in zip(rows["method"], rows["rate"], strict=True)]
    )
    first = next((i for i, method in enumerate(rows["method"]) if method == "BL"), None)
    tall = max(str(name).count("\n") for name in names) + 1
    fig = Figure(2.2 + min(3 * len(columns), 7.5), (0.08 + 0.16 * tall) * len(rows) + 1)
    for ax, (column, title) in zip(
        fig.subplots(1, len(columns), sharey=True, squeeze=False)[0], columns.items(), strict=True
    ):
        value, bars = _values(rows.reset_index(drop=True), column)
        for i, method in enumerate(rows["method"]):
            colour, marker = appearance(method)
            ax.errorbar(
                value[i],
                i,
                xerr=bars[:, [i]],
                fmt=marker,
                color=colour,
                markersize=10 if marker == "*" else 6,
                elinewidth=1.2,
            )
            if method == "BL" and not lines and i == first:
                ax.axvspan(
                    value[i] - bars[0, i], value[i] + bars[1, i], color=RED, alpha=0.1, linewidth=0
                )
        for k, x in enumerate(lines):
            ax.axvline(x, color=INK, linewidth=1, linestyle="--" if k else "-", zorder=1)
        ax.set(xlabel=title, ylim=(len(rows) - 0.5, -0.5))
        ax.grid(visible=False, axis="y")
        ax.grid(axis="x")
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
        ax.set_yticks(range(len(rows)), names)
    return fig


@_styled
def generators(rows: pd.DataFrame, metric: str = "auroc") -> Figure:
    """A metric on each test generator's fakes (against all reals): bars are means over a method's runs, dots its runs.

    Where a method has one run, its 95 % interval stands instead of dots. Dotted line: chance (AUROC, balanced accuracy).
    """
    names = [
        c.removesuffix(f"/{metric}")
        for c in rows.dropna(axis=1, how="all")
        if c.endswith(f"/{metric}")
    ]
    names = [name for name in names if name != "macro"]
    if not names:
        return _nothing("no metrics by generator")
    groups = by_method(rows)
    fig = Figure(5.8, 0.9 + len(names) * (0.17 * len(groups) + 0.15))
    ax = fig.subplots()
    step = 0.85 / len(groups)
    for k, (method, mine) in enumerate(groups.items()):
        colour, marker = appearance(method)
        places = np.arange(len(names)) + (k - (len(groups) - 1) / 2) * step
        drawn = [_values(mine, f"{name}/{metric}") for name in names]
        means, hatch = (
            [values.mean() for values, _ in drawn],
            "//" if method in METHODS and METHODS[method].transfers else "",
        )
        ax.barh(places, means, 0.9 * step, color=colour, alpha=0.8, label=method, hatch=hatch)
        for y, (values, bars) in zip(places, drawn, strict=True):
            if len(mine) == 1:
                ax.errorbar(values, [y], xerr=bars, color=INK, elinewidth=1, capsize=2)
            else:
                ax.plot(values, np.full(len(values), y), marker, color=INK, markersize=3)
    if metric in ("auroc", "balanced_accuracy"):
        ax.axvline(0.5, color=INK, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=METRICS.get(metric, metric), xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    fig.legend(loc="outside upper center", ncols=5)
    return fig
