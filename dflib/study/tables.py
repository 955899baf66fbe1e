"""Finished runs as tables: a row each method, rate and recipe, over seeds and folds, with verdicts.

What is compared with what, and the words, is `compare`'s; how it is written or drawn, `dflib.show`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from dflib.study import compare, records
from dflib.study.methods import METHODS, fold, lineage
from dflib.study.settings import DEFAULTS

COSTS = ["train_images", "trainable_params", "shipped_bytes", "file_bytes", "transfer_s"]


def by_seed(results: Iterable[dict]) -> list[list[dict]]:
    """Runs that differ in their seed alone, together; by method, rate and number of images."""
    groups: dict[tuple, dict[int, dict]] = {}
    for r in results:
        groups.setdefault(_key(r), {})[r["seed"]] = r
    in_order = sorted(groups.items(), key=lambda item: item[0][:3])
    return [[group[seed] for seed in sorted(group)] for _, group in in_order]


def _key(result: dict) -> tuple:
    method, params = result["method"], result["params"]
    order = [*METHODS, method].index(method)  # behind the table where it is not in it
    images = params.get("target_images") or math.inf
    decides = str(sorted(compare.decides(params).items()))
    code = str(sorted(result.get("code", {}).items()))  # older runs are no seeds of newer ones
    data = result.get("source") or "", result.get("data_fingerprint", "")
    return order, result["rate"] or 0, images, method, *data, decides, code


def matching(results: Iterable[dict], wanted: dict, *, but: Sequence[str] = ()) -> list[dict]:
    """Those made with the settings `wanted`, but for the named ones; of equals the newest.

    Only those on the newest one's images. but: with all of RECIPE, what only older code knew may
    differ as well.
    """
    results = list(results)
    older = {k for r in results for k in r["params"]} - {*DEFAULTS}
    but = {*but, *older} if {*compare.RECIPE} <= {*but} else but

    def same(r: dict) -> bool:
        read = {key for code in lineage(r["method"]) for key in METHODS[code].keys}
        held = {*r["params"], *METHODS[r["method"]].keys}  # where no parent is there, its own
        asked = {key: wanted[key] for key in read & held}
        return compare.decides(r["params"], but) == compare.decides(asked, but)

    images = [r.get("data_fingerprint") for r in results if same(r)][-1:]
    found = [r for r in results if same(r) and r.get("data_fingerprint") in images]
    return list({(_key(r), r["seed"]): r for r in found}.values())


def about(group: Sequence[dict], groups: Sequence[Sequence[dict]]) -> dict:
    """What a row is of; settings: what tells it from others of its method, rate and images."""
    place = lambda g: (g[0]["method"], g[0]["rate"], g[0]["params"].get("target_images"))
    others = [compare.decides(g[0]["params"]) for g in groups if place(g) == place(group)]
    told = {k: v for k, v in compare.decides(group[0]["params"]).items() if v != DEFAULTS.get(k)}
    differ = [f"{k} {v}" for k, v in told.items() if any(other.get(k) != v for other in others)]
    differ += [records.OLDER] if records.older(group[0]) else []
    (method, rate, images), settings = place(group), ", ".join(differ)
    return {"method": method, "rate": rate, "settings": settings, "target_images": images}


def over_seeds(
    results: Iterable[dict], every: Mapping[str, dict], *, margin: float = compare.MARGIN
) -> pd.DataFrame:
    """A row a method, rate and number of target images: means over seeds, differences from BL.

    Columns: those of `about`, seeds, run_id (of the first), val_auroc (`validated`), COSTS; for
    each generator and "all" NAME/auroc and /balanced_accuracy, and with -BL behind minus
    `baseline`, paired; each with _low and _high. NAME/verdict and NAME/word against BL (`verdict`),
    and of all together the whole text, "told"; where some were not in training also for NAME
    "seen" and "unseen".
    """
    rows, groups = [], by_seed(results)
    for group in groups:
        row = about(group, groups) | {"seeds": len(group), "run_id": group[0]["run_id"]}
        told = [r["cost"] | r["timings"] | {"train_images": r.get("train_images")} for r in group]
        row |= pd.DataFrame(told).reindex(columns=COSTS).astype(float).mean().to_dict()
        pairs = [(r, b) for r in group if (b := compare.baseline(r, every))]
        changes = compare.paired(*zip(*pairs, strict=True)) if pairs else {}
        row["val_auroc"] = compare.validated(group)
        row["told"] = ""
        for suffix, table in {"": compare.combined(group), "-BL": changes}.items():
            for name, each in table.items():
                for k in compare.JUDGED:
                    row |= compare.ends(f"{name}/{k}{suffix}", each[k], inside=not suffix)
        for name, each in changes.items():
            word, says, text = compare.verdict(each, margin=margin)
            row |= {f"{name}/verdict": says, f"{name}/word": word}
            row |= {"told": text} if name == "all" else {}
        rows.append(row)
    return pd.DataFrame(rows)


def against_scratch(results: Iterable[dict], every: Mapping[str, dict]) -> pd.DataFrame:
    """Whether each transfer beats BL from nothing, with the same target images and epochs at most.

    Columns: those of `about`, epochs (`budget`: the source's are free, later tasks share them),
    scratch_epochs, seeds, difference of AUROC with _low and _high, verdict (`Verdict.says`, and
    whether scratch was shorter or longer; "not measured").
    """
    moved = [r for r in results if r["method"] in METHODS and METHODS[r["method"]].transfers]
    rows, groups = [], by_seed(moved)
    for group in groups:
        epochs = compare.budget(group[0], every)
        pairs = [(r, b) for r in group if (b := compare.from_nothing(r, every, epochs=epochs))]
        theirs = pairs[0][1]["params"]["epochs"] if pairs and epochs > 0 else math.nan
        pairs = [(r, b) for r, b in pairs if b["params"]["epochs"] == theirs]
        change, says = {"mean": math.nan, "ci95": None}, "not measured"
        if pairs:
            found = compare.paired(*zip(*pairs, strict=True))["all"]
            change, (word, says, _) = found["auroc"], compare.verdict(found, than="scratch")
            unlike = {"better": theirs < epochs, "worse": theirs > epochs}.get(word)
            says += f", scratch was {'shorter' if theirs < epochs else 'longer'}" if unlike else ""
        row = {"epochs": epochs, "scratch_epochs": theirs, "seeds": len(pairs), "verdict": says}
        rows.append(about(group, groups) | row | compare.ends("difference", change))
    return pd.DataFrame(rows)


def matrix(results: Iterable[dict]) -> pd.DataFrame:
    """Trained on against tested on: AUROC of each method, rate, recipe and fold on each generator.

    Columns: method, rate, recipe, train ("all", "gan", "without gan"), test, seen, seeds, auroc,
    auroc_low, auroc_high.
    """
    rows = []
    for group in by_seed(results):
        first, found = group[0], compare.combined(group)
        row = {"recipe": compare.recipe(first["params"]), "seeds": len(group)}
        row |= {"train": fold(first["params"]).removeprefix("on ").removesuffix(" alone") or "all"}
        for test in compare.tested(first):
            row |= {"test": test, "seen": test in first["train_generators"]}
            row |= compare.ends("auroc", found[test]["auroc"], inside=True)
            rows.append({k: first[k] for k in ("method", "rate")} | row)
    return pd.DataFrame(rows)


def gaps(results: Iterable[dict], *, margin: float = compare.MARGIN) -> pd.DataFrame:
    """What each method, rate and recipe loses from seen to unseen generators, a row each.

    Columns: method, rate, recipe, folds, seeds, val_auroc (`validated`); AUROC seen, unseen and
    gap of `contrast`; with -BL behind minus BL of the same recipe, with -plain minus the plain
    recipe; each with _low and _high, those of seen and unseen also with _verdict.
    """
    groups: dict[tuple, list[dict]] = {}
    for group in by_seed(results):
        key = (group[0]["method"], group[0]["rate"], compare.recipe(group[0]["params"]))
        groups.setdefault(key, []).extend(group)
    rows = []
    for key, group in groups.items():
        if not (found := compare.contrast(group)):
            continue
        row = dict(zip(("method", "rate", "recipe"), key, strict=True))
        row |= {"folds": found["gap"]["folds"], "seeds": found["gap"]["auroc"]["seeds"]}
        row["val_auroc"] = compare.validated(group)
        others = {"-BL": ("BL", None, key[2]), "-plain": (*key[:2], "plain")}
        others = {end: groups[k] for end, k in others.items() if k != key and k in groups}
        tables = {end: compare.contrast(group, reference) for end, reference in others.items()}
        for end, table in ({"": found} | tables).items():
            for name, each in table.items():
                row |= compare.ends(name + end, each["auroc"], inside=end == "" and name != "gap")
                if end and name != "gap":
                    row[f"{name}{end}_verdict"] = compare.verdict(each, margin=margin).says
        rows.append(row)
    return pd.DataFrame(rows)


def duels(
    results: Iterable[dict],
    rivals: Mapping[str, Sequence[str]],
    *,
    margin: float = compare.MARGIN,
) -> pd.DataFrame:
    """Which of two methods is better at the same rate: paired over the folds and seeds of both.

    rivals: {method: others}. A row each rate, pair and where (seen | unseen generators; all seen
    where no run has unseen ones). Columns: method, rival, rate, where, seeds, difference (AUROC)
    with _low and _high, verdict, word.

    >>> duels(every.values(), {"CKD": ["CPF", "CPF-S"]})            # doctest: +SKIP
    """
    groups: dict[tuple, list[dict]] = {}
    for r in results:
        groups.setdefault((r["method"], r["rate"]), []).append(r)
    rows = []
    for method, rate in [key for key in groups if key[0] in rivals]:
        for rival in rivals[method]:
            both = compare.matched(groups[method, rate], groups.get((rival, rate), []))
            found = compare.contrast(*both) if both[0] else {}
            found = found or ({"seen": compare.paired(*both)["all"]} if both[0] else {})
            for where in [name for name in found if name != "gap"]:
                says, change = (
                    compare.verdict(found[where], rival, margin=margin),
                    found[where]["auroc"],
                )
                row = {"method": method, "rival": rival, "rate": rate, "where": where}
                row |= compare.ends("difference", change) | {"seeds": change["seeds"]}
                rows.append(row | {"verdict": says.says, "word": says.word})
    return pd.DataFrame(rows)
