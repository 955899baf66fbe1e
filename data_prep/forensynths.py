"""ForenSynths (CNNDetection): train on ProGAN, test on generators never seen. By default the human classes; all 13 test sets as an option."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data_prep.errors import InputError, choose
from data_prep.folder import row, subfolders, walk
from data_prep.source import Archive, Source
from data_prep.source import prepare as _prepare

log = logging.getLogger(__name__)

BASE = "https://huggingface.co/datasets/sywang/CNNDetection/resolve/main/"
HUMAN = ("progan/person", "stargan", "whichfaceisreal", "deepfake")
ALL = (
    "progan",
    "stylegan",
    "stylegan2",
    "cyclegan",
    "biggan",
    "stargan",
    "gaugan",
    "crn",
    "imle",
    "seeingdark",
    "san",
    "deepfake",
    "whichfaceisreal",
)
TRAINS = {"progan_train": "train", "progan_val": "val"}
_LABELS = {"0_real": 0, "1_fake": 1}


def prepare(
    given: Path | str | None = None, *, name: str | None = None, everything: bool = False
) -> pd.DataFrame:
    """As `source.prepare`. everything: all 13 test generators and all 20 classes of ProGAN, instead of the human ones.

    progan_train (74 GB in seven 7z parts) is used where it is present; without it, progan_val is what there is to train on.
    """
    return _prepare(SOURCE if not everything else EVERYTHING, given, name=name)


def entries(root: Path, *, everything: bool = False) -> Iterator[dict]:
    """Rows of `progan_train/<class>/{0_real,1_fake}`, `progan_val/…` and `CNN_synth_testset/<generator>[/<class>]/{0_real,1_fake}`."""
    present = [t for t in TRAINS if _inner(root, t)]
    if "progan_train" not in present:
        log.warning(
            "progan_train is not there: the few images of progan_val train instead. %s", BY_HAND
        )
    for archive in present:
        split = TRAINS[archive] if len(present) == 2 else "train"
        folder = _inner(root, archive)
        yield from _below(root, [folder] if everything else [folder / "person"], split, "progan")
    tests = _inner(root, "CNN_synth_testset")
    for place in ALL if everything else HUMAN:
        yield from _below(root, [tests / place], "test", place.split("/")[0])


def _below(root: Path, folders: list[Path], split: str, generator: str) -> Iterator[dict]:
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"forensynths: {folder} is missing: download or unpack it again")
        for file in walk(folder):
            kind = choose("class folder", file.parent.name, _LABELS, hint=f"Found {file}.")
            path = (
                file.relative_to(root).with_suffix("").as_posix()
            )  # the same number in two folders is not the same scene
            yield row(
                root, file, _LABELS[kind], generator if _LABELS[kind] else "real", split, path
            )


def _inner(root: Path, archive: str) -> Path | None:
    """The archive's content: directly in its folder, or in one more folder of the same name."""
    folder = root / archive
    if folder.is_dir():
        inner = subfolders(folder)
        return (
            inner[0]
            if len(inner) == 1
            and inner[0].name.startswith(archive.split("_")[0])
            and inner[0].name not in ALL
            else folder
        )
    return None


BY_HAND = f"For the full training set fetch {BASE}progan_train.7z.001 to .007 (74 GB), unpack them (7z x progan_train.7z.001, then progan_train.zip) into a folder progan_train/ beside CNN_synth_testset/."
SOURCE = Source(
    name="forensynths",
    title="ForenSynths (CNNDetection), its human classes",
    address="https://huggingface.co/datasets/sywang/CNNDetection",
    licence="CC BY-NC-SA 4.0",
    size="some 12,000 images, about 2 GB fetched out of 21 GB",
    layouts=(("CNN_synth_testset", "progan_train"), ("CNN_synth_testset", "progan_val")),
    entries=entries,
    archives=(
        Archive(f"{BASE}progan_val.zip", members=("person",)),
        Archive(f"{BASE}CNN_synth_testset.zip", members=HUMAN),
    ),
    by_hand=BY_HAND,
)
EVERYTHING = replace(
    SOURCE,
    title="ForenSynths (CNNDetection), all of it",
    size="some 100,000 images, 21 GB",
    entries=lambda root: entries(root, everything=True),
    archives=(
        Archive(
            f"{BASE}progan_val.zip",
            sha256="7bce9385bde5407875bb829e321f812db53587e59611e105caf6175cf323f002",
        ),
        Archive(
            f"{BASE}CNN_synth_testset.zip",
            sha256="d87eeff4eb6d1061f57620aa1bd54e699a18cc9860fcdc6a55bf4cf643008d85",
        ),
    ),
)
