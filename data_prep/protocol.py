"""Which image trains, validates, tests: by scenes (`strict`), or at random (`paper`)."""

import numpy as np
import pandas as pd

from data_prep import duplicates
from data_prep.errors import InputError, choose

FOLDS = 10
# tenths of the images; the rest trains
SHARES = {"strict": {"test": 3, "val": 1}, "paper": {"test": 4, "val": 0}}
PROTOCOLS = tuple(SHARES)
VAL_TENTHS = 1  # taken from train where the dataset has no validation part of its own


def assign(
    table: pd.DataFrame,
    protocol: str = "strict",
    *,
    seed: int = 0,
    whole_scenes: bool | None = None,
) -> pd.Series:
    """Split of every row of a manifest ("train", "val", "test"; "" for quarantined rows).

    Splits that the dataset gives are kept. Otherwise `strict` divides by `scenes`, 60/10/30, and
    `paper` single images at random, 60/40 (arXiv 2504.21066); a missing validation part is a tenth
    of train. whole_scenes: None leaves it to the protocol. Raises `InputError` for an unknown
    protocol, too few scenes, or a given split with a scene or a file on both sides (strict).

    >>> assign(manifest.load("demo")).value_counts()                 # doctest: +SKIP
    """
    choose("protocol", protocol, PROTOCOLS)
    split = pd.Series("", index=table.index, dtype="str")
    ok = table[table["status"] == "ok"]
    grouped = protocol == "strict" if whole_scenes is None else whole_scenes
    group = scenes(ok) if grouped else pd.Series(ok.index.astype(str), index=ok.index)
    if (ok["split"] != "").any():
        split[ok.index] = ok["split"].where(ok["split"] != "", "train")
    else:
        fold, tests = _folds(ok, group, seed), SHARES[protocol]["test"]
        parts = [fold < tests, fold < tests + SHARES[protocol]["val"]]
        split[ok.index] = np.select(parts, ["test", "val"], "train")
    if not (split == "val").any():
        train = ok[split[ok.index] == "train"]
        split[train.index[_folds(train, group[train.index], seed + 1) < VAL_TENTHS]] = "val"
    _check(ok, split[ok.index], protocol)
    return split


def scenes(ok: pd.DataFrame) -> pd.Series:
    """The scene of each usable image: its group; groups that share a file (SHA-256) are one.

    >>> scenes(pd.DataFrame({"group": ["a", "b", "c"], "sha256": ["1", "1", "2"]})).tolist()
    ['a', 'a', 'c']
    """
    if ok["sha256"].is_unique:
        return ok["group"]
    part = duplicates.joined(ok["group"], ok["sha256"])
    return ok["group"].groupby(part).transform("min")


def _folds(ok: pd.DataFrame, group: pd.Series, seed: int) -> np.ndarray:
    """A fold for each image, 0 to 9; generators in equal shares, each scene in one fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    smallest = ok.groupby("generator").size().min()
    sizes = {"images in the smallest class": smallest, "scenes": group.nunique()}
    for what, number in sizes.items():
        if number < FOLDS:
            need = f"at least {FOLDS} are needed, another --scene, or folders train/, val/, test/"
            raise InputError(f"{number} {what} are too few to split: {need}")
    kind, scenes = (StratifiedKFold, None) if group.is_unique else (StratifiedGroupKFold, group)
    fold = np.empty(len(ok), dtype=int)
    splitter = kind(FOLDS, shuffle=True, random_state=seed)
    for i, (_, test) in enumerate(splitter.split(ok, ok["generator"], scenes)):
        fold[test] = i
    return fold


def _check(ok: pd.DataFrame, split: pd.Series, protocol: str) -> None:
    for part in ("train", "val", "test"):
        labels = set(ok.loc[split == part, "label"])
        if labels != {0, 1}:
            has = f"only label {labels.pop()}" if labels else "no images"
            need = "both classes are needed in train, val and test (a set of one can be tested on)"
            raise InputError(f"the {part} part has {has}; {need}")
    if protocol == "strict":
        _check_leaks(ok, split)


def _check_leaks(ok: pd.DataFrame, split: pd.Series) -> None:
    how = "Mend the folders, or use --protocol paper"
    sides = split.groupby(ok["sha256"]).transform("nunique") > 1
    if sides.any():
        files = ok[sides].groupby("sha256")["path"].agg(lambda paths: " = ".join(paths[:3]))
        what = f"{len(files)} files stand in more than one split ({'; '.join(files[:3])})"
        raise InputError(f"{what}: a leak. {how}")
    sides = split.groupby(ok["group"]).nunique()
    crossing = sides.index[sides > 1]
    if len(crossing):
        what = f"{len(crossing)} scenes stand in more than one split (e.g. {crossing[0]!r})"
        raise InputError(f"{what}: a leak. {how}")
