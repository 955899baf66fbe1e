"""A study's runs side by side: what they say over several seeds, against BL, and against training from nothing at the same budget.

Reads finished runs; makes none, draws nothing.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.errors import InputError
from dflib import metrics
from dflib.study import runs
from dflib.study.methods import METHODS, fold, relevant
from dflib.study.settings import DEFAULTS, MEASURES

METRICS = ("accuracy", "balanced_accuracy", "auroc")
FOLD = ("train_generators", "hold_out")
# what may help on unseen generators, at the same budget
RECIPE = ("cutmix", "blur_jpeg", "ema", "front", "mixup", "mode")
log = logging.getLogger(__name__)


def load(dataset: str, *, protocol: str = "strict", source: str | None = None) -> dict[str, dict]:
    """Results of all finished runs on a dataset by run id, the oldest first, each with its `folder`; of transfers those from `source`."""
    found = {}
    for folder in sorted(runs.folders(), key=lambda f: (f / "result.json").stat().st_mtime):
        try:
            r = runs.read(folder)
            fits = (r["dataset"], r["protocol"]) == (dataset, protocol) and r["source"] in (
                None,
                source,
            )
        except (InputError, KeyError, TypeError) as error:
            log.warning("left out: %s is no finished run of this version (%s)", folder, error)
            continue
        if fits:
            found[r["run_id"]] = r | {"folder": folder}
    return found


def matching(results: Iterable[dict], wanted: dict, *, but: Sequence[str] = ()) -> list[dict]:
    """Those made with the settings `wanted`, whatever the ones named in `but`; of equals the newest (the last).

    wanted: all settings, as `methods.settings` gives them.
    """
    same = lambda params: {k: v for k, v in params.items() if k not in but}
    fits = [r for r in results if same(r["params"]) == same(relevant(r["method"], wanted))]
    return list({(_key(r), r["seed"]): r for r in fits}.values())


def by_seed(results: Iterable[dict]) -> list[list[dict]]:
    """Runs that differ in their seed alone, together; in the order of the table of methods, then by rate."""
    groups: dict[tuple, dict[int, dict]] = {}
    for r in results:
        groups.setdefault(_key(r), {})[r["seed"]] = r
    order = {code: i for i, code in enumerate(METHODS)}
    place = lambda group: (
        order.get(group[0]["method"], len(order)),
        group[0]["rate"] or 0,
        _images(group[0]),
    )
    return sorted(([group[seed] for seed in sorted(group)] for group in groups.values()), key=place)


def combined(
    group: Iterable[dict],
    reference: Iterable[dict] = (),
    *,
    sets: dict[str, Sequence[str]] | None = None,
) -> dict[str, dict]:
    """Runs that differ in their seed alone as one, on each generator's fakes and "all": {name: {metric: `metrics.combine`'s dict}}.

    reference: the runs to compare with (BL's, say): values are then differences (the group's minus theirs), each to the one of its seed, image by
    image. sets: names for several generators together, such as {"seen": ["stylegan"]}. Raises `InputError` for a seed without its counterpart, or
    when they were tested on different images.

    >>> lost = combined(pruned, baselines)["all"]["accuracy"]        # doctest: +SKIP
    >>> metrics.non_inferior(lost["ci95"], margin=0.02)              # doctest: +SKIP
    """
    mine, theirs = ({r["seed"]: r for r in each} for each in (group, reference))
    if theirs and (lonely := sorted(set(mine) - set(theirs))):
        raise InputError(
            f"no run to compare {mine[lonely[0]]['run_id']} with at seed {', '.join(map(str, lonely))}: make it, or leave the seed out"
        )
    together = [*mine.values(), *(theirs[seed] for seed in mine if theirs)]
    _same_images(together)
    tested = _tested(together[0])
    sets = (
        {g: [g] for g in tested}
        | {name: of for name, of in (sets or {}).items() if len(of)}
        | {"all": tested}
    )
    drawn = [_drawn(r, sets) for r in together]
    values = {
        name: {k: np.stack([d[name][k] for d in drawn]) for k in metrics.INTERVALS} for name in sets
    }
    change = lambda x: x[: len(mine)] - (x[len(mine) :] if theirs else 0)
    return {
        name: {k: metrics.combine(change(x)) for k, x in each.items()}
        for name, each in values.items()
    }


def _tested(result: dict) -> list[str]:
    return [g for g in result["metrics"] if g not in ("all", "macro")]


def _drawn(result: dict, sets: dict[str, Sequence[str]]) -> dict[str, dict[str, np.ndarray]]:
    sets = tuple((name, tuple(of)) for name, of in sets.items())
    return _kept(result["folder"], sets, result["params"].get("draws", DEFAULTS["draws"]))


@lru_cache(maxsize=128)  # about a megabyte each; a finished run stays as it is
def _kept(folder: Path, sets: tuple, draws: int) -> dict[str, dict[str, np.ndarray]]:
    return runs.resampled(folder, dict(sets), draws=draws)


def _same_images(results: Sequence[dict]) -> None:
    paths = [
        pd.read_parquet(r["folder"] / "predictions.parquet", columns=["path"])["path"]
        for r in results
    ]
    for r, each in zip(results, paths, strict=True):
        if not each.equals(paths[0]):
            raise InputError(
                f"{r['run_id']} and {results[0]['run_id']} were tested on different images: compare runs on one dataset and protocol"
            )


def recipe(params: dict) -> str:
    """What a run did against unseen generators, in words: the settings of RECIPE that are not the default; "plain" for none."""
    return (
        ", ".join(f"{k} {params[k]}" for k in RECIPE if params.get(k, DEFAULTS[k]) != DEFAULTS[k])
        or "plain"
    )


def matrix(results: Iterable[dict]) -> pd.DataFrame:
    """What was trained on against what was tested on: the AUROC of each method, rate, recipe and fold on each generator's fakes.

    Columns: method, rate, recipe, train (in words: "all", "gan", "without gan"), test, seen, seeds, auroc, auroc_low, auroc_high.
    """
    rows = []
    for group in by_seed(results):
        method, rate, params, known = (
            group[0][k] for k in ("method", "rate", "params", "train_generators")
        )
        about = {"method": method, "rate": rate, "recipe": recipe(params)}
        about["train"] = fold(params).removeprefix("on ").removesuffix(" alone") or "all"
        for test, found in combined(group).items():
            if test != "all":
                row = about | {"test": test, "seen": test in known, "seeds": len(group)}
                rows.append(row | _with_ends("auroc", found["auroc"], inside=True))
    return pd.DataFrame(rows)


def contrast(group: Iterable[dict], reference: Iterable[dict] = ()) -> dict[str, dict]:
    """One method's runs, of any folds and seeds: {"seen" | "unseen" | "gap": `metrics.combine`'s dict} of the AUROC on the fakes of the generators
    that each run was trained on, on those of all others, and the first minus the second.

    The mean over folds, then over seeds; folds that not all seeds have are left out, and runs that saw every generator. reference: other runs; then values
    are differences to the one of the same fold and seed, image by image. {} where nothing is left. Raises `InputError` for other test images.
    """
    key = lambda r: (fold(r["params"]), r["seed"])
    unseen = lambda r: [g for g in _tested(r) if g not in r["train_generators"]]
    mine, theirs = ({key(r): r for r in each if unseen(r)} for each in (group, reference))
    both = set(mine) & set(theirs) if theirs or reference else set(mine)
    seeds = sorted({seed for _, seed in both})
    folds = sorted(f for f in {f for f, _ in both} if all((f, seed) in both for seed in seeds))
    if not folds:
        return {}
    _same_images(
        [each[f, seed] for each in (mine, theirs) if each for f in folds for seed in seeds]
    )

    def values(r: dict) -> np.ndarray:
        drawn = _drawn(r, {"seen": r["train_generators"], "unseen": unseen(r)})
        a, b = drawn["seen"]["auroc"], drawn["unseen"]["auroc"]
        return np.stack([a, b, a - b])

    change = lambda *at: values(mine[at]) - (values(theirs[at]) if theirs else 0)
    arrays = np.stack([np.mean([change(f, seed) for f in folds], axis=0) for seed in seeds], axis=1)
    return {
        name: metrics.combine(each) | {"folds": len(folds)}
        for name, each in zip(("seen", "unseen", "gap"), arrays, strict=True)
    }


def gaps(results: Iterable[dict]) -> pd.DataFrame:
    """How much each method, rate and recipe loses from seen to unseen generators: one row each, of those with unseen ones.

    Columns: method, rate, recipe, folds, seeds; seen, unseen (AUROC) and gap, of `contrast`; the same with `-BL` behind for the difference from BL
    of the same recipe, and with `-plain` for that from the plain recipe of the same method and rate; each also with `_low` and `_high`.
    """
    groups: dict[tuple, list[dict]] = {}
    for group in by_seed(results):
        groups.setdefault(
            (group[0]["method"], group[0]["rate"], recipe(group[0]["params"])), []
        ).extend(group)
    rows = []
    for (method, rate, how), group in groups.items():
        if not (found := contrast(group)):
            continue
        row = {
            "method": method,
            "rate": rate,
            "recipe": how,
            "folds": found["gap"]["folds"],
            "seeds": found["gap"]["seeds"],
        }
        others = {
            "": found,
            "-BL": contrast(group, base)
            if (base := groups.get(("BL", None, how))) and method != "BL"
            else {},
        }
        others["-plain"] = (
            contrast(group, base)
            if (base := groups.get((method, rate, "plain"))) and how != "plain"
            else {}
        )
        for suffix, each in others.items():
            for name, value in each.items():
                row |= _with_ends(name + suffix, value, inside=not suffix and name != "gap")
        rows.append(row)
    return pd.DataFrame(rows)


def budget(result: dict, every: dict[str, dict]) -> float:
    """Epochs on the target's images that went into a run: its own, and those of the runs on the target that its weights come from.

    every: results by run id, as `load` gives them. NaN where a run that it comes from is missing.
    """
    params, code = result["params"], result["method"]
    own = params.get("epochs" if code in ("BL", "TL+KD") else "transfer_epochs", 0)
    before = [p.removesuffix("@source") for p in METHODS[code].parents if "@source" not in p]
    if params.get("teacher") == "source":
        before = []  # TL+FT is made beside it, and not used
    parents = [
        next((every[i] for i in result["parents"] if i in every and every[i]["method"] == m), None)
        for m in before
    ]
    return own + sum(math.nan if parent is None else budget(parent, every) for parent in parents)


def from_nothing(result: dict, every: Iterable[dict], *, epochs: float = math.inf) -> dict | None:
    """The target's own BL to hold a run against: same seed, images and settings, and of at most `epochs` epochs the one with the most.

    Where all have more, the one with the fewest; None where there is none.
    """
    differ = {"epochs", *MEASURES}
    mine = relevant(result["method"], DEFAULTS) | result["params"]
    fits = lambda b: all(mine.get(k, v) == v for k, v in b["params"].items() if k not in differ)
    found = [b for b in every if (b["method"], b["seed"]) == ("BL", result["seed"]) and fits(b)]
    longest = max(
        (b for b in found if b["params"]["epochs"] <= epochs),
        key=lambda b: b["params"]["epochs"],
        default=None,
    )
    return longest or min(found, key=lambda b: b["params"]["epochs"], default=None)


def baseline(result: dict, every: dict[str, dict]) -> dict | None:
    """The BL to hold a run against: the one that it was made from; a transfer's is the target's own, of most epochs (`from_nothing`)."""
    own = [every[i] for i in result["parents"] if i in every and every[i]["method"] == "BL"]
    return own[0] if own else from_nothing(result, every.values())


def over_seeds(results: Iterable[dict], every: dict[str, dict]) -> pd.DataFrame:
    """One row a method, rate and number of target images: means over seeds with 95 % intervals, and the paired difference from BL.

    Columns: method, rate, settings (those that tell apart what would else be the same row), target_images (NaN: all), seeds, train_images, trainable_params, shipped_bytes, file_bytes, transfer_s; for each generator and "all",
    `NAME/auroc`, `NAME/accuracy` and `NAME/balanced_accuracy`, the same with `-BL` behind for the difference, each also with `_low` and `_high`.
    """
    rows, groups = [], by_seed(results)
    for group in groups:
        row = about(group, groups) | {"seeds": len(group)}
        for k in ("trainable_params", "shipped_bytes", "file_bytes"):
            row[k] = pd.Series([r["cost"].get(k) for r in group], dtype=float).mean()
        row["train_images"] = pd.Series([r.get("train_images") for r in group], dtype=float).mean()
        row["transfer_s"] = pd.Series([r["timings"]["transfer_s"] for r in group]).mean()
        _columns(row, combined(group))
        pairs = [(r, b) for r in group if r["method"] != "BL" and (b := baseline(r, every))]
        if pairs:
            _columns(row, combined(*zip(*pairs, strict=True)), "-BL")
        rows.append(row)
    return pd.DataFrame(rows)


def against_scratch(results: Iterable[dict], every: dict[str, dict]) -> pd.DataFrame:
    """Whether each transfer beats BL trained from nothing on the same target images for at most as many epochs, paired and over seeds.

    Columns: method, rate, settings, target_images, epochs (on the target), scratch_epochs, seeds, difference of AUROC with low and high, verdict:
    beats scratch | beats a shorter scratch | loses to scratch | loses to a longer scratch | undecided | not measured (no such BL). Epochs are
    passes over the target's images: those spent on the source are free, as it is shared by every task that comes after.
    """
    rows, groups = (
        [],
        by_seed(r for r in results if r["method"] in METHODS and METHODS[r["method"]].transfers),
    )
    for group in groups:
        epochs = budget(group[0], every)
        pairs = [(r, b) for r in group if (b := from_nothing(r, every.values(), epochs=epochs))]
        theirs = pairs[0][1]["params"]["epochs"] if pairs and epochs > 0 else math.nan
        pairs = [(r, b) for r, b in pairs if b["params"]["epochs"] == theirs]
        found = (
            combined(*zip(*pairs, strict=True))["all"]["auroc"]
            if pairs
            else {"mean": math.nan, "ci95": None}
        )
        low, high = found["ci95"] or (math.nan, math.nan)
        verdict = "undecided" if pairs else "not measured"
        if low > 0:
            verdict = "beats a shorter scratch" if theirs < epochs else "beats scratch"
        elif high < 0:
            verdict = "loses to a longer scratch" if theirs > epochs else "loses to scratch"
        counted = {"epochs": epochs, "scratch_epochs": theirs, "seeds": len(pairs)}
        rows.append(
            about(group, groups)
            | counted
            | {"difference": found["mean"], "low": low, "high": high, "verdict": verdict}
        )
    return pd.DataFrame(rows)


def _columns(row: dict, values: dict[str, dict], suffix: str = "") -> None:
    for name, each in values.items():
        for metric in METRICS:
            row |= _with_ends(f"{name}/{metric}{suffix}", each[metric], inside=not suffix)


def _with_ends(column: str, found: dict, *, inside: bool = False) -> dict:
    """`metrics.combine`'s dict as three columns; inside: the ends are kept in [0, 1]."""
    low, high = found["ci95"] or (math.nan, math.nan)
    return {
        column: found["mean"],
        f"{column}_low": max(low, 0) if inside else low,
        f"{column}_high": min(high, 1) if inside else high,
    }


def _key(result: dict) -> tuple:
    return (
        result["method"],
        result["rate"],
        result.get("source"),
        json.dumps(result["params"], sort_keys=True),
    )


def about(group: Sequence[dict], groups: Sequence[Sequence[dict]]) -> dict:
    """What a row is about; settings: those that tell it from other rows of its method, rate and images, as text."""
    first, mine = group[0], group[0]["params"]
    alike = [g[0]["params"] for g in groups if all(g[0][k] == first[k] for k in ("method", "rate"))]
    images = mine.get("target_images")
    others = [p for p in alike if p.get("target_images") == images]
    differ = ", ".join(f"{k} {v}" for k, v in mine.items() if any(p.get(k) != v for p in others))
    return {
        "method": first["method"],
        "rate": first["rate"],
        "settings": differ,
        "target_images": images,
    }


def _images(result: dict) -> float:
    return result["params"].get("target_images") or math.inf
