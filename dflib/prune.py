"""Pruning. `magnitude_masks`: the paper's CPF, which sets small weights to zero and keeps the tensors dense."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_prep.errors import InputError, choose
from dflib.models import check_rate

SCOPES = ("layer", "global")
Masks = dict[str, Tensor]  # parameter name -> bool, True where the weight stays


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the convolutions and linear layers, by name, but for the last linear layer (the classifier itself)."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    last = [name for name, m in layers.items() if isinstance(m, nn.Linear)][-1]
    return {f"{name}.weight": m.weight for name, m in layers.items() if name != last}


def magnitude_masks(model: nn.Module, *, rate: float, scope: str = "layer") -> Masks:
    """Masks that keep the largest weights, so that a share `rate` of *all* the model's parameters becomes zero.

    scope: "layer" removes the same share of every layer, "global" compares weights across layers (Han et al. 2015, arXiv 1506.02626).
    Raises `InputError` for an unknown scope or a rate that the prunable weights cannot meet.

    >>> from dflib.models import Detector, architecture
    >>> masks = magnitude_masks(Detector(architecture("BL", size=32)), rate=0.9)
    >>> round(1 - float(masks["features.1.conv.weight"].float().mean()), 2)
    0.9
    """
    check_rate(rate)
    choose("scope", scope, SCOPES)
    weights = prunable(model)
    total, available = sum(p.numel() for p in model.parameters()), sum(w.numel() for w in weights.values())
    share = rate * total / available  # biases, BatchNorm and the last layer stay, so the others give a little more
    if share >= 1:
        raise InputError(
            f"rate {rate:g} cannot be met: only {available / total:.4f} of the parameters are prunable weights; take a rate below that"
        )
    if scope == "layer":
        return {name: _largest(w.detach().abs(), share) for name, w in weights.items()}
    together = _largest(torch.cat([w.detach().abs().flatten() for w in weights.values()]), share)
    pieces = together.split([w.numel() for w in weights.values()])
    return {name: piece.view_as(w) for (name, w), piece in zip(weights.items(), pieces, strict=True)}


def masks_of(model: nn.Module) -> Masks:
    """The masks of a pruned model, read off its zeros: what keeps them at zero when it is trained for another task."""
    return {name: w.detach() != 0 for name, w in prunable(model).items()}


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the pruned weights to zero, in place. As `after_step` of `train.fit` it keeps them at zero through fine-tuning."""
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, mask in masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))


def _largest(magnitude: Tensor, share: float) -> Tensor:
    """True for all but the `share` smallest entries; exact in number even where magnitudes are equal."""
    keep = torch.ones(magnitude.numel(), dtype=torch.bool, device=magnitude.device)
    keep[magnitude.flatten().argsort(stable=True)[: round(share * magnitude.numel())]] = False
    return keep.view_as(magnitude)
