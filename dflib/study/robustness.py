"""What a detector still tells after images were re-encoded, blurred, resized, cropped: the scores of finished runs on a grid of perturbations.

Kept as `robustness.parquet` beside each run: one row a test image (those of `predictions.parquet`), one column of P(fake) a perturbation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import manifest, transform
from data_prep.cache import fit
from data_prep.errors import InputError
from data_prep.integrity import open_image, to_rgb
from data_prep.paths import describe, images_root
from data_prep.transform import GRID
from dflib import metrics
from dflib.study import compare, runs

FILE = "robustness.parquet"
BLOCK = 64  # images whose perturbed versions are in memory at once


def measure(
    folders: Iterable[Path],
    grid: Sequence[str] = GRID,
    *,
    on_run: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Score every test image under every perturbation of `grid` (`transform.perturb`), for those of the finished runs that lack it.

    A perturbation comes after real and fake were made alike and before the crop or resize. Each file is read and decoded once for the whole grid and all
    runs on the same images. on_run: called as each run's file is written. Raises `InputError` for a dataset that changed since a run.

    >>> measure(runs.folders(), grid=("jpeg-50", "blur-2"))         # doctest: +SKIP
    """
    for how in grid:
        transform.check_perturbation(how)
    todo = [runs.own(f) for f in map(Path, folders) if not set(grid) <= set(_known(f))]
    for _, alike in groupby(sorted(todo, key=_images), key=_images):
        together = list(alike)
        for folder, scores in zip(together, _scores(together, grid), strict=True):
            new = folder / f"{FILE}.new"
            _known(folder).drop(columns=list(grid), errors="ignore").join(scores).to_parquet(
                new, index=False
            )
            new.replace(folder / FILE)
            on_run(folder)


def drawn(
    folder: Path, how: str = "", *, generators: Collection[str] | None = None, draws: int = 1000
) -> dict[str, np.ndarray]:
    """`metrics.resample` of a run on the test images made worse by `how` ("": as they are), at the run's threshold.

    generators: those whose fakes count, None for all. The draws are those of the images as they are: differences are paired.
    Raises `InputError` where `how` was not measured.
    """
    known = _known(folder)
    if how and how not in known:
        raise InputError(
            f"{Path(folder).name} was not measured under {how}: python -m dflib robustness --run {Path(folder).name}"
        )
    sets = None if generators is None else {"all": generators}
    return compare.resampled(folder, sets, scores=known[how] if how else None, draws=draws)["all"]


def drops(
    folders: Sequence[Path],
    against: Sequence[Path] = (),
    *,
    metric: str = "auroc",
    grid: Sequence[str] = GRID,
    generators: Collection[str] | None = None,
    draws: int = 1000,
) -> pd.DataFrame:
    """What one method's runs (several seeds) score under each perturbation, what they lose to it, and how much more that is than `against` loses.

    against: runs of the same seeds, in the same order (BL's). One row a perturbation, "" first: columns value, drop, and with `against` more (a paired
    difference of drops: above zero is more brittle), each with _low and _high (95 %, `metrics.combine`).
    """
    options = {"generators": generators, "draws": draws}
    clean, base = ([drawn(f, **options)[metric] for f in group] for group in (folders, against))
    rows = []
    for how in ("", *grid):
        here, there = (
            [drawn(f, how, **options)[metric] for f in group] for group in (folders, against)
        )
        drop, theirs = (
            [a - b for a, b in zip(*pair, strict=True)] for pair in ((clean, here), (base, there))
        )
        values = {"value": here, "drop": drop}
        if len(against):
            values["more"] = [a - b for a, b in zip(drop, theirs, strict=True)]
        row = {"perturbation": how}
        for name, arrays in values.items():
            found = metrics.combine(arrays)
            row[name] = found["mean"]
            row[f"{name}_low"], row[f"{name}_high"] = found["ci95"] or (np.nan, np.nan)
        rows.append(row)
    return pd.DataFrame(rows)


def measured(folder: Path, grid: Sequence[str] = GRID) -> bool:
    """Whether a run has its scores under every perturbation of the grid."""
    return set(grid) <= set(_known(folder))


def _known(folder: Path) -> pd.DataFrame:
    paths = pd.read_parquet(Path(folder) / "predictions.parquet", columns=["path"])
    file = Path(folder) / FILE
    return (
        paths.merge(pd.read_parquet(file), on="path", how="left", validate="1:1")
        if file.exists()
        else paths
    )


def _images(folder: Path) -> tuple:
    """What decides the images that a run sees, beside the perturbation."""
    r = runs.read(folder)
    paths = pd.read_parquet(folder / "predictions.parquet", columns=["path"])["path"]
    return (
        r["dataset"],
        r["protocol"],
        r["params"]["size"],
        r["params"]["mode"],
        r["data_fingerprint"],
        "\n".join(paths),
    )


def _scores(folders: list[Path], grid: Sequence[str]) -> list[pd.DataFrame]:
    from dflib.data import Part
    from dflib.train import logits

    name, protocol, size, mode, fingerprint, paths = _images(folders[0])
    table = manifest.load(name)
    if manifest.fingerprint(table) != fingerprint:
        raise InputError(
            f"{name} has changed since {folders[0].name} was made: its test images cannot be made worse now; make the run again"
        )
    ok = table[table["status"] == "ok"]
    same = (
        transform.equaliser(ok)
        if protocol == "strict" and describe(name)["kind"] == "deepfake"
        else None
    )
    rows = ok.set_index("path").loc[paths.split("\n")]
    jobs = [(images_root(name) / path, sha) for path, sha in rows["sha256"].items()]
    task, forwards = (
        partial(_worse, grid=grid, size=size, mode=mode, same=same),
        [_forward(f) for f in folders],
    )
    scores = [[] for _ in folders]
    for start in range(0, len(jobs), BLOCK):
        block = np.concatenate(
            manifest.parallel(
                task, jobs[start : start + BLOCK], desc=f"{name}: {start} of {len(jobs)}"
            )
        )
        part = Part(block, pd.DataFrame({"row": range(len(block)), "label": 0}))
        for forward, found in zip(forwards, scores, strict=True):
            found.append(logits(forward, part).view(-1, len(grid), 2).softmax(2)[:, :, 1].numpy())
    return [pd.DataFrame(np.concatenate(each), columns=list(grid)) for each in scores]


def _worse(job: tuple[Path, str], *, grid: Sequence[str], size: int, mode: str, same) -> np.ndarray:
    """One file, decoded once, under every perturbation: uint8, len(grid) x size x size x 3."""
    path, sha256 = job
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error}): the grid needs the original images"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(
            f"{path} changed since it was scanned: scan again with python -m data_prep"
        )
    image = to_rgb(open_image(data))
    image = same(image, sha256) if same else image
    return np.stack([fit(transform.perturb(image, how), size=size, mode=mode) for how in grid])


def _forward(folder: Path):
    """A run's detector as it was evaluated: the deployed int8 file, else the weights."""
    from dflib import export, models, train

    deployed = runs.read(folder)["deployed"]
    if "int8" in deployed:
        return export.OnnxModel(folder / deployed)
    return models.load(folder / "model.safetensors").to(train.best_device()).eval()
