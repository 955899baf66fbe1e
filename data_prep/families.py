"""Families of generators (GAN, diffusion, commercial, …): families.toml, which can be added to."""

import re
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files

from data_prep.errors import InputError
from data_prep.paths import data_root


def of(generators: Iterable[str]) -> dict[str, list[str]]:
    """{family: its generators}, of those that have one.

    Raises `InputError` where the data root's own `families.toml` cannot be read.

    >>> of(["StyleGAN2", "progan", "SDXL-1.0", "mine"])
    {'GAN': ['StyleGAN2', 'progan'], 'diffusion': ['SDXL-1.0']}
    """
    known, found = _known(), {}
    for generator in generators:
        if fits := [start for start in known if _plain(generator).startswith(start)]:
            found.setdefault(known[max(fits, key=len)], []).append(generator)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _known() -> dict[str, str]:
    """How a name begins: the family."""
    own, pairs = data_root() / "families.toml", {}
    try:
        listed = tomllib.loads(own.read_text(encoding="utf-8")) if own.exists() else {}
        for family, starts in listed.items():
            names = starts if isinstance(starts, list) else [None]
            if not all(isinstance(name, str) and _plain(name) for name in names):
                raise ValueError(f"{family} is no list of names")
            pairs |= dict.fromkeys(map(_plain, names), family)
    except (OSError, ValueError) as error:
        example = 'expected lines such as diffusion = ["mymodel"]'
        raise InputError(f"{own} cannot be read ({error}): {example}") from error
    return _ours() | pairs


@lru_cache
def _ours() -> dict[str, str]:
    listed = tomllib.loads((files("data_prep") / "families.toml").read_text(encoding="utf-8"))
    return {start: family for family, starts in listed.items() for start in starts}
