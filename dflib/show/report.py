"""The table of finished runs, and `report.html`: one self-contained page, computed from the runs.

The words around the numbers stand in `templates/report.html.j2`.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from data_prep import audit
from data_prep.errors import InputError
from data_prep.paths import HOW_TO_GET, PUBLISHED, write_text
from dflib import measure
from dflib.edge import elsewhere
from dflib.show import plots, words
from dflib.study import compare, records, runs, tables
from dflib.study.methods import METHODS
from dflib.study.records import OLDER, comparable
from dflib.study.settings import FIELDS

log = logging.getLogger(__name__)
# runs that differ here had other images, saw them otherwise, or were made by older code
SECTION = {"dataset": "{}", "protocol": "{} protocol", "size": "{} px", "mode": ""}  # in a title
SECTION |= {"limit": "at most {} images of each class"}
SECTION |= {"target_images": "{} training images of each class", "fold": "trained {}"}
SECTION |= {"recipe": "{}", "older": OLDER}
FAKES = ["real", "fake"]
# a row's columns; it unfolds the rest
MAIN = ["AUROC", "balanced accuracy", "parameters", "file, MB", "latency, ms"]
FIGURES = {  # title, as the template knows it: how it is drawn; the first beside the answer
    "AUROC against file size": partial(plots.pareto, x="file_bytes"),
    "Accuracy, F1 and compression time": plots.paper_figure,
    "Accuracy, F1 and transfer time": partial(plots.paper_figure, transfers=True),
    "AUROC against latency": plots.pareto,
    "AUROC against rate": plots.against,
    "AUROC by generator": plots.forest,
}


def table_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs (of `runs.results`) for reading, all text, by method, rate and seed; 95 % intervals in
    brackets, of latency its spread over processes; busy: others used the machine meanwhile."""
    rows = plots.in_order(rows.sort_values("seed", kind="stable"))
    table = {"run": rows["run_id"] + np.where(rows["older"], f" ({OLDER})", "")}
    shown = {title: metric for metric, title in compare.JUDGED.items()}
    scenes = {"AUROC per scene": "auroc_per_scene"} if "auroc_per_scene" in rows else {}
    shown |= {"accuracy": "accuracy", "F1": "f1"} | scenes
    table |= {title: words.intervals(rows, column) for title, column in shown.items()}
    table[words.TRIVIAL] = rows["fake_share"].map(words.spoken_trivial)
    rows, seconds = comparable(rows)
    for column, (title, *_) in words.COSTS.items():
        title = title.removesuffix("s") + seconds if column in records.TIMINGS else title
        table[title] = [words.cost(column, value) for value in rows[column]]
    if seconds != "s":
        table["threads"] = rows["threads"].replace("", "unknown")
    told = lambda end: rows[f"latency_{end}_ms"].map(partial(words.cost, "latency_p50_ms"))
    spread = (" [" + told("low") + ", " + told("high") + "]").replace(" [–, –]", "")
    busy = rows["latency_busy"].eq(True) & rows["latency_p50_ms"].notna()
    table["latency, ms"] += np.where(busy, " (busy)", spread)
    return pd.DataFrame(table)


