"""The settings of a run, each declared once: type, default, range, what it is, who reads it.

Which methods read a group is said in `methods`. Elsewhere the values are plain dicts.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator

from data_prep.errors import InputError, choose, short


def _setting(default: Any, *groups: str, source: str = "", measures: bool = False, **limits: Any):
    """A field. groups: whoever reads one of them reads it; measures: it decides no result."""
    more = {"groups": groups, "source": source, "measures": measures}
    return Field(default, json_schema_extra=more, **limits)


def _parts(text: str) -> list[str]:
    return [part for word in text.split(",") if (part := word.strip())]


# commas between, no blanks; the same request has the same text
Names = Annotated[str, Field(pattern=r"^\s*$|[^,\s]")]
InOrder = Annotated[Names, AfterValidator(lambda text: ",".join(_parts(text)))]
AnyOrder = Annotated[Names, AfterValidator(lambda text: ",".join(sorted({*_parts(text)})))]

EPOCHS = 100_000  # most
FRESH = ("baseline", "student", "teacher")  # groups whose methods train a new network,
TRAIN = (*FRESH, "budget", "finetune", "transfer", "adapter")  # and all that train


class Settings(
    BaseModel,
    frozen=True,
    extra="forbid",
    allow_inf_nan=False,
    coerce_numbers_to_str=True,
    str_strip_whitespace=True,
    use_attribute_docstrings=True,
):
    """All settings, checked: `Settings(epochs="5").epochs` is 5. The docstrings are for users."""

    size: int = _setting(224, "data", ge=32, le=2048, multiple_of=32)
    """Pixels a side of the input: fewer are faster and lose detail."""
    mode: Literal["resize", "center_crop", "texture_crop"] = _setting("resize", "data")
    """How an image becomes square: a crop keeps the traces that resizing blurs, but sees a part."""
    limit: int | None = _setting(None, "data", ge=8)
    """At most so many images of each class in each part: for a quick try (int8 calibrates on 8)."""
    target_images: int | None = _setting(None, "data", ge=8)
    """At most so many training images of each class, but for a transfer's source: few-shot."""
    train_generators: AnyOrder = _setting("", "data", source="arXiv 2003.07325")
    """Generators whose fakes train and validate (a,b; empty: all); the test keeps every one."""
    hold_out: AnyOrder = _setting("", "data", source="arXiv 2003.07325")
    """Generators whose fakes do not train: how well are unseen ones found?"""
    backbone: str = _setting(
        "vgg", "baseline", "student", "teacher", "chain", source="arXiv 2504.21066"
    )
    """BL's network: vgg; timm/NAME, timm/NAME:16 (to stride 16); torchvision/NAME; FILE.py:NAME."""
    pretrained: str = _setting("", "baseline", "chain", source="arXiv 1411.1792")
    """Weights that another backbone than vgg begins with: true for its publisher's, or a file."""
    head_lr: float = _setting(0.0, "baseline", ge=0, le=100)
    """Learning rate of the last layer, which is new on a pretrained network; 0: the same as all."""
    freeze_bn: bool = _setting(False, "baseline", "finetune")
    """BatchNorm keeps its statistics: for few images, or small batches, on a pretrained network."""

    epochs: int = _setting(30, *FRESH, "budget", "chain", ge=0, le=EPOCHS)
    """Passes over the training images of BL and students; 0: a detector that is done, as it is."""

    lr: float = _setting(1e-3, *TRAIN, gt=0, le=100, source="arXiv 1711.05101")
    """AdamW's largest learning rate where no other one (finetune_lr …) is named."""
    batch: int = _setting(64, *TRAIN, ge=2, le=65536)
    """Images in a training step: larger is faster on a GPU, and takes more memory."""
    weight_decay: float = _setting(0.01, *TRAIN, ge=0, le=100, source="arXiv 1711.05101")
    """AdamW's pull of the weights towards zero: more against overfitting."""
    warmup: float = _setting(0.1, *TRAIN, ge=0, le=1)
    """Share of the steps in which the learning rate rises; a cosine to zero follows."""
    label_smoothing: float = _setting(0.0, *TRAIN, ge=0, le=1, source="arXiv 1512.00567")
    """Share of each label given to all classes: against overconfidence."""
    patience: int = _setting(0, *TRAIN, ge=0, le=EPOCHS)
    """Stop after so many epochs without a better validation AUROC, keep the best; 0: never."""
    augment: bool = _setting(True, *TRAIN)
    """Mirror, shift and light of training images are varied; nothing that blurs traces."""
    front: Literal["", "srm"] = _setting("", *TRAIN, source="arXiv 1805.04953")
    """srm: fixed high-pass filters come first: fine detail stays, hardly any colour or shading."""
    ema: float = _setting(0.0, *TRAIN, ge=0, lt=1, source="Polyak and Juditsky 1992")
    """Decay a step of the weights' running average, which is then kept (0.99, say; 0: off)."""
    amp: bool = _setting(True, *TRAIN, source="arXiv 1710.03740")
    """Mixed precision where the hardware has it: faster; off to rule out rounding."""

    finetune_epochs: int = _setting(10, "finetune", "budget", ge=0, le=EPOCHS)
    """Passes over the training images after compression: more regain more."""
    finetune_lr: float = _setting(3e-4, "finetune", gt=0, le=100)
    """Learning rate of fine-tuning: below `lr`, as the weights are good already."""
    scope: Literal["layer", "global"] = _setting("layer", "prune", "structured")
    """The same share of each layer is pruned, or the least important anywhere."""
    importance: Literal["l1", "taylor", "random"] = _setting(
        "l1", "structured", source="arXiv 2301.12900, 1906.10771"
    )
    """What ranks channels: L1 norm, loss change by Taylor; random as control."""
    round_to: int = _setting(16, "structured", ge=1, le=64)
    """Widths are multiples of it: 16 numbers are one AVX-512 register; 1 meets a rate best."""
    prune_steps: int = _setting(3, "structured", "budget", ge=1, le=100, source="arXiv 1506.02626")
    """Structured pruning in so many steps: gentler, and longer."""
    step_epochs: int = _setting(1, "structured", "budget", ge=1, le=EPOCHS)
    """Passes of fine-tuning after each step but the last."""

    temperature: float = _setting(
        4.0, "distill", "teacher", ge=0.01, le=10000, source="arXiv 1503.02531"
    )
    """Softens the teacher's answers: higher shows more of how sure it is."""
    views: int = _setting(0, "student", "distill", "teacher", ge=0, le=1000)
    """Fixed variants of each image: a teacher answers once for each; 0: new ones every epoch."""
    alpha: float = _setting(0.9, "distill", ge=0, le=1, source="arXiv 1503.02531")
    """Weight of the teacher against the labels."""
    distill_epochs: int = _setting(0, "student", "chain", ge=0, le=EPOCHS)
    """Passes over the training images of a student; 0: as many as `epochs`."""

    steps: InOrder = _setting("prune:0.9,distill,int8", "chain")
    """A chain's techniques in order: prune:R mask:R student:R finetune distill int8 int8-linear."""
    calibration: Literal["minmax", "entropy", "percentile"] = _setting("minmax", "int8")
    """How int8 ranges are chosen: all values seen, or without outliers."""
    calibration_images: int = _setting(128, "int8", ge=16, le=4096)
    """At most so many training images show the ranges, half of each class."""
    keep_float: AnyOrder = _setting("", "int8")
    """Layers that stay in float (a,b): those that lose most by int8."""

    trainable: AnyOrder = _setting(
        "features.0,features.1,features.2,features.3,head", "transfer", source="arXiv 1411.1792"
    )
    """Layers that a transfer trains: the first blocks, as a generator's traces are local."""
    transfer_epochs: int = _setting(10, "transfer", "adapter", ge=1, le=EPOCHS)
    """Passes over the target's training images."""
    transfer_lr: float = _setting(1e-3, "transfer", gt=0, le=100)
    """Learning rate on the target: lower keeps more of the source."""
    teacher: str = _setting("", "distill", "teacher")
    """Who teaches: empty for BL (of TL+KD the source's), transferred for TL+FT, or a run's id."""
    transfer_alpha: float = _setting(0.1, "teacher", ge=0, le=1)
    """Weight of TL+KD's teacher: of another task it soon does harm (demo AUROC 0.63 at 0.5)."""
    adapter_form: Literal["serial", "residual"] = _setting(
        "serial", "adapter", source="arXiv 2504.21066, 1902.00751"
    )
    """The adapter replaces its input (the paper's), or is added to it (on another's network)."""
    adapter_after: str = _setting("", "adapter")
    """The block that the adapter follows, such as features.3; empty: the paper's place."""
    adapter_lr: float = _setting(5e-3, "adapter", gt=0, le=100)
    """Learning rate of an adapter: higher, as it is small and starts from nothing."""

    latency_runs: int = _setting(50, "measure", ge=1, le=100_000, measures=True)
    """Timed runs of one image: more are steadier."""
    draws: int = _setting(1000, "measure", ge=1, le=1_000_000, measures=True)
    """Resamplings of the bootstrap: more are finer intervals, and slower."""

    @field_validator("*", mode="before")
    @classmethod
    def _as_typed(cls, value, info):
        """A truth value is no number, and None is written as a word on the command line."""
        field = cls.model_fields[info.field_name]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("a truth value")
        if isinstance(value, str) and not isinstance(field.default, str | bool):
            if field.default is None and value.strip().lower() in ("none", "null", ""):
                return None
            with suppress(ValueError):  # "5e0" is 5
                value = float(value) if math.isfinite(float(value)) else value
        if isinstance(value, float) and 0 < abs(value) < 1e-12:
            raise ValueError("a zero to float32")
        return value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0


