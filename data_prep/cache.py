"""Decode once: every usable image of a manifest as one row of a uint8 memory map, N x H x W x 3."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image

from data_prep import manifest, transform
from data_prep.errors import InputError, choose
from data_prep.integrity import BadImage, open_image, to_rgb
from data_prep.paths import dataset_folder, describe, images_root
from data_prep.transform import Equaliser

MODES = ("resize", "center_crop", "texture_crop")
_CHUNK = 128  # images that one task decodes
log = logging.getLogger(__name__)


def build(
    name: str,
    *,
    size: int,
    mode: str = "resize",
    equalise: bool = False,
    perturb: str = "",
    crops: int = 1,
    only: Iterable[str] | None = None,
    workers: int | None = None,
) -> tuple[np.memmap, pd.DataFrame]:
    """The decoded images of a dataset (uint8, N x size x size x 3, read-only) and the manifest rows they stand for.

    equalise: make the classes alike in size and JPEG quality first (`transform.equaliser`). perturb: then make each image worse, such as
    "jpeg-75" (`transform.perturb`). crops: so many of each image (`fit`), in rows that follow each other. only: paths of the images, None for all.
    Made on the first call, found on the next. Parallel; a cut build goes on where it was; two at once wait for each other.
    Memory: each process holds one image and a few hundred kB; the rows go straight to the file, whatever N is.
    Raises `InputError` for an unknown mode or perturbation, a size that is no multiple of 32, a full disk, or files that changed since the scan.
    """
    choose("input mode", mode, MODES)
    if size % 32 or size < 32:
        raise InputError(
            f"image size {size} is not a multiple of 32 (the detectors halve it five times): try {max(32, round(size / 32) * 32)}"
        )
    table = manifest.load(name)
    manifest.check(table, name, kind=describe(name)["kind"])
    table = table[table["status"] == "ok"].reset_index(drop=True)
    alike = transform.equaliser(table) if equalise else None
    table = table if only is None else table[table["path"].isin(set(only))].reset_index(drop=True)
    contents = _hash([table["sha256"].tolist(), manifest.DECODING])
    key = [
        mode,
        *([alike.key] if alike else []),
        *([transform.check_perturbation(perturb)] if perturb else []),
        *([f"{crops}x"] if crops > 1 else []),
        str(size),
        contents,
    ]
    folder = dataset_folder(name) / "cache" / "-".join(key)
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with FileLock(_beside(folder, ".lock")):
            if not folder.exists():
                _remove_stale(folder.parent, contents)
                _fill(
                    folder,
                    name,
                    table,
                    size,
                    partial(
                        _prepared, size=size, mode=mode, alike=alike, worse=perturb, crops=crops
                    ),
                    workers,
                    crops,
                )
    return np.load(folder / "images.npy", mmap_mode="r"), table


def _hash(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)  # names may hold dots, such as resize-0.5


def _prepared(
    data: bytes,
    sha256: str,
    *,
    size: int,
    mode: str,
    alike: Equaliser | None,
    worse: str,
    crops: int,
) -> np.ndarray:
    """From a file's bytes to the pixels of its rows."""
    image = to_rgb(open_image(data))
    image = alike(image, sha256) if alike else image
    return fit_crops(
        transform.perturb(image, worse) if worse else image, size=size, mode=mode, crops=crops
    )


def fit_crops(image: Image.Image, *, size: int, mode: str, crops: int = 1) -> np.ndarray:
    """Several crops of one RGB image (see `fit`): uint8, crops x size x size x 3."""
    return np.stack([fit(image, size=size, mode=mode, crop=i) for i in range(crops)])


def fit(image: Image.Image, *, size: int, mode: str = "resize", crop: int = 0) -> np.ndarray:
    """One RGB image as the detectors see it: uint8, size x size x 3.

    resize: squashed to the square (the paper's way; destroys traces in large photographs). center_crop: the middle, unscaled.
    texture_crop: the tile with the most fine detail, unscaled (arXiv 2407.15500). Images smaller than `size` are scaled up to it first.
    crop: 1 to 4 are the corners instead of the middle, or the tiles with the next most detail.

    >>> fit(Image.new("RGB", (300, 200)), size=64).shape
    (64, 64, 3)
    """
    if mode == "resize":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    short = min(image.size)
    if short < size:
        scale = size / short
        image = image.resize(
            (max(size, round(image.width * scale)), max(size, round(image.height * scale))),
            Image.Resampling.BICUBIC,
        )
    pixels = np.asarray(image)
    if mode == "center_crop":
        down, right = [(1, 1), (0, 0), (0, 2), (2, 0), (2, 2)][crop]
        top, left = (pixels.shape[0] - size) * down // 2, (pixels.shape[1] - size) * right // 2
    else:
        top, left = _richest_tile(pixels, size, crop)
    return pixels[top : top + size, left : left + size]


