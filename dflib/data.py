"""From the decoded memory map to batches on the device. Splitting and decoding: `data_prep`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data_prep import manifest
from data_prep.errors import InputError, choose
from data_prep.paths import describe
from data_prep.protocol import assign, decoded


@dataclass(frozen=True)
class Part:
    """Some images of a dataset: rows of the memory map, with labels, generators and scenes."""

    pixels: np.memmap  # uint8, N x H x W x 3, the whole dataset
    table: pd.DataFrame  # the rows of this part; column `row` points into `pixels`
    balanced: bool = False  # shuffled batches hold both classes equally often

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

    @property
    def testsets(self) -> np.ndarray:
        """The test set of each image that stands in one with reals of its own, else ""."""
        return np.array(self.table.get("testset", [""] * len(self)), dtype=object)

    def image(self, i: int) -> np.ndarray:
        """One decoded image, uint8 H x W x 3."""
        return np.asarray(self.pixels[self.table["row"].iloc[i]])

    def batches(self, size: int, **options) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images N x 3 x H x W (channels_last), labels N; options: as for `indexed`."""
        for images, labels, _ in self.indexed(size, **options):
            yield images, labels

    def indexed(
        self,
        size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `batches`, with each image's place in this part (on the CPU). shuffle: draws the
        order."""
        rows = torch.tensor(self.table["row"].to_numpy(), dtype=torch.int64)
        labels = torch.tensor(self.labels, dtype=torch.int64)
        order = torch.arange(len(self)) if shuffle is None else self._shuffled(labels, shuffle)
        cuda = torch.device(device).type == "cuda"
        with warnings.catch_warnings():  # words of 8 bytes: torch gathers those on all cores
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            words = torch.from_numpy(self.pixels.reshape(len(self.pixels), -1).view(np.int64))
        for index in order.split(size):
            images = torch.empty(len(index), words.shape[1], dtype=torch.int64, pin_memory=cuda)
            torch.index_select(words, 0, rows[index], out=images)
            images = images.view(torch.uint8).view(-1, *self.pixels.shape[1:])
            images = images.to(device, non_blocking=cuda).permute(0, 3, 1, 2)
            yield images, labels[index].to(device, non_blocking=cuda), index

    def _shuffled(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """In random order; balanced: half of each class, its images equally often but for one."""
        shuffled = lambda these: these[torch.randperm(len(these), generator=generator)]
        real, fake = ((labels == label).nonzero().flatten() for label in (0, 1))
        if not self.balanced or len(real) in (0, len(fake), len(labels)):
            return shuffled(torch.arange(len(labels)))
        half = len(labels) // 2
        picked = []
        for these, wanted in ((real, half), (fake, len(labels) - half)):
            rounds = -(-wanted // len(these))
            picked.append(torch.cat([shuffled(these) for _ in range(rounds)])[:wanted])
        return shuffled(torch.cat(picked))


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


def open(
    name: str,
    *,
    size: int,
    protocol: str = "strict",
    mode: str = "resize",
    limit: int | None = None,
    train_generators: str = "",
    hold_out: str = "",
    split_seed: int | None = None,
) -> Dataset:
    """Open a prepared dataset; decodes it on the first call.

    Protocol strict makes real and fake alike in size and JPEG quality, and balances the classes in
    shuffled training batches. limit: of images of each class in each part. train_generators,
    hold_out: see `trained_on`; the test keeps every fake. split_seed: splits anew, whatever split
    the dataset gives. Raises `InputError` for a missing dataset, or a part without one class.

    >>> open("demo", size=32).train.batches(64)  # doctest: +SKIP
    """
    pixels, table = decoded(name, size, protocol, mode)
    table = table if split_seed is None else table.assign(split="")
    table["split"] = assign(table, protocol, seed=split_seed or 0)
    chosen = {"train_generators": train_generators, "hold_out": hold_out}
    if any(chosen.values()):
        known = trained_on(name, protocol=protocol, **chosen)
        real, test = table["label"] == 0, table["split"] == "test"
        table = table[real | test | table["generator"].isin(known)]
    part = lambda split: _limited(table[table["split"] == split], limit)
    train = Part(pixels, part("train"), balanced=protocol == "strict")
    val, test = Part(pixels, part("val")), Part(pixels, part("test"))
    kinds = lambda label: ", ".join(sorted(table["generator"][table["label"] == label].unique()))
    names = ("real", "fake") if describe(name)["kind"] == "deepfake" else (kinds(0), kinds(1))
    return Dataset(name, size, protocol, mode, train, val, test, names)


def part(
    name: str, *, size: int, protocol: str = "strict", mode: str = "resize", split: str = "all"
) -> Part:
    """Images of a prepared dataset to test on, as the protocol makes them; one class is enough.

    split: train | val | test, as the dataset gives it, else as the protocol does; all: every image.
    """
    choose("part", split, ("all", "test", "val", "train"))
    pixels, table = decoded(name, size, protocol, mode)
    if split != "all":
        given = (table["split"] != "").any()
        table = table[(table["split"] if given else assign(table, protocol)) == split]
    if table.empty:
        raise InputError(f"{name} has no {split} part: take another one, or all")
    return Part(pixels, table.reset_index(drop=True))


def trained_on(
    name: str, *, protocol: str = "strict", train_generators: str = "", hold_out: str = ""
) -> list[str]:
    """The generators whose fakes train and validate: all, those named (a,b), or all but those held
    out. Raises `InputError` for one that is not there, and for none left.

    >>> trained_on("demo", hold_out="bilinear")  # doctest: +SKIP
    ['deconv', 'subpixel']
    """
    table = manifest.load(name)
    fakes = table[(assign(table, protocol) == "train") & (table["label"] == 1)]
    known = sorted(fakes["generator"].unique())

    def chosen(text: str) -> list[str]:
        names = [n.strip() for n in text.split(",") if n.strip()]
        return [choose("generator", n, known, hint=f"{name} trains on these.") for n in names]

    only, without = chosen(train_generators), chosen(hold_out)
    if only and without:
        raise InputError(f"{train_generators=} and {hold_out=}: give one of the two")
    left = [n for n in known if n in (only or known) and n not in without]
    if not left:
        raise InputError(f"{hold_out=} leaves no fakes to train on: {name} has {', '.join(known)}")
    return left


def few(whole: Dataset, images: int | None, *, seed: int = 0) -> Dataset:
    """The dataset with at most so many (None: all) training images of each class, drawn by a seed;
    of one seed, fewer are a part of more."""
    train = whole.train
    return replace(whole, train=replace(train, table=_limited(train.table, images, seed)))


def _limited(table: pd.DataFrame, limit: int | None, seed: int = 0) -> pd.DataFrame:
    """At most so many rows of each class, the same ones for every run of one seed."""
    if limit is not None:
        order = table.sample(frac=1, random_state=seed)
        table = order.groupby("label", group_keys=False).head(limit).sort_index()
    return table.reset_index(drop=True)
