"""From the decoded memory map to batches on the device. Splitting and decoding are `data_prep`'s."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data_prep import cache, manifest
from data_prep.errors import InputError
from data_prep.paths import describe
from data_prep.protocol import assign


@dataclass(frozen=True)
class Part:
    """Some images of a dataset: rows of the memory map, with their labels, generators and scenes."""

    pixels: np.memmap  # uint8, N x H x W x 3, the whole dataset
    table: pd.DataFrame  # the rows of this part; column `row` points into `pixels`

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
        self, size: int, *, device: torch.device | str = "cpu", shuffle: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (uint8 images N x 3 x H x W in channels_last memory, int64 labels N) on the device.

        shuffle: a generator for the order; None keeps the manifest's.
        """
        rows, labels = self.table["row"].to_numpy(), torch.from_numpy(self.labels.astype(np.int64))
        order = torch.arange(len(self)) if shuffle is None else torch.randperm(len(self), generator=shuffle)
        cuda = torch.device(device).type == "cuda"
        for index in order.split(size):
            images = torch.from_numpy(self.pixels[rows[index.numpy()]])
            images = images.pin_memory() if cuda else images
            yield images.to(device, non_blocking=cuda).permute(0, 3, 1, 2), labels[index].to(device, non_blocking=cuda)

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


def open(name: str, *, size: int, protocol: str = "strict", mode: str = "resize", limit: int | None = None) -> Dataset:  # noqa: A001 (the design's name)
    """Open a prepared dataset; decodes it on the first call.

    size: pixels a side, a multiple of 32. mode: resize | center_crop | texture_crop. limit: at most so many images of each class in each part.
    Raises `InputError` for a missing dataset, an unknown protocol or mode, or a part without one of the classes.

    >>> open("demo", size=32).train.batches(64)                    # doctest: +SKIP
    """
    pixels, table = cache.build(name, size=size, mode=mode)
    split = assign(table, protocol)
    table = table.assign(row=np.arange(len(table)), split=split)
    parts = {s: _part(pixels, table[table["split"] == s], limit) for s in ("train", "val", "test")}
    names = tuple(", ".join(sorted(table.loc[table["label"] == label, "generator"].unique())) for label in (0, 1))
    if describe(name)["kind"] == "deepfake":
        names = ("real", "fake")
    return Dataset(name, size, protocol, mode, class_names=names, **parts)


def few(whole: Dataset, images: int) -> Dataset:
    """The dataset with at most so many training images of each class: the same ones each time, and fewer are a part of more.

    >>> few(open("demo", size=32), 25)                              # doctest: +SKIP
    """
    return replace(whole, train=_part(whole.train.pixels, whole.train.table, images))


def fingerprint(name: str) -> str:
    """Hash of the dataset's contents, labels and splits: part of every run's id."""
    return manifest.fingerprint(manifest.load(name))


def _part(pixels: np.memmap, table: pd.DataFrame, limit: int | None) -> Part:
    if limit is not None:
        if limit < 1:
            raise InputError(f"limit {limit}: at least one image of each class is needed")
        order = table.sample(frac=1, random_state=0)  # the same images for every run
        table = order.groupby("label", group_keys=False).head(limit).sort_index()
    return Part(pixels, table.reset_index(drop=True))
