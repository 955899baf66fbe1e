"""Finished runs side by side: a run's baseline, paired differences, means over seeds and folds.

A result is the dict of a `result.json` with its `folder`; `every` holds all of them by run id, as
`load` gives them. A change is a dict of `metrics.combine`, of differences. Makes no run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.errors import InputError
from dflib import metrics
from dflib.study import runs
from dflib.study.methods import METHODS, fold, relevant
from dflib.study.settings import DEFAULTS, MEASURES

FOLD = ("train_generators", "hold_out")
RECIPE = ("cutmix", "blur_jpeg", "ema", "front", "mixup", "mode")  # against unseen generators
COSTS = ["train_images", "trainable_params", "shipped_bytes", "file_bytes", "transfer_s"]
log = logging.getLogger(__name__)


def load(
    dataset: str | None = None, *, protocol: str = "strict", source: str | None = None
) -> dict[str, dict]:
    """A dataset's finished runs by run id, the oldest first; of transfers those from `source`.

    Without a dataset: all runs of all datasets. What is damaged is named in a warning and left out.
    """
    found = {}
    for folder in sorted(runs.folders(), key=lambda f: (f / "result.json").stat().st_mtime):
        try:
            r = runs.read(folder)
            here = (r["dataset"], r["protocol"]) == (dataset, protocol)
            if dataset is None or (here and r["source"] in (None, source)):
                found[r["run_id"]] = r
        except (InputError, KeyError, TypeError) as error:
            log.warning("left out: %s is no finished run of this version (%s)", folder, error)
    return found


def recipe(params: dict) -> str:
    """What a run did against unseen generators: "front srm", say; "plain" for nothing.

    Settings that only older code knew are named as well, unless they were off.
    """
    known = _decides(params)
    names = (*RECIPE, *(k for k in known if k not in DEFAULTS))
    return ", ".join(f"{k} {known[k]}" for k in names if known[k] != DEFAULTS.get(k)) or "plain"


def _decides(params: dict, but: Iterable[str] = MEASURES) -> dict:
    """The settings that decide a run; its record, maybe of older code, may lack some defaults."""
    named = (DEFAULTS | params).items()
    return {k: v for k, v in named if k not in {*MEASURES, *but} and (k in DEFAULTS or v)}


def baseline(result: dict, every: Mapping[str, dict]) -> dict | None:
    """The BL to hold a run against: the one it was made from; for a transfer `from_nothing`.

    None where there is none, and for a BL.
    """
    if result["method"] == "BL":
        return None
    own = (every[i] for i in result["parents"] if i in every)
    made_from = (b for b in own if (b["method"], b["dataset"]) == ("BL", result["dataset"]))
    return next(made_from, None) or from_nothing(result, every)


def from_nothing(
    result: dict, every: Mapping[str, dict], *, epochs: float = math.inf
) -> dict | None:
    """The BL of a run's seed, images and settings, and of at most `epochs` epochs the longest.

    Where all are longer, the shortest; None where there is none. What a record does not hold is
    what its parents' hold, else the default.
    """
    ignored = {"epochs", *DEFAULTS} - {*METHODS["BL"].keys} | {"epochs"}
    place = lambda r: ("BL", *(r[k] for k in ("dataset", "protocol", "seed")))
    wanted = place(result), _decides(_inherited(result, every), ignored)
    alike = lambda b: b["method"] == "BL" and (place(b), _decides(b["params"], ignored)) == wanted
    length = lambda b: b["params"].get("epochs", DEFAULTS["epochs"])
    found = sorted(filter(alike, every.values()), key=length)
    shorter = [b for b in found if length(b) <= epochs]
    return (shorter[-1:] or found[:1] or [None])[0]


def _inherited(result: dict, every: Mapping[str, dict]) -> dict:
    known = result["params"]
    for parent in (every[i] for i in result["parents"] if i in every):
        known = _inherited(parent, every) | known
    return known


def budget(result: dict, every: Mapping[str, dict]) -> float:
    """Epochs on the target's images, a run's own and those of the runs its weights come from.

    NaN where one of these is missing.
    """
    params, code = result["params"], result["method"]
    own = params.get("epochs" if code in ("BL", "TL+KD") else "transfer_epochs", 0)
    if params.get("teacher") == "source":
        return own  # TL+FT is made beside it, and not used
    made = {every[i]["method"]: every[i] for i in result["parents"] if i in every}
    before = [p for p in METHODS[code].parents if "@source" not in p]
    return own + sum(budget(made[p], every) if p in made else math.nan for p in before)


# --- detectors on the same images


def resampled(
    folder: Path,
    sets: Mapping[str, Iterable[str]] | None = None,
    *,
    scores: Sequence[float] | None = None,
    draws: int = 1000,
) -> dict[str, dict[str, np.ndarray]]:
    """`metrics.resample` of a finished run's test images, by scene, at its threshold.

    sets: generators whose fakes count together, {"unseen": ["gan"]}; None: {"all": every fake}.
    scores: others than the run's, of the same images (`robustness`).
    """
    table = runs.predictions(folder)
    generators = table["generator"].where(table["label"] == 1)
    members = {name: generators.isin(list(of)) for name, of in (sets or {}).items()}
    options = {"threshold": runs.read(folder)["threshold"], "groups": table["group"]}
    options["testsets"] = table.get("testset")
    scores = table["score"] if scores is None else scores
    return metrics.resample(table["label"], scores, members or None, draws=draws, **options)


def combined(group: Iterable[dict], sets: Mapping | None = None) -> dict[str, dict]:
    """Results of several seeds as one: {generator | set | "all": {metric: `combine`'s dict}}.

    sets: several generators together, {"late": ["gan", "vae"]}. Where some were not in training
    there are "seen", "unseen" and their difference, "gap". Folds: their mean within each seed.
    """
    group = list(group)
    return _joined(group, _drawn(group, sets))


def paired(mine, theirs, sets: Mapping | None = None) -> dict[str, dict]:
    """Mine minus theirs on the same images: {generator | set | "all": {metric: change}}.

    mine, theirs: one result each, or one per seed and fold, each then to its counterpart. What is
    hard for both cancels, as the draws are shared. sets, "seen" …: as for `combined`.
    Raises `InputError` where a counterpart is missing, or for other test images.

    >>> verdict(paired(run, baseline(run, every))["all"]["auroc"])  # doctest: +SKIP
    '−0.012 [−0.031, +0.007] against BL: no loss is shown'
    """
    mine, theirs = ([each] if isinstance(each, dict) else list(each) for each in (mine, theirs))
    if len(mine) > 1 or len(theirs) > 1:
        mine, theirs = sorted(mine, key=_place), {_place(r): r for r in theirs}
        if lonely := [r for r in mine if _place(r) not in theirs]:
            at = ", ".join(str(r["seed"]) for r in lonely)
            raise InputError(
                f"no run to compare {lonely[0]['run_id']} with at seed {at}: "
                "make it, or leave the seed out"
            )
        theirs = [theirs[_place(r)] for r in mine]
    drawn = _drawn([*mine, *theirs], sets)
    return _joined(mine, {name: np.subtract(*np.split(x, 2)) for name, x in drawn.items()})


def shown(change: dict) -> str:
    """ "gain" or "loss" where the whole interval lies on one side of zero, else "none shown".

    >>> shown({"ci95": [-0.03, -0.01]}), shown({"ci95": [-0.03, 0.01]}), shown({"ci95": None})
    ('loss', 'none shown', 'unknown')
    """
    if change["ci95"] is None:
        return "unknown"
    low, high = change["ci95"]
    return "gain" if low > 0 else "loss" if high < 0 else "none shown"


def verdict(change: dict, than: str = "BL") -> str:
    """A change in words, no stronger than its interval.

    >>> verdict({"mean": -0.012, "ci95": [-0.031, 0.007]})
    '−0.012 [−0.031, +0.007] against BL: no loss is shown'
    """
    words = {"gain": "a gain", "loss": "a loss", "none shown": "no loss is shown"}
    says = words.get(shown(change), "without an interval nothing is shown")
    span = " [{:+.3f}, {:+.3f}]".format(*change["ci95"]) if change["ci95"] else ""
    number = "not measured" if change["mean"] is None else f"{change['mean']:+.3f}{span}"
    return f"{number.replace('-', '−')} against {than}: {says}"


def mcnemar(mine: dict, theirs: dict) -> dict:
    """`metrics.mcnemar` of two results' decisions on the same images, at their own thresholds."""
    _drawn([mine, theirs])  # raises for other images
    tables = [(runs.predictions(r["folder"]), r) for r in (mine, theirs)]
    return metrics.mcnemar(*((t["score"] >= r["threshold"]) == t["label"] for t, r in tables))


def _place(result: dict) -> tuple:
    return result["seed"], fold(result["params"])


def _tested(result: dict, but: Iterable[str] = ()) -> list[str]:
    return [g for g in result["metrics"] if g not in ("all", "macro", *but)]


def _drawn(results: Sequence[dict], sets: Mapping | None = None) -> dict[str, np.ndarray]:
    """`resampled` of each, same draws of the same images: {set: (results, metrics, 1 + draws)}."""
    tested = _tested(results[0])
    named = {g: [g] for g in tested} | dict(sets or {}) | {"all": tested}
    draws = min(r["params"].get("draws", DEFAULTS["draws"]) for r in results)
    unseen = [_tested(r, but=r.get("train_generators", tested)) for r in results]
    found = []
    for r, others in zip(results, unseen, strict=True):
        mine = {"seen": r["train_generators"], "unseen": others} if all(unseen) else {}
        frozen = tuple((name, tuple(of)) for name, of in (named | mine).items())
        found.append(_kept(r["folder"], frozen, draws))
        if found[-1][0] != found[0][0]:
            raise InputError(
                f"{r['run_id']} and {results[0]['run_id']} were tested on different images: "
                "compare runs on one dataset and protocol"
            )
    drawn = {name: np.stack([values[name] for _, values in found]) for name in found[0][1]}
    return drawn | ({"gap": drawn["seen"] - drawn["unseen"]} if all(unseen) else {})


@lru_cache(maxsize=256)  # about a megabyte each; a finished run stays as it is
def _kept(folder: Path, sets: tuple, draws: int) -> tuple[int, dict[str, np.ndarray]]:
    found = resampled(folder, dict(sets), draws=draws)
    paths = runs.predictions(folder)["path"]
    each = {name: np.array([x[k] for k in metrics.INTERVALS]) for name, x in found.items()}
    return hash(tuple(paths)), each


def _joined(group: Sequence[dict], drawn: Mapping[str, np.ndarray]) -> dict[str, dict]:
    seeds = np.array([r["seed"] for r in group])
    found = {}
    for name, values in drawn.items():
        means = np.stack([values[seeds == s].mean(axis=0) for s in np.unique(seeds)], axis=1)
        pairs = zip(metrics.INTERVALS, means, strict=True)
        found[name] = {metric: metrics.combine(each) for metric, each in pairs}
    return found


# --- tables of runs


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
    decides = str(sorted(_decides(params).items()))
    return order, result["rate"] or 0, images, method, result.get("source") or "", decides


def matching(results: Iterable[dict], wanted: dict, *, but: Sequence[str] = ()) -> list[dict]:
    """Those made with the settings `wanted`, but for the named ones; of equals the newest.

    but: with all of RECIPE, what only older code knew may differ as well.
    """
    results = list(results)
    older = {k for r in results for k in r["params"]} - {*DEFAULTS}
    but = {*but, *older} if {*RECIPE} <= {*but} else but
    same = lambda r: _decides(r["params"], but) == _decides(relevant(r["method"], wanted), but)
    return list({(_key(r), r["seed"]): r for r in results if same(r)}.values())


def about(group: Sequence[dict], groups: Sequence[Sequence[dict]]) -> dict:
    """What a row is of; settings: what tells it from others of its method, rate and images."""
    place = lambda g: (g[0]["method"], g[0]["rate"], g[0]["params"].get("target_images"))
    others = [_decides(g[0]["params"]) for g in groups if place(g) == place(group)]
    told = {k: v for k, v in _decides(group[0]["params"]).items() if v != DEFAULTS.get(k)}
    differ = [f"{k} {v}" for k, v in told.items() if any(other.get(k) != v for other in others)]
    (method, rate, images), settings = place(group), ", ".join(differ)
    return {"method": method, "rate": rate, "settings": settings, "target_images": images}


def over_seeds(results: Iterable[dict], every: Mapping[str, dict]) -> pd.DataFrame:
    """A row a method, rate and number of target images: means over seeds, differences from BL.

    Columns: those of `about`, seeds, run_id (of the first), COSTS; for each generator and "all"
    NAME/accuracy, /auroc and /balanced_accuracy, and with -BL behind minus `baseline`, paired; each
    with _low and _high.
    """
    rows, groups = [], by_seed(results)
    for group in groups:
        row = about(group, groups) | {"seeds": len(group), "run_id": group[0]["run_id"]}
        told = [r["cost"] | r["timings"] | {"train_images": r.get("train_images")} for r in group]
        row |= pd.DataFrame(told).reindex(columns=COSTS).astype(float).mean().to_dict()
        pairs = [(r, b) for r in group if (b := baseline(r, every))]
        tables = {"": combined(group), "-BL": paired(*zip(*pairs, strict=True)) if pairs else {}}
        for suffix, table in tables.items():
            for name, each in table.items():
                for k in ("accuracy", "balanced_accuracy", "auroc"):
                    row |= ends(f"{name}/{k}{suffix}", each[k], inside=not suffix)
        rows.append(row)
    return pd.DataFrame(rows)


def ends(column: str, found: dict, *, inside: bool = False) -> dict:
    """`metrics.combine`'s dict as three columns; inside: the ends are kept in [0, 1]."""
    ends = np.array(found["ci95"] or (math.nan, math.nan))
    low, high = ends.clip(0, 1) if inside else ends
    return {column: found["mean"], f"{column}_low": low, f"{column}_high": high}


def against_scratch(results: Iterable[dict], every: Mapping[str, dict]) -> pd.DataFrame:
    """Whether each transfer beats BL from nothing, with the same target images and epochs at most.

    Columns: those of `about`, epochs (`budget`: the source's are free, later tasks share them),
    scratch_epochs, seeds, difference of AUROC with _low and _high, verdict: beats scratch | beats a
    shorter scratch | loses to scratch | loses to a longer scratch | undecided | not measured.
    """
    moved = [r for r in results if r["method"] in METHODS and METHODS[r["method"]].transfers]
    rows, groups = [], by_seed(moved)
    for group in groups:
        epochs = budget(group[0], every)
        pairs = [(r, b) for r in group if (b := from_nothing(r, every, epochs=epochs))]
        theirs = pairs[0][1]["params"]["epochs"] if pairs and epochs > 0 else math.nan
        pairs = [(r, b) for r, b in pairs if b["params"]["epochs"] == theirs]
        change = {"mean": math.nan, "ci95": None}
        if pairs:
            change = paired(*zip(*pairs, strict=True))["all"]["auroc"]
        words = {
            "gain": "beats a shorter scratch" if theirs < epochs else "beats scratch",
            "loss": "loses to a longer scratch" if theirs > epochs else "loses to scratch",
        }
        says = words.get(shown(change), "undecided" if pairs else "not measured")
        row = {"epochs": epochs, "scratch_epochs": theirs, "seeds": len(pairs), "verdict": says}
        rows.append(about(group, groups) | row | ends("difference", change))
    return pd.DataFrame(rows)


def matrix(results: Iterable[dict]) -> pd.DataFrame:
    """Trained on against tested on: AUROC of each method, rate, recipe and fold on each generator.

    Columns: method, rate, recipe, train ("all", "gan", "without gan"), test, seen, seeds, auroc,
    auroc_low, auroc_high.
    """
    rows = []
    for group in by_seed(results):
        first, found = group[0], combined(group)
        row = {"recipe": recipe(first["params"]), "seeds": len(group)}
        row |= {"train": fold(first["params"]).removeprefix("on ").removesuffix(" alone") or "all"}
        for test in _tested(first):
            row |= {"test": test, "seen": test in first["train_generators"]}
            row |= ends("auroc", found[test]["auroc"], inside=True)
            rows.append({k: first[k] for k in ("method", "rate")} | row)
    return pd.DataFrame(rows)


def contrast(group: Iterable[dict], reference: Iterable[dict] = ()) -> dict[str, dict]:
    """AUROC on generators that a run was trained on, on the others, and the gap.

    {"seen" | "unseen" | "gap": `combine`'s dict and the number of folds}: the mean over folds, then
    over seeds. Folds that not all seeds have, and runs that saw every generator, are left out.
    reference: other runs: differences to that of the same fold and seed. {} where nothing is left.
    """
    sides = [group, reference] if reference else [group]
    sides = [{_place(r): r for r in s if _tested(r, r["train_generators"])} for s in sides]
    both = set.intersection(*map(set, sides))
    seeds = {seed for seed, _ in both}
    folds = {f for _, f in both if all((seed, f) in both for seed in seeds)}
    if not folds:
        return {}
    chosen = [[side[at] for at in both if at[1] in folds] for side in sides]
    found = paired(*chosen) if reference else combined(*chosen)
    return {k: found[k]["auroc"] | {"folds": len(folds)} for k in ("seen", "unseen", "gap")}


def gaps(results: Iterable[dict]) -> pd.DataFrame:
    """What each method, rate and recipe loses from seen to unseen generators, a row each.

    Columns: method, rate, recipe, folds, seeds; seen, unseen and gap of `contrast`; with -BL behind
    minus BL of the same recipe, with -plain minus the plain recipe; each with _low and _high.
    """
    groups: dict[tuple, list[dict]] = {}
    for group in by_seed(results):
        key = (group[0]["method"], group[0]["rate"], recipe(group[0]["params"]))
        groups.setdefault(key, []).extend(group)
    rows = []
    for key, group in groups.items():
        if not (found := contrast(group)):
            continue
        row = dict(zip(("method", "rate", "recipe"), key, strict=True))
        row |= {k: found["gap"][k] for k in ("folds", "seeds")}
        others = {"-BL": ("BL", None, key[2]), "-plain": (*key[:2], "plain")}
        others = {end: groups[k] for end, k in others.items() if k != key and k in groups}
        tables = {end: contrast(group, reference) for end, reference in others.items()}
        for end, table in ({"": found} | tables).items():
            for name, each in table.items():
                row |= ends(name + end, each, inside=end == "" and name != "gap")
        rows.append(row)
    return pd.DataFrame(rows)
