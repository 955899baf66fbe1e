"""Finished runs as tables: a row each method, rate and recipe, over seeds and folds, with verdicts.
Intervals stand in NAME_low and NAME_high."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from dflib.study import compare, records
from dflib.study.compare import MARGIN
from dflib.study.methods import METHODS, fold, lineage
from dflib.study.settings import DEFAULTS

COSTS = ["train_images", "trainable_params", "shipped_bytes", "file_bytes", "transfer_s"]


def by_seed(results: Iterable[dict]) -> list[list[dict]]:
    """Runs that differ in their seed alone, together; by method, rate and number of images."""
    groups: dict[tuple, dict[int, dict]] = {}
    for r in results:
        groups.setdefault(records.but_seed(r), {})[r["seed"]] = r
    in_order = sorted(groups.items(), key=lambda item: item[0][:3])
    return [[group[seed] for seed in sorted(group)] for _, group in in_order]


def with_seeds(result: dict, results: Iterable[dict]) -> list[dict]:
    """A run and those among the others that differ from it in their seed alone."""
    place = lambda r: (r["dataset"], r["protocol"], records.but_seed(r))
    alike = {r["seed"]: r for r in results if place(r) == place(result)} | {result["seed"]: result}
    return [alike[seed] for seed in sorted(alike)]


def matching(results: Iterable[dict], wanted: dict, *, but: Sequence[str] = ()) -> list[dict]:
    """Those made with the settings `wanted`, but for the named ones (with all of RECIPE, what only
    older code knew may differ, too), on the newest one's images; of equals the newest."""
    results = list(results)
    if {*compare.RECIPE} <= {*but}:
        but = [*but, *({k for r in results for k in r["params"]} - {*DEFAULTS})]

    def same(r: dict) -> bool:
        if r.get("imported"):
            return True
        read = {key for code in lineage(r["method"]) for key in METHODS[code].keys}
        held = {*r["params"], *METHODS[r["method"]].keys}  # where no parent is there, its own
        asked = {key: wanted[key] for key in read & held}
        return records.decides(r["params"], but) == records.decides(asked, but)

    found = [r for r in results if same(r)]
    images = [r.get("data_fingerprint") for r in found][-1:]
    found = [r for r in found if r.get("data_fingerprint") in images]
    return list({(records.but_seed(r), r["seed"]): r for r in found}.values())


def about(group: Sequence[dict], groups: Sequence[Sequence[dict]]) -> dict:
    """What a row is of; settings: what tells it from others of its method, rate and images."""
    place = lambda g: (g[0]["method"], g[0]["rate"], g[0]["params"].get("target_images"))
    others = [records.decides(g[0]["params"]) for g in groups if place(g) == place(group)]
    told = {k: v for k, v in records.decides(group[0]["params"]).items() if v != DEFAULTS.get(k)}
    differ = [f"{k} {v}" for k, v in told.items() if any(other.get(k) != v for other in others)]
    differ += [records.OLDER] if records.older(group[0]) else []
    (method, rate, images), settings = place(group), ", ".join(differ)
    return {"method": method, "rate": rate, "settings": settings, "target_images": images}


def over_seeds(
    results: Iterable[dict], every: Mapping[str, dict], *, margin: float = MARGIN
) -> pd.DataFrame:
    """A row a method, rate and number of target images: means over seeds, differences from BL.

    Columns: `about`'s, seeds, run_id (of the first), val_auroc, COSTS; of each generator, "all",
    "seen" and "unseen" NAME/auroc and /balanced_accuracy, with -BL behind minus `baseline`, paired,
    NAME/verdict and /word; of all together the whole text, "told".
    """
    rows, groups = [], by_seed(results)
    for group in groups:
        row = about(group, groups) | {"seeds": len(group), "run_id": group[0]["run_id"]}
        told = [r["cost"] | r["timings"] | {"train_images": r.get("train_images")} for r in group]
        row |= pd.DataFrame(told).reindex(columns=COSTS).astype(float).mean().to_dict()
        row |= {"val_auroc": compare.validated(group), "told": ""}
        for name, each in compare.combined(group).items():
            for metric in compare.JUDGED:
                row |= interval(f"{name}/{metric}", each[metric], inside=True)
        for name, each in compare.against_baselines(group, every).items():
            for metric in compare.JUDGED:
                row |= interval(f"{name}/{metric}-BL", each[metric])
            word, says, text = compare.verdict(each, margin=margin)
            row |= {f"{name}/verdict": says, f"{name}/word": word}
            row |= {"told": text} if name == "all" else {}
        rows.append(row)
    return pd.DataFrame(rows)


