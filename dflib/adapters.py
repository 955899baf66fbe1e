"""A trained detector learns another task by few weights: selected layers, or adapters (arXiv
2504.21066; Houlsby et al. 2019, arXiv 1902.00751); files of what changed alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from data_prep.errors import InputError, choose
from dflib import models, train
from dflib.models import Architecture, Detector

FORMS = ("serial", "residual")  # the paper's; and one that starts as the identity


def layers(model: Detector) -> dict[str, list[nn.Module]]:
    """What `select` can name: "all", "norms" (all BatchNorms) and each module with parameters."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    named = {n: [m] for n, m in model.named_modules() if n and any(True for _ in m.parameters())}
    return {"all": [model], "norms": norms} | named


def select(model: Detector, names: str) -> int:
    """Let only the named layers train, freeze all others; returns the trainable parameters' number.

    names: of `layers`, "features.7,head", say; "norms": arXiv 2003.00152. `InputError` for others.

    >>> select(Detector(models.architecture("S90", size=32)), "norms")
    704
    """
    valid, model = layers(model), model.requires_grad_(False)
    for name in names.split(","):
        for module in valid[choose("layer", name.strip(), valid)]:
            module.requires_grad_(True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@lru_cache(maxsize=64)
def places(arch: Architecture) -> dict[str, int]:
    """The blocks that an adapter can stand behind, and their channels; of another's network the
    last layer of each resolution."""
    if arch.blocks:
        return {f"features.{i}": block.width for i, block in enumerate(arch.blocks)}
    found: dict[int, tuple[str, int]] = {}

    def note(name: str, _layer: nn.Module, _inputs: tuple, z: object) -> None:
        if isinstance(z, Tensor) and z.ndim == 4 and z.shape[2] == z.shape[3] > 1:
            side, before = z.shape[2], found.get(z.shape[2], (name, 0))[0]
            # the whole is called after its parts; a padded map's side is odd
            if arch.size % side == 0 and name.count(".") <= before.count("."):
                found[side] = name, z.shape[1]

    with torch.device("meta"), torch.no_grad():
        twin = Detector(replace(arch, adapters=())).eval()
        for name, layer in twin.features.named_modules(prefix="features"):
            if not isinstance(layer, nn.Conv2d | nn.BatchNorm2d):  # those are folded into one
                layer.register_forward_hook(partial(note, name))
        twin(torch.empty(1, 3, arch.size, arch.size))
    return dict(found.values())


def place(arch: Architecture, after: str = "") -> str:
    """The block that an adapter goes behind: `after`, else the paper's: a student's last, of other
    networks the middle one (BL's 4th).

    >>> place(models.architecture("BL")), place(models.architecture("S90"))
    ('features.3', 'features.4')
    """
    blocks = [*places(arch)]
    if not blocks:
        raise InputError(f"{arch.backbone} has no feature maps that an adapter could change")
    student = arch.name.startswith(tuple(models.STUDENT_RATES.values()))
    papers = blocks[-1] if student else blocks[(len(blocks) - 1) // 2]
    return choose("block", after or papers, blocks)


def insert(model: Detector, after: str = "", *, form: str = "serial", seed: int = 0) -> Detector:
    """A copy of the model with an adapter as wide as the block it stands behind; all else frozen.

    after: see `place`. form: "serial" (the paper's) or "residual" (changes nothing until it is
    trained). Raises `InputError` for an unknown one, or a block that has an adapter.

    >>> insert(Detector(models.architecture("BL", size=32)), "features.3").arch.adapters
    (('features.3', 128, 'serial'),)
    """
    after, there = place(model.arch, after), model.arch.adapters
    if after in [name for name, *_ in there]:
        raise InputError(f"{after} has an adapter already: choose another block, or train that one")
    new = after, places(model.arch)[after], choose("form of adapter", form, FORMS)
    with train.seeded(seed):
        adapted = Detector(replace(model.arch, adapters=(*there, new)))
    adapted.load_state_dict(model.state_dict(), strict=False)
    select(adapted, f"{after}.adapter")
    return adapted.to(next(model.parameters()).device).eval()


def halve(model: Detector, base: Detector) -> Detector:
    """Round what differs from the base, in place, to 16 bits where their range allows it:
    `save_delta` needs half the bytes."""
    for tensor in _changed(model, base).values():
        if tensor.is_floating_point() and (half := tensor.half()).isfinite().all():
            tensor.copy_(half)
    return model


def save_delta(model: Detector, base: Detector, path: Path) -> Path:
    """Write the tensors in which the model differs from its base: what must be shipped; in 16 bits
    those that fit (`halve`). The model comes back by `models.load(path, base=base)`."""
    tensors = _changed(model, base)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and torch.equal(tensor.half().to(tensor.dtype), tensor):
            tensors[name] = tensor.half()
    described = {"architecture": model.arch.to_json(), "base": models.fingerprint(base)}
    return models.write(path, tensors, **described)


def _changed(model: Detector, base: Detector) -> dict[str, Tensor]:
    """The tensors in which the model differs from its base, bit by bit."""
    before = {k: v.cpu() for k, v in base.state_dict().items()}
    same = lambda k, v: k in before and torch.equal(v.cpu(), before[k])
    return {k: v for k, v in model.state_dict().items() if not same(k, v)}
