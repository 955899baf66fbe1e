"""The explorer's widgets: thin, around the data of `dflib.show.explorer`. Texts are HTML that takes the theme's colours."""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape

import ipywidgets as w
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from data_prep.errors import InputError
from dflib.show import explorer, plots
from dflib.study.methods import METHODS

STYLE = """<style>
.dfx { --paper: var(--jp-layout-color0, #fffffe); --grid: var(--jp-border-color2, #d8dbdf); --ink: var(--jp-ui-font-color1, #24292f);
  --soft: var(--jp-ui-font-color2, #57606a); --good: #0072b2; --bad: #d55e00; color: var(--ink); line-height: 1.35; font-size: 14px; }
.dfx.widget-box, .dfx .widget-box { overflow: visible; max-width: 100%; }
.dfx .widget-html, .dfx .widget-html-content { color: var(--ink); line-height: 1.35; font-size: 14px; max-width: 100%; height: auto; }
.dfx .widget-html-content { width: 100%; } .dfx .widget-inline-hbox { max-width: calc(100% - 4px); } .dfx select { min-width: 0; }
[data-jp-theme-light=false] .dfx { --good: #56b4e9; --bad: #f0894a; }
[data-jp-theme-light=false] .dfx .widget-dropdown > select { appearance: auto; color-scheme: dark; background-image: none; }
.dfx .grid { display: grid; gap: 8px; margin-bottom: 8px; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--wide, 135px)), 1fr)); }
.dfx .card { border: 1px solid var(--grid); border-radius: 6px; padding: 6px 10px; background: var(--paper); }
.dfx .card b { display: block; font-size: 16px; font-variant-numeric: tabular-nums; }
.dfx .card b small { white-space: nowrap; font-weight: normal; }
.dfx small, .dfx .soft { color: var(--soft); font-size: 12px; }
.dfx .good { color: var(--good); } .dfx .bad { color: var(--bad); }
.dfx .note { border-left: 4px solid var(--grid); padding: 4px 10px; margin: 4px 0; } .dfx .note.bad { border-color: var(--bad); color: var(--ink); }
.dfx code { display: inline-block; background: var(--jp-layout-color2, #eee); color: var(--ink); padding: 2px 6px; user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; }
.dfx svg { max-width: 100%; height: auto; display: block; color: var(--ink); }
.dfx table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .dfx td, .dfx th { padding: 4px 12px; border: 1px solid var(--grid); text-align: right; font-weight: normal; }
.dfx td b { font-size: 17px; }
.dfx .bar { display: grid; grid-template-columns: minmax(60px, 30%) 1fr 44px; gap: 6px; align-items: center; font-variant-numeric: tabular-nums; font-size: 13px; }
.dfx .bar span { overflow-wrap: anywhere; } .dfx .bar i { display: block; position: relative; height: 12px; background: var(--grid); } .dfx .bar i u { display: block; height: 12px; }
.dfx .bar i s { position: absolute; top: -2px; height: 16px; width: 2px; background: var(--ink); }
.dfx figure { margin: 0; border: 3px solid var(--grid); border-radius: 6px; padding: 6px; background: var(--paper); }
.dfx figure.flip { border: 3px dashed var(--bad); }
.dfx .four { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; } .dfx .four img, .dfx .four div { width: 100%; aspect-ratio: 1; image-rendering: pixelated; background: var(--grid); display: block; }
.dfx .four small { display: block; }
.dfx .widget-toggle-buttons, .dfx .jupyter-widgets.widget-toggle-buttons { width: 100%; } .dfx :focus-visible { outline: 2px solid var(--jp-brand-color1, #0072b2); outline-offset: 1px; }
</style>"""
VIEWS = ("Overview", "Test images", "Threshold", "Your image", "New rate")
COSTS = {
    "latency": "latency_p50_ms",
    "file size": "file_bytes",
    "multiply-adds": "macs",
    "parameters": "params",
}
ROW = {"flex_flow": "row wrap", "width": "100%", "grid_gap": "4px 16px"}


