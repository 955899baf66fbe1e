"""Studies as YAML files that can be kept and shared: the keys are the options of `python -m dflib study`."""

from __future__ import annotations

from pathlib import Path

import yaml

from data_prep.errors import InputError, choose

LISTS = {
    "methods": str,
    "rates": float,
    "seeds": int,
}  # key: kind of each entry; one alone may stand without a list
WORDS = ("preset", "dataset", "source", "protocol", "folds")
KEYS = (*WORDS, *LISTS, "set")


def read(path: Path) -> dict:
    """A grid file as {option: value}, lists as tuples, `set` as a dict of settings.

    Raises `InputError` for a file that is missing or no YAML mapping, an unknown key (with the nearest), or a value of another kind.

    >>> read("notebooks/grids/demo.yaml")["rates"]                  # doctest: +SKIP
    (0.6, 0.9)
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"grid {path} cannot be read ({error.strerror}): see notebooks/grids for examples") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"grid {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise InputError(f"grid {path} holds no `key: value` lines; keys: {', '.join(KEYS)}")
    for key in found:
        choose(f"key of {path}", str(key), KEYS)
    return {key: _value(path, key, value) for key, value in found.items() if value is not None}


def _value(path: Path, key: str, value) -> object:
    if key == "set":
        if not isinstance(value, dict):
            raise InputError(f"grid {path}: set: expected settings as `key: value` lines, e.g. epochs: 5")
        return value
    kind = LISTS.get(key, str)
    entries = value if key in LISTS and isinstance(value, list) else [value]
    fits = {float: (int, float), int: int, str: str}[kind]
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, fits):
            raise InputError(f"grid {path}: {key}: {entry!r} is no {kind.__name__}")
    if not entries:
        raise InputError(f"grid {path}: {key} is empty: leave the line out for the preset's own")
    return tuple(map(kind, entries)) if key in LISTS else value
