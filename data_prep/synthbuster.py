"""Synthbuster: nine generators from the prompts of RAISE-1k photographs, and those photographs. One file stem is one scene in all ten folders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.errors import InputError
from data_prep.folder import row, subfolders, walk
from data_prep.raise_ import ARCHIVE, bursts
from data_prep.source import Archive, Source
from data_prep.source import prepare as _prepare

REALS = ("real_RAISE_1k", "RAISE", "raise")  # the pairs, or the full RAISE of one's own


def entries(root: Path) -> Iterator[dict]:
    """Rows of `synthbuster/<generator>/<RAISE id>.png` (fake) and `real_RAISE_1k/<RAISE id>.png` (real); no splits of its own."""
    fakes = next(
        f for f in (root / "synthbuster" / "synthbuster", root / "synthbuster") if f.is_dir()
    )
    reals = next((f for f in (root / r for r in REALS) if f.is_dir()), None)
    if reals is None:
        raise InputError(
            f"{root} holds no photographs: put one of the folders {', '.join(REALS)} beside synthbuster/"
        )
    found = [(file, 1, folder.name) for folder in subfolders(fakes) for file in walk(folder)]
    found += [(file, 0, "real") for file in walk(reals)]
    scene = bursts(file.stem for file, _, _ in found)
    for file, label, generator in found:
        yield row(root, file, label, generator, "", scene[file.stem])


SOURCE = Source(
    name="synthbuster",
    title="Synthbuster with its RAISE-1k pairs",
    address="https://zenodo.org/records/10066460",
    licence="Synthbuster: CC BY-NC-SA 4.0; RAISE: research use, cite Dang-Nguyen et al. 2015",
    size="10,000 PNG images, 12.4 GB and the photographs",
    layouts=tuple(("synthbuster", reals) for reals in REALS),
    entries=entries,
    archives=(
        Archive(
            "https://zenodo.org/records/10066460/files/synthbuster.zip",
            md5="0695bd328e16ea21c5c9cc2ae1d994ff",
        ),
        ARCHIVE,
    ),
)
prepare = partial(_prepare, SOURCE)
