"""Families of generators (GAN, diffusion, commercial, …), as families.toml lists them."""

import re
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files


def of(generators: Iterable[str]) -> dict[str, list[str]]:
    """{family: its generators}, of those that have one.

    >>> of(["StyleGAN2", "progan", "SDXL-1.0", "mine"])
    {'GAN': ['StyleGAN2', 'progan'], 'diffusion': ['SDXL-1.0']}
    """
    known, found = _known(), {}
    for generator in generators:
        name = re.sub(r"[^a-z0-9]", "", generator.lower())
        if fits := [start for start in known if name.startswith(start)]:
            found.setdefault(known[max(fits, key=len)], []).append(generator)
    return found


@lru_cache
def _known() -> dict[str, str]:
    """How a name begins: the family."""
    listed = tomllib.loads((files("data_prep") / "families.toml").read_text(encoding="utf-8"))
    return {start: family for family, starts in listed.items() for start in starts}
