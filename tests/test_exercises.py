"""Exercises answer back, quizzes answer in the page."""

import json
import re
import tomllib
from pathlib import Path

import chromium
import nbformat
import pytest

from dflib.show import exercises

ASKED = tomllib.loads((exercises.FOLDER / "exercises.toml").read_text(encoding="utf-8"))
QUIZZES = sorted((exercises.FOLDER / "quiz").glob("*.json"))
TRY = re.compile(r'exercises\.check\("(?P<number>[\d.]+)", (?P<name>\w+)\)')

each = pytest.mark.parametrize("number", ASKED)


def cells(number: str) -> list:
    (path,) = exercises.FOLDER.glob(f"{number[:2]}_*.ipynb")
    return nbformat.read(path, as_version=4).cells


def tries(number: str) -> dict[str, tuple[str, str]]:
    """The exercises of a notebook by number: the cell to fill in, the folded solution."""
    book, found = cells(number), {}
    for cell, after in zip(book, book[1:], strict=False):
        if asked := TRY.search(cell.source):
            solution = re.search(r"^<details>.*?```python\n(.+?)```", after.source, re.DOTALL)
            found[asked["number"]] = cell.source, solution[1]
    return found


def says(number: str, code: str) -> str:
    """What a cell of the notebook shows, after the notebook's code before its parameters."""
    names = {}
    for cell in cells(number):
        if cell.metadata.get("tags") == ["parameters"]:
            break
        if cell.cell_type == "code":
            exec(cell.source, names)
    *lines, last = code.splitlines()
    exec("\n".join(lines), names)
    return eval(last, names).data


def test_each_of_02_to_12_asks_two_or_three_questions_that_are_known():
    found = {number: len(tries(number)) for number in sorted({n[:2] for n in ASKED})}
    assert list(found) == [f"{n:02}" for n in range(2, 13)]
    assert set(found.values()) <= {2, 3}
    assert [*ASKED] == [number for notebook in found for number in tries(notebook)]


@each
def test_an_empty_cell_is_not_filled_in_and_its_solution_is_right(number):
    empty, solution = tries(number)[number]
    assert "# your code" in empty
    assert says(number, empty).startswith("… **Not filled in yet**")
    filled = f"{solution}\n\n{empty.splitlines()[-1]}"
    assert says(number, filled).startswith("✔ **Right**")


@each
def test_a_common_mistake_gets_its_own_hint_and_another_the_exercises(number):
    cases, before = ASKED[number]["cases"], []
    for one in cases:
        for wrong in one.get("wrong", ()):
            answers = iter([*before, wrong["gives"]])
            said = exercises.check(number, lambda *_, left=answers: next(left)).data
            assert said.startswith("✘") and said.endswith(f"**Hint**: {wrong['hint']}")
        before.append(one["right"])
    for answer in (1e9, [before[0]], [1e9, 1e9, 1e9]):  # another value, another shape
        said = exercises.check(number, lambda *_, answer=answer: answer).data
        assert "expected" in said and said.endswith(f"**Hint**: {ASKED[number]['hint']}")


def test_what_stops_is_told_with_its_line():
    def images_needed(accuracy, half_width):
        return accuracy / 0 * half_width

    said = exercises.check("02.1", images_needed).data
    line = images_needed.__code__.co_firstlineno + 1
    where = f"stops at line {line}, `return accuracy / 0 * half_width`: ZeroDivisionError"
    assert where in said and said.endswith(ASKED["02.1"]["hint"])
    said = exercises.check("02.1", lambda accuracy: accuracy).data
    assert "stops: TypeError" in said and "positional argument" in said
    assert "could not convert" in exercises.check("02.1", lambda *_: "about 3,460").data


# --- quizzes


def test_the_notebooks_that_end_with_a_quiz():
    assert [path.stem for path in QUIZZES] == ["01", "02", "03", "04", "05", "06", "13", "14"]
    for path in QUIZZES:
        last = [c for c in cells(path.stem) if c.cell_type == "code"][-1]
        assert last.source == f'exercises.quiz("{path.stem}")'


@pytest.mark.parametrize("path", QUIZZES, ids=lambda p: p.stem)
def test_a_quiz_has_four_questions_with_one_right_answer_each(path: Path):
    questions = json.loads(path.read_text(encoding="utf-8"))
    assert len(questions) == 4
    for question in questions:
        answers = question["answers"]
        assert len(answers) >= 3 and [a["correct"] for a in answers].count(True) == 1
        assert len({a["answer"] for a in answers}) == len({a["feedback"] for a in answers})
        assert all(a["answer"] and a["feedback"] for a in answers)


@chromium.needed
def test_the_page_itself_says_what_is_right_or_wrong_about_an_answer():
    with chromium.opened() as page:
        page.set_content("".join(exercises.quiz(path.stem).data for path in QUIZZES))
        shown = lambda: [s.inner_text() for s in page.locator(".quiz span:visible").all()]
        assert shown() == []
        for i, path in enumerate(QUIZZES):
            for k, question in enumerate(json.loads(path.read_text(encoding="utf-8"))):
                labels = page.locator(".quiz").nth(i).locator("fieldset").nth(k).locator("label")
                assert labels.all_inner_texts() == [a["answer"] for a in question["answers"]]
                for label, answer in zip(labels.all(), question["answers"], strict=True):
                    label.click()
                    word = "Right." if answer["correct"] else "No."
                    assert shown()[4 * i + k :] == [f"{word} {answer['feedback']}"]
