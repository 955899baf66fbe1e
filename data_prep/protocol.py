"""Which image trains, validates, tests: by scenes (`strict`), or at random (`paper`)."""

import numpy as np
import pandas as pd

from data_prep import cache, duplicates
from data_prep.errors import InputError, choose
from data_prep.paths import describe

FOLDS = 10
SHARES = {"strict": (3, 1), "paper": (4, 0)}  # tenths that test and validate; the rest trains
PROTOCOLS = tuple(SHARES)


def decoded(name: str, size: int, protocol: str, mode: str) -> tuple[np.memmap, pd.DataFrame]:
    """A dataset's images and their rows; by protocol strict real and fake are alike."""
    alike = protocol == "strict" and describe(name)["kind"] == "deepfake"
    pixels, table = cache.build(name, size=size, mode=mode, equalise=alike)
    return pixels, table.assign(row=np.arange(len(table)), group=scenes(table))


def assign(table: pd.DataFrame, protocol: str = "strict", *, seed: int = 0) -> pd.Series:
    """Split of every row of a manifest ("train", "val", "test"; "" for quarantined rows).

    Splits that the dataset gives are kept. Otherwise `strict` divides by `scenes`, 60/10/30, and
    `paper` single images at random, 60/40 (arXiv 2504.21066); a missing validation part is a tenth
    of train. `InputError` for too few scenes, or a scene or a file on both sides (strict).
    """
    choose("protocol", protocol, PROTOCOLS)
    split = pd.Series("", index=table.index, dtype="str")
    ok = table[table["status"] == "ok"]
    group = scenes(ok) if protocol == "strict" else pd.Series(ok.index.astype(str), index=ok.index)
    if (ok["split"] != "").any():
        split[ok.index] = ok["split"].where(ok["split"] != "", "train")
    else:
        fold, (test, val) = _folds(ok, group, seed), SHARES[protocol]
        split[ok.index] = np.select([fold < test, fold < test + val], ["test", "val"], "train")
    if not (split == "val").any():
        train = ok[split[ok.index] == "train"]
        fold = _folds(train, group[train.index], seed + 1, " of the training part")
        split[train.index[fold == 0]] = "val"
    _check(ok, split[ok.index], protocol)
    return split


def scenes(ok: pd.DataFrame) -> pd.Series:
    """The scene of each usable image: its group; groups that share a file (SHA-256) are one."""
    if ok["sha256"].is_unique:
        return ok["group"]
    return ok["group"].groupby(duplicates.joined(ok["group"], ok["sha256"])).transform("min")


def _folds(ok: pd.DataFrame, group: pd.Series, seed: int, of: str = "") -> np.ndarray:
    """A fold for each image, 0 to 9; generators in equal shares, each scene in one fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    smallest = ok.groupby("generator").size().min()
    sizes = {"images in the smallest class": smallest, "scenes": group.nunique()}
    for what, number in sizes.items():
        if number < FOLDS:
            need = f"at least {FOLDS} are needed, another --scene, or folders train/, val/, test/"
            raise InputError(f"{number} {what}{of} are too few to split: {need}")
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
    for what, column in (("files", "sha256"), ("scenes", "group")):
        sides = split.groupby(ok[column]).nunique()
        torn = sides.index[sides > 1]
        if protocol == "strict" and len(torn):
            paths = ok.loc[ok[column] == torn[0], "path"].head(3)
            where = f"{len(torn)} {what} stand in more than one split (e.g. {' = '.join(paths)})"
            raise InputError(f"{where}: a leak. Mend the folders, or use --protocol paper")
