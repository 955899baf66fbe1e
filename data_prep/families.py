"""Families of generators (GAN, diffusion, commercial, …), as families.toml lists them."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

LISTED = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))
FAMILY = {start: family for family, starts in LISTED.items() for start in starts}


def of(generators: Iterable[str]) -> dict[str, list[str]]:
    """{family: its generators}, of those that have one.

    >>> of(["StyleGAN2", "progan", "SDXL-1.0", "mine"])
    {'GAN': ['StyleGAN2', 'progan'], 'diffusion': ['SDXL-1.0']}
    """
    found = {}
    for generator in generators:
        name = re.sub(r"[^a-z0-9]", "", generator.lower())
        if fits := [start for start in FAMILY if name.startswith(start)]:
            found.setdefault(FAMILY[max(fits, key=len)], []).append(generator)
    return found
