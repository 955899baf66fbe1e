"""RAISE: photographs of three Nikon cameras, reals alone. RAISE-1k (the Synthbuster pairs) is downloaded; the full 0.3 TB is bring-your-own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from data_prep.folder import row, walk
from data_prep.source import Archive, Source
from data_prep.source import prepare as _prepare

BURST = 256  # ids are hexadecimal and some 65,000 apart; nearer ones are taken for one scene
ARCHIVE = Archive(
    "https://www.grip.unina.it/download/prog/DMimageDetection/real_RAISE_1k.zip",
    md5="a6aad7728226218f22a28b9c9aacaa2c",
)


def entries(root: Path) -> Iterator[dict]:
    """Rows of all photographs below `real_RAISE_1k/` (or `RAISE/`, TIFF or PNG), neighbouring ids as one scene."""
    files = list(walk(next(f for f in (root / "real_RAISE_1k", root / "RAISE") if f.is_dir())))
    scene = bursts(f.stem for f in files)
    for file in files:
        yield row(root, file, 0, "real", "", scene[file.stem])


def bursts(stems: Iterable[str]) -> dict[str, str]:
    """The scene of each RAISE id (r, hexadecimal digits, t): the first of a run of ids less than `BURST` apart. Other names are their own scene.

    >>> bursts(["r000da54ft", "r000da550t", "r001d260dt"])
    {'r000da54ft': 'r000da54ft', 'r000da550t': 'r000da54ft', 'r001d260dt': 'r001d260dt'}
    """
    scenes, first, last = {}, "", -BURST
    for stem in sorted(set(stems)):
        if not (match := re.fullmatch(r"r([0-9a-f]+)t", stem)):
            scenes[stem] = stem
            continue
        number = int(match[1], 16)
        first = first if number - last < BURST else stem
        scenes[stem], last = first, number
    return scenes


SOURCE = Source(
    name="raise",
    title="RAISE-1k",
    address="http://loki.disi.unitn.it/RAISE/",
    licence="RAISE: research use, cite Dang-Nguyen et al. 2015",
    size="1,000 photographs (the full set: 8,156 TIFF of 36 MB)",
    layouts=(("real_RAISE_1k",), ("RAISE",)),
    entries=entries,
    archives=(ARCHIVE,),
    by_hand="The full RAISE: take its list from http://loki.disi.unitn.it/RAISE/ and fetch https://loki.disi.unitn.it/RAISE/TIFF/<id>.TIF into a folder RAISE/.",
    kind="reals",
)
prepare = partial(_prepare, SOURCE)