def explore(dataset: str = "demo", protocol: str = "strict", preset: str = "demo") -> w.Widget:
    """The explorer over all finished runs, those of `dataset` and `protocol` first; without any, a note that says how to get some.

    >>> explore("demo")                                             # doctest: +SKIP
    """
    found = explorer.studies(dataset, protocol)
    if found:
        box, warm_up = (
            Explorer(found).box,
            threading.Thread(target=explorer.warm_up, args=(found,), daemon=True),
        )
        warm_up.start()  # while the first run is looked at
        return box
    command = f"python -m dflib study --preset {preset} --dataset {dataset} --protocol {protocol}"
    text = note(
        "No finished run that can be compared with its BL yet. This makes some; then reload:",
        command,
    )
    return w.HTML(f'{STYLE}<div class="dfx">{text}</div>')


def slide(draw: Callable[..., object], **controls: w.Widget) -> None:
    """Controls, and below them the figure `draw(name=value, …)`, drawn again when one is moved.

    The figure is an output of the cell: papermill, nbconvert and readers without a kernel have it
    as well, once. draw: returns what `display` shows (a pyplot figure too; no `plt.show()`).
    A control without a description is labelled with its name; sliders draw when they are let go.

    >>> slide(lambda bits: plots.quantization_grid(weights, bits), bits=w.IntSlider(4, 2, 8))
    ... # doctest: +SKIP
    """

    def drawn() -> object:
        figure = draw(**{name: control.value for name, control in controls.items()})
        if isinstance(figure, Figure):
            pyplot.close(figure)  # else the cell shows it once more when it ends
        return figure

    for name, control in controls.items():
        control.description = control.description or name
        control.style.description_width = "initial"  # a long label is not cut
        if control.has_trait("continuous_update"):
            control.continuous_update = False
        control.observe(lambda _: shown.update(drawn()), "value")
    display(w.VBox(list(controls.values())))
    shown = display(drawn(), display_id=True)


# --- data in, HTML out


def note(text: str, command: str = "", *, bad: bool = False) -> str:
    """A message, and the command that helps."""
    role = 'role="alert"' if bad else 'role="note"'
    return f'<div class="note{" bad" * bad}" {role}>{escape(text)}{f"<br><code>{escape(command)}</code>" if command else ""}</div>'


def card_grid(cards: Sequence[explorer.Card]) -> str:
    """Cards side by side, as many as the width takes."""
    look = {None: "soft", True: "good", False: "bad"}
    sign = {None: "", True: "▲ ", False: "▼ "}
    value = lambda c: re.sub(r"(\[.*\])$", r"<small>\1</small>", escape(c.value))
    each = [
        f'<div class="card"><small>{escape(c.title)}</small><b>{value(c)}</b>'
        f'<small class="{look[c.better]}">{sign[c.better]}{escape(c.against) or "&nbsp;"}</small></div>'
        for c in cards
    ]
    return f'<div class="grid">{"".join(each)}</div>'


def bar(
    name: str,
    value: float | None,
    colour: str,
    *,
    mark: float | None = None,
    text: str | None = None,
) -> str:
    """A bar from 0 to 1 with its name and its value; mark: a line across it (a threshold)."""
    line = "" if mark is None else f'<s style="left:calc({100 * mark:.1f}% - 1px)"></s>'
    if value is None or pd.isna(value):
        return f'<div class="bar"><span>{escape(name)}</span><i></i>–</div>'
    filled = f'<u style="width:{100 * value:.1f}%;background:{colour}"></u>'
    return f'<div class="bar"><span>{escape(name)}</span><i>{filled}{line}</i>{text or f"{value:.3f}"}</div>'


