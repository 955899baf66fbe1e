"""Dogs vs cats (Kaggle `salader/dogs-vs-cats`): the paper's source task for transfer learning. Cats are class 0, dogs class 1."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data_prep import manifest
from data_prep.errors import choose
from data_prep.folder import classes, find_layout

NAME = "dogs-vs-cats"
LICENCE = "Asirra / Kaggle: research use"
FETCH = "Download https://www.kaggle.com/datasets/salader/dogs-vs-cats (a Kaggle login is needed) and unpack it, or attach it to the Kaggle notebook."


def prepare(source: Path | str | None = None, *, name: str = NAME) -> pd.DataFrame:
    """Scan the set in the layout `{train,test}/{cats,dogs}`, found by structure below `source`; raises `InputError` when it is not there."""
    root = find_layout(["train/cats", "train/dogs", "test/cats", "test/dogs"], given=source, name=NAME, fetch=FETCH)
    entries = (row for split in ("train", "test") for row in classes(root, root / split, split=split, read=_label))
    return manifest.make(name, root, entries, kind="source", licence=LICENCE)


def _label(parts: tuple[str, ...]) -> tuple[int, str]:
    kind = choose("class folder", parts[0] if parts else "", ["cats", "dogs"], hint="Layout: {train,test}/{cats,dogs}.")
    return (0, "cats") if kind == "cats" else (1, "dogs")
