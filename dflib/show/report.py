"""The table in the terminal, and `report.html`: one self-contained page, every sentence of it computed from the finished runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from pathlib import Path

import pandas as pd

from data_prep.errors import InputError
from data_prep.paths import HOW_TO_GET, write_text
from dflib.show import plots
from dflib.study import compare, runs
from dflib.study.methods import METHODS

log = logging.getLogger(__name__)
SECTION = [
    "dataset",
    "protocol",
    "size",
    "mode",
    "limit",
    "target_images",
    "fold",
    "recipe",
]  # runs that differ here had other images, or saw them otherwise: a section each
NUMBERS = {  # title: (column, divisor, how it is written)
    "params": ("params", 1, "{:,.0f}"),
    "non-zero": ("nonzero", 1, "{:,.0f}"),
    "file MB": ("file_bytes", 1e6, "{:.2f}"),
    "p50 ms": ("latency_p50_ms", 1, "{:.2f}"),
    "p95 ms": ("latency_p95_ms", 1, "{:.2f}"),
    "images/s": ("images_per_s", 1, "{:,.0f}"),
    "peak MB": ("peak_rss_mb", 1, "{:.0f}"),
    "compress s": ("compress_s", 1, "{:.1f}"),
    "train s": ("train_s", 1, "{:.1f}"),
    "transfer s": ("transfer_s", 1, "{:.1f}"),
    "trained": ("trainable_params", 1, "{:,.0f}"),
    "to ship MB": ("shipped_bytes", 1e6, "{:.2f}"),
}
FIGURES = {  # title: (how it is drawn, what to see)
    "Accuracy, F1 and compression time": (
        plots.paper_figure,
        "The paper's Figure 1. Boxes: quartiles over rates and seeds; dots: single runs, the more "
        "violet the more is removed. Red line: BL with its 95 % interval; among the times, BL's training time.",
    ),
    "Accuracy, F1 and transfer time": (
        partial(plots.paper_figure, transfers=True),
        "The paper's Figure 3, all fakes together. The same for "
        "methods that start on another dataset; their time is the training on this one.",
    ),
    "AUROC against latency": (
        plots.pareto,
        "Up and to the left is better. Dotted line: the runs that no other one beats in both; beaten ones are pale. "
        "Bars: 95 % intervals. Latencies a few percent apart are the same.",
    ),
    "AUROC against file size": (
        partial(plots.pareto, x="file_bytes"),
        "The file that would be deployed. CPF's zeros are stored like any other number.",
    ),
    "AUROC against operations": (
        partial(plots.pareto, x="macs"),
        "Multiply-accumulates of one image: what the architecture asks for on any machine.",
    ),
    "AUROC against rate": (
        plots.against,
        "Markers: means over seeds; bars: the runs' 95 % intervals, averaged; red: BL's. At 0 %: no rate.",
    ),
    "AUROC by generator": (
        plots.forest,
        "Each generator's fakes against all real images. Means over the runs of a method and rate, with their 95 % intervals averaged; red: BL.",
    ),
}


MAIN = (
    "accuracy",
    "AUROC",
    "params",
    "file MB",
    "p50 ms",
)  # the page's columns; the rest stands in what a row unfolds


def table_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs for reading, all text: one row a run, by method, rate and seed; 95 % intervals in brackets."""
    rows = _sorted(rows)
    table = {
        "run": rows["run_id"],
        "accuracy": _intervals(rows, "accuracy"),
        "AUROC": _intervals(rows, "auroc"),
    }
    for title, (column, unit, form) in ({"F1": ("f1", 1, "{:.3f}")} | NUMBERS).items():
        table[title] = [
            "–" if pd.isna(value) else form.format(value / unit) for value in rows[column]
        ]
    return pd.DataFrame(table)


