"""A trained detector learns another task by few weights: selected layers, adapters, low-rank updates; and files that hold only what changed.

Adapters: depthwise-separable convolutions between frozen layers (arXiv 2504.21066; the idea: Houlsby et al. 2019, arXiv 1902.00751).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from data_prep.errors import InputError, choose
from dflib import models, train
from dflib.models import Architecture, Detector

FORMS = (
    "serial",
    "residual",
)  # the paper's, randomly initialised; and one that starts as the identity


def layers(model: Detector) -> list[str]:
    """Names that `select` takes: every block, every linear layer, their parts and adapters, and "all" and "norms".

    >>> layers(Detector(models.architecture("S90", size=32)))[:4]
    ['all', 'norms', 'features', 'features.0']
    """
    return [
        "all",
        "norms",
        *(name for name, m in model.named_modules() if name and any(True for _ in m.parameters())),
    ]


def select(model: Detector, names: str) -> int:
    """Let only the named layers train, freeze all others; returns the number of trainable parameters.

    names: separated by commas, of `layers(model)`: "features.6,features.7,head"; "norms" are all BatchNorms (Frankle et al. 2020, arXiv 2003.00152).
    Raises `InputError` with the nearest name for an unknown layer.

    >>> select(Detector(models.architecture("S90", size=32)), "norms")
    704
    """
    model.requires_grad_(False)
    valid = layers(model)
    for name in names.split(","):
        name = choose("layer", name.strip(), valid)
        chosen = (
            [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
            if name == "norms"
            else [model if name == "all" else model.get_submodule(name)]
        )
        for module in chosen:
            module.requires_grad_(True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def place(arch: Architecture, after: str = "") -> str:
    """The block that an adapter goes behind: `after`, or where the paper puts it: the last one of a student, else the middle, block 4.

    Raises `InputError` for a block that the architecture does not have.

    >>> place(models.architecture("BL")), place(models.architecture("S90"))
    ('features.3', 'features.4')
    """
    if not arch.blocks:
        raise InputError(
            f"adapters stand behind the blocks of our own stacks; backbone {arch.backbone!r} has none"
        )
    student = arch.name.startswith(tuple(models.STUDENT_RATES.values()))
    papers = f"features.{len(arch.blocks) - 1 if student else (len(arch.blocks) - 1) // 2}"
    return choose("block", after or papers, [f"features.{i}" for i in range(len(arch.blocks))])


def insert(model: Detector, after: str = "", *, form: str = "serial", seed: int = 0) -> Detector:
    """A copy of the model with an adapter behind a block, frozen but for the adapter; its width is the block's, whatever that is.

    after: a block's name; empty is the paper's `place`. form: "serial" (the paper's) or "residual" (changes nothing until it is trained).
    Raises `InputError` for an unknown block or form, or a block that has an adapter.

    >>> insert(Detector(models.architecture("BL", size=32)), "features.3").arch.blocks[3].adapter
    'serial'
    """
    blocks = list(model.arch.blocks)
    after = place(model.arch, after)
    i = int(after.removeprefix("features."))
    if blocks[i].adapter:
        raise InputError(f"{after} has an adapter already: choose another block, or train that one")
    blocks[i] = replace(blocks[i], adapter=choose("form of adapter", form, FORMS))
    with train.seeded(seed):
        adapted = Detector(replace(model.arch, blocks=tuple(blocks)))
    adapted.load_state_dict(model.state_dict(), strict=False)
    select(adapted, f"{after}.adapter")
    return adapted.to(next(model.parameters()).device).eval()


def with_classes(model: Detector, classes: int, *, seed: int = 0) -> Detector:
    """The model itself where it has so many classes (the paper keeps the head); else a copy with a new, untrained last layer."""
    if model.arch.classes == classes:
        return model
    with train.seeded(seed):
        other = Detector(replace(model.arch, classes=classes))
    last = list(other.head._modules)[-1]
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(f"head.{last}.")}
    other.load_state_dict(kept, strict=False)
    return other.eval()


class LowRank(nn.Module):
    """A frozen weight plus a trained product of two thin matrices, which starts at zero (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight[0].numel()) / weight[0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def low_rank(model: Detector, *, rank: int = 4, seed: int = 0) -> int:
    """Give each convolution of the model a trainable low-rank update, freeze the rest; returns the number of trainable parameters.

    In place; `merge` adds the updates to the weights, and the model is a plain one again.

    >>> low_rank(Detector(models.architecture("S90", size=32)), rank=1) > 0
    True
    """
    if rank < 1:
        raise InputError(f"rank {rank}: at least 1 is needed; 4 is usual")
    model.requires_grad_(False)
    with train.seeded(seed):
        for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def merge(model: Detector) -> Detector:
    """Add low-rank updates to their weights, in place: same outputs, same shapes as before `low_rank`, no extra operation."""
    for layer in model.modules():
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return model


def fingerprint(model: nn.Module) -> str:
    """Hash of all weights and buffers: which model a delta belongs to."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def halve(model: Detector, base: Detector) -> Detector:
    """Round what differs from the base, in place, to numbers that 16 bits hold: `save_delta` then needs half the bytes, and loses nothing.

    To be done before the model is evaluated, so that what is measured is what is shipped. A tensor beyond float16's range (65504) stays as it is.

    >>> base = Detector(models.architecture("S90", size=32))
    >>> halve(insert(base), base).features[4].adapter.pointwise.weight.dtype        # still computes in float32
    torch.float32
    """
    for tensor in _changed(model, base).values():
        if tensor.is_floating_point() and (half := tensor.half()).isfinite().all():
            tensor.copy_(half)
    return model


def save_delta(model: Detector, base: Detector, path: Path) -> Path:
    """Write only the tensors in which the model differs from its base, bit by bit: what must be shipped to who has the base; atomically.

    A tensor whose numbers all fit into 16 bits (`halve`) is stored in them. Raises `InputError` for a model that is not the base but for its
    adapters, its classes and its weights.
    """
    changes = {
        "adapters": ",".join(block.adapter for block in model.arch.blocks),
        "classes": str(model.arch.classes),
    }
    same_depth = len(model.arch.blocks) == len(base.arch.blocks)
    if not same_depth or _changed_arch(base.arch, **changes) != model.arch:
        raise InputError(
            f"{model.arch.name} is more than {base.arch.name} with adapters: save it whole, dflib.models.save"
        )
    tensors = {k: v.detach().cpu().contiguous() for k, v in _changed(model, base).items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and torch.equal(
            (half := tensor.half()).to(tensor.dtype), tensor
        ):
            tensors[name] = half
    new = Path(path).with_name(Path(path).name + ".new")
    save_file(tensors, new, metadata={"format": models.DELTA, "base": fingerprint(base)} | changes)
    new.replace(path)
    return Path(path)


def load_delta(path: Path, base: Detector) -> Detector:
    """The model that `save_delta` was given, bit by bit, in eval mode.

    Raises `InputError` for a file that is missing, damaged or no delta, or one that belongs to another base.

    >>> load_delta("delta.safetensors", base)                       # doctest: +SKIP
    """
    metadata, tensors = models.read(path)
    if metadata.get("format") != models.DELTA:
        raise InputError(
            f"{path} is no delta of this version: dflib.models.load reads whole checkpoints"
        )
    found = fingerprint(base)
    if metadata.get("base") != found:
        raise InputError(
            f"{path} belongs to the base {metadata.get('base')}, not to this one ({found}): load it on the run that it was trained on"
        )
    try:
        arch = _changed_arch(base.arch, metadata["adapters"], metadata["classes"]).to_json()
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: its metadata do not fit the base ({error!r})") from error
    return models.build(path, arch, base.state_dict() | tensors)


def _changed(model: Detector, base: Detector) -> dict[str, Tensor]:
    """The tensors in which the model differs from its base, bit by bit."""
    before = base.state_dict()
    return {
        k: v
        for k, v in model.state_dict().items()
        if k not in before or not torch.equal(v.cpu(), before[k].cpu())
    }


def _changed_arch(base: Architecture, adapters: str, classes: str) -> Architecture:
    """The base's shape with an adapter's form (or nothing) behind each block, separated by commas, and so many classes."""
    blocks = zip(base.blocks, adapters.split(",") if base.blocks else (), strict=True)
    return replace(
        base,
        blocks=tuple(replace(block, adapter=form) for block, form in blocks),
        classes=int(classes),
    )
