"""Widgets: `slide` for notebooks, and the explorer, whose HTML is in `templates/`."""

import shlex
import sys
from collections.abc import Callable
from subprocess import Popen

import ipywidgets as w
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import pyplot

from data_prep.errors import InputError
from dflib.show import explorer, plots, words
from dflib.study import progress, runs
from dflib.study.methods import METHODS

HTML = words.template("explorer.html.j2").module
ROW = {"flex_flow": "row wrap", "width": "100%", "grid_gap": "4px 16px"}
SHOWN, RESIDUAL = 8, "noise residual x 8"  # test images; a title


def slide(draw: Callable[..., object], **controls: w.Widget) -> None:
    """Controls, and below them the figure `draw(name=value, …)`, drawn again when one is moved; an
    output of the cell: readers without a kernel have it, too, once.

    >>> slide(lambda width: plots.layer_bars({"conv": 27 * width}), width=w.IntSlider(8, 1, 64))
    """

    def drawn() -> object:
        figure = draw(**{name: control.value for name, control in controls.items()})
        if isinstance(figure, pyplot.Figure):
            pyplot.close(figure)  # else the cell shows it once more when it ends
        return figure

    for name, control in controls.items():
        control.description = control.description or name
        control.style.description_width = "initial"  # a long label is not cut
        if control.has_trait("continuous_update"):
            control.continuous_update = False  # a slider draws when it is let go
        control.observe(lambda _: shown.update(drawn()), "value")
    display(w.VBox([*controls.values()]))
    shown = display(drawn(), display_id=True)


def explore(dataset: str = "demo", protocol: str = "strict", preset: str = "demo") -> w.Widget:
    """The explorer over all finished runs, those of `dataset` and `protocol` first."""
    if explorer.studies():
        return Explorer(dataset, protocol).box
    command = f"python -m dflib study --preset {preset} --dataset {dataset} --protocol {protocol}"
    return w.HTML(HTML.nothing(command))


def _drawings(*figures: tuple[str, pyplot.Figure]) -> str:
    """Figures side by side as HTML, each with a text for who does not see it."""
    return HTML.drawings([(t, plots.inline_svg(f, f"dfx{i}-")) for i, (t, f) in enumerate(figures)])


def _control(kind: type[w.Widget], label: str, width: int = 420, **options) -> w.Widget:
    style, layout = {"description_width": "initial"}, {"width": f"min(100%, {width}px)"}
    return kind(description=label, style=style, layout=layout, **options)


