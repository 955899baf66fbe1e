"""Studies as YAML files that can be kept and shared: the keys are the options of `python -m dflib study`; and their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from data_prep.errors import InputError, choose

if TYPE_CHECKING:
    from dflib.study.engine import Plan

LISTS = {
    "dataset": str,
    "methods": str,
    "rates": float,
    "seeds": int,
}  # key: kind of each entry; one alone may stand without a list
WORDS = ("preset", "source", "protocol", "folds")
KEYS = (*WORDS, *LISTS, "set")


def read(path: Path) -> dict:
    """A grid file as {option: value}, lists as tuples, `set` as a dict of settings.

    Raises `InputError` for a file that is missing or no YAML mapping, an unknown key (with the nearest), or a value of another kind.

    >>> read("notebooks/grids/demo.yaml")["rates"]                  # doctest: +SKIP
    (0.6, 0.9)
    """
    try:
        return parse(Path(path).read_text(encoding="utf-8"), path)
    except OSError as error:
        raise InputError(
            f"grid {path} cannot be read ({error.strerror}): see notebooks/grids for examples"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"grid {path} is no YAML: {error}") from error


def parse(text: str, path: Path | str = "text") -> dict:
    """The same for the text of a grid file.

    >>> parse("methods: [BL, CPF]")
    {'methods': ('BL', 'CPF')}
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"grid {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise InputError(f"grid {path} holds no `key: value` lines; keys: {', '.join(KEYS)}")
    for key in found:
        choose(f"key of {path}", str(key), KEYS)
    return {key: _value(path, key, value) for key, value in found.items() if value is not None}


def text(options: dict) -> str:
    r"""Options as a grid file; `parse` gives them back.

    >>> text({"preset": "tiny", "rates": (0.6, 0.9)})
    'preset: tiny\nrates: [0.6, 0.9]\n'
    """
    known = {key: options[key] for key in KEYS if options.get(key) not in (None, (), {})}
    return yaml.safe_dump(_lists(known), sort_keys=False, default_flow_style=None, width=120)


def words(options: dict) -> list[str]:
    """The same as options of the command line: `python -m dflib study` with them asks for the same runs.

    >>> words({"preset": "tiny", "rates": (0.6, 0.9), "set": {"epochs": 3}})
    ['--preset', 'tiny', '--rates', '0.6,0.9', '--set', 'epochs=3']
    """
    found = []
    for key in (k for k in KEYS if k != "set" and options.get(k) not in (None, ())):
        found += [f"--{key}", ",".join(map(str, options[key])) if key in LISTS else options[key]]
    for key, value in options.get("set", {}).items():
        found += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return found


def request(options: dict) -> dict:
    """What `engine.check` and `engine.plan` take of the options, the datasets, seeds and folds aside."""
    names = {"methods": "methods_", "set": "settings"}
    wanted = ("preset", "protocol", "methods", "rates", "set")
    return {
        "preset": "demo",
        "protocol": "strict",
        "methods_": None,
        "rates": None,
        "settings": {},
    } | {names.get(k, k): options[k] for k in wanted if k in options}


def plan(options: dict) -> Plan:
    """The study that the options ask for: over all its datasets, each run once. Raises `InputError` as `engine.plan` does.

    >>> len(plan(read("notebooks/grids/demo.yaml")))                # doctest: +SKIP
    9
    """
    from dflib.study import engine

    more = {key: options.get(key) for key in ("source", "seeds", "folds")}
    plans = [
        engine.plan(**request(options), **more, dataset=name)
        for name in options.get("dataset") or (None,)
    ]
    return engine.Plan(tuple({s.run_id: s for p in plans for s in p}.values()))


def _lists(value):
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _value(path: Path, key: str, value) -> object:
    if key == "set":
        if not isinstance(value, dict):
            raise InputError(
                f"grid {path}: set: expected settings as `key: value` lines, e.g. epochs: 5"
            )
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
