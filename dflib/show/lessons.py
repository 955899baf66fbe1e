"""What several notebooks say or show, one call each: two runs side by side, a recap, a quick try.

Figures are in `plots`; which baseline, which difference and which words is `study.compare`'s.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from data_prep.paths import write_text
from dflib import data, measure, train
from dflib.show import plots, words
from dflib.study import compare, runs
from dflib.study.runs import Run

progress = tqdm  # a bar for what notebooks train


def begin() -> None:
    """Print what belongs to every result: versions and device."""
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    sys.stdout.write(f"{versions}, {train.best_device()}\n")


def samples(*parts: data.Part, seed: int = 0) -> Figure:
    """Eight images of each class of each part, a row each, below their generator's name."""
    rng, images, names = np.random.default_rng(seed), [], []
    for part in parts:
        for label in (0, 1):
            chosen = rng.choice(np.flatnonzero(part.labels == label), 8)
            images += [part.image(i) for i in chosen]
            names += list(part.generators[chosen])
    return plots.image_grid(images, names)


def costs(*made: Run) -> pd.DataFrame:
    """What runs cost, a column each; behind the first, the share of its cost that the others have.

    >>> costs(baseline, pruned)                                     # doctest: +SKIP
    """
    rows, table = {name(run): runs.flat(run.result) for run in made}, {}
    (base, first), *others = rows.items()
    for column in (*words.SIZES, "gzip_bytes", "latency_p50_ms"):
        values = {run: words.cost(column, row[column]) for run, row in rows.items()}
        shares = {f"{run} / {base}": f"{row[column] / first[column]:.3f}" for run, row in others}
        table[words.COSTS[column][0]] = values | shares
    return pd.DataFrame(table).T


def differences(run: Run, base: Run) -> pd.DataFrame:
    """Metrics of two finished runs, and the paired difference with its 95 % interval."""
    paired, rows = compare.paired(run.result, base.result)["all"], {}
    for metric, title in compare.JUDGED.items():
        values = {name(r): round(r.result["metrics"]["all"][metric], 3) for r in (base, run)}
        rows[title] = values | {"difference": compare.spoken(paired[metric])}
    return pd.DataFrame(rows).T


def verdict(run: Run, base: Run) -> str:
    """What the paired differences of two finished runs show, in words (`study.compare`)."""
    change = compare.paired(run.result, base.result)["all"]
    return f"{name(run)}: {compare.verdict(change, than=name(base)).text}"


def speed(run: Run, base: Run) -> str:
    """How the latencies of two finished runs compare (`measure.speed`), in words."""
    mine, theirs = (each.result["cost"]["latency_ms"] for each in (run, base))
    return f"{name(run)}: {words.spoken_speed(measure.speed(mine, theirs), name(base))}"


def score_pairs(run: Run, base: Run) -> Figure:
    """P(fake) of each test image under two runs; off the diagonal they differ."""
    a, b = (runs.predictions(each.folder) for each in (base, run))
    kind = a["label"].map({0: "real", 1: "fake"})
    x, y = name(base), name(run)
    with sns.axes_style("ticks"):
        fig, ax = plt.subplots(figsize=(4.8, 4), layout="constrained")
    sns.scatterplot(x=a["score"], y=b["score"], hue=kind, style=kind, ax=ax)
    sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), title="")
    ax.axvline(base.result["threshold"], color=plots.INK, linestyle="--", linewidth=0.8)
    ax.axhline(run.result["threshold"], color=plots.INK, linestyle="--", linewidth=0.8)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"P(fake), {x}", ylabel=f"P(fake), {y}", aspect=1)
    plt.close(fig)
    return fig


def name(run: Run) -> str:
    """A run's short name: "CKD 90%"."""
    return words.run_label(run.spec.method, run.spec.rate)


def intervals(rows: pd.DataFrame, shown: dict[str, str], **plain: str) -> pd.DataFrame:
    """A table of `study.tables` for reading: {title: column} with the 95 % interval in brackets;
    plain: title=column of columns that have none."""
    if rows.empty:
        return pd.DataFrame(columns=[*shown, *plain])
    table = {title: words.intervals(rows, column) for title, column in shown.items()}
    table |= {title: rows[column].to_numpy() for title, column in plain.items()}
    return pd.DataFrame(table, index=words.names(rows))


def recap(run: Run, base: Run | None = None, *, more: Iterable[str] = ()) -> Markdown:
    """A run in a few sentences: quality with its interval, the verdict against `base`, costs."""
    quality, cost = run.result["metrics"]["all"], run.result["cost"]
    auroc, balanced = (words.interval(quality[k], quality["ci95"][k]) for k in compare.JUDGED)
    lines = [
        f"{name(run)}: AUROC {auroc} (95 % interval), balanced accuracy {balanced} at the "
        f"threshold {run.result['threshold']:.3f}, on {quality['n']:,} test images.",
        f"File {cost['file_bytes'] / 1e6:.2f} MB, {cost['macs'] / 1e6:.0f} million MACs, "
        f"{cost['latency_ms']['p50']:.2f} ms for an image on one thread.",
    ]
    if base and base.finished:
        lines += [f"On the same images: {verdict(run, base)}.", f"Latency: {speed(run, base)}."]
    return Markdown("\n".join(f"- {line}" for line in (*lines, *more)))


def sizes(model: nn.Module) -> dict[str, int]:
    """Weights of each layer (without biases and BatchNorm, which hold few)."""
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    return {name.removesuffix(".weight"): p.numel() for name, p in weights.items()}


def small(run: Run, images: int = 200) -> data.Dataset:
    """The run's data with so many training images of each class, and 200 to validate."""
    table = run.data.val.table
    sample = table.sample(min(200, len(table)), random_state=0)
    return replace(data.few(run.data, images), val=replace(run.data.val, table=sample))


def quick(
    run: Run, what: str, model: nn.Module, on: data.Dataset, recipe: train.Recipe, **options
) -> dict[str, float]:
    """Train a candidate for a look: validation AUROC, parameters that trained, seconds.

    Once: `tries.json` in the run's folder keeps it, by `what` the options are called, by the
    weights at first, the images and the recipe.
    """
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    digest = hashlib.sha256(repr((trains, recipe, [*on.train.table["path"]])).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    key, file, known = f"{what} {digest.hexdigest()[:12]}", run.folder / "tries.json", {}
    with suppress(OSError, ValueError):
        known = json.loads(file.read_text())
    if key not in known:
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        log = train.fit(model, on, recipe, **options)
        auroc, seconds = float(log["val_auroc"].iloc[-1]), float(log["seconds"].sum())
        known[key] = {"AUROC": auroc, "trainable": count, "seconds": seconds}
        with suppress(OSError):  # a run of somebody else
            run.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(known))
    return known[key]