class Explorer:
    """All controls and views of the studies; `box` is what is shown, first those of `dataset`."""

    def __init__(self, dataset: str = "", protocol: str = "") -> None:
        self.first, self.quiet, self.uploaded, self.running = (dataset, protocol), False, None, None
        self.which = _control(w.Dropdown, "Study:")
        self.method = _control(w.Dropdown, "Method:")
        self.rate = _control(w.SelectionSlider, "Rate:", options=["-"], continuous_update=False)
        costs = {title: column for column, (title, _) in plots.COSTS.items()}
        self.cost = _control(w.Dropdown, "Against:", options=costs)
        self.choice = _control(w.Dropdown, "Show:", options=explorer.CHOICES)
        self.upload = w.FileUpload(accept="image/*", description="Choose a file")
        codes = [(f"{code} – {row.title}", code) for code, row in METHODS.items()]
        self.code = _control(w.Dropdown, "New run of:", options=codes, value="CPF-S")
        self.percent = _control(w.BoundedFloatText, "Rate, %:", 160, value=75, min=1, max=99.9)
        self.make = w.Button(description="Make it")
        self.views = {  # name: who draws it, its controls
            "Overview": (self._overview, self.cost),
            "Test images": (self._test_images, self.choice),
            "Your image": (self._your_image, self.upload),
            "New rate": (self._new_rate, self.code, self.percent, self.make),
        }
        self.view = _control(w.ToggleButtons, "View:", 900, options=[*self.views])
        self.cards, self.shown = w.HTML(), w.HTML()
        self.panel, top = w.Box(layout=ROW), [self.which, self.method, self.rate]
        below = [self.cards, self.view, self.panel, self.shown]
        self.box = w.VBox([w.HTML(HTML.style()), w.Box(top, layout=ROW), *below]).add_class("dfx")
        for control in (*top, self.view, *(c for _, *each in self.views.values() for c in each)):
            control.observe(lambda change: self.quiet or self._follow(change["owner"]), "value")
        self.make.on_click(lambda _: self.start())
        self.load()

    @property
    def study(self) -> explorer.Study:
        return self.studies[self.which.value]

    @property
    def run(self) -> pd.Series:
        """The row of the run that is shown; its id is `run.name`, its name `run["name"]`."""
        return self.study.rows.loc[self.rate.value]

    def load(self, run_id: str = "") -> None:
        """Read the finished runs, and show that one."""
        self.studies = {s.title: s for s in explorer.studies(*self.first)}
        its = [title for title, study in self.studies.items() if run_id in study.results]
        self.quiet = True  # until all controls are set
        self.which.options = [*self.studies]
        self.which.value = (its or self.which.options)[0]
        self._follow(self.which, run_id if its else "")

    def _follow(self, moved: w.Widget, run_id: str = "") -> None:
        """Set the controls that depend on the one that was moved, then draw."""
        self.quiet, rows = True, self.study.rows
        if moved is self.which:
            named = {f"{m} – {METHODS[m].title}" if m in METHODS else m: m for m in rows["method"]}
            self.method.options = named
            self.method.value = rows["method"].get(run_id, [*named.values()][:2][-1])
        if moved in (self.which, self.method):
            mine = rows[rows["method"] == self.method.value]
            self.rate.options = [*zip(mine["name"], mine.index, strict=True)]
            self.rate.value, self.rate.disabled = run_id or mine.index[-1], len(mine) < 2
        if moved is self.upload and self.upload.value:
            self.uploaded = bytes(self.upload.value[0]["content"])
            self.upload.value = ()  # not to be saved with the notebook's widgets
        if moved is self.view:
            self.shown.value = ""  # pictures take a second
        self.quiet = False
        self._show()

    def _show(self) -> None:
        draw, *self.panel.children = self.views[self.view.value]
        run = self.run
        card = lambda: HTML.cards(run["name"], run.name, explorer.cards(self.study, run.name))
        for place, make in ((self.cards, card), (self.shown, draw)):
            try:
                place.value = make()
            except InputError as error:
                place.value = HTML.note(str(error), bad=True)

    def _overview(self) -> str:
        """All runs, a ring around the one that is shown; this one and BL on each generator."""
        rows, run, cost = self.study.rows, self.run, self.cost.value
        front = plots.pareto(rows, cost)
        ring = {"color": plots.INK, "markersize": 16, "fillstyle": "none"}
        front.gca().plot(run[cost] / plots.COSTS[cost][1], run["auroc"], "o", **ring)
        both = rows.loc[[*dict.fromkeys((self.study.base["run_id"], run.name))]]
        what = f"AUROC of all runs against {plots.COSTS[cost][0]}"
        return _drawings((what, front), ("AUROC by generator", plots.forest(both)))

    def _test_images(self) -> str:
        study, run = self.study, self.run
        table = explorer.compared(study, run.name)
        found = explorer.chosen(table, self.choice.value)
        head = HTML.test_images(len(found), len(table), self.choice.value, SHOWN)
        if (shown := table.loc[found[:SHOWN]]).empty:
            return head
        images = np.stack([study.data.test.image(i) for i in shown.index])
        looks = explorer.looks(images, [study.base["folder"], run["folder"]])
        figures = []
        for (_, t), each in zip(shown.iterrows(), looks, strict=True):
            label = f"fake: {t['generator']}" if t["label"] else "real"
            scores = f"BL: P(fake) {t['base_score']:.3f}", f"{run['name']}: {t['score']:.3f}"
            titles = [f"{label}\n{t['became']}", RESIDUAL, *scores]
            figures.append((", ".join(titles), plots.image_grid([*each], titles, columns=2)))
        return head + _drawings(*figures)

    def _your_image(self) -> str:
        if self.uploaded is None:
            return HTML.upload(explorer.UPLOADS)
        ids = [self.study.base["run_id"], self.run.name]
        answers, looks = explorer.answer(self.uploaded, self.study, ids)
        said = [f"{n}: {a['label']}, P(fake) {a['probability']:.3f}" for n, a in answers.iterrows()]
        fig = plots.image_grid([*looks], ["your image", RESIDUAL, *said], columns=2)
        return HTML.answer("; ".join(said)) + _drawings(("Where each looks (Grad-CAM)", fig))

    def _spec(self) -> runs.Spec:
        rate = self.percent.value / 100 if METHODS[self.code.value].rated else None
        return self.study.spec(self.code.value, rate)

    def _new_rate(self) -> str:
        """The wanted run's command and state, and its BL, where that is not the one shown."""
        self.make.disabled = True  # until the request is found good
        spec, base = self._spec(), self.study.base["run_id"]
        self.make.disabled = spec.finished()
        own = [p.run_id for p in spec.parents if (p.method, p.dataset) == ("BL", spec.dataset)]
        state = progress.Progress((*spec.parents, spec)).look().summary()
        state = (spec.failure() or {"error": state})["error"]
        return HTML.new_run(spec.run_id, spec.finished(), base, own, spec.command(), state)

    def start(self) -> None:
        """Begin to make the wanted run; again, later: show how far it is, and at last the run."""
        spec, running = self._spec(), self.running and self.running.poll() is None
        if not (running or spec.finished()):
            command = [*shlex.split(spec.command())[1:], "--retry-failed"]
            self.running = Popen([sys.executable, *command], start_new_session=True)
        if spec.finished():
            self.load(spec.run_id)
        self._show()
