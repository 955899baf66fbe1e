"""Whether a request can be met, before anything is trained for it."""

from functools import lru_cache

from data_prep.errors import InputError, choose
from dflib.study import methods
from dflib.study.records import find, read
from dflib.study.settings import DEFAULTS

WEIGHTS = "imagenet"  # a transfer's source that is no dataset
SURE = 0.98  # a rate that any way to cut the vgg can meet


def settled(values: dict, source: str = "") -> dict:
    """All settings as a run keeps them: a user's files and runs by their content."""
    changed = {}
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
        _applies(row, values, does)
    for kind, share in _cuts(row, rate, values, does):
        if kind == "student":
            _student(share, size, backbone)
        elif backbone != "vgg" or share > SURE:
            _cut_on_trial(kind, share, backbone, size, values["round_to"], values["scope"])
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


def _cuts(row: methods.Method, rate: float | None, values: dict, does: set[str]) -> list[tuple]:
    """What is cut, mask, prune, student or lowrank, and to which share of BL's parameters."""
    if "chain" in does:
        return [(kind, share) for kind, share in methods.parse_steps(values["steps"]) if share]
    kinds = {"prune": "mask", "structured": "prune", "student": "student", "teacher": "student"}
    kinds["06_low_rank"] = "lowrank"
    return [(kinds[key], rate) for key in {*does, row.notebook} & {*kinds} if rate]


def _applies(row: methods.Method, values: dict, does: set[str]) -> None:
    """Raise `InputError` where another's network cannot be compressed so."""
    trains = {"prune", "structured", "finetune", "transfer"} & does
    if values["backbone"].endswith(".onnx") and trains:
        can = "BL, CQ, CQ-S, and CKD from it"
        raise InputError(f"{row.code}: an ONNX file cannot be trained or cut; it can be {can}")
    file = values["pretrained"] if values["pretrained"].startswith("own/") else ""
    _made(values["backbone"], values["size"], file)


@lru_cache(maxsize=256)
def _made(backbone: str, size: int, pretrained: str) -> None:
    """Build the network once, with its file of weights."""
    from dflib import models

    models.Detector(models.architecture("BL", size=size, backbone=backbone), pretrained)


@lru_cache(maxsize=256)
def _cut_on_trial(kind: str, rate: float, backbone: str, size: int, round_to: int, scope: str):
    """Cut an untrained twin."""
    from dflib import lowrank, models, prune

    net = models.Detector(models.architecture("BL", size=size, backbone=backbone))
    if kind == "prune":
        within = 0.01 if scope == "layer" else 1.0  # the weights decide what "global" leaves
        prune.structured(net, rate=rate, round_to=round_to, within=within)
    elif kind == "mask":
        prune.magnitude_masks(net, rate=rate, scope=scope)
    else:
        lowrank.choose_ranks(net, rate=rate)


@lru_cache(maxsize=256)  # every seed asks
def _student(rate: float, size: int, backbone: str):
    from dflib import models

    return models.student(rate, size=size, backbone=backbone)