def _richest_tile(pixels: np.ndarray, size: int, rank: int = 0) -> tuple[int, int]:
    """Corner of the size x size tile (on a half-tile grid, and at the far edges) with the largest mean absolute gradient, or of the rank-th after it."""
    grey = pixels.mean(axis=2)
    energy = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(energy, ((1, 1), (1, 1))).cumsum(0).cumsum(1)
    tops, lefts = (np.unique([*range(0, n - size, size // 2), n - size]) for n in pixels.shape[:2])
    tops, lefts = tops[:, None], lefts[None, :]
    sums = (
        total[tops + size, lefts + size]
        - total[tops, lefts + size]
        - total[tops + size, lefts]
        + total[tops, lefts]
    )
    order = np.argsort(-sums, axis=None, kind="stable")
    row, column = np.unravel_index(order[min(rank, len(order) - 1)], sums.shape)
    return int(tops[row, 0]), int(lefts[0, column])


def _remove_stale(parent: Path, contents: str) -> None:
    """Remove what killed builds of other contents left: nobody can go on with it."""
    for partial_folder in [*parent.glob("*.partial"), *parent.glob("*.new")]:
        if contents not in partial_folder.name:
            try:
                with FileLock(
                    partial_folder.with_name(partial_folder.name.rpartition(".")[0] + ".lock"),
                    timeout=0,
                ):  # held: someone is at it
                    shutil.rmtree(partial_folder, ignore_errors=True)
            except Timeout:
                log.info("left %s alone: another build is using it", partial_folder)


def _fill(
    folder: Path,
    name: str,
    table: pd.DataFrame,
    size: int,
    prepared: Callable,
    workers: int | None,
    crops: int,
) -> None:
    shape = (crops * len(table), size, size, 3)
    partial_folder = _beside(folder, ".partial")
    if not partial_folder.exists():
        need, free = int(np.prod(shape)), shutil.disk_usage(folder.parent).free
        if need > 0.95 * free:
            raise InputError(
                f"decoding {name!r} at {size} px needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free below {folder.parent}: free some, take a smaller --set size=, or set $DFLIB_DATA"
            )
        fresh = _beside(folder, ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        np.lib.format.open_memmap(
            fresh / "images.npy", mode="w+", dtype=np.uint8, shape=shape
        ).flush()
        np.save(fresh / "done.npy", np.zeros(len(table), dtype=bool))
        fresh.rename(partial_folder)
    root = images_root(name)
    todo = np.flatnonzero(~np.load(partial_folder / "done.npy"))
    chunks = [
        (
            rows,
            [str(root / p) for p in table["path"].to_numpy()[rows]],
            table["sha256"].to_numpy()[rows],
        )
        for rows in np.split(todo, range(_CHUNK, len(todo), _CHUNK))
    ]
    task = partial(_decode, folder=partial_folder, prepared=prepared)
    problems = sum(
        manifest.parallel(
            task, chunks, desc=f"decoding {name} at {size} px", workers=workers, serial=2
        ),
        [],
    )
    if problems:
        raise InputError(
            f"{len(problems)} images of {name!r} changed since they were scanned (e.g. {problems[0]}): scan again with python -m data_prep"
        )
    partial_folder.rename(folder)
    (folder / "done.npy").unlink()


def _decode(
    chunk: tuple[np.ndarray, list[str], np.ndarray], *, folder: Path, prepared: Callable
) -> list[str]:
    """Decode some images into their rows; returns what went wrong."""
    images = np.load(folder / "images.npy", mmap_mode="r+")
    done = np.load(folder / "done.npy", mmap_mode="r+")
    problems = []
    for row, path, sha256 in zip(*chunk, strict=True):
        try:
            data = Path(path).read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise BadImage("other contents")
            found = prepared(data, sha256)
            images[row * len(found) : (row + 1) * len(found)] = found
            done[row] = True
        except (BadImage, OSError) as error:
            problems.append(f"{path}: {error}")
    return problems