def generator_bars(study: explorer.Study, run_id: str) -> str:
    """AUROC on each generator's fakes against all reals, of BL and of a run."""
    run, base = study.row(run_id), study.base
    names = [
        c.removesuffix("/auroc")
        for c in study.rows
        if c.endswith("/auroc") and c != "macro/auroc" and pd.notna(base[c])
    ]
    rows = []
    for name in names:
        rows.append(
            f"<p><b>{escape(name)}</b></p>" + bar("BL", base[f"{name}/auroc"], plots.RED, mark=0.5)
        )
        if run_id != base["run_id"]:
            rows.append(
                bar(
                    run["name"],
                    run.get(f"{name}/auroc"),
                    plots.appearance(run["method"])[0],
                    mark=0.5,
                )
            )
    return f"<div><b>AUROC by generator</b> <small>line: chance</small>{''.join(rows)}</div>"


def png(array: np.ndarray, text: str) -> str:
    """An image element of uint8 pixels, H x W x 3."""
    Image.fromarray(array).save(buffer := io.BytesIO(), "PNG")
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def picture(look: explorer.Look | None, names: Sequence[str]) -> str:
    """An image, its residual and its heat maps in a square of four; boxes of the same size while they are computed."""
    titles = [
        "as the detector gets it",
        "noise residual, x 8",
        *(f"Grad-CAM, {name}" for name in names),
    ]
    arrays = [None] * len(titles) if look is None else [look.image, look.residual, *look.heat]
    each = [
        f"<span>{'<div></div>' if a is None else png(a, t)}<small>{escape(t)}</small></span>"
        for a, t in zip(arrays, titles, strict=True)
    ]
    return f'<div class="four">{"".join(each)}</div>'


def image_cards(
    study: explorer.Study,
    run_id: str,
    table: pd.DataFrame,
    positions: Sequence[int],
    shown: Sequence[explorer.Look] | None,
) -> str:
    """Test images with their probabilities under BL and a run; decisions that flipped have a dashed border and say so."""
    run, base, each = study.row(run_id), study.base, []
    for k, i in enumerate(positions):
        t = table.loc[i]
        verdict = {
            (True, True): "both right",
            (False, False): "both wrong",
            (True, False): "flipped: now wrong",
            (False, True): "flipped: now right",
        }
        caption = f"<b>{escape('real' if t['label'] == 0 else 'fake: ' + str(t['generator']))}</b> · {verdict[bool(t['base_right']), bool(t['right'])]}"
        bars = bar("BL", t["base_score"], plots.RED, mark=base["threshold"]) + bar(
            run["name"], t["score"], plots.appearance(run["method"])[0], mark=run["threshold"]
        )
        alt = shown[k] if shown else None
        each.append(
            f'<figure class="{"flip" if t["flip"] else ""}"><figcaption>{caption}</figcaption>{picture(alt, ["BL", run["name"]])}'
            f"<small>P(fake); line: the threshold</small>{bars}<small>{escape(str(t['path']))}</small></figure>"
        )
    return f'<div class="grid" style="--wide: 240px">{"".join(each)}</div>'


def confusion_table(counts: dict[str, int], name: str) -> str:
    """A confusion matrix with the rates that follow from it."""
    n, wrong = sum(counts.values()), counts["fn"] + counts["fp"]
    rate = lambda a, b: f"{100 * counts[a] / max(1, counts[a] + counts[b]):.1f} %"
    return (
        f'<table aria-label="confusion matrix of {escape(name)}"><caption><b>{escape(name)}</b>: {n - wrong} of {n} right ({100 * (1 - wrong / n):.1f} %)</caption>'
        f"<tr><th></th><th>called real</th><th>called fake</th></tr>"
        f'<tr><th>real</th><td><b>{counts["tn"]}</b></td><td class="bad"><b>{counts["fp"]}</b><br><small>{rate("fp", "tn")} false alarms</small></td></tr>'
        f'<tr><th>fake</th><td class="bad"><b>{counts["fn"]}</b><br><small>{rate("fn", "tp")} missed</small></td><td><b>{counts["tp"]}</b></td></tr></table>'
    )


