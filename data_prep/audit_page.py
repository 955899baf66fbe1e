"""The audit's figures (by seaborn) and its page: all inside one HTML file. Measures nothing."""

import base64
import io
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jinja2 import Environment, PackageLoader

from data_prep import manifest, paths, shortcut
from data_prep.audit import SAMPLE, Audit, audit
from data_prep.errors import shown

KINDS = {"real": "#0072B2", "fake": "#D55E00"}  # Okabe-Ito: told apart by every eye
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"text.parse_math": False}  # names are data


def write(name: str, *, sample: int = SAMPLE) -> tuple[Audit, Path]:
    """Audit a dataset; write outputs/audit-NAME.json and .html; returns the audit and the page."""
    found = audit(name, sample=sample)
    page = paths.outputs_root() / f"audit-{name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    paths.write_text(page.with_suffix(".json"), json.dumps(found.summary(), indent=1))
    paths.write_text(page, render(found))
    return found, page


def distributions(found: Audit) -> plt.Figure:
    """Each feature's cumulative distribution, real against fake; images without one count as -1."""
    raw = found.looked.filter(like="raw_").rename(columns=lambda c: _words(c.removeprefix("raw_")))
    kind = np.where(found.looked["label"] == 0, "real", "fake")
    table = raw.assign(kind=kind).fillna(-1).melt("kind", var_name="feature")
    look = {"kind": "ecdf", "height": 1.8, "aspect": 1.3}
    look |= {"facet_kws": {"sharex": False}, "hue_order": list(KINDS), "palette": KINDS}
    grid = sns.displot(table, x="value", hue="kind", col="feature", col_wrap=5, **look)
    grid.set_titles("{col_name}").set_axis_labels("", "share")
    plt.close(grid.figure)
    return grid.figure


def probe_bars(found: Audit) -> plt.Figure:
    """The AUROC of the probe and of each feature alone; before and after equalising."""
    probes = {"as it is": found.raw} | ({"equalised": found.equalised} if found.alike else {})
    names, rows = list(found.raw.single)[:8], []
    for images, probe in probes.items():
        rows += [("all together", probe.auroc, images)]
        rows += [(_words(name), probe.single[name], images) for name in names]
    table = pd.DataFrame(rows, columns=["what", "auroc", "images"])
    figure = _figure(8, 0.42 * (len(names) + 1) + 1.2)
    ax = figure.subplots()
    look = {"palette": ["#333333", "#999999"][: len(probes)], "dodge": 0.3 * (len(probes) - 1)}
    sns.pointplot(table, x="auroc", y="what", hue="images", linestyle="none", ax=ax, **look)
    ax.axvline(0.5, color="black", lw=0.8)
    ax.set(xlim=(None, 1.01), xlabel="AUROC (0.5: tells nothing)", ylabel="")
    ax.legend(loc="lower right", title="")
    return figure


def spectra(found: Audit) -> plt.Figure:
    """Mean residual spectrum of each generator; fakes minus the real ones: peaks are traces."""
    names = sorted(found.spectra, key=lambda name: (name != "real", name))
    columns, rows = min(5, len(names)), -(-len(names) // 5)
    figure = _figure(2.9 * columns, 3.1 * rows)
    look = {"square": True, "xticklabels": False, "yticklabels": False, "rasterized": True}
    for place, name in enumerate(names):
        values, limits, title = found.spectra[name], {"cmap": "cividis"}, name
        if place:
            values, title = values - found.spectra[names[0]], f"{name}\nminus {names[0]}"
            reach = max(np.percentile(np.abs(values), 99.5), 0.5)
            limits = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
        ax = figure.add_subplot(rows, columns, place + 1)
        sns.heatmap(values, ax=ax, cbar_kws={"shrink": 0.75}, **limits, **look)
        ax.set_title(title)
    return figure


def formats(found: Audit) -> pd.DataFrame:
    """Usable images by label, generator, format and mode; how many sizes and JPEG qualities."""
    ok = found.table[found.table["status"] == "ok"]
    ok = ok.assign(size=ok["width"].astype(str) + "x" + ok["height"].astype(str))
    count = {"images": ("path", "size"), "sizes": ("size", "nunique")}
    count |= {"JPEG qualities": ("jpeg_quality", "nunique"), "codings": ("coding", "nunique")}
    return ok.groupby(["label", "generator", "format", "mode"]).agg(**count).reset_index()


def render(found: Audit) -> str:
    """The page, with its figures inside."""
    figures = {}
    with mpl.rc_context(STYLE):
        for draw in (probe_bars, distributions, spectra):
            buffer = io.BytesIO()
            draw(found).savefig(buffer, format="png", dpi=110)
            figures[draw.__name__] = base64.b64encode(buffer.getvalue()).decode()
    one_line = lambda value: shown(value) if type(value) is str else value  # not what is markup
    page = Environment(loader=PackageLoader("data_prep"), autoescape=True, finalize=one_line)
    return page.get_template("audit.html.j2").render(
        audit=found,
        summary=found.summary(),
        figures=figures,
        tables=[manifest.counts(found.table).reset_index(), formats(found)],
        features=", ".join(map(_words, shortcut.FEATURES)),
    )


def _words(feature: str) -> str:
    return feature.replace("_", " ")


def _figure(width: float, height: float) -> plt.Figure:
    """Closed for pyplot, which would show it once more when a notebook's cell ends."""
    plt.close(made := plt.figure(figsize=(width, height), layout="constrained"))
    return made