def write(path: Path | None = None, *, only: Iterable[str] | None = None) -> Path:
    """Write the report of all finished runs, or of the run ids in `only`; returns its path, by
    default `report.html` in the outputs root."""
    path = Path(path or runs.outputs_root() / "report.html")
    only = None if only is None else set(only)
    parts = sections([r for i, r in compare.load().items() if only is None or i in only])
    used = {method for _, rows in parts for method in rows["method"]}
    folders = [file.parent for file in sorted(runs.outputs_root().glob("*/*/*/*/failed.json"))]
    failed = [runs.failure(f) for f in folders if not (f / "result.json").exists()]  # made since
    page = {
        "sections": [_section(i, about, rows) for i, (about, rows) in enumerate(parts)],
        "methods": [row for code, row in METHODS.items() if code in used],
        "codes": {code: row.title for code, row in METHODS.items()},
        "settings": {name: FIELDS[name]["description"] for name in compare.RECIPE},
        "failures": [f for f in failed if f and (only is None or f["run_id"] in only)],
        "runs": sum(len(rows) for _, rows in parts),
        "explorer": path.with_name("explorer.html").exists(),
        "made": datetime.now().astimezone(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, words.template("report.html.j2").render(page))
    return path


def sections(results: Sequence[dict]) -> list[tuple[dict, pd.DataFrame]]:
    """Runs that tell real from fake, together where they may be compared: the values of SECTION,
    title and answer, and a row each (`record`: the result). Report and study tell the same."""
    found = [r for r in results if r.get("classes", FAKES) == FAKES]  # of a source: cats, dogs
    rows = pd.DataFrame([records.flat(r) | {"record": r} for r in found])
    if rows.empty:
        return []
    recipes = [compare.recipe(r["params"]) for r in found]
    rows["recipe"] = [how.replace("plain", "") for how in recipes]  # which comes first
    counts, parts = ["limit", "target_images"], []
    rows[counts] = rows[counts].astype(float).fillna(0).astype(int)
    for key, of in rows.groupby([*SECTION]):
        about = dict(zip(SECTION, key, strict=True))
        told = [text.format(about[k]) for k, text in SECTION.items() if about[k]]
        try:
            best = _answer(dict(zip(of["run_id"], of["record"], strict=True)))
        except InputError as error:
            best = {"unknown": str(error)}
        parts.append((about | {"title": ", ".join(filter(None, told)), "answer": best}, of))
    return parts


def tested_elsewhere(results: Iterable[dict]) -> pd.DataFrame:
    """Trained on against tested on: a row a run, a column a set (`python -m dflib test`): AUROC, or
    false alarms or fakes found, where the set has one class alone."""
    table = elsewhere.every(results)
    if table.empty:
        return table
    table = table[table["generator"] == "all"].reset_index(drop=True)
    whole = table["part"].isin(("test", "all"))
    table["dataset"] = table["dataset"].where(whole, table["dataset"] + ", " + table["part"])
    table["run"] = pd.Series(words.names(table)) + ", " + table["run_id"]
    table["text"] = words.intervals(table, "auroc")
    for name in {"false_alarms", "found"} & {*table}:
        text = elsewhere.FIGURES[name] + " " + pd.Series(words.intervals(table, name))
        table["text"] = text.where(table[name].notna(), table["text"])
    order = ["run", "trained_on"]
    wide = table.pivot(index=order, columns="dataset", values="text").fillna("–").reset_index()
    return wide.rename(columns={"trained_on": "trained on"}).rename_axis(columns=None)


def _section(i: int, about: dict, rows: pd.DataFrame) -> dict:
    """What the page shows of runs that may be compared (`sections`)."""
    rows = plots.in_order(rows.sort_values("seed", kind="stable"))
    rows = rows.loc[:, rows.notna().any() | ~rows.columns.str.contains("/")]  # its own generators
    every = {record["run_id"]: record for record in rows["record"]}
    texts, groups = table_rows(rows), tables.by_seed(every.values())
    # a name for each run that tells it from the others
    differ = {r["run_id"]: tables.about(g, groups)["settings"] for g in groups for r in g}
    label = lambda r: words.run_label(r["method"], r["rate"], differ.get(r["run_id"], ""))
    names = [f"{label(r)}, seed {r['seed']}" for r in every.values()]
    latency = [r["cost"]["latency_ms"] for r in rows["record"]]
    timed = [", ".join(filter(None, (each["cpu"], each["runtime"]))) for each in latency]
    more = texts.drop(columns=MAIN).assign(device=rows["device"], **{"timed on": timed})
    more = more.astype(object).replace("–", None).to_dict("records")
    tested = rows.filter(regex="/auroc$").columns
    moved = any(code in METHODS and METHODS[code].transfers for code in rows["method"])
    left_out = {"AUROC by generator": len(tested) < 2, "Accuracy, F1 and transfer time": not moved}
    drawn = {title: draw(rows) for title, draw in FIGURES.items() if not left_out.get(title)}
    figures = {
        title: Markup(plots.inline_svg(figure, f"s{i}f{k}-"))
        for k, (title, figure) in enumerate(drawn.items())
    }
    name = about["dataset"]
    return about | {
        "id": f"section-{i}",
        "runs": texts[MAIN].assign(run=names)[["run", *MAIN]],
        "more": list(zip(more, rows["command"], strict=True)),
        "over_seeds": _verdicts(every),
        "elsewhere": tested_elsewhere(rows["record"]),
        "figures": figures,
        "data": _data(name, rows),
        "get_data": HOW_TO_GET.get(name, f"python -m data_prep folder PATH --name {name}"),
        "audit": audit.last(name),
    }


def _answer(every: Mapping[str, dict]) -> dict:
    """Which of comparable runs to take (`records.best`): its method over its seeds, against BL;
    `InputError` where nothing tells it."""
    best = records.best(every.values())
    if math.isnan(records.validated(best["folder"])):
        raise InputError("validation scores are not kept, and the test must not choose")
    alike, base = tables.with_seeds(best, every.values()), compare.baseline(best, every)
    name, mb = words.run_label(best["method"], best["rate"]), best["cost"]["file_bytes"] / 1e6
    found = {"run_id": best["run_id"], "name": name, "method": best["method"], "mb": mb}
    found |= {"seeds": len(alike), "auroc": _auroc(alike), "base": base}
    lower = (base or best)["metrics"]["all"]["ci95"].get("auroc")
    found["guesses"] = bool(lower) and lower[0] <= 0.5  # BL itself, or the best where there is none
    if base:
        costs, theirs = best["cost"], base["cost"]
        change = compare.verdict(compare.against_baselines(alike, every)["all"])
        speed = measure.speed(costs["latency_ms"], theirs["latency_ms"])
        bases = [b for r in alike if (b := compare.baseline(r, every))]  # of each seed
        found |= {"base_auroc": _auroc(bases), "base_mb": theirs["file_bytes"] / 1e6}
        found |= {"smaller": theirs["file_bytes"] / costs["file_bytes"]}
        found |= {"told": change.text, "speed": words.spoken_speed(speed, "its BL")}
    return found


def _auroc(group: Sequence[dict]) -> str:
    """The AUROC over seeds, apart for generators seen in training and unseen ones."""
    quality, texts = compare.combined(group), []
    parts = {"seen": " on generators seen in training", "unseen": " on unseen ones"}
    for part, where in (parts if "unseen" in quality else {"all": ""}).items():
        found = quality[part]["auroc"]
        texts.append(words.interval(found["mean"], found["ci95"]) + where)
    return ", ".join(texts)


def _verdicts(every: dict[str, dict]) -> pd.DataFrame | None:
    """Means over seeds and verdicts for reading; None where no run has predictions."""
    kept = {i: r for i, r in every.items() if (r["folder"] / "predictions.parquet").exists()}
    try:
        means = tables.over_seeds(kept.values(), kept)
    except InputError as error:
        log.warning("seeds are not combined: %s", error)
        return None
    if means.empty:
        return None
    labels = means[["method", "rate", "settings"]].itertuples(index=False)
    parts = ["seen", "unseen"] if "unseen/auroc" in means else []
    shown = {} if parts else {"AUROC": "all/auroc"}
    parts += compare.in_families(next(iter(kept.values())))
    shown |= {f"AUROC, {part}": f"{part}/auroc" for part in parts}
    shown["balanced accuracy"] = "all/balanced_accuracy"
    table = {"runs": [words.run_label(*label) for label in labels], "seeds": means["seeds"]}
    table |= {title: words.intervals(means, column) for title, column in shown.items()}
    for part in ("all", *parts):
        says = means.reindex(columns=[f"{part}/verdict"]).iloc[:, 0].astype(object).fillna("–")
        table["against BL" + f", {part}" * bool(parts)] = says
    return pd.DataFrame(table)


def _data(name: str, rows: pd.DataFrame) -> dict:
    """What the images are, and what was evaluated."""
    first = rows["record"].iloc[0]
    found, share = first["metrics"]["all"], rows["fake_share"].iloc[0]
    fakes = {words.marked(rows, g): first["metrics"][g]["n_fake"] for g in compare.tested(first)}
    return {
        "of": PUBLISHED[name]["title"] if name in PUBLISHED else "",
        "evaluated": {"real": found["n_real"]} | fakes,
        "trained": sorted({r["train_images"] for r in rows["record"] if r.get("train_images")}),
        "share": share,
        "trivial": words.spoken_trivial(share),
    }
