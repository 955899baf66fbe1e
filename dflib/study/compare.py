"""Finished runs side by side: a run's baseline, paired differences, means over seeds and folds.

A result is the dict of a `result.json` with its `folder`; `every` holds all of them by run id, as
`load` gives them. A change is a dict of `metrics.combine`, of differences. `verdict` is the only
judge: report, explorer and notebooks say its words. Makes no run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from dflib import metrics
from dflib.study import records, runs
from dflib.study.methods import METHODS, fold, versions
from dflib.study.settings import DEFAULTS, MEASURES

FOLD = ("train_generators", "hold_out")
RECIPE = ("blur_jpeg", "ema", "front", "mode")  # against unseen generators
JUDGED = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}  # no share of fakes in them
MARGIN = 0.02  # the loss of either that one would still call none
log = logging.getLogger(__name__)


def load(
    dataset: str | None = None, *, protocol: str = "strict", source: str | None = None
) -> dict[str, dict]:
    """A dataset's finished runs by run id, the oldest first; of transfers those from `source`.

    Without a dataset: all runs of all datasets. What a run does not read itself, `params` has from
    the runs that it was made from. What is damaged is named in a warning and left out.
    """
    age = lambda r: (r["folder"] / "result.json").stat().st_mtime
    found = {}
    found = {r["run_id"]: r for r in sorted(records.every(), key=age)}
    found = {i: r | {"params": _inherited(r, found)} for i, r in found.items()}
    here = lambda r: (r["dataset"], r["protocol"]) == (dataset, protocol)
    wanted = lambda r: dataset is None or (here(r) and r.get("source") in (None, source))
    return {i: r for i, r in found.items() if wanted(r)}


def recipe(params: dict) -> str:
    """What a run did against unseen generators: "front srm", say; "plain" for nothing.

    Settings that only older code knew are named as well, unless they were off.
    """
    known = decides(params)
    names = (*RECIPE, *(k for k in known if k not in DEFAULTS))
    return ", ".join(f"{k} {known[k]}" for k in names if known[k] != DEFAULTS.get(k)) or "plain"


def decides(params: dict, but: Iterable[str] = MEASURES) -> dict:
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
    of = lambda r: (r["dataset"], r.get("data_fingerprint"))
    made_from = (b for b in own if b["method"] == "BL" and of(b) == of(result))
    return next(made_from, None) or from_nothing(result, every)


def from_nothing(
    result: dict, every: Mapping[str, dict], *, epochs: float = math.inf
) -> dict | None:
    """The BL of a run's seed, images and settings, defaults included, and of at most `epochs` epochs
    the longest.

    Where all are longer, the shortest; None where there is none. What a record does not hold is
    what its parents' hold, else the default.
    """
    ignored = {"epochs", *DEFAULTS} - {*METHODS["BL"].keys} | {"epochs"}
    same = ("dataset", "protocol", "seed", "data_fingerprint")
    place = lambda r: ("BL", *(r.get(key) for key in same), _code(r))
    wanted = place(result), decides(_inherited(result, every), ignored)
    alike = lambda b: b["method"] == "BL" and (place(b), decides(b["params"], ignored)) == wanted
    length = lambda b: b["params"].get("epochs", DEFAULTS["epochs"])
    found = sorted(filter(alike, every.values()), key=length)
    shorter = [b for b in found if length(b) <= epochs]
    return (shorter[-1:] or found[:1] or [None])[0]


def _code(result: dict) -> tuple:
    """What code made a run, as far as a BL has it; () where that was not recorded."""
    code = result.get("code", {})
    return tuple((name, code[name]) for name in versions("BL") if name in code)


def _inherited(result: dict, every: Mapping[str, dict]) -> dict:
    known = result["params"]
    for parent in (every[i] for i in result["parents"] if i in every):
        known = _inherited(parent, every) | known
    return known


def budget(result: dict, every: Mapping[str, dict]) -> float:
    """Epochs on the target's images, a run's own and those of the runs its weights come from.

    NaN where one of these is missing.
    """
    code = result["method"]
    read = {key: result["params"].get(key, 0) for key in METHODS[code].keys}
    own = read.get("epochs" if code in ("BL", "TL+KD") else "transfer_epochs", 0)
    if read.get("teacher") == "source":
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
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, float]]]:
    """`metrics.resample` of a finished run's test images, by scene, at its threshold.

    sets: generators whose fakes count together, {"unseen": ["gan"]}; None: {"all": every fake}.
    scores: others than the run's, of the same images (`robustness`).
    """
    table = runs.predictions(folder)
    generators, fake = table["generator"], table["label"] == 1
    members = {name: fake & generators.isin(list(of)) for name, of in (sets or {}).items()}
    members = members or {"all": fake}
    at = {"threshold": runs.read(folder)["threshold"], "groups": table["group"]}
    at["testsets"] = table.get("testset")
    scored = table["label"], table["score"] if scores is None else scores
    return metrics.resample(*scored, members, draws=draws, **at)


def combined(group: Iterable[dict], sets: Mapping | None = None) -> dict[str, dict]:
    """Results of several seeds as one: {generator | set | "all": {metric: `combine`'s dict}}.

    sets: several generators together, {"late": ["gan", "vae"]}. Where some were not in training
    there are "seen", "unseen" and their difference, "gap". Folds: their mean within each seed.
    """
    group = list(group)
    return _joined(group, *_drawn(group, sets))


def paired(mine, theirs, sets: Mapping | None = None) -> dict[str, dict]:
    """Mine minus theirs on the same images: {generator | set | "all": {metric: change}}.

    mine, theirs: one result each, or one per seed and fold, each then to its counterpart. What is
    hard for both cancels, as the draws are shared. sets, "seen" …: as for `combined`.
    Raises `InputError` where a counterpart is missing, or for other test images.

    >>> verdict(paired(run, baseline(run, every))["all"]).says      # doctest: +SKIP
    'undecided, these weights'
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
    drawn, bounds = _drawn([*mine, *theirs], sets)
    lost = {name: np.subtract(*np.split(x, 2)) for name, x in drawn.items()}
    return _joined(mine, lost, bounds)


def shown(change: dict) -> str:
    """ "gain" or "loss" where the whole interval lies on one side of zero, else "none shown".

    >>> shown({"ci95": [-0.03, -0.01]}), shown({"ci95": [-0.03, 0.01]}), shown({"ci95": None})
    ('loss', 'none shown', 'unknown')
    """
    if change["ci95"] is None:
        return "unknown"
    low, high = change["ci95"]
    return "gain" if low > 0 else "loss" if high < 0 else "none shown"


class Verdict(NamedTuple):
    """A comparison in one word, with whom it speaks of, and whole."""

    word: str  # better | worse | mixed | kept | undecided
    says: str  # "worse, these weights" | "worse, the method (3 seeds)"
    text: str  # the differences with their intervals, and what it says


def verdict(change: Mapping[str, dict], than: str = "BL", *, margin: float = MARGIN) -> Verdict:
    """What a paired comparison shows, no stronger than its intervals.

    change: {metric: change} of one set of generators, as `paired` gives it, with JUDGED among them.
    kept: over several seeds both intervals lie above -margin (non-inferior), and no gain is shown.
    better, worse: one lies on one side of zero; mixed: the other on the other side. Of one seed it
    speaks of these weights, not of the method, and bounds no loss.

    >>> change = {"mean": -0.012, "ci95": [-0.031, -0.007], "seeds": 1}
    >>> verdict({"auroc": change, "balanced_accuracy": change}).says
    'worse, these weights'
    """
    each = [change[metric] for metric in JUDGED]
    seeds, sides = each[0]["seeds"], {shown(c) for c in each}
    small = seeds > 1 and all(c["ci95"] and c["ci95"][0] > -margin for c in each)
    word = "mixed" if sides >= {"gain", "loss"} else "better" if "gain" in sides else "undecided"
    if word == "undecided":
        word = "kept" if small else "worse" if "loss" in sides else word
    says = f"{word}, the method ({seeds} seeds)" if seeds > 1 else f"{word}, these weights"
    numbers = ", ".join(f"{name} {spoken(change[m])}" for m, name in JUDGED.items())
    return Verdict(word, says, f"{numbers} against {than}: {says}")


def spoken(change: dict) -> str:
    """A change with its interval: "−0.012 [−0.031, +0.007]"; a dash where nothing was measured."""
    if change["mean"] is None or math.isnan(change["mean"]):
        return "–"
    span = " [{:+.3f}, {:+.3f}]".format(*change["ci95"]) if change["ci95"] else ", no interval"
    return f"{change['mean']:+.3f}{span}".replace("-", "−")


def validated(group: Iterable[dict]) -> float:
    """AUROC on the validation images, mean over runs: by it, never by the test, a best is chosen.

    NaN where a run's validation scores are not there, or of one class.
    """
    return float(np.mean([_validated(r["folder"]) for r in group]))


@lru_cache(maxsize=4096)
def _validated(folder: Path) -> float:
    try:
        known = pd.read_parquet(folder / "validation.parquet")
        return float(roc_auc_score(known["label"], known["score"]))
    except (OSError, ValueError, KeyError):
        return math.nan


def _place(result: dict) -> tuple:
    return result["seed"], fold(result["params"])


def tested(result: dict, but: Iterable[str] = ()) -> list[str]:
    """The generators of a run's test part, but for the named ones."""
    return [g for g in result["metrics"] if g not in ("all", "macro", *but)]


def _drawn(results: Sequence[dict], sets: Mapping | None = None) -> tuple[dict, dict]:
    """`resampled` of each, same draws of the same images: {set: (results, metrics, 1 + draws)}, and
    the largest of their bounds: {set: {metric: float}}."""
    every = tested(results[0])
    named = {g: [g] for g in every} | dict(sets or {}) | {"all": every}
    draws = min(r["params"].get("draws", DEFAULTS["draws"]) for r in results)
    unseen = [tested(r, but=r.get("train_generators", every)) for r in results]
    found, images = [], []
    for r, others in zip(results, unseen, strict=True):
        mine = {"seen": r["train_generators"], "unseen": others} if all(unseen) else {}
        frozen = tuple((name, tuple(of)) for name, of in (named | mine).items())
        paths, *kept = _kept(r["folder"], frozen, draws)
        found.append(kept)
        images.append((paths, r.get("data_fingerprint")))
        if images[-1] != images[0]:
            raise InputError(
                f"{r['run_id']} and {results[0]['run_id']} were tested on different images: "
                "compare runs on one dataset and protocol"
            )
    drawn = {name: np.stack([values[name] for values, _ in found]) for name in found[0][0]}
    most = lambda name: {k: max(each[name][k] for _, each in found) for k in metrics.INTERVALS}
    bounds = {name: most(name) for name in drawn}
    if all(unseen):
        drawn["gap"] = drawn["seen"] - drawn["unseen"]
        bounds["gap"] = {k: max(bounds[s][k] for s in ("seen", "unseen")) for k in bounds["seen"]}
    return drawn, bounds


@lru_cache(maxsize=256)  # about a megabyte each; a finished run stays as it is
def _kept(folder: Path, sets: tuple, draws: int) -> tuple[int, dict, dict]:
    found, bounds = resampled(folder, dict(sets), draws=draws)
    paths = runs.predictions(folder)["path"]
    each = {name: np.array([x[k] for k in metrics.INTERVALS]) for name, x in found.items()}
    return hash(tuple(paths)), each, bounds


def _joined(group: Sequence[dict], drawn: Mapping, bounds: Mapping) -> dict[str, dict]:
    seeds = np.array([r["seed"] for r in group])
    found = {}
    for name, values in drawn.items():
        means = np.stack([values[seeds == s].mean(axis=0) for s in np.unique(seeds)], axis=1)
        each = dict(zip(metrics.INTERVALS, means, strict=True))
        wider = metrics.beyond(each, bounds[name])
        found[name] = {metric: metrics.combine(x, wider[metric]) for metric, x in each.items()}
    return found


def contrast(group: Iterable[dict], reference: Iterable[dict] = ()) -> dict[str, dict]:
    """What `combined` tells of generators that a run was trained on, of the others, and the gap.

    {"seen" | "unseen" | "gap": {metric: `combine`'s dict, "folds": how many}}: the mean over folds,
    then over seeds. Folds that not all seeds have, and runs that saw every generator, are left out.
    reference: other runs: differences to that of the same fold and seed. {} where nothing is left.
    """
    sides = [group, reference] if reference else [group]
    chosen = matched(*([r for r in s if tested(r, r["train_generators"])] for s in sides))
    if not chosen[0]:
        return {}
    found = paired(*chosen) if reference else combined(*chosen)
    folds = {"folds": len({fold(r["params"]) for r in chosen[0]})}
    return {k: found[k] | folds for k in ("seen", "unseen", "gap")}


def matched(*sides: Iterable[dict]) -> list[list[dict]]:
    """The runs whose fold and seed all sides have, of folds that all those seeds have."""
    known = [{_place(r): r for r in side} for side in sides]
    both = sorted(set.intersection(*map(set, known)))
    seeds = {seed for seed, _ in both}
    folds = {f for _, f in both if all((seed, f) in both for seed in seeds)}
    return [[side[at] for at in both if at[1] in folds] for side in known]


def ends(column: str, found: dict, *, inside: bool = False) -> dict:
    """`metrics.combine`'s dict as three columns; inside: the ends are kept in [0, 1]."""
    ends = np.array(found["ci95"] or (math.nan, math.nan))
    low, high = ends.clip(0, 1) if inside else ends
    return {column: found["mean"], f"{column}_low": low, f"{column}_high": high}
