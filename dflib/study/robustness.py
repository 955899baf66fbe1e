"""What a detector still tells of images that were re-encoded, blurred, resized, cropped: beside
each run, in `robustness.parquet`, a row a test image, a column of P(fake) a perturbation.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data_prep import manifest, transform
from data_prep.cache import decoded, fit
from data_prep.errors import InputError
from data_prep.integrity import BadImage
from data_prep.paths import describe, images_root, written
from data_prep.transform import GRID
from dflib import export, metrics, models, train
from dflib.data import Part
from dflib.study import compare, runs, tables

FILE = "robustness.parquet"
BLOCK = 64  # images whose perturbed versions are in memory at once


def measure(folders: Iterable[Path], grid: Sequence[str] = GRID) -> None:
    """Score every test image of finished runs under each perturbation that they lack: after real
    and fake were made alike, before the crop. `InputError` for a dataset that changed since."""
    for how in grid:
        transform.perturb(Image.new("RGB", (8, 8)), how)  # raises for what it does not know
    todo = [folder for folder in map(Path, folders) if not measured(folder, grid)]
    for _, alike in groupby(sorted(todo, key=_images), key=_images):
        together = list(alike)
        for folder, scores in zip(together, _scores(together, grid), strict=True):
            others = _known(folder).drop(columns=list(grid), errors="ignore")
            with written(folder / FILE) as new:
                others.join(scores).to_parquet(new, index=False)


def measured(folder: Path, grid: Sequence[str] = GRID) -> bool:
    """Whether a run has its scores under every perturbation of the grid."""
    return set(grid) <= set(_known(folder))


def drops(
    folders: Sequence[Path],
    against: Sequence[Path],
    *,
    grid: Sequence[str] = GRID,
    draws: int = 1000,
) -> pd.DataFrame:
    """One method's AUROC (over seeds) under each perturbation ("" first: none), and what it loses
    `more` than BL's runs of the same seeds, `against`, paired; each with _low and _high (95 %)."""
    mine, theirs = ([_drawn(f, grid, draws) for f in group] for group in (folders, against))
    _, bounds = compare.resampled(folders[0], draws=draws)
    rows = []
    for how in ("", *grid):
        lost = [np.array([each[""] - each[how] for each in side]) for side in (mine, theirs)]
        values = {"value": np.array([each[how] for each in mine]), "more": lost[0] - lost[1]}
        row = {"perturbation": how}
        for name, arrays in values.items():
            wider = metrics.beyond({"auroc": arrays.mean(axis=0)}, bounds["all"])["auroc"]
            if name == "more" and not how:
                wider = 0  # by construction it is exactly zero
            row |= tables.interval(name, metrics.combine(arrays, wider))
        rows.append(row)
    return pd.DataFrame(rows)


def _drawn(folder: Path, grid: Sequence[str], draws: int) -> dict[str, np.ndarray]:
    """The AUROC and its draws on the images as they are (""), and under each perturbation."""
    known, found = _known(folder), {}
    for how in ("", *grid):
        if how and how not in known:
            mend = "robustness.measure does it, in notebook 14"
            raise InputError(f"{Path(folder).name} was not measured under {how}: {mend}")
        values, _ = compare.resampled(folder, scores=known[how] if how else None, draws=draws)
        found[how] = values["all"]["auroc"]
    return found


def _known(folder: Path) -> pd.DataFrame:
    file = Path(folder) / FILE
    return pd.read_parquet(file) if file.exists() else runs.predictions(folder)[["path"]]


def _images(folder: Path) -> tuple:
    """What decides the images that a run sees, beside the perturbation."""
    r, paths = runs.read(folder), runs.predictions(folder)["path"]
    look = r["dataset"], r["protocol"], r["params"]["size"], r["params"]["mode"]
    return *look, r.get("data_fingerprint"), "\n".join(paths)


def _scores(folders: list[Path], grid: Sequence[str]) -> list[pd.DataFrame]:
    name, protocol, size, mode, fingerprint, paths = _images(folders[0])
    table = manifest.load(name)
    if manifest.fingerprint(table) != fingerprint:
        raise InputError(f"{name} has changed since {folders[0].name} was made: make the run again")
    ok = table[table["status"] == "ok"]
    alike = protocol == "strict" and describe(name)["kind"] == "deepfake"
    same = transform.equaliser(ok) if alike else None
    hashes = ok.set_index("path")["sha256"].loc[paths.split("\n")]
    jobs = [(images_root(name) / path, sha256) for path, sha256 in hashes.items()]
    task = partial(_worse, grid=grid, size=size, mode=mode, same=same)
    forwards, scores = [_detector(folder) for folder in folders], [[] for _ in folders]
    for start in range(0, len(jobs), BLOCK):
        told = f"{name}: {start} of {len(jobs)}"
        block = np.concatenate(manifest.parallel(task, jobs[start : start + BLOCK], desc=told))
        part = Part(block, pd.DataFrame({"row": range(len(block)), "label": 0}))
        for forward, found in zip(forwards, scores, strict=True):
            found.append(train.predict(forward, part).reshape(-1, len(grid)))
    return [pd.DataFrame(np.concatenate(each), columns=list(grid)) for each in scores]


def _worse(job: tuple[Path, str], *, grid: Sequence[str], size: int, mode: str, same) -> np.ndarray:
    """One file, decoded once, under every perturbation: uint8, len(grid) x size x size x 3."""
    path, sha256 = job
    try:
        image = decoded(path, sha256, same)
    except BadImage as error:
        raise InputError(f"{path}: {error}: scan it again, python -m data_prep") from error
    return np.stack([fit(transform.perturb(image, how), size=size, mode=mode) for how in grid])


def _detector(folder: Path):
    """A run's detector as it was evaluated: the deployed int8 file, else the weights."""
    deployed = runs.read(folder)["deployed"]
    if "int8" in deployed:
        return export.OnnxModel(folder / deployed)
    return models.load(folder / "model.safetensors").to(train.best_device()).eval()
