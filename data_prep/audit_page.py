"""The audit's figures and its page: everything inside one HTML file. Reads an `Audit`; measures nothing."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib import figure as mpl_figure

from data_prep import manifest, shortcut
from data_prep.audit import Audit

REAL, FAKE = "#0072B2", "#D55E00"  # Okabe-Ito: told apart by every eye
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
_NAMES = {
    "bytes_per_pixel": "bytes per pixel",
    "jpeg_quality": "JPEG quality, from the file's tables",
    "pixel_quality": "JPEG quality, from pixels",
}


class Figure(mpl_figure.Figure):
    """A figure without pyplot, so that none stays in memory; a notebook shows it as PNG."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")

    def png(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    _repr_png_ = png


def distributions(audit: Audit) -> Figure:
    """Width, height, aspect, bytes per pixel and both estimates of JPEG quality, real against fake, of the images looked at."""
    columns = ("width", "height", "aspect", "bytes_per_pixel", "jpeg_quality", "pixel_quality")
    figure = Figure(11, 5.5)
    axes = figure.subplots(2, 3)
    for ax, column in zip(axes.flat, columns, strict=True):
        values = audit.looked[f"raw_{column}"]
        parts = [values[audit.looked["label"] == y].dropna() for y in (0, 1)]
        ax.set_title(_NAMES.get(column, column), loc="left")
        _histogram(ax, parts, [len(values[audit.looked["label"] == y]) for y in (0, 1)])
    axes[0, 0].legend()
    figure.supylabel("share of the class")
    return figure


def _histogram(ax, parts: list, totals: list[int]) -> None:
    both = np.concatenate(parts)
    if not len(both):
        ax.text(
            0.5, 0.5, "none of the images has one", ha="center", va="center", transform=ax.transAxes
        )
        ax.set_xticks([]), ax.set_yticks([])
        return
    low, high = both.min(), both.max()
    bins = np.linspace(low, high, 31) if high > low else np.array([low - 0.5, low + 0.5])
    for part, total, colour, name in zip(
        parts, totals, (REAL, FAKE), ("real", "fake"), strict=True
    ):
        ax.hist(
            part,
            bins,
            weights=np.full(len(part), 1 / total),
            histtype="stepfilled",
            color=colour,
            alpha=0.35,
        )
        ax.hist(
            part,
            bins,
            weights=np.full(len(part), 1 / total),
            histtype="step",
            color=colour,
            label=name,
            lw=1.5,
        )
    if low == high:
        ax.set_xticks([low], [f"{low:g}"])
    missing = [
        f"{name}: {1 - len(p) / n:.0%} without"
        for p, n, name in zip(parts, totals, ("real", "fake"), strict=True)
        if len(p) < n
    ]
    if missing:
        ax.set_xlabel("; ".join(missing))


def probe_bars(audit: Audit) -> Figure:
    """The probe's AUROC with its interval, and each feature's alone; before (dark) and after equalising (light)."""
    names = list(audit.raw.single)[:8]
    figure = Figure(8, 0.42 * (len(names) + 1) + 1.2)
    ax = figure.subplots()
    rows = ["all together", *(_NAMES.get(n, n) for n in names)]
    aside = 0.17 if audit.alike else 0  # one bar stands in the middle of its row
    series = (
        (-aside, audit.raw, "#333333", "as it is"),
        (aside, audit.equalised, "#999999", "equalised"),
    )
    for offset, found, colour, label in series[: 2 if audit.alike else 1]:
        values = np.array([found.auroc, *(found.single[n] for n in names)])
        ax.barh(
            np.arange(len(rows)) + offset,
            values - 0.5,
            left=0.5,
            height=0.32,
            color=colour,
            label=label,
        )
        ax.plot(found.ci95, [offset, offset], color=FAKE, lw=2)
    ax.set_yticks(range(len(rows)), rows)
    ax.invert_yaxis()
    ax.set_xlim(min(0.45, audit.raw.ci95[0], audit.equalised.ci95[0]) - 0.01, 1.0)
    ax.axvline(0.5, color="black", lw=0.8)
    ax.set_xlabel("AUROC (0.5: tells nothing; the line is the 95 % interval)")
    ax.legend(loc="lower right")
    return figure


def spectra(audit: Audit) -> Figure:
    """Mean residual spectrum of each generator; fakes as the difference from the real ones: peaks are a generator's trace."""
    names = (
        ["real", *sorted(g for g in audit.spectra if g != "real")]
        if "real" in audit.spectra
        else sorted(audit.spectra)
    )
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(2.4 * columns, 2.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax, name in zip(axes.flat, names, strict=False):
        first = name == names[0]
        values = audit.spectra[name] if first else audit.spectra[name] - audit.spectra[names[0]]
        reach = np.percentile(np.abs(values), 99.5)
        limits = (
            {"cmap": "cividis"}
            if first
            else {"cmap": "RdBu_r", "vmin": -max(reach, 0.5), "vmax": max(reach, 0.5)}
        )
        shown = ax.imshow(values, **limits)
        ax.set_title(name if first else f"{name}\nminus {names[0]}", fontsize=9)
        ax.set_xticks([]), ax.set_yticks([])
        figure.colorbar(shown, ax=ax, shrink=0.75)
    return figure


def colours(audit: Audit) -> Figure:
    """Mean red, green, blue and the contrast, real against fake: what a glance at a thumbnail tells."""
    names = ("red", "green", "blue", "contrast")
    figure = Figure(8, 3.2)
    ax = figure.subplots()
    for label, colour, offset in ((0, REAL, -0.19), (1, FAKE, 0.19)):
        rows = audit.looked[audit.looked["label"] == label]
        ax.boxplot(
            [rows[f"raw_{n}"] for n in names],
            positions=np.arange(len(names)) + offset,
            widths=0.32,
            patch_artist=True,
            medianprops={"color": "black"},
            boxprops={"facecolor": colour, "alpha": 0.7},
            flierprops={"markersize": 2},
            label=("real", "fake")[label],
        )
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("grey levels")
    ax.legend()
    return figure


def formats(audit: Audit) -> pd.DataFrame:
    """Usable images by label, generator, format, mode, size and JPEG quality; more than three sizes or qualities count as "many"."""
    ok = audit.table[audit.table["status"] == "ok"]
    about = ok[["label", "generator", "format", "mode"]].assign(
        pixels=ok["width"].astype(int).astype(str) + " x " + ok["height"].astype(int).astype(str),
        quality=ok["jpeg_quality"].map(lambda q: "" if pd.isna(q) else f"{q:.0f}"),
    )
    for column in ("pixels", "quality"):
        many = about.groupby(["label", "generator"])[column].transform("nunique") > 3
        about[column] = about[column].mask(many, "many")
    table = (
        about.value_counts()
        .reset_index(name="images")
        .sort_values(["label", "generator"], kind="stable")
    )
    return table.rename(columns={"quality": "JPEG quality"})


def render(audit: Audit) -> str:
    """The page, with its figures inside."""
    with mpl.rc_context(STYLE):
        drawn = {f.__name__: f(audit) for f in (probe_bars, distributions, colours, spectra)}
    figures = {name: base64.b64encode(figure.png()).decode() for name, figure in drawn.items()}
    page = Environment(
        loader=PackageLoader("data_prep"), autoescape=select_autoescape(["html", "j2"])
    ).get_template("audit.html.j2")
    counts = manifest.counts(audit.table).reset_index()
    return page.render(
        audit=audit,
        summary=audit.summary(),
        figures=figures,
        counts=_rows(counts),
        formats=_rows(formats(audit)),
        features=", ".join(_NAMES.get(f, f) for f in shortcut.FEATURES),
    )


def _rows(table) -> list[list[str]]:
    return [
        list(map(str, table.columns)),
        *([str(v) for v in row] for row in table.itertuples(index=False)),
    ]