def cost_lines(x: np.ndarray, lines: dict[str, tuple[np.ndarray, str]], at: float) -> str:
    """Expected cost against the threshold, one line each (the first dashed), and where the threshold stands."""
    width, height, left, bottom = 560, 220, 46, 34
    top = max(1e-9, max(y.max() for y, _ in lines.values()))
    px = lambda t: left + (width - left - 12) * t
    py = lambda v: 12 + (height - bottom - 12) * (1 - v / top)
    marks = [
        f'<text x="{px(t):.0f}" y="{height - 16}" text-anchor="middle">{t:g}</text>'
        for t in (0, 0.25, 0.5, 0.75, 1)
    ]
    marks += [
        f'<text x="{left - 6}" y="{py(v) + 4:.0f}" text-anchor="end">{v:.3g}</text><path d="M{left} {py(v):.1f}H{width - 12}" stroke="var(--grid)"/>'
        for v in (0, top / 2, top)
    ]
    for k, (_name, (y, colour)) in enumerate(lines.items()):
        points = " ".join(f"{px(t):.1f},{py(v):.1f}" for t, v in zip(x, y, strict=True))
        best, dashes = int(y.argmin()), 'stroke-dasharray="6 4"' * (k == 0 and len(lines) > 1)
        marks.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" {dashes}/>'
            f'<circle cx="{px(x[best]):.1f}" cy="{py(y[best]):.1f}" r="4" fill="{colour}"/>'
        )
    marks.append(
        f'<path d="M{px(at):.1f} 12V{height - bottom}" stroke="currentColor" stroke-width="1.5"/>'
    )
    text = "; ".join(
        f"{name}: {y[np.abs(x - at).argmin()]:.3g} at the threshold, lowest {y.min():.3g} at {x[y.argmin()]:.2f}"
        for name, (y, _) in lines.items()
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="cost of 100 images against the threshold. {escape(text)}" font-size="12" fill="currentColor">'
        f'{"".join(marks)}<text x="{width / 2}" y="{height - 2}" text-anchor="middle">threshold on P(fake)</text></svg><p>Cost of 100 images: {escape(text)}.</p>'
    )


class Pareto:
    """The Pareto plot of a study as SVG, drawn once for each cost; a ring is put around the current run."""

    def __init__(self, study: explorer.Study) -> None:
        self.study, self.drawn = study, {}

    def __call__(self, run_id: str, cost: str) -> str:
        table = self.study.table
        if (cost, len(table)) not in self.drawn:
            self.drawn[cost, len(table)] = self._draw(table, cost)
        svg, places = self.drawn[cost, len(table)]
        if run_id not in places:
            return svg
        x, y = places[run_id]
        ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="currentColor" stroke-width="2.5"/>'
        return svg.replace("</svg>", f"{ring}</svg>")

    def _draw(self, table: pd.DataFrame, cost: str) -> tuple[str, dict[str, tuple[float, float]]]:
        fig = plots.pareto(table, cost)
        svg = plots.inline_svg(fig, f"p{cost}-")
        if not fig.axes:
            return svg, {}
        fig.set_dpi(72)  # an SVG's points
        height, ax = 72 * fig.get_figheight(), fig.axes[0]
        xy = ax.transData.transform(
            table[[cost, "auroc"]].astype(float).to_numpy() / [plots.COSTS[cost][1], 1]
        )
        return svg, {
            r: (x, height - y)
            for r, (x, y) in zip(table["run_id"], xy, strict=True)
            if np.isfinite([x, y]).all()
        }


# --- the widgets


