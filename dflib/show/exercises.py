"""Exercises that answer back (`notebooks/exercises.toml`) and quizzes (`notebooks/quiz/`)."""

import json
import tomllib
import traceback
from collections.abc import Callable

import numpy as np
import torch
from IPython.display import HTML, Markdown

from data_prep.paths import PROJECT
from dflib.show import words

FOLDER = PROJECT / "notebooks"


def check(number: str, attempt: Callable) -> Markdown:
    """Try a reader's function on the exercise's cases, and say what came out, with a hint. Lists of
    numbers reach it as tensors; what it raises is told with its line.

    >>> check("02.1", images_needed)                                # doctest: +SKIP
    """
    exercise = tomllib.loads((FOLDER / "exercises.toml").read_text(encoding="utf-8"))[number]
    for case in exercise["cases"]:
        call = f"`{attempt.__name__}({', '.join(map(repr, case['given']))})`"
        given = [torch.tensor(v) if isinstance(v, list) else v for v in case["given"]]
        try:
            answer = attempt(*given)
            if answer is None or answer is ...:
                return Markdown(f"… **Not filled in yet**: {call} returns nothing.")
            found = np.asarray(answer, dtype=float)
        except Exception as error:  # whatever the reader's own line raises
            frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
            line = f" at line {frames[0].lineno}, `{frames[0].line}`" if frames else ""
            why = f"{type(error).__name__}, {str(error).rstrip('.')}"
            return Markdown(f"✘ {call} stops{line}: {why}. **Hint**: {exercise['hint']}")
        if not _equal(found, case["right"]):
            hints = [w["hint"] for w in case.get("wrong", ()) if _equal(found, w["gives"])]
            hint = hints[0] if hints else exercise["hint"]
            rounded = (np.round(each, 4).tolist() for each in (found, case["right"]))
            gives = "gives {}, expected {}.".format(*rounded)
            return Markdown(f"✘ {call} {gives} **Hint**: {hint}")
    return Markdown(f"✔ **Right**, tried on {len(exercise['cases'])} cases.")


def _equal(found: np.ndarray, other: float | list) -> bool:
    same_shape = found.shape == np.shape(other)
    return same_shape and np.allclose(found, other, rtol=1e-3, atol=1e-6, equal_nan=True)


def quiz(number: str) -> HTML:
    """A notebook's questions. The page itself answers: no kernel, no script, no other server."""
    questions = json.loads((FOLDER / "quiz" / f"{number}.json").read_text(encoding="utf-8"))
    return HTML(words.template("quiz.html.j2").render(number=number, questions=questions))
