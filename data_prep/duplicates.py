"""Copies of images, exact (SHA-256) and near (imagehash), and which of them a split tears apart."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

DISTANCE = 4  # of 64 bits: what re-encoding and rescaling change, hardly what another picture does


def near_pairs(hashes: np.ndarray, *, distance: int = DISTANCE) -> tuple[np.ndarray, np.ndarray]:
    """Indices (i, j) of the pairs of distinct 64-bit hashes (uint64) at most `distance` bits apart.
    Of distance + 1 bands, two such hashes agree in one at least (Norouzi et al. 2012)."""
    edges = np.linspace(0, 64, distance + 2).astype(np.uint64)
    found = [np.empty((2, 0), int)]
    for low, high in zip(edges, edges[1:], strict=False):
        band = (hashes >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band, ordered = band[order], hashes[order]
        first, step = np.arange(len(hashes)), 1
        while len(first):  # neighbours, next but one, … as long as their bands agree
            first = first[first + step < len(hashes)]
            first = first[band[first] == band[first + step]]
            near = np.bitwise_count(ordered[first] ^ ordered[first + step]) <= distance
            found.append(np.sort([order[first[near]], order[first[near] + step]], axis=0))
            step += 1
    return tuple(np.unique(np.concatenate(found, axis=1), axis=1))


def joined(*columns: pd.Series) -> np.ndarray:
    """A number for each row; rows that agree in a column, or by way of others, share it."""
    (i, left), (j, right) = map(pd.factorize, columns)
    return _components(i, len(left) + j, len(left) + len(right))[i]


def _components(i: np.ndarray, j: np.ndarray, n: int) -> np.ndarray:
    links = coo_matrix((np.ones(len(i)), (i, j)), shape=(n, n))
    return connected_components(links, directed=False)[1]


def report(table: pd.DataFrame, split: pd.Series) -> dict:
    """Copies among the usable images: exact (the file is there more than once) and near (alike, of
    another scene). For each: images, sets of them, sets across_splits, the images torn so, sets
    across_labels, an example."""
    ok = table[table["status"] == "ok"].assign(split=split)
    hashes = np.array([int(text, 16) for text in ok["phash"]], dtype=np.uint64)
    unique, where = np.unique(hashes, return_inverse=True)
    near = ok.assign(same=_components(*near_pairs(unique), len(unique))[where])
    scenes = near.groupby("same")["group"].transform("nunique")
    return {"exact": _summary(ok.assign(same=ok["sha256"])), "near": _summary(near[scenes > 1])}


def _summary(rows: pd.DataFrame) -> dict:
    rows = rows[rows["same"].duplicated(keep=False)]
    rows = rows.loc[rows.groupby(["same", "split"]).cumcount().sort_values(kind="stable").index]
    sets = rows.groupby("same")
    torn = sets["split"].nunique() > 1
    example = torn.idxmax() if torn.any() else next(iter(rows["same"]), None)
    return {
        "images": len(rows),
        "sets": int(sets.ngroups),
        "across_splits": int(torn.sum()),
        "torn": int(rows["same"].isin(torn.index[torn]).sum()),
        "across_labels": int((sets["label"].nunique() > 1).sum()),
        "example": rows.loc[rows["same"] == example, "path"].head(4).tolist(),
    }
