"""Whether a request can be met, before anything is trained for it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from data_prep.errors import InputError, choose
from dflib.study import methods
from dflib.study.records import find, read
from dflib.study.settings import DEFAULTS

if TYPE_CHECKING:
    from dflib.models import Architecture


WEIGHTS = "imagenet"  # a transfer's source that is no dataset


def settled(values: dict, source: str = "") -> dict:
    """All settings as a run keeps them: a user's files and runs by their content.

    A default that does not fit another backbone or source becomes what does.
    """
    changed = {}
    if values["backbone"] != "vgg" and values["trainable"] == DEFAULTS["trainable"]:
        changed["trainable"] = "all"  # the default names layers of the vgg
    if values["backbone"] != "vgg" and values["adapter_form"] == DEFAULTS["adapter_form"]:
        changed["adapter_form"] = "residual"  # few images cannot mend what the serial one breaks
    if values["teacher"] == "transferred" and not source:
        values = values | {"teacher": ""}  # a word for the transfers of a study alone
    if source == WEIGHTS and not values["teacher"]:
        changed["teacher"] = "transferred"  # ImageNet has no word for fakes
    if values["backbone"] != "vgg" or values["pretrained"]:
        from dflib.backbones import settled

        both = settled(values["backbone"], values["pretrained"])
        changed |= zip(("backbone", "pretrained"), both, strict=True)
    if values["teacher"] not in ("", "transferred"):
        teacher = read(find(values["teacher"]))
        changed["teacher"], theirs = teacher["run_id"], teacher["params"]["size"]
        if theirs != values["size"]:
            what = f"teacher {teacher['run_id']} sees images of {theirs} px"
            raise InputError(f"{what}, the student of {values['size']} px: make them alike")
    return values | changed


def check(row: methods.Method, rate: float | None, values: dict, source: str = "") -> None:
    """Raise `InputError` for a layer or a rate that a run could only refuse when BL is trained."""
    rows = [methods.method(code) for code in methods.lineage(row.code)]
    does = {group for each in rows for group in each.does}
    backbone, size = values["backbone"], values["size"]
    if source == WEIGHTS and not values["pretrained"]:
        need = "set backbone=timm/NAME, say, and pretrained=true or a file"
        raise InputError(f"source {WEIGHTS} is a pretrained network: {need}")
    if not (values["epochs"] or values["pretrained"] or backbone.startswith("own/")):
        raise InputError("epochs=0 trains nothing: give pretrained=FILE, a detector's weights")
    if "student" in does and not (values["distill_epochs"] or values["epochs"]):
        raise InputError("epochs=0 is for BL alone: say distill_epochs=30, say, for its students")
    if backbone != "vgg":
        _applies(row, rate, values, does)
    if rate and does & {"student", "teacher"}:
        _student(rate, size, backbone)
    named = ("trainable", "adapter_after", "keep_float")
    if all(values[key] == DEFAULTS[key] for key in named):
        return
    import torch

    from dflib import adapters, models

    arch = models.architecture("BL", size=size, backbone=backbone)
    with torch.device("meta"):
        net = models.Detector(arch)
    if "transfer" in does:
        adapters.select(net, values["trainable"])
    if "adapter" in does:
        there = _student(rate, size, backbone) if "teacher" in does else arch
        adapters.place(there, values["adapter_after"])
    if "int8" in does and values["keep_float"]:
        kinds = torch.nn.Conv2d | torch.nn.Linear
        layers = [name for name, layer in net.named_modules() if isinstance(layer, kinds)]
        for name in values["keep_float"].split(","):
            choose("layer", name, layers)


def _applies(row: methods.Method, rate: float | None, values: dict, does: set[str]) -> None:
    """Raise `InputError` where another's network cannot be compressed so."""
    trains = {"prune", "structured", "finetune", "transfer"} & does
    if values["backbone"].endswith(".onnx") and trains:
        can = "BL, CQ, CQ-S, and CKD from it"
        raise InputError(f"{row.code}: an ONNX file cannot be trained or cut; it can be {can}")
    which = values["backbone"], values["size"]
    of_file = values["pretrained"].startswith("own/")
    _made(*which, values["pretrained"] if of_file else "")
    if rate and "structured" in does:
        _cut_on_trial(rate, *which, values["round_to"], values["scope"] == "layer")


@lru_cache(maxsize=256)
def _made(backbone: str, size: int, pretrained: str) -> None:
    """Build the network once, with its file of weights."""
    from dflib import models

    models.Detector(models.architecture("BL", size=size, backbone=backbone), pretrained)


@lru_cache(maxsize=256)
def _cut_on_trial(rate: float, backbone: str, size: int, round_to: int, exact: bool) -> None:
    """Cut an untrained twin."""
    from dflib import models, prune

    net = models.Detector(models.architecture("BL", size=size, backbone=backbone))
    prune.structured(net, rate=rate, round_to=round_to, within=0.01 if exact else 1.0)


@lru_cache(maxsize=256)  # every seed asks
def _student(rate: float, size: int, backbone: str) -> Architecture:
    from dflib import models

    return models.student(rate, size=size, backbone=backbone)
