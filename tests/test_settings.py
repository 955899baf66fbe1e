"""The settings: each declared once, checked, and spelled alike for the same request."""

from __future__ import annotations

import json
import math
import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cache import MODES
from data_prep.errors import InputError
from dflib import prune, quantize, train
from dflib.study import methods, runs
from dflib.study.settings import DEFAULTS, FIELDS, MEASURES, Settings, checked, expected

NUMBERS = [name for name, value in DEFAULTS.items() if type(value) in (int, float)]


WRONG = {
    "epochs": ["three", 1.5, True, None, [3], -1],
    "lr": ["fast", 0, -1e-3, True, None],
    "augment": [2, "maybe", None],
    "mode": [3, None, True],
    "limit": [0, 7, -5, "all", 2.5, True],
    "alpha": [-0.1, 1.1, "much"],
    "ema": [1],
    "hold_out": [True, ["gan"]],
    "size": ["big", 33, 0, 10**6],
    "calibration_images": [1, 10**9],
    "label_smoothing": [-0.1, 1e-300],
}
ODD = [math.nan, math.inf, -math.inf, "nan", "inf"]
WRONG |= {name: [*WRONG.get(name, []), *ODD] for name in NUMBERS}


@pytest.mark.parametrize(("name", "values"), WRONG.items())
def test_a_value_that_does_not_fit_is_refused_with_what_would(name, values):
    for value in values:
        told = f"setting {name}={re.escape(repr(value))}: expected "
        with pytest.raises(InputError, match=told) as e:
            checked({name: value})
        assert expected(name) in str(e.value)
        assert DEFAULTS[name] in (None, "") or str(e.value).endswith(f"e.g. {DEFAULTS[name]}")


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("epoch", 3, "unknown setting 'epoch', did you mean 'epochs'"),
        ("pairs", True, "unknown setting 'pairs'"),
        ("mode", "centre_crop", "unknown mode 'centre_crop', did you mean 'center_crop'"),
        ("front", "npr", "unknown front 'npr'; Valid: '', srm"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, value, answer):
    with pytest.raises(InputError, match=answer):
        checked({name: value})


@pytest.mark.parametrize(
    ("name", "spellings", "value"),
    [
        ("epochs", [5, "5", 5.0, "5.0", "5e0", " 5 "], 5),
        ("warmup", [0.9, ".9", "0.9", "9e-1"], 0.9),
        ("weight_decay", [0, "0", 0.0, -0.0, "-0"], 0.0),
        ("augment", [False, "false", "False", "no"], False),
        ("limit", [None, "None", "null"], None),
        ("hold_out", ["b,a", " a , b", "a,b,,a"], "a,b"),
        ("train_generators", [1, "1", "1,"], "1"),
        ("keep_float", ["b, a", "a,b"], "a,b"),
        ("trainable", ["features.6, head", "head,features.6"], "features.6,head"),
    ],
)
def test_the_same_request_has_the_same_value(name, spellings, value):
    for each in spellings:
        found = checked({name: each})[name]
        assert (found, type(found)) == (value, type(value))


@given(st.sampled_from(NUMBERS), st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_taken_as_it_is_or_refused(name, value):
    try:
        assert checked({name: value})[name] == value
        assert checked({name: repr(value)}) == checked({name: value})
    except InputError as error:
        assert expected(name) in str(error)


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 100_000, "\x1b[31m\n" * 5000])
@pytest.mark.parametrize("name", ["epochs", "lr", "mode", "augment", "limit"])
def test_a_long_value_is_cut_and_escaped_in_the_message(name, value):
    with pytest.raises(InputError) as e:
        checked({name: value})
    assert len(str(e.value)) < 400 and str(e.value).isprintable()


def test_the_defaults_fit_and_stay_as_they_are():
    assert checked(DEFAULTS) == checked({}) == DEFAULTS
    assert checked({name: str(value) for name, value in DEFAULTS.items()}) == DEFAULTS
    with pytest.raises(ValueError, match="frozen"):
        Settings().epochs = 3


def test_choices_and_training_defaults_are_those_of_the_modules_that_take_them():
    annotated = {name: get_args(field.annotation) for name, field in Settings.model_fields.items()}
    assert annotated["calibration"] == tuple(quantize.CALIBRATIONS)
    assert annotated["importance"] == prune.IMPORTANCES
    assert annotated["mode"] == MODES
    recipe = {k: v for k, v in vars(train.Recipe()).items() if k not in ("epochs", "seed")}
    assert recipe == {key: DEFAULTS[key] for key in recipe}


def test_each_setting_says_what_it_is_and_is_read_by_some_method():
    rows = methods.setting_rows()
    assert [row["setting"] for row in rows] == list(FIELDS) == list(DEFAULTS)
    for row in rows:
        assert 20 < len(row["what"]) < 100 and row["takes"] and row["read by"]
    assert {r["setting"] for r in rows if r["changes"] == "the measuring"} == MEASURES
    assert {"draws", "latency_runs"} == MEASURES
    own = {row["setting"]: row for row in methods.setting_rows("CQ-S")}
    assert "calibration" in own and not {"epochs", "lr", "batch"} & own.keys()
    assert own["size"]["read by"] == "all"
    groups = {group for row in methods.METHODS.values() for group in row.does}
    assert groups | {"data", "measure"} == {g for field in FIELDS.values() for g in field["groups"]}


@pytest.mark.parametrize("notebook", sorted({row.notebook for row in methods.METHODS.values()}))
def test_a_notebook_reads_the_settings_of_its_methods_and_no_others(notebook):
    cells = json.loads((runs.NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    code = "\n".join(
        "".join(c["source"]) for c in cells if "result" in c["metadata"].get("tags", [])
    )
    read = set(re.findall(r"""\b(?:s|settings)\[["'](\w+)["']\]""", code))
    table = {key for code in methods.made_by(notebook) for key in methods.method(code).keys}
    assert read <= table
