"""The table of methods, and the presets. Everything that lists methods (batch, plots, explorer, README) reads it here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_prep.errors import InputError, check_rate, choose
from dflib.quantize import CALIBRATIONS

AGAINST_UNSEEN = ("cutmix", "blur_jpeg", "ema", "front")
TRAIN = (
    *("batch", "lr", "weight_decay", "warmup", "label_smoothing", "augment", "mixup", "amp"),
    *AGAINST_UNSEEN,
)
DATA = ("size", "mode", "limit", "target_images", "train_generators", "hold_out")
MEASURE = ("latency_runs", "draws")
PRUNE = (
    "scope",
    "importance",
    "round_to",
    "prune_steps",
    "step_epochs",
    "finetune_epochs",
    "finetune_lr",
)
DISTILL = ("temperature", "alpha")
INT8 = ("calibration", "calibration_images", "keep_float")
STUDENT = ("backbone", "epochs", "distill_epochs", "patience", *TRAIN)
TRANSFER = ("transfer_epochs", "transfer_lr", *TRAIN)
ADAPTER = ("adapter_form", "adapter_after", "adapter_lr", "transfer_epochs", *TRAIN)


@dataclass(frozen=True)
class Method:
    """One row of the table. parents: methods whose finished run this one starts from, at the same seed; "BL@source" is BL on the source dataset."""

    code: str
    title: str
    notebook: str
    parents: tuple[str, ...] = ()
    rated: bool = True  # takes a compression rate
    settings: tuple[str, ...] = ()  # what it reads, beside DATA and MEASURE

    @property
    def keys(self) -> tuple[str, ...]:
        return (*DATA, *MEASURE, *self.settings)

    @property
    def transfers(self) -> bool:
        """Whether it starts from another dataset, the source."""
        return any("@source" in parent or METHODS[parent].transfers for parent in self.parents)


METHODS = {
    m.code: m
    for m in (
        Method(
            "BL",
            "baseline",
            "02_baseline",
            rated=False,
            settings=("backbone", "epochs", "patience", *TRAIN),
        ),
        Method(
            "CPF",
            "magnitude pruning, fine-tuned",
            "03_prune",
            ("BL",),
            settings=("scope", "finetune_epochs", "finetune_lr", *TRAIN),
        ),
        Method(
            "CPF-S",
            "structured pruning, fine-tuned",
            "03_prune",
            ("BL",),
            settings=(*PRUNE, *TRAIN),
        ),
        Method(
            "SCRATCH",
            "the pruned shape from scratch",
            "03_prune",
            ("BL", "CPF-S"),
            settings=("epochs", "prune_steps", "step_epochs", "finetune_epochs", *TRAIN),
        ),
        Method("CKD-0", "the student without a teacher", "04_distill", ("BL",), settings=STUDENT),
        Method(
            "CKD",
            "knowledge distillation",
            "04_distill",
            ("BL", "CKD-0"),
            settings=(*DISTILL, *STUDENT),
        ),
        Method("CQ", "int8 linear layers", "05_quantize", ("BL",), rated=False),
        Method(
            "CQ-S",
            "int8 convolutions and linear layers",
            "05_quantize",
            ("BL",),
            rated=False,
            settings=INT8,
        ),
        Method(
            "CPKDQ",
            "pruned, distilled, int8",
            "18_combine",
            ("BL",),
            settings=(*INT8, *DISTILL, *PRUNE, *STUDENT),
        ),
        Method(
            "chain",
            "a chain of steps",
            "18_combine",
            ("BL",),
            False,
            ("steps", *INT8, *DISTILL, *PRUNE, *STUDENT),
        ),
        Method(
            "TL+FT",
            "transfer, fine-tuned",
            "07_tl_finetune",
            ("BL@source",),
            False,
            ("trainable", *TRANSFER),
        ),
        Method(
            "TL+FT+Q", "transfer, int8 linear layers", "08_tl_quantize", ("TL+FT",), rated=False
        ),
        Method(
            "TL+P+FT",
            "transfer of a pruned model",
            "09_tl_prune",
            ("CPF@source",),
            settings=("trainable", *TRANSFER),
        ),
        Method(
            "TL+KD",
            "transfer by distillation",
            "10_tl_distill",
            ("BL@source", "TL+FT"),
            settings=("teacher", "temperature", "transfer_alpha", "epochs", "patience", *TRAIN),
        ),
        Method(
            "TL+P+A",
            "adapter in the pruned model",
            "11_tl_prune_adapter",
            ("TL+P+FT",),
            settings=ADAPTER,
        ),
        Method(
            "TL+KD+A",
            "adapter in the student",
            "12_tl_distill_adapter",
            ("TL+KD",),
            settings=ADAPTER,
        ),
        Method(
            "LRF",
            "low-rank factorisation, fine-tuned",
            "06_low_rank",
            ("BL",),
            settings=("finetune_epochs", "finetune_lr", *TRAIN),
        ),
    )
}

DEFAULTS: dict = {
    "size": 224,
    "mode": "resize",  # resize | center_crop | texture_crop
    "limit": None,  # at most so many images of each class in each part
    "target_images": None,  # at most so many training images of each class, but for the source dataset's runs
    "train_generators": "",  # generators whose fakes train and validate, separated by commas; "" is all. The test keeps every one
    "hold_out": "",  # or those whose fakes do not
    "backbone": "vgg",  # of BL: vgg (the paper's) | resnet18 | mobilenet_v3_small | efficientnet_b0
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
    "mixup": 0.0,
    "cutmix": 0.0,
    "blur_jpeg": 0.0,  # probability
    "front": "",  # a fixed high-pass front end: srm
    "ema": 0.0,  # decay of the averaged weights, such as 0.99
    "amp": True,
    "scope": "layer",  # layer | global
    "importance": "l1",  # of a channel: l1 | taylor | bn | random
    "round_to": 16,  # widths are multiples of it: as many numbers as AVX-512 takes at once (8 elsewhere may do)
    "prune_steps": 3,  # structured pruning goes in so many steps,
    "step_epochs": 1,  # with so many epochs of fine-tuning after each but the last
    "temperature": 4.0,
    "alpha": 0.9,
    "teacher": "source",  # source (the paper's) | transferred
    "transfer_alpha": 0.1,  # of TL+KD: a teacher of another task soon does harm (demo, 8 epochs: AUROC 0.84 without, 0.85 at 0.1, 0.63 at 0.5)
    "transfer_epochs": 10,
    "transfer_lr": 1e-3,
    # the first blocks, not the last: a generator's traces are local (demo, 4 epochs: AUROC 0.93; features.4 to 7 and the head: 0.60)
    "trainable": "features.0,features.1,features.2,features.3,head",  # dflib.adapters.layers lists what can be named
    "adapter_form": "serial",  # serial (the paper's) | residual
    "adapter_after": "",  # a block such as features.3; empty is the paper's place
    "adapter_lr": 5e-3,
    "distill_epochs": 0,  # of a student; 0: as many as `epochs`
    "steps": "prune:0.9,distill,int8",  # of a chain
    "calibration": "minmax",  # minmax | entropy | percentile
    "calibration_images": 128,  # at most so many, half of each class
    "keep_float": "",  # layers that stay in float, separated by commas
    "latency_runs": 50,
    "draws": 1000,  # of the bootstrap
}

FOLDS = {
    "leave-one-out": "hold_out",
    "one-to-all": "train_generators",
}  # the setting that each generator has in turn

CHOICES = {
    "mode": ("input mode", ("resize", "center_crop", "texture_crop")),
    "scope": ("scope", ("layer", "global")),
    "teacher": ("teacher", ("source", "transferred")),
    "adapter_form": ("form of adapter", ("serial", "residual")),
    "calibration": ("calibration", CALIBRATIONS),
    "importance": ("importance", ("l1", "taylor", "bn", "random")),
    "front": ("front end", ("", "srm")),
    "backbone": ("backbone", ("vgg", "resnet18", "mobilenet_v3_small", "efficientnet_b0")),
}
FROM_ZERO = (
    "warmup",
    "weight_decay",
    "label_smoothing",
    "patience",
    "alpha",
    "transfer_alpha",
    "mixup",
    "cutmix",
    "blur_jpeg",
    "ema",
    "distill_epochs",
)
MOST = dict.fromkeys(
    ("warmup", "label_smoothing", "alpha", "transfer_alpha", "blur_jpeg", "ema"), 1
)  # largest values


@dataclass(frozen=True)
class Preset:
    """A named grid and its settings (those of DEFAULTS that differ)."""

    dataset: str
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    settings: dict
    about: str
    source: str = "demo-source"


PAPER = (
    "BL",
    "CPF",
    "CKD",
    "CQ",
    "CQ-S",
    "TL+FT",
    "TL+FT+Q",
    "TL+P+FT",
    "TL+KD",
    "TL+P+A",
    "TL+KD+A",
)

PRESETS = {
    "tiny": Preset(
        "demo",
        PAPER,
        (0.9,),
        (0,),
        {
            "size": 32,
            "limit": 48,
            "epochs": 2,
            "finetune_epochs": 1,
            "transfer_epochs": 1,
            "latency_runs": 5,
            "draws": 50,
        },
        "seconds: for tests; its numbers mean nothing",
    ),
    "demo": Preset(
        "demo",
        (
            "BL",
            "CPF",
            "CKD",
            "CQ",
            "CQ-S",
        ),  # the transfers take as long again: --methods TL+FT,TL+KD,…
        (0.6, 0.9),
        (0,),
        {"size": 32, "epochs": 12, "finetune_epochs": 4, "transfer_epochs": 4},
        "minutes on two CPU cores, offline",
    ),
    "paper": Preset(
        "faces-140k",
        PAPER,
        (0.6, 0.7, 0.8, 0.9),
        (0, 1, 2),
        {"size": 224, "patience": 8},
        "the paper's grid, for GPUs",
        "dogs-vs-cats",
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


def lineage(code: str) -> list[str]:
    """The method and all that it starts from, on either dataset."""
    parents = [parent.removesuffix("@source") for parent in method(code).parents]
    return [code, *(c for parent in parents for c in lineage(parent))]


STEPS = {  # of a chain: whether a rate goes with it
    "prune": True,  # whole channels go
    "mask": True,  # small weights become zero
    "student": True,  # an untrained student takes over
    "finetune": False,  # training with the labels
    "distill": False,  # training with BL as the teacher
    "int8": False,  # convolutions and linear layers
    "int8-linear": False,
}
CPKDQ = "prune:{rate:g},distill,int8"


def parse_steps(text: str) -> tuple[tuple[str, float | None], ...]:
    """The steps of a chain: "prune:0.8,distill,int8" -> (("prune", 0.8), ("distill", None), ("int8", None)).

    A rate is a share of BL's parameters. Raises `InputError` for an unknown step, a rate that is missing, impossible or too many, and for an order
    that makes no sense (what follows int8, a student that comes late or is never trained, a second cut that removes less, a chain that compresses nothing).
    """
    steps: list[tuple[str, float | None]] = []
    for word in text.split(","):
        kind, _, rate = word.strip().partition(":")
        choose("step", kind, STEPS)
        if STEPS[kind] != bool(rate):
            raise InputError(
                f"step {word.strip()!r}: write {kind}:RATE, such as {kind}:0.9"
                if STEPS[kind]
                else f"{kind} takes no rate"
            )
        try:
            value = float(rate) if rate else None
        except ValueError as error:
            raise InputError(
                f"step {word.strip()!r}: {rate!r} is no number; write {kind}:0.9, say"
            ) from error
        if wrong := _out_of_order(steps, kind, value if value is None else check_rate(value)):
            raise InputError(f"steps {text!r}: {wrong}")
        steps.append((kind, value))
    if steps[-1][0] == "student":
        raise InputError(f"steps {text!r}: the student is never trained; add distill or finetune")
    if {kind for kind, _ in steps} <= {"finetune", "distill"}:
        raise InputError(f"steps {text!r}: nothing is compressed; add prune, mask, student or int8")
    return tuple(steps)


def _out_of_order(
    before: list[tuple[str, float | None]], kind: str, rate: float | None
) -> str | None:
    """Why a step makes no sense after those before it."""
    earlier = [k for k, _ in before]
    reached = max((r for _, r in before if r), default=0.0)
    if any(k.startswith("int8") for k in earlier):
        return f"{kind} cannot follow int8, which is not trained or cut any more; put int8 last"
    if kind == "student" and earlier:
        return f"a student starts untrained, and throws away what {', '.join(earlier)} did; put it first"
    if earlier[-1:] == ["student"] and kind not in ("finetune", "distill"):
        return f"{kind} needs a trained student; put distill or finetune before it"
    if kind == "prune" and "mask" in earlier:
        return "prune does not see the zeros of mask; prune first"
    if rate and rate <= reached:
        return f"{kind}:{rate:g} removes nothing after {reached:g} (rates are shares of BL's parameters); take a larger one"
    return None


# count only where they are given: without them a run keeps its id
UNSET = ("train_generators", "hold_out", *AGAINST_UNSEEN)


def relevant(code: str, values: dict) -> dict:
    """Those of the settings that the method reads (the others must not change its run's id)."""
    return {
        k: values[k]
        for k in sorted(method(code).keys)
        if k not in UNSET or values[k] != DEFAULTS[k]
    }


def planned_epochs(params: dict) -> int:
    """Epochs that a run with these settings trains, all its stages together."""
    own = params.get("distill_epochs") or params.get("epochs", 0)
    steps = params.get("step_epochs", 0) * (params.get("prune_steps", 1) - 1)
    return own + params.get("finetune_epochs", 0) + params.get("transfer_epochs", 0) + steps


def fold(params: dict) -> str:
    """Which generators a run was trained on, in words: "without dalle2", "on dalle2 alone"; "" for all."""
    held, only = (params.get(k, "").replace(",", ", ") for k in ("hold_out", "train_generators"))
    return f"without {held}" if held else f"on {only} alone" if only else ""


def _checked(key: str, value):
    default = DEFAULTS[key]
    kind = int if key in ("limit", "target_images") else type(default)
    if value is None and default is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"setting {key}={value!r}: expected {kind.__name__}, e.g. {default!r}")
    if key in CHOICES:
        what, valid = CHOICES[key]
        choose(what, value, valid)
    elif key == "steps":
        parse_steps(value)
    elif key == "size" and (value % 32 or value < 32):
        raise InputError(
            f"setting size={value}: image size {value} is not a multiple of 32, such as {max(32, round(value / 32) * 32)}"
        )
    elif kind in (int, float):
        low, high = (
            (0 if key in FROM_ZERO else 2 if key == "batch" else 1e-12),
            MOST.get(key, math.inf),
        )
        if not (low <= value <= high and math.isfinite(value)):
            raise InputError(f"setting {key}={value!r} is out of its range: {low:g} to {high:g}")
    return value
