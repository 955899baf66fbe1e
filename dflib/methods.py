"""The table of methods, and the presets. Everything that lists methods (batch, plots, explorer, README) reads it here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_prep.errors import InputError, choose
from dflib.quantize import CALIBRATIONS

TRAIN = ("batch", "lr", "weight_decay", "warmup", "label_smoothing", "augment", "amp")
DATA = ("size", "mode", "limit")
MEASURE = ("latency_runs", "draws")


@dataclass(frozen=True)
class Method:
    """One row of the table. parents: methods whose finished run this one starts from, on the same dataset and seed."""

    code: str
    title: str
    notebook: str
    parents: tuple[str, ...] = ()
    rated: bool = True  # takes a compression rate
    settings: tuple[str, ...] = ()  # what it reads, beside DATA and MEASURE

    @property
    def keys(self) -> tuple[str, ...]:
        return (*DATA, *MEASURE, *self.settings)


METHODS = {
    m.code: m
    for m in (
        Method("BL", "baseline", "02_baseline", rated=False, settings=("epochs", "patience", *TRAIN)),
        Method(
            "CPF",
            "magnitude pruning, fine-tuned",
            "03_prune",
            ("BL",),
            settings=("scope", "finetune_epochs", "finetune_lr", *TRAIN),
        ),
        Method(
            "CKD",
            "knowledge distillation",
            "04_distill",
            ("BL",),
            settings=("temperature", "alpha", "epochs", "patience", *TRAIN),
        ),
        Method("CQ", "int8 linear layers", "05_quantize", ("BL",), rated=False),
        Method(
            "CQ-S",
            "int8 convolutions and linear layers",
            "05_quantize",
            ("BL",),
            rated=False,
            settings=("calibration", "calibration_images", "keep_float"),
        ),
    )
}

DEFAULTS: dict = {
    "size": 224,
    "mode": "resize",  # resize | center_crop | texture_crop
    "limit": None,  # at most so many images of each class in each part
    "epochs": 30,
    "finetune_epochs": 10,
    "batch": 64,
    "lr": 1e-3,
    "finetune_lr": 3e-4,
    "weight_decay": 0.01,
    "warmup": 0.1,
    "label_smoothing": 0.0,
    "patience": 0,
    "augment": True,
    "amp": True,
    "scope": "layer",  # layer | global
    "temperature": 4.0,
    "alpha": 0.9,
    "calibration": "minmax",  # minmax | entropy | percentile
    "calibration_images": 128,  # at most so many, half of each class
    "keep_float": "",  # layers that stay in float, separated by commas
    "latency_runs": 50,
    "draws": 1000,  # of the bootstrap
}


CHOICES = {
    "mode": ("input mode", ("resize", "center_crop", "texture_crop")),
    "scope": ("scope", ("layer", "global")),
    "calibration": ("calibration", CALIBRATIONS),
}
FROM_ZERO = ("warmup", "weight_decay", "label_smoothing", "patience", "alpha")
SHARES = ("warmup", "label_smoothing", "alpha")  # at most 1


@dataclass(frozen=True)
class Preset:
    """A named grid and its settings (those of DEFAULTS that differ)."""

    dataset: str
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    settings: dict
    about: str


PRESETS = {
    "tiny": Preset(
        "demo",
        ("BL", "CPF", "CKD", "CQ", "CQ-S"),
        (0.9,),
        (0,),
        {"size": 32, "limit": 48, "epochs": 2, "finetune_epochs": 1, "latency_runs": 5, "draws": 50},
        "seconds: for tests; its numbers mean nothing",
    ),
    "demo": Preset(
        "demo",
        ("BL", "CPF", "CKD", "CQ", "CQ-S"),
        (0.6, 0.9),
        (0,),
        {"size": 32, "epochs": 12, "finetune_epochs": 4},
        "minutes on two CPU cores, offline",
    ),
    "paper": Preset(
        "faces-140k",
        ("BL", "CPF", "CKD", "CQ", "CQ-S"),
        (0.6, 0.7, 0.8, 0.9),
        (0, 1, 2),
        {"size": 224, "patience": 8},
        "the paper's grid, for GPUs",
    ),
}


def method(code: str) -> Method:
    """The row of a method; raises `InputError` with the nearest code for an unknown one."""
    return METHODS[choose("method", code, METHODS)]


def made_by(notebook: str) -> tuple[str, ...]:
    """Codes of the methods that a notebook makes; where there are several, its parameter `method` says which."""
    return tuple(row.code for row in METHODS.values() if row.notebook == notebook)


def preset(name: str) -> Preset:
    """The preset of that name; raises `InputError` for an unknown one."""
    return PRESETS[choose("preset", name, PRESETS)]


def settings(preset_name: str, overrides: dict | None = None) -> dict:
    """All settings of a preset with `overrides` on top.

    Raises `InputError` for an unknown key (with the nearest) or a value of another kind than the default's.

    >>> settings("demo", {"epochs": 3})["epochs"]
    3
    """
    result = DEFAULTS | preset(preset_name).settings
    for key, value in (overrides or {}).items():
        choose("setting", key, DEFAULTS)
        result[key] = _checked(key, value)
    return result


def relevant(code: str, values: dict) -> dict:
    """Those of the settings that the method reads (the others must not change its run's id)."""
    return {k: values[k] for k in sorted(method(code).keys)}


def _checked(key: str, value):
    default = DEFAULTS[key]
    kind = int if key == "limit" else type(default)
    if value is None and default is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"setting {key}={value!r}: expected {kind.__name__}, e.g. {default!r}")
    if key in CHOICES:
        what, valid = CHOICES[key]
        choose(what, value, valid)
    elif key == "size" and (value % 32 or value < 32):
        raise InputError(
            f"setting size={value}: image size {value} is not a multiple of 32, such as {max(32, round(value / 32) * 32)}"
        )
    elif kind in (int, float):
        low, high = (0 if key in FROM_ZERO else 2 if key == "batch" else 1e-12), (1 if key in SHARES else math.inf)
        if not (low <= value <= high and math.isfinite(value)):
            raise InputError(f"setting {key}={value!r} is out of its range: {low:g} to {high:g}")
    return value