def matrix(results: Iterable[dict]) -> pd.DataFrame:
    """Trained on against tested on: a row each method, rate, recipe, train ("all", "gan", "without
    gan") and test (a generator); with seen, seeds, auroc."""
    rows = []
    for group in by_seed(results):
        first, found = group[0], compare.combined(group)
        row = {key: first[key] for key in ("method", "rate")} | {"seeds": len(group)}
        row["recipe"] = compare.recipe(first["params"])
        row["train"] = fold(first["params"]).removeprefix("on ").removesuffix(" alone") or "all"
        for test in (*compare.tested(first), *compare.in_families(first)):
            cell = {"test": test, "seen": test in first.get("train_generators", ())}
            rows.append(row | cell | interval("auroc", found[test]["auroc"], inside=True))
    return pd.DataFrame(rows)


def gaps(results: Iterable[dict], *, margin: float = MARGIN, plain: str = "plain") -> pd.DataFrame:
    """What each method, rate and recipe loses from seen to unseen generators, a row each: folds,
    seeds, val_auroc, AUROC seen, unseen and gap; with -BL behind minus BL of the same recipe, with
    -plain minus the recipe of that name, each also with _verdict."""
    groups: dict[tuple, list[dict]] = {}
    for group in by_seed(results):
        key = (group[0]["method"], group[0]["rate"], compare.recipe(group[0]["params"]))
        groups.setdefault(key, []).extend(group)
    rows = []
    for (method, rate, recipe), group in groups.items():
        if not (found := compare.contrast(group)):
            continue
        row = {"method": method, "rate": rate, "recipe": recipe, "folds": found["gap"]["folds"]}
        row |= {"seeds": found["gap"]["auroc"]["seeds"], "val_auroc": compare.validated(group)}
        for name, each in found.items():
            row |= interval(name, each["auroc"], inside=name != "gap")
        for end, of in (("-BL", ("BL", None, recipe)), ("-plain", (method, rate, plain))):
            reference = groups.get(of, group)
            changes = compare.contrast(group, reference) if reference is not group else {}
            for name, each in changes.items():
                row |= interval(name + end, each["auroc"])
                row |= interval(f"balanced/{name}{end}", each["balanced_accuracy"])
                row[f"{name}{end}_verdict"] = compare.verdict(each, margin=margin).says
        rows.append(row)
    return pd.DataFrame(rows)


def duels(
    results: Iterable[dict], rivals: Mapping[str, Sequence[str]], *, margin: float = MARGIN
) -> pd.DataFrame:
    """Which of two methods is better at the same rate: paired over the folds and seeds of both. A
    row each rate, pair and where (seen | unseen): differences, verdict, word, told."""
    groups: dict[tuple, list[dict]] = {}
    for r in results:
        groups.setdefault((r["method"], r["rate"]), []).append(r)
    rows = []
    for method, rate in [key for key in groups if key[0] in rivals]:
        for rival in rivals[method]:
            both = compare.matched(groups[method, rate], groups.get((rival, rate), []))
            if not both[0]:
                continue
            found = compare.contrast(*both) or {"seen": compare.paired(*both)["all"]}
            for where in [name for name in found if name != "gap"]:
                word, says, text = compare.verdict(found[where], rival, margin=margin)
                row = {"method": method, "rival": rival, "rate": rate, "where": where}
                row |= {"word": word, "verdict": says, "told": text}
                for metric in compare.JUDGED:
                    row |= interval(f"{metric}-rival", found[where][metric])
                rows.append(row)
    return pd.DataFrame(rows)


def interval(column: str, found: dict, *, inside: bool = False) -> dict:
    """`metrics.combine`'s dict as three columns; inside: the ends are kept in [0, 1]."""
    ends = np.array(found["ci95"] or (math.nan, math.nan))
    low, high = ends.clip(0, 1) if inside else ends
    return {column: found["mean"], f"{column}_low": low, f"{column}_high": high}
