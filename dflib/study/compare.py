"""Finished runs side by side: a run's baseline, paired differences, means over seeds and folds.

A result is the dict of a `result.json` with its `folder`; `every`: all by run id, as of `load`. A
change is a dict of `metrics.combine`, of differences. `verdict` alone judges.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep import families
from data_prep.errors import InputError
from dflib import metrics
from dflib.study import records
from dflib.study.methods import FOLDS, METHODS, fold, versions
from dflib.study.settings import DEFAULTS

FOLD = (*FOLDS.values(),)
# which network, and what was done against unseen generators
RECIPE = ("backbone", "pretrained", "ema", "front", "mode")
JUDGED = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}  # no share of fakes in them
MARGIN = 0.02  # the loss of either that one would still call none
FLIPS = 6  # scenes decided otherwise: fewer tell nothing, were they all on one side (2 / 2^5 > 5 %)


def load(
    dataset: str | None = None, *, protocol: str = "strict", source: str | None = None
) -> dict[str, dict]:
    """`records.by_age` of a dataset (without one, of all); of transfers those from `source`."""
    place, every = (dataset, protocol), records.by_age().items()
    mine = lambda r: (r["dataset"], r["protocol"]) == place and r.get("source") in (None, source)
    return {run_id: r for run_id, r in every if dataset is None or mine(r)}


def recipe(params: dict) -> str:
    """Which other network a run has, and what it did against unseen generators, "front srm", say,
    or by settings that only older code knew; "plain" for nothing."""
    known = records.decides(params)
    names = (*RECIPE, *(k for k in known if k not in DEFAULTS))
    return ", ".join(f"{k} {known[k]}" for k in names if known[k] != DEFAULTS.get(k)) or "plain"


def baseline(result: dict, every: Mapping[str, dict]) -> dict | None:
    """The BL to hold a run against: the one it was made from, on the same images; for a transfer
    the longest trained BL of its seed, images, code and settings. None for a BL, or without one."""
    if result["method"] == "BL":
        return None
    for b in (every[i] for i in result["parents"] if i in every):
        same = ("dataset", "data_fingerprint")
        if b["method"] == "BL" and all(b.get(key) == result.get(key) for key in same):
            return b
    wanted = _as_a_baseline(result)
    alike = [b for b in every.values() if b["method"] == "BL" and _as_a_baseline(b) == wanted]
    alike.sort(key=lambda b: b["params"].get("epochs", DEFAULTS["epochs"]))
    return alike[-1] if alike else None


def _as_a_baseline(result: dict) -> tuple:
    """What a BL shares with the runs that are held against it."""
    ignored = {*DEFAULTS} - {*METHODS["BL"].keys} | {"epochs"}
    same = ("dataset", "protocol", "seed", "data_fingerprint")
    code = [result.get("code", {}).get(name) for name in versions("BL")]
    return [result.get(key) for key in same], code, records.decides(result["params"], ignored)


# --- detectors on the same images


def resampled(
    folder: Path,
    sets: Mapping[str, Iterable[str]] | None = None,
    *,
    scores: Sequence[float] | None = None,
    draws: int = 1000,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, float]]]:
    """`metrics.resample` of a finished run's test images, by scene, at its threshold. sets:
    generators whose fakes count together; None: {"all": every fake}. scores: others than its own.
    """
    table = records.predictions(folder)
    generators, fake = table["generator"], table["label"] == 1
    members = {name: fake & generators.isin(list(of)) for name, of in (sets or {}).items()}
    members = members or {"all": fake}
    at = {"threshold": records.read(folder)["threshold"], "groups": table["group"]}
    at["testsets"] = table.get("testset")
    scored = table["label"], table["score"] if scores is None else scores
    return metrics.resample(*scored, members, draws=draws, **at)


def combined(group: Sequence[dict]) -> dict[str, dict]:
    """Results of several seeds as one: {generator | "all" | of `in_families`: {metric: `combine`'s
    dict}}; "seen", "unseen" and their "gap" where both are. Folds: their mean in each seed."""
    return _joined(group, *_drawn(group))


def paired(mine, theirs) -> dict[str, dict]:
    """Mine minus theirs on the same images: {generator | "all" | "seen" …: {metric: change}}.

    mine, theirs: one result each, or as many in the same order. What is hard for both cancels, as
    the draws are shared. Raises `InputError` for other test images.

    >>> verdict(paired(run, baseline(run, every))["all"]).says      # doctest: +SKIP
    'undecided, these weights'
    """
    mine, theirs = ([each] if isinstance(each, dict) else list(each) for each in (mine, theirs))
    drawn, bounds = _drawn([*mine, *theirs])
    lost = {name: np.subtract(*np.split(x, 2)) for name, x in drawn.items()}
    return _joined(mine, lost, bounds, _still(mine, theirs))


def against_baselines(group: Iterable[dict], every: Mapping[str, dict]) -> dict[str, dict]:
    """`paired` of runs of several seeds with the `baseline` of each; {} where none has one."""
    pairs = [(r, b) for r in group if (b := baseline(r, every))]
    return paired(*zip(*pairs, strict=True)) if pairs else {}


def contrast(group: Iterable[dict], reference: Iterable[dict] = ()) -> dict[str, dict]:
    """`combined` of generators that a run was trained on, of the others, and their gap: {"seen" |
    "unseen" | "gap": {metric: `combine`'s dict, "folds": how many}}; {} where no run has both.

    reference: other runs: differences to the one of the same fold and seed.
    """
    sides = [group, reference] if reference else [group]
    unseen = lambda r: tested(r, but=r.get("train_generators", tested(r)))
    chosen = matched(*([r for r in side if unseen(r)] for side in sides))
    if not chosen[0]:
        return {}
    found = paired(*chosen) if reference else combined(*chosen)
    folds = {"folds": len({fold(r["params"]) for r in chosen[0]})}
    return {k: found[k] | folds for k in ("seen", "unseen", "gap")}


def matched(*sides: Iterable[dict]) -> list[list[dict]]:
    """The runs whose fold and seed all sides have, of folds that all those seeds have."""
    known = [{(r["seed"], fold(r["params"])): r for r in side} for side in sides]
    both = sorted(set.intersection(*map(set, known)))
    seeds = {seed for seed, _ in both}
    folds = {f for _, f in both if all((seed, f) in both for seed in seeds)}
    return [[side[at] for at in both if at[1] in folds] for side in known]


def tested(result: dict, but: Iterable[str] = ()) -> list[str]:
    """The generators of a run's test part, but for the named ones."""
    return [g for g in result["metrics"] if g not in ("all", "macro", *but)]


def in_families(result: dict) -> dict[str, list[str]]:
    """The generators of a run's test part by family, {"all GAN": …}: those of two or more, where
    there are two families; {} otherwise."""
    known = families.of(tested(result))
    several = {f"all {name}": of for name, of in known.items() if len(of) > 1}
    return several if len(known) > 1 else {}


def _sets(results: Sequence[dict]) -> list[dict[str, list[str]]]:
    """Of each result the generators whose fakes count together, by name."""
    every = tested(results[0])
    known = {g: [g] for g in every} | {"all": every} | in_families(results[0])
    seen = [r.get("train_generators", every) for r in results]
    parts = [{"seen": of, "unseen": tested(results[0], but=of)} for of in seen]
    return [known | part if all(p["unseen"] for p in parts) else known for part in parts]


def _drawn(results: Sequence[dict]) -> tuple[dict, dict]:
    """`resampled` of each on the same draws: {set: (results, metrics, 1 + draws)}, and the largest
    of their bounds, {set: {metric: float}}."""
    first, found, bounds = results[0], [], []
    draws = min(r["params"].get("draws", DEFAULTS["draws"]) for r in results)
    for r, sets in zip(results, _sets(results), strict=True):
        images = [(each.get("data_fingerprint"), _paths(each["folder"])) for each in (r, first)]
        if images[0] != images[1]:
            text = f"{r['run_id']} and {first['run_id']} were tested on different images"
            raise InputError(f"{text}: compare runs on one dataset and protocol")
        frozen = tuple((name, tuple(of)) for name, of in sets.items())
        values, least = _kept(r["folder"], frozen, draws)
        found.append(values)
        bounds.append(least)
    drawn = {name: np.stack([values[name] for values in found]) for name in found[0]}
    largest = lambda dicts: {k: max(d[k] for d in dicts) for k in metrics.INTERVALS}
    most = {name: largest([least[name] for least in bounds]) for name in drawn}
    if "unseen" in drawn:
        drawn["gap"] = drawn["seen"] - drawn["unseen"]
        most["gap"] = largest([most["seen"], most["unseen"]])
    return drawn, most


def _still(mine: Sequence[dict], theirs: Sequence[dict]) -> set[tuple[str, str]]:
    """(set, "recall" | "tnr"): those whose decisions differ on fewer than FLIPS scenes."""
    scenes = defaultdict(set)
    for a, b, sets in zip(mine, theirs, _sets([*mine, *theirs]), strict=False):
        table, other = (records.predictions(r["folder"]) for r in (a, b))
        moved = (table["score"] >= a["threshold"]) != (other["score"] >= b["threshold"])
        fake = table["label"] == 1
        for name, of in sets.items():
            fakes = fake & table["generator"].isin(of)
            at = moved & metrics.with_reals(table["label"], fakes, table.get("testset"))
            scenes[name, "recall"].update(table["group"][at & fake])
            scenes[name, "tnr"].update(table["group"][at & ~fake])
    return {at for at, found in scenes.items() if len(found) < FLIPS}


@lru_cache(maxsize=256)  # about a megabyte each; a finished run stays as it is
def _kept(folder: Path, sets: tuple, draws: int) -> tuple[dict, dict]:
    found, bounds = resampled(folder, dict(sets), draws=draws)
    values = {name: np.array([x[k] for k in metrics.INTERVALS]) for name, x in found.items()}
    own = any(records.predictions(folder).get("testset", ()))  # reals of each test set
    for name, of in sets if own else ():
        if each := [g for g in of if g in values and name != "all"]:
            values[name] = np.mean([values[g] for g in each], axis=0)
            bounds[name] = {k: np.mean([bounds[g][k] for g in each]) for k in bounds[name]}
    return values, bounds


@lru_cache(maxsize=256)
def _paths(folder: Path) -> int:
    return hash(tuple(records.predictions(folder)["path"]))


def _joined(group: Sequence[dict], drawn: Mapping, bounds: Mapping, still=()) -> dict[str, dict]:
    seeds = np.array([r["seed"] for r in group])
    found = {}
    for name, values in drawn.items():
        means = np.stack([values[seeds == s].mean(axis=0) for s in np.unique(seeds)], axis=1)
        each = dict(zip(metrics.INTERVALS, means, strict=True))
        of = ("seen", "unseen") if name == "gap" else (name,)
        alike = {metric: np.zeros(2) for part, metric in still if part in of}
        wider = metrics.beyond(each | alike, bounds[name])
        found[name] = {metric: metrics.combine(x, wider[metric]) for metric, x in each.items()}
    return found


# --- in words


def shown(change: dict) -> str:
    """ "gain" or "loss" where the interval, as it is written, excludes zero; else "none shown".

    >>> shown({"ci95": [-0.03, -0.01]}), shown({"ci95": [-0.03, 0.01]}), shown({"ci95": None})
    ('loss', 'none shown', 'unknown')
    """
    if change["ci95"] is None:
        return "unknown"
    low, high = np.round(change["ci95"], 3)  # the draws decide no end that reads 0.000
    return "gain" if low > 0 else "loss" if high < 0 else "none shown"


class Verdict(NamedTuple):
    """A comparison in one word, with whom it speaks of, and whole."""

    word: str  # better | worse | mixed | kept | undecided
    says: str  # "worse, these weights" | "worse, the method (3 seeds)"
    text: str  # the differences with their intervals, and what it says


def verdict(change: Mapping[str, dict], than: str = "BL", *, margin: float = MARGIN) -> Verdict:
    """What a paired comparison (of one set of generators, from `paired`) shows.

    better, worse: one interval lies on one side of zero; mixed: the other on the other side; kept:
    over several seeds both lie above -margin. Of one seed it speaks of these weights alone.

    >>> change = {"mean": -0.012, "ci95": [-0.031, -0.007], "seeds": 1}
    >>> verdict({"auroc": change, "balanced_accuracy": change}).says
    'worse, these weights'
    """
    each = [change[metric] for metric in JUDGED]
    seeds, sides = each[0]["seeds"], {shown(c) for c in each}
    small = seeds > 1 and all(c["ci95"] and c["ci95"][0] > -margin for c in each)
    if "gain" in sides:
        word = "mixed" if "loss" in sides else "better"
    elif small:
        word = "kept"
    else:
        word = "worse" if "loss" in sides else "undecided"
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
    """`records.validated`, mean over runs: by it, never by the test, a best is chosen."""
    return float(np.mean([records.validated(r["folder"]) for r in group]))