class Explorer:
    """All controls and views; `box` is what is shown. Each handler reads the controls and sets the HTML of what depends on them.

    studies: as `explorer.studies` gives them. Setting `.value` of a control does what a hand on it does.
    """

    def __init__(self, studies: Sequence[explorer.Study]) -> None:
        self._quiet = 0
        text = {"style": {"description_width": "initial"}}
        wide = lambda most: w.Layout(width=f"min(100%, {most}px)")
        self.studies = {s.title: s for s in studies}
        self.which = w.Dropdown(
            options=list(self.studies), description="Study:", layout=wide(420), **text
        )
        self.method = w.Dropdown(description="Method:", layout=wide(420), **text)
        self.rate = w.SelectionSlider(
            options=[("no rate", "")],
            description="Rate:",
            layout=wide(420),
            continuous_update=False,
            **text,
        )
        self.wanted = w.BoundedFloatText(
            min=1, max=99.9, step=5, description="Another rate, %:", layout=wide(200), **text
        )
        self.message, self.cards = w.HTML(), w.HTML(layout={"min_height": "150px"})
        self.view = w.ToggleButtons(
            options=VIEWS,
            description="",
            style={"button_width": "auto"},
            tooltips=[f"show: {v}" for v in VIEWS],
        )
        self.cost = w.Dropdown(options=COSTS, description="Against:", layout=wide(260), **text)
        self.pareto, self.bars = (
            w.HTML(layout={"min_height": "300px"}),
            w.HTML(layout={"width": "min(100%, 420px)"}),
        )
        self.choice = w.Dropdown(
            options=list(explorer.CHOICES), description="Show:", layout=wide(340), **text
        )
        self.page = w.BoundedIntText(min=1, max=1, description="Page:", layout=wide(130), **text)
        self.images = w.HTML(layout={"min_height": "420px", "width": "100%"})
        self.threshold = w.FloatSlider(
            min=0,
            max=1,
            step=0.01,
            description="Threshold:",
            layout=wide(420),
            continuous_update=True,
            **text,
        )
        self.miss = w.BoundedFloatText(
            1,
            min=0,
            max=1000,
            description="A missed fake costs (false alarm = 1):",
            layout=wide(340),
            **text,
        )
        self.share = w.BoundedFloatText(
            50, min=0, max=100, description="Fakes among 100 images:", layout=wide(260), **text
        )
        self.matrix, self.line = w.HTML(), w.HTML(layout={"width": "min(100%, 580px)"})
        self.upload = w.FileUpload(
            accept="image/*",
            description="Choose an image",
            tooltip="an image file of yours",
            layout=wide(220),
        )
        self.first, self.second = (
            w.Dropdown(description=d, layout=wide(300), **text) for d in ("Model A:", "Model B:")
        )
        self.answer, self._uploaded = w.HTML(layout={"min_height": "300px", "width": "100%"}), None
        self.new_rate = w.BoundedFloatText(
            75,
            min=1,
            max=99.9,
            step=5,
            description="Parameters to remove, %:",
            layout=wide(260),
            **text,
        )
        self.epochs = w.IntSlider(
            2,
            min=1,
            max=10,
            description="Fine-tuning epochs:",
            layout=wide(380),
            continuous_update=False,
            **text,
        )
        self.make, self.cancel, self.keep = (
            w.Button(description=d, disabled=k > 0, layout=wide(180))
            for k, d in enumerate(("Make it now", "Cancel", "Keep it as a run"))
        )
        self.progress, self.state = (
            w.FloatProgress(max=1, description="Progress:", layout=wide(420), **text),
            w.HTML(),
        )
        self.job: explorer.Job | None = None
        self.jobs: list[explorer.Job] = []  # what each made lies in a folder that goes with it
        self.worker: threading.Thread | None = None
        row = lambda *children: w.Box(children, layout=ROW)
        self.panels = {
            "Overview": w.VBox([self.cost, row(self.pareto, self.bars)]),
            "Test images": w.VBox([row(self.choice, self.page), self.images]),
            "Threshold": w.VBox(
                [row(self.threshold, self.miss, self.share), row(self.matrix, self.line)]
            ),
            "Your image": w.VBox([row(self.upload, self.first, self.second), self.answer]),
            "New rate": w.VBox(
                [
                    row(self.new_rate, self.epochs),
                    row(self.make, self.cancel, self.keep),
                    self.progress,
                    self.state,
                ]
            ),
        }
        controls = w.VBox(
            [
                self.which,
                row(self.method, self.rate, self.wanted),
                self.message,
                self.cards,
                self.view,
            ]
        )
        self.box = w.VBox([w.HTML(STYLE), controls, *self.panels.values()])
        self.box.add_class("dfx")
        self._wire()
        self._on_study()

    def _wire(self) -> None:
        def on(call: Callable[[], None], *controls: w.Widget) -> None:
            for control in controls:
                control.observe(lambda _: None if self._quiet else call(), "value")

        on(self._on_study, self.which)
        on(self._on_method, self.method)
        on(self._on_run, self.rate)
        on(self._on_wanted, self.wanted)
        on(self._on_view, self.view)
        on(self._on_cost, self.cost)
        on(self._on_choice, self.choice)
        on(self._on_page, self.page)
        on(self._on_threshold, self.threshold, self.miss, self.share)
        on(self._on_upload, self.upload)
        on(self._on_models, self.first, self.second)
        self.make.on_click(lambda _: self.start())
        self.cancel.on_click(lambda _: self.job and self.job.cancel())
        self.keep.on_click(lambda _: self._on_keep())

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Set controls without what follows from a hand on them."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    @property
    def study(self) -> explorer.Study:
        return self.studies[self.which.value]

    @property
    def run_id(self) -> str:
        return self.rate.value

    def _on_study(self) -> None:
        self._pareto = Pareto(self.study)
        self._fill(method=next((m for m in self.study.table["method"] if m != "BL"), "BL"))
        self.state.value = note(
            "Structured pruning of BL (CPF-S) at a rate of your choice, with a short fine-tuning, in a process of its own. "
            "Nothing is stored unless you ask for it."
        )
        self.answer.value = self._ask_for_image()

    def _fill(self, method: str, run_id: str = "") -> None:
        """Put the study's runs into the menus."""
        there = list(self.study.table["method"].unique())
        names = {
            m: METHODS[m].title if m in METHODS else m
            for m in [*there, *(m for m in METHODS if m not in there)]
        }
        runs_ = [(r["name"], r["run_id"]) for _, r in self.study.table.iterrows()]
        for menu, value in (
            (self.first, self.study.base["run_id"]),
            (self.second, run_id or runs_[-1][1]),
        ):
            with self._quietly():
                menu.options, menu.value = runs_, value
        with self._quietly():
            self.method.options = [
                (f"{m} – {t}" + ("" if m in there else " (not made yet)"), m)
                for m, t in names.items()
            ]
            self.method.value = method
        self._on_method(run_id)

    def _on_method(self, run_id: str = "") -> None:
        mine = self.study.of(self.method.value)
        self.wanted.disabled = (
            self.method.value not in METHODS or not METHODS[self.method.value].rated
        )
        if mine.empty:
            self.rate.disabled = True
            return self._missing(None if self.wanted.disabled else self.wanted.value / 100)
        with self._quietly():
            self.rate.options = list(zip(mine["label"], mine["run_id"], strict=True))
            self.rate.value = run_id or mine["run_id"].iloc[-1]
            self.rate.disabled = len(mine) < 2
        return self._on_run()

    def _on_run(self) -> None:
        """The current run has changed: all that depends on it follows; what takes long comes last."""
        study, run = self.study, self.study.row(self.run_id)
        with self._quietly():
            if pd.notna(run["rate"]):
                self.wanted.value = 100 * run["rate"]
            self.threshold.value = round(run["threshold"], 2)
            self.second.value = self.run_id
        self.message.value = ""
        self.cards.value = f'<div role="status" aria-live="polite"><p><b>{escape(run["name"])}</b> <small>{escape(self.run_id)}</small></p>{card_grid(explorer.cards(study, self.run_id))}</div>'
        self._on_view()

    def _on_wanted(self) -> None:
        """Snap to the finished run at that rate; where there is none, say what makes it."""
        mine, rate = self.study.of(self.method.value), self.wanted.value / 100
        exact = mine[np.isclose(mine["rate"].astype(float), rate)]
        if len(exact):
            self.rate.value = exact["run_id"].iloc[-1]
            self.message.value = ""
        else:
            self._missing(rate)

    def _missing(self, rate: float | None) -> None:
        method = self.method.value
        name = plots.run_label(method, rate)
        shown = self.study.row(self.run_id)["name"]
        try:
            command = self.study.missing(method, rate)
        except InputError as error:
            self.message.value = note(
                f"{name} is not there, and cannot be made as things are: {error}", bad=True
            )
        else:
            here = " Or make it here: New rate." if method == "CPF-S" else ""
            self.message.value = note(
                f"{name} is not there ({shown} stays shown). This makes it; then reload:{here}",
                command,
            )
            if method == "CPF-S" and rate:
                self.new_rate.value = 100 * rate

    # --- views

    def _on_view(self) -> None:
        for name, panel in self.panels.items():
            panel.layout.display = "" if name == self.view.value else "none"
        if self.view.value == "Overview":
            self._on_cost()
            self.bars.value = generator_bars(self.study, self.run_id)
        elif self.view.value == "Test images":
            self._on_choice()
        elif self.view.value == "Threshold":
            self._on_threshold()
        elif self.view.value == "Your image" and self._uploaded is not None:
            self._on_models()

    def _on_cost(self) -> None:
        self.pareto.value = self._pareto(self.run_id, self.cost.value)

    def _on_choice(self) -> None:
        try:
            self._table = explorer.compared(self.study, self.run_id)
        except InputError as error:
            self.images.value = note(str(error), bad=True)
            return
        self._positions = explorer.chosen(self._table, self.choice.value)
        with self._quietly():
            self.page.max = max(1, -(-len(self._positions) // explorer.SHOWN))
            self.page.value = 1
        self._on_page()

    def _on_page(self) -> None:
        """The probabilities at once, from the stored predictions; pictures and heat maps when they are computed."""
        if not self._positions:
            self.images.value = note(
                f"None of the {len(self._table)} test images: {self.choice.value}."
            )
            return
        start = explorer.SHOWN * (self.page.value - 1)
        here = self._positions[start : start + explorer.SHOWN]
        head = f"<p>{len(self._positions)} of {len(self._table)} test images: {escape(self.choice.value)}. Page {self.page.value} of {self.page.max}.</p>"
        draw = lambda shown: head + image_cards(self.study, self.run_id, self._table, here, shown)
        self.images.value = draw(None)
        try:
            test = self.study.data.test
            images = np.stack([test.image(i) for i in here])
            folders = [self.study.base["folder"], self.study.row(self.run_id)["folder"]]
            self.images.value = draw(explorer.looks(images, folders))
        except InputError as error:
            self.images.value = note(f"The pictures cannot be shown: {error}", bad=True) + draw(
                None
            )

    def _on_threshold(self) -> None:
        try:
            table = explorer.compared(self.study, self.run_id)
        except InputError as error:
            self.matrix.value, self.line.value = note(str(error), bad=True), ""
            return
        run, at = self.study.row(self.run_id), self.threshold.value
        x = np.linspace(0, 1, 201)
        line = lambda column: explorer.error_cost(
            table, column, x, miss=self.miss.value, share=self.share.value / 100
        )
        lines = {"BL": (line("base_score"), plots.RED)}
        if self.run_id != self.study.base["run_id"]:
            lines[run["name"]] = (line("score"), plots.appearance(run["method"])[0])
        self.matrix.value = confusion_table(explorer.confusion(table, "score", at), run["name"]) + (
            f"<p class='soft'>at {at:.2f}; chosen on validation images: {run['threshold']:.3f}</p>"
        )
        self.line.value = cost_lines(x, lines, at)

    # --- one's own image

    def _ask_for_image(self) -> str:
        kinds = ", ".join(explorer.UPLOAD_FORMATS)
        return note(
            f"{kinds}; at most {explorer.UPLOAD_BYTES / 1e6:.0f} MB and {explorer.UPLOAD_PIXELS / 1e6:.0f} megapixels. "
            "It is read in this notebook's memory alone, and never written to disk."
        )

    def _on_upload(self) -> None:
        if self.upload.value:
            self._uploaded = bytes(self.upload.value[0]["content"])
            with self._quietly():
                self.upload.value = ()  # not to be saved with the notebook's widgets
            self._on_models()

    def _on_models(self) -> None:
        if self._uploaded is None:
            return
        try:
            found, look = explorer.answer(
                self._uploaded, self.study, [self.first.value, self.second.value]
            )
        except InputError as error:
            self._uploaded = None
            self.answer.value = (
                note(f"This file cannot be used: {error}.", bad=True) + self._ask_for_image()
            )
            return
        colours = [
            plots.appearance(self.study.row(r)["method"])[0]
            for r in (self.first.value, self.second.value)
        ]
        bars = "".join(
            bar(f["name"], f["probability"], c, mark=f["threshold"])
            for f, c in zip(found, colours, strict=True)
        )
        said = " · ".join(
            f"{f['name']}: {f['label']} (P(fake) {f['probability']:.3f}, threshold {f['threshold']:.3f})"
            for f in found
        )
        self.answer.value = (
            f'<div role="status"><p><b>{escape(said)}</b></p><div style="max-width:520px"><small>P(fake); line: the threshold</small>{bars}</div>'
            f'<figure style="max-width:520px">{picture(look, [f["name"] for f in found])}</figure>'
            f"<p class='soft'>A probability of this study's detectors, trained on {escape(self.study.title)}: no proof, least of all for other kinds of images.</p></div>"
        )

    # --- a rate on the spot

    def start(self) -> None:
        """Start making the rate, unless one is being made; `worker.join()` waits for it."""
        if self.worker and self.worker.is_alive():
            return
        rate, epochs = self.new_rate.value / 100, self.epochs.value
        try:
            spec = self.study.spec("CPF-S", rate, finetune_epochs=epochs)
            if spec.finished():
                self.state.value = note(
                    f"{spec.run_id} is finished already: reload, and choose it under CPF-S."
                )
                return
            self.job = explorer.Job(self.study, rate, epochs=epochs)
        except InputError as error:
            self.state.value = note(str(error), bad=True)
            return
        self.jobs.append(self.job)
        self.make.disabled, self.cancel.disabled, self.keep.disabled = True, False, True
        self.progress.value, self.state.value = 0, note("starting")
        self.worker = threading.Thread(
            target=self._follow, args=(self.job, self.study), daemon=True
        )
        self.worker.start()

    def _follow(self, job: explorer.Job, study: explorer.Study) -> None:
        try:
            for share, what in job.progress():
                self.progress.value, self.state.value = share, note(what)
            if job.cancelled:
                self.state.value = note("Cancelled: nothing was made.")
                return
            row = job.row()
            study.made[:] = [r for r in study.made if r["run_id"] != row["run_id"]] + [row]
            self.progress.value = 1
            self.state.value = note(
                f"{row['run_id']} is made, and shown above. It goes when this page is closed, unless you keep it.",
                job.spec.command(),
            )
            self.keep.disabled = False
            if study is self.study:
                self._fill("CPF-S", row["run_id"])
        except InputError as error:
            self.state.value = note(str(error), bad=True)
        finally:
            self.make.disabled, self.cancel.disabled = False, True

    def _on_keep(self) -> None:
        folder = self.job.keep()
        for row in [
            row
            for study in self.studies.values()
            for row in study.made
            if row["run_id"] == folder.name
        ]:
            row["folder"] = str(folder)
        self.keep.disabled = True
        self.state.value = note(f"Kept among the finished runs as {folder.name}.")
