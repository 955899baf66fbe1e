"""A study as options: those of `python -m dflib study`, in a YAML file that can be kept."""

from pathlib import Path

import yaml

from data_prep.errors import InputError, choose, short
from data_prep.paths import regular
from dflib.study import engine

LISTS = {"dataset": str, "methods": str, "rates": float, "seeds": int}
OTHERS = {"run": str, "test-on": str, "mean": float, "std": float}  # lists that no grid file has
MOST = 1_000_000  # bytes of a grid file
KEYS = ("preset", "source", "protocol", "folds", *LISTS, "set")


def read(path: Path | str) -> dict:
    """The options of a grid file; raises `InputError` where it cannot be read, or as `parse`."""
    try:
        return parse(regular(Path(path), MOST).read_bytes(), path)
    except OSError as error:
        raise InputError(f"grid {path}: {error.strerror}; notebooks/grids has examples") from error


def parse(text: str | bytes, path: Path | str = "text") -> dict:
    """The text of a grid file as {option: value}, lists as tuples, `set` as a dict of texts; else
    `InputError`.

    >>> parse("methods: [BL, CPF]")
    {'methods': ('BL', 'CPF')}
    """
    if len(text) > MOST:
        raise InputError(f"grid {path}: more than {MOST:,} bytes, which is no grid")
    try:
        found = yaml.load(text, yaml.BaseLoader)  # all is text: a generator may be called 01 or on
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = short(" ".join(str(error).split()), 300)[1:-1]
        raise InputError(f"grid {path} is no YAML: {why}") from error
    if not isinstance(found, dict):
        raise InputError(f"grid {path} holds no `key: value` lines; keys: {', '.join(KEYS)}")
    for key, value in found.items():
        choose(f"key of {path}", str(key), KEYS)
        if isinstance(value, dict) != (key == "set"):
            raise InputError(f"grid {path}: {key}: expected settings below `set` and nowhere else")
        if not (isinstance(value, str) or key in LISTS or key == "set"):
            raise InputError(f"grid {path}: {key}: expected one value, found {short(value)}")
        words = value.values() if key == "set" else value  # a text's words are its letters
        if not all(isinstance(word, str) for word in words):
            raise InputError(f"grid {path}: {key}: write each value out, without lists in lists")
    return {k: entries(v, k, f"grid {path}: ") if k in LISTS else v for k, v in found.items()}


def entries(value: str | list, key: str, place: str = "--") -> tuple:
    """The entries of an option, "a,b" or a list; raises `InputError` for another kind than LISTS'.

    >>> entries("0.6,0.9", "rates")
    (0.6, 0.9)
    """
    each = value.split(",") if isinstance(value, str) else value
    words = [str(word).strip() for word in each]
    try:
        found = tuple((LISTS | OTHERS)[key](word) for word in words if word)
    except ValueError as error:
        like = {"seeds": "0,1,2", "rates": "0.6,0.9"}.get(key, "0.5,0.5,0.5")
        raise InputError(f"{place}{key} {short(value)} is no list of numbers: {like}") from error
    if len(found) > 1000:
        raise InputError(f"{place}{key} has {len(found):,} entries: expected at most 1,000")
    if not found:
        raise InputError(f"{place}{key} {short(value)} is empty: leave it out for the preset's own")
    return found


def text(options: dict) -> str:
    r"""Options as a grid file; `parse` gives them back.

    >>> text({"preset": "tiny", "rates": (0.6, 0.9)})
    'preset: tiny\nrates: [0.6, 0.9]\n'
    """
    plain = {k: [*options[k]] if k in LISTS else options[k] for k in KEYS if options.get(k)}
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)


def plan(options: dict) -> engine.Plan:
    """The study over all its datasets, each run once; raises `InputError` as `engine.plan`."""
    names = {"methods": "methods_", "set": "settings"}
    request = {names.get(key, key): value for key, value in options.items()}
    datasets = request.pop("dataset", (None,))
    found = (s for name in datasets for s in engine.plan(**request, dataset=name))
    return tuple({s.run_id: s for s in found}.values())
