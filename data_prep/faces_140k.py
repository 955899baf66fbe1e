"""140k Real and Fake Faces (Kaggle `xhlulu/140k-real-and-fake-faces`): FFHQ photographs against StyleGAN faces, 256 px."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data_prep import manifest
from data_prep.errors import choose
from data_prep.folder import SPLITS, classes, find_layout

NAME = "faces-140k"
LICENCE = "FFHQ and 140k Real and Fake Faces: CC BY-NC-SA 4.0"
FETCH = "Download https://www.kaggle.com/datasets/xhlulu/140k-real-and-fake-faces (a Kaggle login is needed) and unpack it, or attach it to the Kaggle notebook."


def prepare(source: Path | str | None = None, *, name: str = NAME) -> pd.DataFrame:
    """Scan the set in its Kaggle layout, `real_vs_fake/real-vs-fake/{train,valid,test}/{real,fake}`, found by structure below `source`.

    Alphabetical folder order would make fake = 0; here fake is 1. Raises `InputError` when the layout is not found.
    """
    root = find_layout(["train/real", "train/fake", "valid/real", "test/real"], given=source, name=NAME, fetch=FETCH)
    entries = (
        row
        for folder in ("train", "valid", "test")
        for row in classes(root, root / folder, split=SPLITS[folder], read=_label)
    )
    return manifest.make(name, root, entries, licence=LICENCE)


def _label(parts: tuple[str, ...]) -> tuple[int, str]:
    kind = choose(
        "class folder", parts[0] if parts else "", ["real", "fake"], hint="Layout: {train,valid,test}/{real,fake}."
    )
    return (0, "real") if kind == "real" else (1, "stylegan")
