"""Decode once: every usable image of a manifest as a row of a uint8 memory map, N x H x W x 3."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data_prep import manifest, transform
from data_prep.errors import InputError, choose
from data_prep.integrity import BadImage, open_image, read_file, to_rgb
from data_prep.paths import dataset_folder, images_root, lock, need_room
from data_prep.transform import Equaliser, at_least, centre_square

MODES = ("resize", "center_crop", "texture_crop")
_CHUNK = 128  # images that one task decodes


def build(
    name: str, *, size: int, mode: str = "resize", equalise: bool = False
) -> tuple[np.memmap, pd.DataFrame]:
    """The decoded images of a dataset (uint8, N x size x size x 3, read-only), and their rows.

    equalise: first make the classes alike (`transform.equaliser`); then comes `fit`. Made on the
    first call; two at once wait for each other. Raises `InputError` for an unknown mode, a size
    that is no multiple of 32, a full disk, or changed files.

    >>> build("demo", size=32)[0].shape                              # doctest: +SKIP
    (4200, 32, 32, 3)
    """
    choose("input mode", mode, MODES)
    if size % 32 or size < 32:
        near = max(32, round(size / 32) * 32)
        why = "is not a multiple of 32 (it is halved five times)"
        raise InputError(f"image size {size} {why}: try {near}")
    table = manifest.load(name)
    manifest.check(table, name)
    table = table[table["status"] == "ok"].reset_index(drop=True)
    alike = transform.equaliser(table) if equalise else None
    contents = json.dumps([table["sha256"].tolist(), manifest.DECODING]).encode()
    key = [mode, alike.key if alike else "", str(size)]
    key = [*filter(None, key), hashlib.sha256(contents).hexdigest()[:12]]
    folder = dataset_folder(name) / "cache" / "-".join(key)
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with lock(folder.with_name(f"{folder.name}.lock")):
            if not folder.exists():
                _fill(folder, name, table, alike=alike, size=size, mode=mode)
    return np.load(folder / "images.npy", mmap_mode="r"), table


def fit(image: Image.Image, *, size: int, mode: str = "resize") -> np.ndarray:
    """One RGB image as the detectors see it: uint8, size x size x 3.

    resize: squashed to the square (the paper's way). center_crop: the middle, unscaled.
    texture_crop: the tile with the most fine detail (arXiv 2407.15500).

    >>> fit(Image.new("RGB", (300, 200)), size=64).shape
    (64, 64, 3)
    """
    if mode == "resize":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    if mode == "center_crop":
        return np.asarray(centre_square(image, size))
    pixels = np.asarray(at_least(image, size))
    top, left = _richest_tile(pixels, size)
    return pixels[top : top + size, left : left + size]


def _richest_tile(pixels: np.ndarray, size: int) -> tuple[int, int]:
    """Corner of the tile, on a half-tile grid or at the far edges, with the steepest gradients."""
    grey = pixels.mean(axis=2)
    energy = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(energy, ((1, 1), (1, 1))).cumsum(0).cumsum(1)
    tops, lefts = (np.unique([*range(0, n - size, size // 2), n - size]) for n in pixels.shape[:2])
    top, left = tops[:, None], lefts[None, :]
    below, right = top + size, left + size
    sums = total[below, right] - total[top, right] - total[below, left] + total[top, left]
    row, column = np.unravel_index(sums.argmax(), sums.shape)
    return int(tops[row]), int(lefts[column])


def _fill(folder: Path, name: str, table: pd.DataFrame, *, size: int, **options) -> None:
    """Decode into `<folder>.partial`; `folder` appears when all of it is there."""
    part = folder.with_name(f"{folder.name}.partial")
    shape, what = (len(table), size, size, 3), f"decoding {name!r} at {size} px"
    hint = "free some, take a smaller --set size=, or set $DFLIB_DATA"
    need_room(int(np.prod(shape)), folder.parent, what, hint)
    shutil.rmtree(part, ignore_errors=True)  # of a build that was cut
    part.mkdir()
    np.lib.format.open_memmap(part / "images.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
    root, hashes = images_root(name), table["sha256"].to_numpy()
    paths = [root / path for path in table["path"]]
    places = [slice(start, start + _CHUNK) for start in range(0, len(table), _CHUNK)]
    chunks = [(place.start, paths[place], hashes[place]) for place in places]
    task = partial(_decode, file=part / "images.npy", size=size, **options)
    problems = sum(manifest.parallel(task, chunks, desc=what, serial=2), [])
    if problems:
        (folder.parents[1] / "scan.parquet").unlink(missing_ok=True)  # it holds what is not so
        shutil.rmtree(part, ignore_errors=True)
        what = f"{len(problems)} images of {name!r} changed since they were scanned"
        raise InputError(f"{what} (e.g. {problems[0]}): scan again with python -m data_prep")
    part.rename(folder)


def _decode(chunk: tuple, *, file: Path, alike: Equaliser | None, **fitted) -> list[str]:
    """Decode some images (first row, paths, hashes) into their rows; returns what went wrong."""
    start, paths, hashes = chunk
    images, problems = np.load(file, mmap_mode="r+"), []
    for row, (path, sha256) in enumerate(zip(paths, hashes, strict=True), start):
        try:
            images[row] = fit(decoded(path, sha256, alike), **fitted)
        except BadImage as error:
            problems.append(f"{path}: {error}")
    return problems


def decoded(path: Path, sha256: str, alike: Equaliser | None) -> Image.Image:
    """A scanned file as RGB, made alike; `BadImage` where it is not what was scanned."""
    data = read_file(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BadImage("other contents")
    image = to_rgb(open_image(data))
    return alike(image, sha256) if alike else image
