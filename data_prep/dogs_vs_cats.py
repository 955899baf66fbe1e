"""Dogs vs cats: the paper's source task for transfer learning, in any of its three layouts. Cats are class 0, dogs class 1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from data_prep import download, manifest
from data_prep.errors import InputError, choose
from data_prep.folder import classes, row, walk
from data_prep.paths import data_root
from data_prep.source import KAGGLE, Source, find
from data_prep.source import prepare as _prepare

_LABELS = {"cat": (0, "cats"), "cats": (0, "cats"), "dog": (1, "dogs"), "dogs": (1, "dogs")}


def entries(root: Path) -> Iterator[dict]:
    """Rows of `{train,test}/{cats,dogs}` (Kaggle salader), of `PetImages/{Cat,Dog}` (Microsoft), or of `train/cat.0.jpg` (the competition)."""
    if (root / "PetImages").is_dir():
        for entry in classes(root, root / "PetImages", split="", read=_folder_label):
            yield entry | {
                "group": f"{entry['generator']}.{entry['group']}"
            }  # Cat/1.jpg and Dog/1.jpg are two scenes
    elif (root / "train" / "cats").is_dir():
        for split in ("train", "test"):
            yield from classes(root, root / split, split=split, read=_folder_label)
    else:
        for file in walk(root / "train"):
            label, generator = _name_label(file)
            yield row(root, file, label, generator, "", file.stem)


def prepare(given: Path | str | None = None, *, name: str | None = None) -> pd.DataFrame:
    """As `source.prepare`; the competition's own `train.zip` is unpacked into the data root first (`test1.zip` has no labels)."""
    name = manifest.check_name(SOURCE.name if name is None else name)
    base = Path(given) if given else KAGGLE
    zips = sorted(base.rglob("train.zip")) if find(SOURCE, base) is None and base.is_dir() else []
    if zips:
        files = data_root() / name / "files"
        files.mkdir(parents=True, exist_ok=True)
        download.unpack(zips[0], files / "competition")
        given = files / "competition"
    return _prepare(SOURCE, given, name=name)


def _folder_label(parts: tuple[str, ...]) -> tuple[int, str]:
    hint = "Layout: {train,test}/{cats,dogs} or PetImages/{Cat,Dog}."
    return _LABELS[choose("class folder", parts[0].lower() if parts else "", _LABELS, hint=hint)]


def _name_label(file: Path) -> tuple[int, str]:
    if not (match := re.match(r"(cat|dog)\.\d+\.", file.name)):
        raise InputError(
            f"{file}: no label in its name; the competition's files are called cat.0.jpg and dog.0.jpg"
        )
    return _LABELS[match[1]]


SOURCE = Source(
    name="dogs-vs-cats",
    title="Dogs vs cats (Asirra), as published by Microsoft",
    address="https://www.kaggle.com/datasets/salader/dogs-vs-cats",
    licence="Asirra / Kaggle: research use",
    size="25,000 images, 0.8 GB",
    layouts=(
        ("train/cats", "train/dogs", "test/cats", "test/dogs"),
        ("PetImages/Cat", "PetImages/Dog"),
        ("train/cat.0.jpg", "train/dog.0.jpg"),
    ),
    entries=entries,
    by_hand="Download https://www.kaggle.com/datasets/salader/dogs-vs-cats (a Kaggle login is needed) and unpack it, or attach it to the Kaggle notebook; or Microsoft's, without a login: https://www.microsoft.com/en-us/download/details.aspx?id=54765",
    kind="source",
)