def write(path: Path | None = None, *, only: Iterable[str] | None = None) -> Path:
    """Write the report of all finished runs, or of the run ids in `only`, to `path` (`report.html` in the outputs root); returns the path."""
    from jinja2 import Environment, PackageLoader

    path, rows = Path(path or runs.outputs_root() / "report.html"), runs.results()
    only = None if only is None else set(only)
    rows = rows[rows["run_id"].isin(only)].copy() if only is not None and len(rows) else rows
    if len(rows):
        rows["record"] = [runs.read(folder) for folder in rows["folder"]]
        rows["recipe"] = [
            compare.recipe(record["params"]).replace("plain", "") for record in rows["record"]
        ]  # which comes first
        rows[["limit", "target_images"]] = (
            rows[["limit", "target_images"]].astype(float).fillna(0).astype(int)
        )
    groups = rows.groupby(SECTION) if len(rows) else ()
    page = {
        "sections": [
            _section(i, dict(zip(SECTION, key, strict=True)), _sorted(group))
            for i, (key, group) in enumerate(groups)
        ],
        "methods": [METHODS[code] for code in METHODS if code in set(rows.get("method", ()))],
        "failures": [f for f in _failures() if only is None or f["run_id"] in only],
        "runs": len(rows),
        "made": datetime.now().astimezone(),
    }
    templates = Environment(
        loader=PackageLoader("dflib.show"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, templates.get_template("report.html.j2").render(page))
    return path


def answer(rows: pd.DataFrame) -> list[str]:
    """What runs that may be compared say: is the most compressed one as good as BL, which file is smallest, which run is fastest.

    A run is compared with the BL among its parents (column `record`), else with the BL of its seed, else with the first one.
    """
    base, others, rated = (
        rows[rows["method"] == "BL"],
        rows[rows["method"] != "BL"],
        rows[rows["rate"].notna()],
    )
    count = lambda table: "one run" if len(table) == 1 else f"{len(table)} runs"
    name = lambda run: plots.run_label(run["method"], run["rate"])
    auroc = lambda run: f"AUROC {_intervals(run.to_frame().T, 'auroc')[0]}"
    if base.empty:
        best = rows.loc[rows["auroc"].idxmax()]
        return [
            f"The best of {count(rows)} is {name(best)}, {auroc(best)}. Without a finished BL nothing tells what compression costs."
        ]
    first = base.iloc[0]
    sentences = [f"BL reaches {auroc(first)}; no run at a compression rate is finished yet."]
    if len(rated):
        top = rated[rated["rate"] == rated["rate"].max()]
        best = top.loc[top["auroc"].idxmax()]
        first = _baseline(best, base)
        means = (
            _combined(rows)[0]
            if rows["seed"].nunique() > 1 and {"record", "folder"} <= set(rows)
            else pd.DataFrame()
        )
        means = (
            means[(means["seeds"] > 1) & (means["rate"] == best["rate"])] if len(means) else means
        )
        if len(means):
            best = means.loc[means["all/auroc"].idxmax()]
            among = "the only one with" if len(means) == 1 else f"the best of {len(means)} with"
            span = best.reindex(["all/auroc-BL_low", "all/auroc-BL_high"]).astype(float).tolist()
            sentences = [
                f"With {100 * best['rate']:g} % of the parameters removed or set to zero, {best['method']}, {among} several seeds, reaches a mean "
                f"AUROC of {_intervals(best.to_frame().T, 'all/auroc')[0]} over {best['seeds']} seeds: {_difference(best.get('all/auroc-BL'), span)}."
            ]
        else:
            sentences = [
                f"With {100 * best['rate']:g} % of the parameters removed or set to zero, the best of {count(top)}, {name(best)}, "
                f"reaches {auroc(best)}, and its BL {auroc(first)}: {_verdict(best, first)}."
            ]
    if not first.get("auroc_low", 1) > 0.5:
        sentences[0] += (
            " BL itself is not shown to do better than guessing here, so this says nothing about compression."
        )
    for column, lead, better, unit, form in (
        ("file_bytes", "smallest file", "smaller", 1e6, "{:.2f} MB"),
        ("latency_p50_ms", "lowest latency", "faster", 1, "{:.2f} ms"),
    ):
        if others[column].notna().any():
            run = others.loc[others[column].idxmin()]
            its = _baseline(run, base)[column]
            text = f"the {lead} is {form.format(run[column] / unit)} ({name(run)}, {auroc(run)})"
            same = (
                f"No run is clearly {better} than BL: {text}, its BL has {form.format(its / unit)}."
            )
            found = f"T{text[1:]}, {its / run[column]:.1f} times {better} than its BL ({form.format(its / unit)})."
            sentences.append(found if its / run[column] >= 1.05 else same)
    return sentences


def _difference(change: float, span: list[float]) -> str:
    """A difference from BL on the same images, in words that its interval allows."""
    if pd.isna([change, *span]).any():
        return "without intervals nothing tells whether they differ"
    low, high = span
    text = f"on the same images that is {change:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
    text += " against BL" + (
        ", a loss" if high < 0 else ", a gain" if low > 0 else ": no loss is shown"
    )
    return text + (
        f", and one of more than {-low:.3f} is unlikely" if -0.1 < low < 0 < high else ""
    )


def _verdict(run: pd.Series, base: pd.Series) -> str:
    """Whether AUROC differs: paired on the same images where both runs kept their predictions, else by the two intervals."""
    files = [Path(str(r.get("folder"))) / "predictions.parquet" for r in (base, run)]
    a, b = (pd.read_parquet(f) if f.exists() else None for f in files)
    if a is not None and b is not None and a["path"].equals(b["path"]):
        from dflib.metrics import paired

        found = paired(
            a["label"], a["score"], b["score"], threshold_a=0.5, threshold_b=0.5, groups=a["group"]
        )["auroc"]
        if found["ci95"]:
            return _difference(found["difference"], found["ci95"])
    (low, high), (its_low, its_high) = (
        [r.get(f"auroc_{end}", float("nan")) for end in ("low", "high")] for r in (run, base)
    )
    if pd.isna([low, high, its_low, its_high]).any():
        return "without intervals nothing tells whether they differ"
    apart = "below" if high < its_low else "above" if low > its_high else ""
    return (
        f"its interval lies {apart} BL's"
        if apart
        else "the intervals overlap, so no difference is shown"
    )


def _baseline(run: pd.Series, base: pd.DataFrame) -> pd.Series:
    by_id, parents = (
        base.set_index("run_id", drop=False),
        run["record"]["parents"] if "record" in run else (),
    )
    own = next(
        (by_id.loc[p] for p in parents if p in by_id.index), None
    )  # the first: an ensemble's teachers follow
    same_seed = base[base["seed"] == run["seed"]]
    return own if own is not None else (same_seed if len(same_seed) else base).iloc[0]


def _section(i: int, key: dict, rows: pd.DataFrame) -> dict:
    """Everything that the page shows of runs that may be compared."""
    from markupsafe import Markup

    generators = [
        c.removesuffix("/auroc") for c in rows.dropna(axis=1, how="all") if c.endswith("/auroc")
    ]
    by_generator = {"run": rows["run_id"]} | {
        name: _intervals(rows, f"{name}/auroc") for name in generators
    }
    left_out = {"AUROC by generator"} if len(generators) < 2 else set()
    left_out |= (
        set()
        if rows["method"].map(lambda m: m in METHODS and METHODS[m].transfers).any()
        else {"Accuracy, F1 and transfer time"}
    )
    figures = [(title, *how) for title, how in FIGURES.items() if title not in left_out]
    limit = f", at most {key['limit']} images of each class in each part" if key["limit"] else ""
    title = [key["dataset"], f"{key['protocol']} protocol", f"{key['size']} px"]
    title += (
        [f"{key['target_images']} training images of each class"] if key["target_images"] else []
    )
    title += [f"trained {key['fold']}"] if key["fold"] else []
    title += [key["recipe"]] if key["recipe"] else []
    return {
        "id": f"section-{i}",
        "title": ", ".join(title),
        "note": f"Images made square by {key['mode']}{limit}.",
        "answer": answer(rows),
        "runs": _unfolding(rows),
        "over_seeds": _over_seeds(rows),
        "generators": generators,
        "by_generator": _sortable(
            pd.DataFrame(by_generator), rows[["run_id", *(f"{g}/auroc" for g in generators)]]
        ),
        "figures": [
            {
                "title": title,
                "caption": text,
                "svg": Markup(plots.inline_svg(draw(rows), f"s{i}f{k}-")),
                "across": "time" in title,
            }
            for k, (title, draw, text) in enumerate(figures)
        ],
        "data": _data(key["dataset"], key["protocol"], rows["record"]),
        "environment": _environment(rows["record"]),
        "get_data": HOW_TO_GET.get(
            key["dataset"], f"python -m data_prep folder PATH --name {key['dataset']}"
        ),
        "audit": _audit(key["dataset"]),
        "name": key["dataset"],
    }


def _unfolding(rows: pd.DataFrame) -> dict:
    """The table of runs: few columns, and what each row unfolds to: all numbers, and the command that makes it again."""
    texts = table_rows(rows)
    groups = compare.by_seed(rows["record"])
    differ = {
        r["run_id"]: f" ({text})"
        for g in groups
        if (text := compare.about(g, groups)["settings"])
        for r in g
    }
    names = [
        plots.run_label(r["method"], r["rate"])
        + differ.get(r["run_id"], "")
        + f", seed {r['seed']}"
        for r in rows["record"]
    ]
    columns = ["accuracy", "auroc", *(NUMBERS[title][0] for title in MAIN[2:])]
    table = _sortable(
        texts[list(MAIN)].assign(run=names)[["run", *MAIN]],
        rows.assign(run=names)[["run", *columns]],
    )
    rest = texts.drop(columns=[*MAIN, "run"]).to_dict("records")
    more = [
        {"run id": run} | {k: v for k, v in each.items() if v != "–"}
        for run, each in zip(rows["run_id"], rest, strict=True)
    ]
    return table | {"more": list(zip(more, rows["command"], strict=True))}


def _combined(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`compare.over_seeds` and `compare.against_scratch` of those runs that kept their predictions; empty where they saw different images."""
    kept = [
        (record, Path(folder))
        for record, folder in zip(rows["record"], rows["folder"], strict=True)
    ]
    every = {
        r["run_id"]: r | {"folder": f} for r, f in kept if (f / "predictions.parquet").exists()
    }
    try:
        return compare.over_seeds(every.values(), every), compare.against_scratch(
            every.values(), every
        )
    except InputError as error:
        log.warning("seeds are not combined: %s", error)
        return pd.DataFrame(), pd.DataFrame()


def _over_seeds(rows: pd.DataFrame) -> dict | None:
    """Means over seeds, and for transfers the verdict against scratch; None where there is neither a second seed nor a transfer."""
    table, scratch = _combined(rows)
    if table.empty or (scratch.empty and table["seeds"].max() < 2):
        return None
    name = lambda r: (
        plots.run_label(r["method"], r["rate"]) + (f" ({r['settings']})" if r["settings"] else "")
    )
    found = [(name(s), s) for _, s in scratch.iterrows() if s["seeds"]]
    verdicts = {
        title: f"{s['verdict']} ({s['difference']:+.3f})".replace("-", "−") for title, s in found
    }
    names, share = (
        [name(r) for _, r in table.iterrows()],
        table["shipped_bytes"] / table["file_bytes"],
    )
    numbers = {"accuracy": "all/accuracy", "AUROC": "all/auroc", "AUROC minus BL": "all/auroc-BL"}
    texts = {"runs": names, "seeds": table["seeds"].astype(str)} | {
        t: _intervals(table, c) for t, c in numbers.items()
    }
    texts |= {
        "to ship": [f"{s:.1%}" for s in share],
        "against scratch": [verdicts.get(n, "–") for n in names],
    }
    values = table.reindex(columns=["seeds", *numbers.values()]).assign(
        share=share, verdict=texts["against scratch"]
    )
    values.insert(0, "runs", names)
    return _sortable(pd.DataFrame(texts), values)


def _audit(name: str) -> dict | None:
    """What `python -m data_prep audit` found, where it was run."""
    try:
        return json.loads((runs.outputs_root() / f"audit-{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _sortable(texts: pd.DataFrame, values: pd.DataFrame) -> dict:
    """Column titles, and rows of (text, value to sort by; "" for none)."""
    values = values.astype(object).where(values.notna(), "").to_numpy()
    return {
        "head": list(texts),
        "rows": [
            list(zip(t, v, strict=True)) for t, v in zip(texts.to_numpy(), values, strict=True)
        ],
    }


def _data(name: str, protocol: str, records: Iterable[dict]) -> dict:
    """What was evaluated, and the prepared dataset's images by generator and split."""
    from data_prep import manifest
    from data_prep.protocol import assign

    metrics = next(iter(records))["metrics"]
    fakes = {g: m["n_fake"] for g, m in metrics.items() if g not in ("all", "macro")}
    about = {"evaluated": {"real": metrics["all"]["n_real"]} | fakes, "counts": None, "note": ""}
    try:
        table = manifest.load(name)
        about["counts"] = manifest.counts(table.assign(split=assign(table, protocol))).droplevel(
            "label"
        )
    except InputError as error:
        return about | {"note": f"The prepared images cannot be counted now: {error}"}
    changed = {r["data_fingerprint"] for r in records} != {manifest.fingerprint(table)}
    return about | {
        "note": "The images have changed since some of these runs were made." if changed else ""
    }


def _environment(records: Iterable[dict]) -> dict[str, list[str]]:
    """Each fact's values over the runs: one where all agree."""
    facts = [
        {
            "trained on": r["device"],
            "latency on": "{cpu}, {threads} thread(s), {runtime}".format(**r["cost"]["latency_ms"]),
        }
        | r["versions"]
        for r in records
    ]
    return {fact: sorted({each.get(fact, "unknown") for each in facts}) for fact in facts[0]}


def _failures() -> list[dict]:
    """Records of failed runs that have not been finished since."""
    folders = sorted(r.parent for r in runs.outputs_root().glob("*/*/*/*/failed.json"))
    return [
        record for f in folders if not (f / "result.json").exists() and (record := runs.failure(f))
    ]


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    return plots.in_order(rows.sort_values("seed", kind="stable"))


def _intervals(rows: pd.DataFrame, metric: str) -> list[str]:
    columns = rows.reindex(columns=[metric, f"{metric}_low", f"{metric}_high"]).astype(float)
    return [plots.interval(value, bounds) for value, *bounds in columns.itertuples(index=False)]
