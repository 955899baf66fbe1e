"""A study as options: those of `python -m dflib study`, in a YAML file that can be kept."""

from __future__ import annotations

from pathlib import Path

import yaml

from data_prep.errors import InputError, choose, short
from dflib.study import engine
from dflib.study.settings import DEFAULTS

LISTS = {"dataset": str, "methods": str, "rates": float, "seeds": int}
MOST, DEPTH = 1_000_000, 4  # bytes of a grid file, and mappings or lists inside each other
KEYS = ("preset", "source", "protocol", "folds", *LISTS, "set")


def read(path: Path | str) -> dict:
    """The options of a grid file; raises `InputError` where it cannot be read, or as `parse`."""
    try:
        with Path(path).open("rb") as file:
            return parse(file.read(MOST + 1), path)
    except OSError as error:
        raise InputError(f"grid {path}: {error.strerror}; notebooks/grids has examples") from error


def parse(text: str | bytes, path: Path | str = "text") -> dict:
    """The text of a grid file as {option: value}, lists as tuples, `set` as a dict.

    Raises `InputError` for what is no YAML mapping, an unknown key, or a value of another kind.

    >>> parse("methods: [BL, CPF]")
    {'methods': ('BL', 'CPF')}
    """
    try:
        _check_shape(text, path)
        found, words = (yaml.load(text, kind) for kind in (yaml.SafeLoader, yaml.BaseLoader))
    except (yaml.YAMLError, ValueError) as error:
        why = short(" ".join(str(error).split()), 300)[1:-1]
        raise InputError(f"grid {path} is no YAML: {why}") from error
    if not isinstance(found, dict):
        raise InputError(f"grid {path} holds no `key: value` lines; keys: {', '.join(KEYS)}")
    for key in found:
        choose(f"key of {path}", str(key), KEYS)
    if not isinstance(found.get("set") or {}, dict):
        raise InputError(f"grid {path}: set: expected settings, each a `key: value` line")
    found = {key: value for key, value in found.items() if value is not None}
    if "set" in found:  # a generator called 01 or on is no number, and no truth value
        plain = {str(k): v for k, v in found["set"].items() if not isinstance(v, list | dict)}
        named = {k for k, v in plain.items() if v is not None and isinstance(DEFAULTS.get(k), str)}
        found["set"] = found["set"] | {k: words["set"][k] for k in named}
    for key in {"dataset", "methods"} & found.keys():
        found[key] = words[key]
    option = lambda k, v: entries(v, LISTS[k], f"grid {path}: {k}: ") if k in LISTS else v
    return {key: option(key, value) for key, value in found.items()}


def _check_shape(text: str | bytes, path: Path | str) -> None:
    """Raise `InputError` for what a grid never is, and what would take all memory or the stack."""
    if len(text) > MOST:
        raise InputError(f"grid {path}: more than {MOST:,} bytes, which is no grid")
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH or isinstance(event, yaml.AliasEvent):
            raise InputError(f"grid {path}: write each value out, without &, * and deep lists")


def entries(value: object, kind: type = str, name: str = "") -> tuple:
    """The entries of a list, of "a,b", or a single one; raises `InputError` for another kind.

    >>> entries("0.6,0.9", float)
    (0.6, 0.9)
    """
    each = value.split(",") if isinstance(value, str) else value
    words = [str(word).strip() for word in (each if isinstance(each, list) else [each])]
    try:
        found = tuple(kind(word) for word in words if word)
    except ValueError as error:
        like = {int: "0,1,2", float: "0.6,0.9"}[kind]
        text = f"{short(value)} is not a list of {kind.__name__}s: {like}"
        raise InputError(f"{name}{text}") from error
    if not found:
        raise InputError(f"{name}{short(value)} is empty: leave it out for the preset's own")
    return found


def text(options: dict) -> str:
    r"""Options as a grid file; `parse` gives them back.

    >>> text({"preset": "tiny", "rates": (0.6, 0.9)})
    'preset: tiny\nrates: [0.6, 0.9]\n'
    """
    plain = {k: [*options[k]] if k in LISTS else options[k] for k in KEYS if options.get(k)}
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)


def words(options: dict) -> list[str]:
    """Options as words of the command line: `python -m dflib study` with them is the same study.

    >>> words({"preset": "tiny", "rates": (0.6, 0.9), "set": {"epochs": 3}})
    ['--preset', 'tiny', '--rates', '0.6,0.9', '--set', 'epochs=3']
    """
    given = [(key, options[key]) for key in KEYS if key != "set" and options.get(key)]
    given += [("set", f"{key}={value}") for key, value in options.get("set", {}).items()]
    joined = lambda key, value: ",".join(map(str, value)) if key in LISTS else value
    return [word for key, value in given for word in (f"--{key}", joined(key, value))]


def plan(options: dict) -> engine.Plan:
    """The study over all its datasets, each run once; raises `InputError` as `engine.plan`."""
    names = {"methods": "methods_", "set": "settings"}
    request = {names.get(key, key): value for key, value in options.items()}
    datasets = request.pop("dataset", (None,))
    found = (s for name in datasets for s in engine.plan(**request, dataset=name))
    return tuple({s.run_id: s for s in found}.values())
