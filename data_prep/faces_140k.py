"""140k Real and Fake Faces (Kaggle `xhlulu/140k-real-and-fake-faces`): FFHQ photographs against StyleGAN faces, 256 px."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.errors import choose
from data_prep.folder import SPLITS, classes
from data_prep.source import Source
from data_prep.source import prepare as _prepare


def entries(root: Path) -> Iterator[dict]:
    """Rows of `{train,valid,test}/{real,fake}`. Alphabetical folder order would make fake = 0; here fake is 1."""
    for split in ("train", "valid", "test"):
        yield from classes(root, root / split, split=SPLITS[split], read=_label)


def _label(parts: tuple[str, ...]) -> tuple[int, str]:
    kind = choose(
        "class folder",
        parts[0] if parts else "",
        ["real", "fake"],
        hint="Layout: {train,valid,test}/{real,fake}.",
    )
    return (0, "real") if kind == "real" else (1, "stylegan")


SOURCE = Source(
    name="faces-140k",
    title="140k Real and Fake Faces",
    address="https://www.kaggle.com/datasets/xhlulu/140k-real-and-fake-faces",
    licence="FFHQ and 140k Real and Fake Faces: CC BY-NC-SA 4.0",
    size="140,000 images of 256 px, 4 GB",
    layouts=(("train/real", "train/fake", "valid/real", "test/real"),),
    entries=entries,
    by_hand="Download https://www.kaggle.com/datasets/xhlulu/140k-real-and-fake-faces (a Kaggle login is needed) and unpack it, or attach it to the Kaggle notebook.",
)
prepare = partial(_prepare, SOURCE)
