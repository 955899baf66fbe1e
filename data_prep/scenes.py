"""Which files show one scene, by a rule that is found or given. No scene crosses a strict split."""

import logging
import re
from collections import Counter

from data_prep.errors import InputError, short

RULES = {
    "stem": "files of one name, whatever their folder and suffix",
    "parent": "the files of one folder, such as a video's frames",
    "file": "each file",
}
log = logging.getLogger(__name__)


def stem(file: str) -> str:
    """A file's name (or path) without its suffix."""
    return file.rpartition(".")[0] or file


def grouped(rows: list[dict], rule: str = "") -> list[dict]:
    """The rows (path, label, generator, split, folder: the one below class and generator, or ""),
    each with its scene as group; within a split, where the folders give splits.

    rule: one of `RULES`, a regular expression whose first group names the scene, "" to find one.
    """
    known = rule or found(rows)
    names = _names(rows, known)
    for row, name in zip(rows, names, strict=True):
        row["group"] = f"{row['split']}/{name}" if row["split"] and known != "file" else name
    number = len({row["group"] for row in rows})
    how, what = "given" if rule else "found", RULES.get(known, "what the group matches")
    log.info("%d scenes by %s (%s): %s", number, short(known), how, what)
    return rows


def found(rows: list[dict]) -> str:
    """The rule that the names suggest: "parent" where most files are numbered anew in each folder
    of a class, or named after it, as frames of videos are; else "stem"."""
    names = [row["path"].rpartition("/")[2] for row in rows]
    kinds = [(row["label"], row["generator"], row["split"]) for row in rows]
    times, frames = Counter(zip(kinds, names, strict=True)), 0
    for row, kind, name in zip(rows, kinds, names, strict=True):
        if folder := row["folder"]:
            frames += times[kind, name] > 1 or name.startswith((f"{folder}_", f"{folder}-"))
    return "parent" if 2 * frames > len(names) else "stem"


def _names(rows: list[dict], rule: str) -> list[str]:
    """The name of each row's scene."""
    if rule == "stem":
        return [stem(row["path"].rpartition("/")[2]) for row in rows]
    if rule == "file":
        return [stem(row["path"]) for row in rows]
    if rule == "parent":
        return [row["folder"] or stem(row["path"]) for row in rows]
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise InputError(f"--scene {short(rule)} is no regular expression: {error}") from error
    if not expression.groups:
        names = ", ".join(RULES)
        raise InputError(f"--scene {short(rule)} has no group: e.g. '(id\\d+)_', or one of {names}")
    matches = [expression.search(row["path"]) for row in rows]
    for row, match in zip(rows, matches, strict=True):
        if not match or match[1] is None:
            raise InputError(f"--scene {short(rule)} does not match {row['path']}")
    return [match[1] for match in matches]
