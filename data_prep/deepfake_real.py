"""DeepFake and Real Images (Kaggle `manjilkarki/deepfake-and-real-images`): 190,335 faces of 256 px."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.errors import choose
from data_prep.folder import SPLITS, classes
from data_prep.source import Source
from data_prep.source import prepare as _prepare


def entries(root: Path) -> Iterator[dict]:
    """Rows of `{Train,Validation,Test}/{Real,Fake}`; fake is 1."""
    for split in ("Train", "Validation", "Test"):
        yield from classes(root, root / split, split=SPLITS[split.lower()], read=_label)


def _label(parts: tuple[str, ...]) -> tuple[int, str]:
    hint = "Layout: {Train,Validation,Test}/{Real,Fake}."
    return (
        (0, "real")
        if choose("class folder", parts[0] if parts else "", ["Real", "Fake"], hint=hint) == "Real"
        else (1, "deepfake")
    )


SOURCE = Source(
    name="deepfake-real",
    title="DeepFake and Real Images",
    address="https://www.kaggle.com/datasets/manjilkarki/deepfake-and-real-images",
    licence="unstated by the publisher: research use only, at your own judgement",
    size="190,335 images of 256 px",
    layouts=(("Train/Real", "Train/Fake", "Validation/Real", "Test/Real"),),
    entries=entries,
    by_hand="Download https://www.kaggle.com/datasets/manjilkarki/deepfake-and-real-images (a Kaggle login is needed) and unpack it, or attach it to the Kaggle notebook.",
)
prepare = partial(_prepare, SOURCE)