DEFAULTS: dict = Settings().model_dump()
FIELDS: dict[str, dict] = Settings.model_json_schema()["properties"]
MEASURES = frozenset(name for name, field in FIELDS.items() if field["measures"])
KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
BOUNDS = {
    "minimum": " from {:g}",
    "exclusiveMinimum": " above {:g}",
    "multipleOf": " in multiples of {:g}",
    "maximum": " up to {:g}",
    "exclusiveMaximum": " below {:g}",
    "pattern": ": names, commas between",
}


def checked(values: dict) -> dict:
    """All settings: `values` on top of the defaults, each as its type, lists spelled alike.

    Raises `InputError` for an unknown name (with the nearest) or a value that does not fit.

    >>> checked({"epochs": "5", "hold_out": "gan, diffusion"})["hold_out"]
    'diffusion,gan'
    """
    for name in values:
        choose("setting", name, FIELDS)
    try:
        return Settings(**values).model_dump()
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
    if isinstance(values[name], str) and "enum" in FIELDS[name]:
        choose(name, values[name], [each or "''" for each in FIELDS[name]["enum"]])
    example = f", e.g. {DEFAULTS[name]}" if DEFAULTS[name] not in (None, "") else ""
    raise InputError(f"setting {name}={short(values[name])}: expected {expected(name)}{example}")


def expected(name: str) -> str:
    """What a setting takes, in words.

    >>> expected("warmup")
    'a number from 0 up to 1'
    """
    field = FIELDS[name]
    if "enum" in field:
        return "one of " + ", ".join(each or "''" for each in field["enum"])
    first, *rest = field.get("anyOf", [field])
    limits = (text.format(first[key]) for key, text in BOUNDS.items() if key in first)
    return KINDS.get(first["type"], "text") + "".join(limits) + (" or None" if rest else "")
