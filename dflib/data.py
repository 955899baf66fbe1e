"""From the decoded memory map to batches on the device. Splitting and decoding are `data_prep`'s."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data_prep import cache, manifest
from data_prep.errors import InputError, choose
from data_prep.paths import describe
from data_prep.protocol import assign


@dataclass(frozen=True)
class Part:
    """Some images of a dataset: rows of the memory map, with their labels, generators and scenes."""

    pixels: np.memmap  # uint8, N x H x W x 3, the whole dataset
    table: pd.DataFrame  # the rows of this part; column `row` points into `pixels`
    balanced: bool = (
        False  # shuffled batches hold both classes equally often, whatever their numbers
    )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        return self.table["label"].to_numpy()

    @property
    def generators(self) -> np.ndarray:
        """The generator of each fake image, "real" for label 0."""
        return np.where(self.labels == 0, "real", self.table["generator"].to_numpy(dtype=object))

    @property
    def groups(self) -> np.ndarray:
        return self.table["group"].to_numpy(dtype=object)

    def batches(
        self,
        size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (uint8 images N x 3 x H x W in channels_last memory, int64 labels N) on the device.

        shuffle: a generator for the order; None keeps the manifest's.
        """
        rows, labels = (
            torch.tensor(self.table[c].to_numpy(), dtype=torch.int64) for c in ("row", "label")
        )
        order = torch.arange(len(self)) if shuffle is None else self._shuffled(labels, shuffle)
        cuda = torch.device(device).type == "cuda"
        words = _words(self.pixels)
        for index in order.split(size):
            images = torch.empty(len(index), words.shape[1], dtype=torch.int64, pin_memory=cuda)
            torch.index_select(words, 0, rows[index], out=images)
            images = images.view(torch.uint8).view(-1, *self.pixels.shape[1:])
            yield (
                images.to(device, non_blocking=cuda).permute(0, 3, 1, 2),
                labels[index].to(device, non_blocking=cuda),
            )

    def _shuffled(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """As many images as there are, in random order; balanced: half of each class, each of a class's images as often as any other, or once more."""
        counts = labels.bincount(minlength=2)
        if not self.balanced or counts.unique().numel() == 1 or not counts.all():
            return torch.randperm(len(labels), generator=generator)
        half = len(labels) // 2
        picked = torch.cat(
            [
                _drawn(labels == label, n, generator)
                for label, n in enumerate((half, len(labels) - half))
            ]
        )
        return picked[torch.randperm(len(picked), generator=generator)]

    def image(self, i: int) -> np.ndarray:
        """One decoded image, uint8 H x W x 3."""
        return np.asarray(self.pixels[self.table["row"].iloc[i]])


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset, decoded at one size and split by one protocol."""

    name: str
    size: int
    protocol: str
    mode: str
    train: Part
    val: Part
    test: Part
    class_names: tuple[str, str]
    equalised: bool = False  # real and fake were made alike in size and JPEG quality


def open(  # noqa: A001 (the design's name)
    name: str,
    *,
    size: int,
    protocol: str = "strict",
    mode: str = "resize",
    limit: int | None = None,
    train_generators: str = "",
    hold_out: str = "",
    equalise: bool | None = None,
    whole_scenes: bool | None = None,
    split_seed: int = 0,
) -> Dataset:
    """Open a prepared dataset; decodes it on the first call.

    Protocol strict makes real and fake alike in size and JPEG quality first, and balances the classes in shuffled training batches.
    size: pixels a side, a multiple of 32. mode: resize | center_crop | texture_crop. limit: at most so many images of each class in each part.
    train_generators, hold_out: see `trained_on`; the test part keeps the fakes of every generator, and all reals stay.
    equalise, whole_scenes: None leaves it to the protocol. split_seed: of the split, where the dataset gives none.
    Raises `InputError` for a missing dataset, an unknown protocol or mode, or a part without one of the classes.

    >>> open("demo", size=32).train.batches(64)                    # doctest: +SKIP
    """
    deepfake = describe(name)["kind"] == "deepfake"
    alike = deepfake and (protocol == "strict" if equalise is None else equalise)
    pixels, table = cache.build(name, size=size, mode=mode, equalise=alike)
    split = assign(table, protocol, seed=split_seed, whole_scenes=whole_scenes)
    table = table.assign(row=np.arange(len(table)), split=split)
    if train_generators or hold_out:
        known = trained_on(
            name, protocol=protocol, train_generators=train_generators, hold_out=hold_out
        )
        table = table[
            (table["label"] == 0) | (table["split"] == "test") | table["generator"].isin(known)
        ]
    balanced = {"train": protocol == "strict", "val": False, "test": False}
    parts = {
        s: _part(pixels, table[table["split"] == s], limit, balanced=b) for s, b in balanced.items()
    }
    names = tuple(
        ", ".join(sorted(table.loc[table["label"] == label, "generator"].unique()))
        for label in (0, 1)
    )
    if deepfake:
        names = ("real", "fake")
    return Dataset(name, size, protocol, mode, class_names=names, equalised=alike, **parts)


def trained_on(
    name: str, *, protocol: str = "strict", train_generators: str = "", hold_out: str = ""
) -> list[str]:
    """The generators whose fakes train and validate: all that the dataset has there, those named, or all but those held out (comma-separated).

    Raises `InputError` for a name that is not among them, both settings at once, or a hold-out that leaves none.

    >>> trained_on("demo", hold_out="bilinear")                      # doctest: +SKIP
    ['subpixel', 'transposed']
    """
    table = manifest.load(name)
    fakes = table[(assign(table, protocol) == "train") & (table["label"] == 1)]
    known = sorted(fakes["generator"].unique())
    only, without = (
        [n.strip() for n in text.split(",") if n.strip()] for text in (train_generators, hold_out)
    )
    for generator in (*only, *without):
        choose("generator", generator, known, hint=f"{name} has these in training.")
    if only and without:
        raise InputError(
            f"train_generators={train_generators} and hold_out={hold_out}: give one of the two"
        )
    left = [n for n in known if n in (only or known) and n not in without]
    if not left:
        raise InputError(
            f"hold_out={hold_out} leaves no fakes to train on: {name} has {', '.join(known)}"
        )
    return left


def few(whole: Dataset, images: int) -> Dataset:
    """The dataset with at most so many training images of each class: the same ones each time, and fewer are a part of more.

    >>> few(open("demo", size=32), 25)                              # doctest: +SKIP
    """
    return replace(whole, train=_part(whole.train.pixels, whole.train.table, images))


def _words(pixels: np.ndarray) -> Tensor:
    """One row of 8-byte words per image, not copied: torch gathers them on all cores, NumPy gathers bytes on one."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The given NumPy array is not writable"
        )  # nobody writes to it
        return torch.from_numpy(pixels.reshape(len(pixels), -1).view(np.int64))


def _drawn(these: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """So many of the images of a mask in random order, each as often as any other, or once more."""
    mine = these.nonzero().flatten()
    rounds = [
        mine[torch.randperm(len(mine), generator=generator)] for _ in range(-(-wanted // len(mine)))
    ]
    return torch.cat(rounds)[:wanted]


def _part(
    pixels: np.memmap, table: pd.DataFrame, limit: int | None, *, balanced: bool = False
) -> Part:
    if limit is not None:
        if limit < 1:
            raise InputError(f"limit {limit}: at least one image of each class is needed")
        order = table.sample(frac=1, random_state=0)  # the same images for every run
        table = order.groupby("label", group_keys=False).head(limit).sort_index()
    return Part(pixels, table.reset_index(drop=True), balanced)
