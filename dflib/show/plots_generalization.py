"""Figures of notebook 14: what holds on unseen generators, under perturbations, and where detectors look. Data in, a `Figure` out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.patches import Rectangle
from scipy import stats

from dflib.show.plots import (
    BLUE,
    GREY,
    INK,
    METRICS,
    ORANGE,
    PAPER,
    RED,
    Figure,
    _nothing,
    _styled,
    appearance,
    run_label,
)

FAMILIES = {  # kind of perturbation: title of its panel, whether less is worse
    "jpeg": ("JPEG quality", True),
    "webp": ("WebP quality", True),
    "blur": ("blur, sigma in pixels", False),
    "resize": ("resized by", True),
    "crop": ("cropped to (share of a side)", True),
    "noise": ("noise, sigma in grey levels", False),
    "screenshot": ("screenshot, resized by", True),
}


@_styled
def heat_map(cells: pd.DataFrame, metric: str = "auroc") -> Figure:
    """What was trained on (rows) against what was tested on (columns): a metric with its 95 % interval in each cell, a panel each method and rate.

    cells: columns method, rate, train, test, seen, and the metric with `_low` and `_high`, as `compare.matrix` gives them. White is chance; cells
    of generators seen in training have a frame.
    """
    panels = dict(
        list(cells.assign(rate=cells["rate"].fillna(0)).groupby(["method", "rate"], sort=False))
    )
    rows, columns = (
        cells["train"].drop_duplicates().tolist(),
        cells["test"].drop_duplicates().tolist(),
    )
    across = max(1, min(len(panels), 8 // max(1, len(columns)) or 1))
    down = -(-len(panels) // across)
    longest = max(map(len, rows))
    fig = Figure(
        min(12, across * (0.85 * len(columns) + 0.3) + 0.075 * longest + 1.2),
        down * (0.62 * len(rows) + 0.95),
    )
    axes = fig.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for ax in axes[len(panels) :]:
        ax.axis("off")
    for ax, ((method, rate), mine) in zip(axes, panels.items(), strict=False):
        image = _panel(ax, mine, rows, columns, metric)
        ax.set_title(run_label(method, rate or None))
    bar = fig.colorbar(
        image, ax=axes.tolist(), shrink=0.8, aspect=25, label=METRICS.get(metric, metric)
    )
    bar.outline.set_visible(False)
    fig.supxlabel("tested on", fontsize=10)
    fig.supylabel("trained on", fontsize=10)
    return fig


def _panel(ax, cells: pd.DataFrame, rows: list[str], columns: list[str], metric: str):
    grid = cells.pivot_table(index="train", columns="test", values=metric).reindex(
        index=rows, columns=columns
    )
    image = ax.imshow(grid, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
    for cell in cells.itertuples():
        x, y, value = columns.index(cell.test), rows.index(cell.train), getattr(cell, metric)
        low, high = getattr(cell, f"{metric}_low"), getattr(cell, f"{metric}_high")
        colour = "white" if abs(value - 0.5) > 0.25 else INK
        ax.text(
            x,
            y,
            f"{value:.2f}",
            ha="center",
            va="bottom",
            color=colour,
            fontsize=10,
            fontweight="bold",
        )
        span = "no interval" if np.isnan(low) else f"{low:.2f}–{high:.2f}"
        ax.text(x, y + 0.04, span, ha="center", va="top", color=colour, fontsize=7)
        if cell.seen:
            ax.add_patch(
                Rectangle(
                    (x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.6
                )
            )
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return image


@_styled
def held_out(cells: pd.DataFrame, metric: str = "auroc") -> Figure:
    """Each generator, seen (filled) and not seen in training (hollow), with 95 % intervals: one line a method, over all runs that saw it or not.

    cells: as for `heat_map`. Where several folds saw a generator (or did not), values and interval ends are their means.
    """
    values = [metric, f"{metric}_low", f"{metric}_high"]
    cells = cells.assign(
        name=[run_label(m, r) for m, r in zip(cells["method"], cells["rate"], strict=True)]
    )
    means = (
        cells.groupby(["test", "name", "method", "seen"], sort=False)[values].mean().reset_index()
    )
    tests, names = (
        means["test"].drop_duplicates().tolist(),
        means["name"].drop_duplicates().tolist(),
    )
    fig = Figure(6.4, 1.2 + len(tests) * (0.2 * len(names) + 0.15))
    ax = fig.subplots()
    for k, name in enumerate(names):
        mine = means[means["name"] == name]
        (colour, marker) = appearance(mine["method"].iloc[0])
        y = np.array([tests.index(t) for t in mine["test"]]) + 0.75 * ((k + 0.5) / len(names) - 0.5)
        for seen, each in mine.assign(y=y).groupby("seen"):
            bars = np.nan_to_num(
                np.stack([each[metric] - each[values[1]], each[values[2]] - each[metric]])
            ).clip(0)
            ax.errorbar(
                each[metric],
                each["y"],
                xerr=bars,
                fmt=marker,
                color=colour,
                elinewidth=1,
                markersize=8 if marker == "*" else 6,
                markerfacecolor=colour if seen else PAPER,
                label=f"{name}, {'seen' if seen else 'not seen'}",
                zorder=3,
            )
        for _, pair in mine.assign(y=y).groupby("test"):
            ax.plot(pair[metric], pair["y"], color=colour, linewidth=0.8, linestyle=":", zorder=1)
    ax.axvline(0.5, color=INK, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(tests)), tests)
    ax.set(xlabel=METRICS.get(metric, metric), ylim=(len(tests) - 0.5, -0.5))
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    fig.legend(loc="outside upper center", ncols=min(4, 2 * len(names)))
    return fig


@_styled
def reliability(parts: dict[str, dict[str, np.ndarray]]) -> Figure:
    """A reliability diagram a panel: {title: `metrics.reliability`'s dict}. Bars below: how many images each bin holds.

    Grey: where 95 % of the bins of a perfectly calibrated detector with as many images would lie (binomial; Bröcker & Smith 2007).
    """
    fig = Figure(3.4 * len(parts) + 0.4, 4.2)
    axes = fig.subplots(
        2, len(parts), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1)
    )
    for (title, part), (top, bottom) in zip(parts.items(), axes.T, strict=True):
        filled, edges = part["count"] > 0, part["edges"]
        n, p = part["count"][filled], part["score"][filled]
        low, high = (stats.binom.ppf(q, n, p) / n for q in (0.025, 0.975))
        top.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
        top.vlines(p, low, high, color=GREY, alpha=0.6, linewidth=7, label="calibrated: 95 %")
        top.plot(
            p,
            part["observed"][filled],
            "o-",
            color=BLUE,
            linewidth=1,
            markersize=5,
            label="measured",
        )
        top.set(title=title, xlim=(0, 1), ylim=(-0.02, 1.02))
        bottom.stairs(part["count"], edges, fill=True, color=GREY)
        bottom.set(xlabel="P(fake), mean of the bin")
        bottom.yaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
    axes[0, 0].set_ylabel("share of fakes in the bin")
    axes[1, 0].set_ylabel("images")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def strengths(perturbations: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
    """The perturbations of each family with their amount, the mildest first: {"jpeg": [(95, "jpeg-95"), …]}."""
    found: dict[str, list[tuple[float, str]]] = {}
    for how in perturbations:
        kind, _, amount = how.partition("-")
        found.setdefault(kind, []).append((float(amount), how))
    return {
        kind: sorted(found[kind], reverse=FAMILIES[kind][1]) for kind in FAMILIES if kind in found
    }


@_styled
def robustness(
    drops: pd.DataFrame, value: str = "value", *, title: str = "AUROC", line: float = 0.5
) -> Figure:
    """A value under each perturbation with its 95 % interval: a panel each family, the strength on x (the mildest left), a line each method.

    drops: `robustness.drops` of several methods below each other, with columns method and rate beside perturbation and `value` (value | drop | more;
    `_low`, `_high`). The images as they are stand at the left of each panel. line: a dotted line, such as chance.
    """
    families = strengths([how for how in drops["perturbation"].unique() if how])
    if not families:
        return _nothing("no perturbations measured")
    fig = Figure(min(10, 2.6 * len(families) + 0.6), 3.1 * -(-len(families) // 4) + 0.4)
    axes = fig.subplots(
        -(-len(families) // 4), min(4, len(families)), sharey=True, squeeze=False
    ).ravel()
    drops = drops.assign(
        name=[run_label(m, r) for m, r in zip(drops["method"], drops["rate"], strict=True)]
    )
    for ax in axes[len(families) :]:
        ax.axis("off")
    for ax, (kind, steps) in zip(axes, families.items(), strict=False):
        places = {"": 0} | {how: i + 1 for i, (_, how) in enumerate(steps)}
        for k, (name, mine) in enumerate(
            drops[drops["perturbation"].isin(places)].groupby("name", sort=False)
        ):
            colour, marker = appearance(mine["method"].iloc[0])
            x = mine["perturbation"].map(places).to_numpy()
            order, shift = np.argsort(x), 0.12 * (k - (drops["name"].nunique() - 1) / 2)
            low, high = (
                np.abs(mine[value] - mine[value + end]).fillna(0) for end in ("_low", "_high")
            )
            bars = np.stack([low, high])[:, order]
            ax.errorbar(
                x[order] + shift,
                mine[value].to_numpy()[order],
                bars,
                color=colour,
                marker=marker,
                markersize=8 if marker == "*" else 5,
                linewidth=1.2,
                elinewidth=1,
                markeredgecolor=PAPER,
                label=name,
            )
        ax.axhline(line, color=INK, linestyle=":", linewidth=1)
        ax.set_xticks(range(len(places)), ["as is", *(f"{amount:g}" for amount, _ in steps)])
        ax.set(xlabel=FAMILIES[kind][0], xlim=(-0.5, len(places) - 0.5))
    for ax in axes[:: min(4, len(families))]:
        ax.set_ylabel(title)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return fig


@_styled
def spectra(parts: dict[str, np.ndarray], *, limit: float | None = None) -> Figure:
    """Mean residual spectra (`explain.spectrum`), or differences of them: {title: H x W}, zero frequency in the middle, one scale for all.

    limit: end of the colours on either side of zero; None: the largest value, but for the strongest 0.5 %.
    """
    limit = limit or max(float(np.quantile(np.abs(each), 0.995)) for each in parts.values())
    columns = min(4, len(parts))
    fig = Figure(2.1 * columns + 0.9, 2.25 * -(-len(parts) // columns))
    axes = fig.subplots(-(-len(parts) // columns), columns, squeeze=False).ravel()
    for ax in axes[len(parts) :]:
        ax.axis("off")
    for ax, (title, each) in zip(axes, parts.items(), strict=False):
        image = ax.imshow(
            each, cmap="PuOr_r", vmin=-limit, vmax=limit, extent=(-0.5, 0.5, -0.5, 0.5)
        )
        ax.set_title(title, fontsize=9)
        ax.grid(visible=False)
        ax.set_xticks([-0.5, 0, 0.5])
        ax.set_yticks([-0.5, 0, 0.5])
    fig.colorbar(image, ax=axes.tolist(), label="log power, minus real", shrink=0.8)
    fig.supxlabel("cycles a pixel", fontsize=10)
    return fig


@_styled
def saliency(
    images: Sequence[np.ndarray], maps: dict[str, np.ndarray], titles: Sequence[str]
) -> Figure:
    """Images (uint8, H x W x 3) in a row, below them each model's heat maps {name: N x H x W in [0, 1]} laid over them."""
    n, rows = len(images), 1 + len(maps)
    side = min(1.5, 9 / max(1, n))
    fig = Figure(side * n + 0.5, rows * side + 0.5)
    axes = fig.subplots(rows, n, squeeze=False)
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    for i, image in enumerate(images):
        axes[0, i].imshow(image, interpolation="nearest")
        axes[0, i].set_title(titles[i], fontsize=8, fontweight="normal", pad=3)
        for k, heat in enumerate(maps.values()):
            axes[k + 1, i].imshow(
                np.asarray(image).mean(2), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            axes[k + 1, i].imshow(heat[i], cmap="inferno", vmin=0, vmax=1, alpha=0.55)
    for ax, name in zip(axes[:, 0], ["image", *maps], strict=True):
        ax.set_ylabel(name, fontsize=8)
    return fig


@_styled
def similarities(parts: dict[str, dict[str, np.ndarray]], chance: float) -> Figure:
    """How alike heat maps are: {name: `explain.similarity`'s dict}, a histogram each of rank correlation (left) and IoU (right).

    chance: the IoU of unrelated maps, a dotted line (as 0 for the rank correlation).
    """
    fig = Figure(8, 3)
    looks = ((BLUE, "-"), (ORANGE, "--"), (RED, ":"), (INK, "-."))
    for ax, key, title, edges, at in zip(
        fig.subplots(1, 2),
        ("rank", "iou"),
        ("rank correlation", "IoU of the hottest 20 %"),
        (np.linspace(-1, 1, 21), np.linspace(0, 1, 21)),
        (0, chance),
        strict=True,
    ):
        for (name, each), (colour, style) in zip(parts.items(), looks, strict=False):
            share = 100 * np.histogram(each[key], edges)[0] / max(1, len(each[key]))
            ax.stairs(
                share,
                edges,
                color=colour,
                linestyle=style,
                linewidth=1.8,
                label=f"{name}, median {np.median(each[key]):.2f}",
            )
        ax.axvline(at, color=INK, linestyle=":", linewidth=1)
        ax.set(xlabel=title, ylabel="% of the images", xlim=(edges[0], 1))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)
    return fig
