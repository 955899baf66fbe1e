"""Where data live: `$DFLIB_DATA`, else `data/` in the project (or in the current folder when installed without one)."""

from __future__ import annotations

import json
import os
from functools import cache
from itertools import islice
from pathlib import Path

from data_prep.errors import InputError, choose

KAGGLE = Path(
    "/kaggle/input"
)  # both mount styles: <slug>/… and datasets/<owner>/<slug>/… (or notebooks/<owner>/<slug>/…)
_PACKAGE_PARENT = Path(__file__).resolve().parents[1]
PROJECT = _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").exists() else Path.cwd()

HOW_TO_GET = {  # name -> the command that makes, finds or downloads it
    "demo": "python -m data_prep demo",
    "demo-source": "python -m data_prep demo",
    "synthbuster": "python -m data_prep synthbuster",
    "raise": "python -m data_prep raise",
    "forensynths": "python -m data_prep forensynths",
    "faces-140k": "python -m data_prep faces-140k --from FOLDER",
    "deepfake-real": "python -m data_prep deepfake-real --from FOLDER",
    "dogs-vs-cats": "python -m data_prep dogs-vs-cats --from FOLDER",
}


def data_root() -> Path:
    """Folder that holds one subfolder per dataset."""
    return Path(os.environ.get("DFLIB_DATA") or PROJECT / "data")


def outputs_root() -> Path:
    """Folder of all runs and reports: `$DFLIB_OUTPUTS`, else `outputs/` in the project."""
    return Path(os.environ.get("DFLIB_OUTPUTS") or PROJECT / "outputs")


def attached_roots() -> list[Path]:
    """Outputs of earlier sessions, in which finished runs are found and nothing is written: below each folder in `$DFLIB_ATTACHED`
    (separated as in `$PATH`), and below what Kaggle mounts; known by their structure. Of large folders (of images) only 1,000 entries are looked at.

    Raises `InputError` for a folder in `$DFLIB_ATTACHED` that is not there.
    """
    given = [Path(part) for part in os.environ.get("DFLIB_ATTACHED", "").split(os.pathsep) if part]
    for folder in given:
        if not folder.is_dir():
            raise InputError(
                f"$DFLIB_ATTACHED names {folder}, which is no folder: mend it, or unset it"
            )
    return [root for base in (*given, KAGGLE) for root in _outputs_below(base)]


@cache  # what is attached stays as it is, and every look at a run asks
def _outputs_below(base: Path) -> list[Path]:
    found, level = [], [base] if base.is_dir() else []
    for _ in range(7):  # Kaggle's three or four, the clone, outputs
        deeper = []
        for folder in level:
            below = [Path(f.path) for f in islice(os.scandir(folder), 1000) if f.is_dir()]
            if any(
                True
                for f in below
                for p in ("strict", "paper")
                for _ in (f / p).glob("*/*/result.json")
            ):
                found.append(folder)
            else:
                deeper += below
        level = sorted(deeper)
    return found


def present() -> list[str]:
    """Names of the datasets that have a manifest, sorted."""
    return sorted(p.parent.name for p in data_root().glob("*/manifest.csv"))


def dataset_folder(name: str) -> Path:
    """Folder of a prepared dataset.

    Raises an `InputError` that tells how to get it when it is known but absent, or the nearest name when it is unknown.
    """
    folder = data_root() / name
    if (folder / "manifest.csv").exists():
        return folder
    if name in HOW_TO_GET:
        raise InputError(
            f"dataset {name!r} is missing: looked for {folder / 'manifest.csv'}. Get it with: {HOW_TO_GET[name]}"
        )
    hint = "For your own images: python -m data_prep folder PATH --name NAME"
    choose("dataset", name, sorted({*present(), *HOW_TO_GET}), hint=hint)
    raise AssertionError("unreachable")


def describe(name: str) -> dict:
    """The dataset's `dataset.json`: name, kind (deepfake | source), root of the images, classes, licence."""
    path = dataset_folder(name) / "dataset.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}): make it again with python -m data_prep"
        ) from error


def images_root(name: str) -> Path:
    """Folder that the paths of a dataset's manifest start from."""
    return Path(os.path.normpath(dataset_folder(name) / describe(name)["root"]))


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old file or the whole new one, also after a crash."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8", newline="")
    new.replace(path)
