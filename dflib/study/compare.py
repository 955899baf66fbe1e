"""Finished runs side by side: a run's baseline, paired differences, means over seeds and folds.

A result is the dict of a `result.json` with its `folder`, as `load` gives it; a change is the dict
of `metrics.combine`, of differences. Makes no run, draws nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def _decides(params: dict) -> dict:
    """All settings that decide a run; those that its record does not hold are the defaults."""
    named = (DEFAULTS | params).items()
    return {k: v for k, v in named if k not in MEASURES and (k in DEFAULTS or v)}


# --- a run's baseline


def baseline(result: dict, every: Mapping[str, dict]) -> dict | None:
    """The BL to hold a run against: the one it was made from; for a transfer `from_nothing`.

    every: results by run id, as `load` gives them. None where there is none, and for a BL.
    """
    if result["method"] == "BL":
        return None
    own = (every[i] for i in result["parents"] if i in every)
    found = (b for b in own if (b["method"], b["dataset"]) == ("BL", result["dataset"]))
    return next(found, None) or from_nothing(result, every)


def from_nothing(
    result: dict, every: Mapping[str, dict], *, epochs: float = math.inf
) -> dict | None:
    """The BL of a run's seed, images and settings, and of at most `epochs` epochs the longest.

    Where all are longer, the shortest; None where there is none. What a record does not hold is
    what its parents' hold, else the default.
    """
    told = lambda params: {
        k: v
        for k, v in _decides(params).items()
        if k not in DEFAULTS or (k in METHODS["BL"].keys and k != "epochs")
    }
    place = lambda r: [r[k] for k in ("dataset", "protocol", "seed")]
    alike = [b for b in every.values() if b["method"] == "BL" and place(b) == place(result)]
    wanted = told(_inherited(result, every))
    found = [b for b in alike if told(b["params"]) == wanted]
    length = lambda b: b["params"]["epochs"]
    shorter = [b for b in found if length(b) <= epochs]
    return max(shorter, key=length) if shorter else min(found, key=length, default=None)


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
    table = pd.read_parquet(Path(folder) / "predictions.parquet")
    generators = table["generator"].where(table["label"] == 1)
    members = {name: generators.isin(list(of)) for name, of in (sets or {}).items()}
    options = {"threshold": runs.read(folder)["threshold"], "groups": table["group"]}
    scores = table["score"] if scores is None else scores
    return metrics.resample(table["label"], scores, members or None, draws=draws, **options)


def combined(group: Iterable[dict], sets: Mapping | None = None) -> dict[str, dict]:
    """Results of several seeds as one: {generator | set | "all": {metric: `combine`'s dict}}.

    sets: several generators together, such as {"seen": ["gan", "vae"]}.
    """
    names, drawn = _of_sets([*group], sets)
    return _joined(names, drawn)


def paired(mine, theirs, sets: Mapping | None = None) -> dict[str, dict]:
    """Mine minus theirs on the same images: {generator | set | "all": {metric: change}}.

    mine, theirs: one result each, or one per seed: then each to that of its seed. What is hard for
    both cancels, as the draws are shared. sets: as for `combined`.
    Raises `InputError` for a seed without its counterpart, or other test images.

    >>> verdict(paired(run, baseline(run, every))["all"]["auroc"])  # doctest: +SKIP
    '−0.012 [−0.031, +0.007] against BL: no loss is shown'
    """
    if isinstance(mine, dict):
        mine, theirs = [mine], [theirs]
    else:
        mine, theirs = (sorted(each, key=lambda r: r["seed"]) for each in (mine, theirs))
        lonely = {r["seed"] for r in mine} ^ {r["seed"] for r in theirs}
        if lonely:
            at = ", ".join(map(str, sorted(lonely)))
            raise InputError(f"nothing to compare at seed {at}: make that run, or leave it out")
    names, drawn = _of_sets([*mine, *theirs], sets)
    return _joined(names, drawn[: len(mine)] - drawn[len(mine) :])


def shown(change: dict) -> str:
    """ "gain" or "loss" where the whole interval lies on one side of zero, else "none shown".

    "unknown" without an interval.

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
    _of_sets([mine, theirs], None)  # raises for other images
    tables = [(pd.read_parquet(r["folder"] / "predictions.parquet"), r) for r in (mine, theirs)]
    return metrics.mcnemar(*((t["score"] >= r["threshold"]) == t["label"] for t, r in tables))


def _of_sets(results: Sequence[dict], sets: Mapping | None) -> tuple[list[str], np.ndarray]:
    tested = _tested(results[0])
    some = {name: of for name, of in (sets or {}).items() if len(of)}
    sets = {g: [g] for g in tested} | some | {"all": tested}
    return [*sets], _drawn(results, lambda r: sets)


def _tested(result: dict) -> list[str]:
    return [g for g in result["metrics"] if g not in ("all", "macro")]


def _drawn(results: Sequence[dict], sets: Callable[[dict], Mapping]) -> np.ndarray:
    """`resampled` of each, same draws of the same images: (results, sets, metrics, 1 + draws)."""
    draws = min(r["params"].get("draws", DEFAULTS["draws"]) for r in results)
    members = [tuple((name, tuple(of)) for name, of in sets(r).items()) for r in results]
    found = [_kept(r["folder"], of, draws) for r, of in zip(results, members, strict=True)]
    for r, (images, _) in zip(results, found, strict=True):
        if images != found[0][0]:
            raise InputError(
                f"{r['run_id']} and {results[0]['run_id']} were tested on different images: "
                "compare runs on one dataset and protocol"
            )
    return np.stack([values for _, values in found])


@lru_cache(maxsize=256)  # about a megabyte each; a finished run stays as it is
def _kept(folder: Path, sets: tuple, draws: int) -> tuple[int, np.ndarray]:
    found = resampled(folder, dict(sets), draws=draws)
    paths = pd.read_parquet(folder / "predictions.parquet", columns=["path"])["path"]
    values = [[each[k] for k in metrics.INTERVALS] for each in found.values()]
    return hash(tuple(paths)), np.array(values)


def _joined(names: Iterable[str], drawn: np.ndarray) -> dict[str, dict]:
    each = lambda i: zip(metrics.INTERVALS, drawn[:, i].swapaxes(0, 1), strict=True)
    return {n: {k: metrics.combine(v) for k, v in each(i)} for i, n in enumerate(names)}


# --- tables of runs


def by_seed(results: Iterable[dict]) -> list[list[dict]]:
    """Runs that differ in their seed alone, together; by method, rate and number of images."""
    groups: dict[tuple, dict[int, dict]] = {}
    for r in results:
        groups.setdefault(_key(r), {})[r["seed"]] = r
    order = {code: i for i, code in enumerate(METHODS)}

    def place(group: list[dict]) -> tuple:
        method, rate, images = _place(group[0])
        return order.get(method, len(order)), rate or 0, images or math.inf

    return sorted(([g[seed] for seed in sorted(g)] for g in groups.values()), key=place)


def _key(result: dict) -> tuple:
    decides = str(sorted(_decides(result["params"]).items()))
    return result["method"], result["rate"], result.get("source"), decides


def _place(result: dict) -> tuple:
    return result["method"], result["rate"], result["params"].get("target_images")


def matching(results: Iterable[dict], wanted: dict, *, but: Sequence[str] = ()) -> list[dict]:
    """Those made with the settings `wanted`, but for the named ones; of equals the newest."""
    told = lambda params: {
        k: v for k, v in _decides(params).items() if k in DEFAULTS or not {*RECIPE} <= {*but}
    }
    same = lambda params: {k: v for k, v in told(params).items() if k not in but}
    fits = [r for r in results if same(r["params"]) == same(relevant(r["method"], wanted))]
    return list({(_key(r), r["seed"]): r for r in fits}.values())


def about(group: Sequence[dict], groups: Sequence[Sequence[dict]]) -> dict:
    """What a row is of; settings: those that tell it from rows of its method, rate and images."""
    mine = _decides(group[0]["params"])
    others = [_decides(g[0]["params"]) for g in groups if _place(g[0]) == _place(group[0])]
    differ = ", ".join(f"{k} {v}" for k, v in mine.items() if any(p.get(k) != v for p in others))
    method, rate, images = _place(group[0])
    return {"method": method, "rate": rate, "settings": differ, "target_images": images}


def over_seeds(results: Iterable[dict], every: Mapping[str, dict]) -> pd.DataFrame:
    """A row a method, rate and number of target images: means over seeds, differences from BL.

    Columns: those of `about`, seeds, COSTS; for each generator and "all" NAME/accuracy, /auroc and
    /balanced_accuracy, and with -BL behind minus `baseline`, paired; each with _low and _high.
    """
    rows, groups = [], by_seed(results)
    for group in groups:
        row = about(group, groups) | {"seeds": len(group)}
        row |= pd.DataFrame(map(runs.flat, group))[COSTS].astype(float).mean().to_dict()
        pairs = [(r, b) for r in group if (b := baseline(r, every))]
        tables = {"": combined(group), "-BL": paired(*zip(*pairs, strict=True)) if pairs else {}}
        for suffix, table in tables.items():
            for name, each in table.items():
                for k in ("accuracy", "balanced_accuracy", "auroc"):
                    row |= _ends(f"{name}/{k}{suffix}", each[k], inside=not suffix)
        rows.append(row)
    return pd.DataFrame(rows)


def _ends(column: str, found: dict, *, inside: bool = False) -> dict:
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
        rows.append(about(group, groups) | row | _ends("difference", change))
    return pd.DataFrame(rows)


def matrix(results: Iterable[dict]) -> pd.DataFrame:
    """Trained on against tested on: AUROC of each method, rate, recipe and fold on each generator.

    Columns: method, rate, recipe, train ("all", "gan", "without gan"), test, seen, seeds, auroc,
    auroc_low, auroc_high.
    """
    rows = []
    for group in by_seed(results):
        method, rate, params, known = (
            group[0][k] for k in ("method", "rate", "params", "train_generators")
        )
        train = fold(params).removeprefix("on ").removesuffix(" alone") or "all"
        row = {"method": method, "rate": rate, "recipe": recipe(params), "train": train}
        found = combined(group)
        for test in _tested(group[0]):
            row |= {"test": test, "seen": test in known, "seeds": len(group)}
            rows.append(row | _ends("auroc", found[test]["auroc"], inside=True))
    return pd.DataFrame(rows)


def contrast(group: Iterable[dict], reference: Iterable[dict] = ()) -> dict[str, dict]:
    """AUROC on the fakes of generators that a run was trained on, on all others', and the gap.

    {"seen" | "unseen" | "gap": `combine`'s dict and the number of folds}: the mean over folds, then
    over seeds. Folds that not all seeds have, and runs that saw every generator, are left out.
    reference: other runs: differences to that of the same fold and seed. {} where nothing is left.
    """
    unseen = lambda r: [g for g in _tested(r) if g not in r["train_generators"]]
    place = lambda r: (fold(r["params"]), r["seed"])
    given = [group, reference] if reference else [group]
    sides = [{place(r): r for r in side if unseen(r)} for side in given]
    both = set.intersection(*map(set, sides))
    seeds = sorted({seed for _, seed in both})
    folds = sorted(f for f in {f for f, _ in both} if all((f, seed) in both for seed in seeds))
    if not folds:
        return {}
    chosen = [side[f, seed] for side in sides for seed in seeds for f in folds]
    drawn = _drawn(chosen, lambda r: {"seen": r["train_generators"], "unseen": unseen(r)})
    auroc = drawn[:, :, metrics.INTERVALS.index("auroc")]
    means = auroc.reshape(len(sides), len(seeds), len(folds), 2, -1).mean(axis=2)
    seen, other = (means[0] - means[1] if reference else means[0]).swapaxes(0, 1)
    found = {"seen": seen, "unseen": other, "gap": seen - other}
    return {name: metrics.combine(each) | {"folds": len(folds)} for name, each in found.items()}


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
        others = {s: groups[k] for s, k in others.items() if k != key and k in groups}
        tables = {s: contrast(group, reference) for s, reference in others.items()}
        for suffix, table in ({"": found} | tables).items():
            for name, each in table.items():
                row |= _ends(name + suffix, each, inside=suffix == "" and name != "gap")
        rows.append(row)
    return pd.DataFrame(rows)
