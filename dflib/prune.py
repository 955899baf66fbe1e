"""Pruning. `magnitude_masks`: the paper's CPF, which sets small weights to zero, in dense tensors.
`structured`: whole channels go (CPF-S), and with them bytes and time.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.errors import InputError, check_rate, choose, short
from dflib.models import Detector, fitted, parameters
from dflib.train import pixels

SCOPES = ("layer", "global")
IMPORTANCES = ("l1", "taylor", "random")
FLOOR = 0.1  # of what "layer" leaves: "global" leaves each layer at least that, none is emptied
Masks = dict[str, Tensor]  # parameter name -> bool, True where the weight stays
Batches = Iterable[tuple[Tensor, Tensor]]  # images, uint8 N x 3 x H x W, and their labels


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of convolutions and linear layers, by name, but for the last one, the classifier."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    last = [name for name, m in layers.items() if isinstance(m, nn.Linear)][-1]
    return {f"{name}.weight": m.weight for name, m in layers.items() if name != last}


def magnitude_masks(model: nn.Module, *, rate: float, scope: str = "layer") -> Masks:
    """Masks that keep the largest weights: a share `rate` of *all* parameters becomes zero.

    scope: "layer" removes the same share of every layer, "global" compares weights across layers
    (arXiv 1506.02626), and keeps a few of each (arXiv 2006.05467). Raises `InputError` for a rate
    that the prunable weights cannot meet.

    >>> apply_masks(model, magnitude_masks(model, rate=0.9))  # doctest: +SKIP
    """
    check_rate(rate)
    choose("scope", scope, SCOPES)
    sizes = {name: w.detach().abs() for name, w in prunable(model).items()}
    total, available = parameters(model), sum(size.numel() for size in sizes.values())
    share = rate * total / available  # biases, BatchNorm, the last layer stay: others give more
    if share >= 1:
        raise InputError(f"rate {rate:g} cannot be met: {available / total:.4f} is the most")
    if scope == "layer":
        return {name: _largest(size, share) for name, size in sizes.items()}
    floor = 1 - FLOOR * (1 - share)
    safe = [size.masked_fill(_largest(size, floor), torch.inf) for size in sizes.values()]
    together = _largest(torch.cat([size.flatten() for size in safe]), share)
    pieces = together.split([size.numel() for size in safe])
    return {name: piece.view_as(sizes[name]) for name, piece in zip(sizes, pieces, strict=True)}


def masks_of(model: nn.Module) -> Masks:
    """The masks of a pruned model, read off its zeros: they keep it pruned on another task."""
    return {name: w.detach() != 0 for name, w in prunable(model).items()}


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the pruned weights to zero, in place; as `after_step` of `train.fit` keep them there."""
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        weight.mul_(mask.to(weight.device))


def _largest(magnitude: Tensor, share: float) -> Tensor:
    """True for all but the `share` smallest entries, exact in number; for one at least."""
    keep = torch.ones(magnitude.numel(), dtype=torch.bool, device=magnitude.device)
    remove = min(round(share * magnitude.numel()), magnitude.numel() - 1)
    keep[magnitude.flatten().argsort(stable=True)[:remove]] = False
    return keep.view_as(magnitude)


@dataclass(eq=False)
class Group:
    """Channels that can only go together, and what is tied to them."""

    scores: Tensor  # one a channel
    members: dict[tuple[str, int], Tensor]
    """(layer, 0: its outputs | 1: its inputs) -> the channel that each of these follows."""


def structured(
    model: Detector,
    *,
    rate: float,
    importance: str = "l1",
    scope: str = "layer",
    round_to: int = 8,
    least: int = 8,
    batches: Batches = (),
    of: int | None = None,
    within: float = 0.01,
) -> Detector:
    """A new detector without the least important channels: a share `rate` of all parameters (`of`:
    of so many) is gone, to within 1 % of what stays.

    importance: "l1" (DepGraph, arXiv 2301.12900), "taylor" (by the gradients on `batches`, arXiv
    1906.10771) or "random". scope: "layer" takes the same share of channels everywhere, "global"
    compares scores. Widths are multiples of `round_to` where possible, `least` or more. Raises
    `InputError` for a rate that no such widths meet.

    >>> from dflib.models import architecture
    >>> small = structured(Detector(architecture("BL", size=32)), rate=0.9)
    >>> round(parameters(small) / 3_017_922, 2), small.arch.blocks[0].width % 8
    (0.1, 0)
    """
    check_rate(rate)
    choose("scope", scope, SCOPES)
    total = of or parameters(model)
    try:
        groups = [g for g in _groups(model, importance, batches) if len(g.scores) > least]
        widths = _widths(model, groups, (1 - rate) * total, scope, round_to, least)
        small = _cut(model, groups, widths, f"-r{rate:g}")
        device = next(small.parameters()).device
        with torch.no_grad():  # raises where layers no longer fit together
            small.eval()(torch.zeros(1, 3, small.arch.size, small.arch.size, device=device))
    except InputError:
        raise
    except Exception as error:  # whatever another's code or torch-pruning raises
        what = f"no channels of {model.arch.backbone} can be cut ({short(str(error), 200)})"
        raise InputError(f"{what}: CPF, CKD, CQ, CQ-S and LRF do without") from error
    met = 1 - parameters(small) / total
    if abs(met - rate) > within * (1 - rate):
        hint = "the most" if met < rate else "the nearest; a smaller round_to helps"
        limits = f"within {within:.0%} with {least} channels or more in each layer"
        raise InputError(f"rate {rate:g} cannot be met {limits}: {met:.4f} is {hint}")
    return small.train()


def gradually(
    model: Detector, *, rate: float, steps: int, tune: Callable[[Detector, int], object], **options
) -> Detector:
    """`structured` in several steps of equal ratio; `tune(model, step)` after each but the last."""
    check_rate(rate)
    options["of"] = parameters(model)
    for i in range(1, steps):
        model = structured(model, rate=1 - (1 - rate) ** (i / steps), within=0.1, **options)
        tune(model, i)
    return structured(model, rate=rate, **options)


def _groups(model: Detector, importance: str, batches: Batches) -> list[Group]:
    """torch-pruning's groups of channels, with scores; the classifier's outputs are in none."""
    import torch_pruning as tp

    twin = copy.deepcopy(model).eval().requires_grad_(True)
    names = {layer: name for name, layer in twin.named_modules()}
    device = next(twin.parameters()).device
    image = torch.rand(2, 3, model.arch.size, model.arch.size, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters outside of layers, which stay whole or fail
        graph = tp.DependencyGraph().build_dependency(twin, example_inputs=image)
    score = {
        "l1": tp.importance.GroupMagnitudeImportance(p=1),
        "taylor": tp.importance.GroupTaylorImportance(),
        "random": lambda group: torch.rand(len(group[0].idxs)),
    }[choose("importance", importance, IMPORTANCES)]
    if importance == "taylor":
        for images, labels in batches:
            F.cross_entropy(twin(pixels(images.to(device))), labels.to(device)).backward()
        if next(twin.parameters()).grad is None:
            raise InputError('importance "taylor" needs batches: a few of data.train.batches(64)')
    found = []
    for group in graph.get_all_groups([twin.head[-1]], [nn.Conv2d, nn.Linear]):
        members, scored = {}, tp.dependency.Group()
        for item in group:
            layer = item.dep.target.module
            if layer in names:
                dim = int(not graph.is_out_channel_pruning_fn(item.dep.handler))
                follows = torch.empty(len(item.idxs), dtype=torch.int64)
                follows[item.idxs] = torch.tensor(item.root_idxs)
                members[names[layer], dim] = follows
                if dim == 0 or getattr(layer, "groups", 1) == 1:  # else see `_tie`
                    scored.add_dep(item.dep, item.idxs)
                    scored[-1].root_idxs = item.root_idxs
        layers = [twin.get_submodule(name) for name, _ in members]
        # a convolution in groups of several channels keeps them all
        if not any(getattr(m, "groups", 1) > 1 and m.weight.shape[1] > 1 for m in layers):
            found.append(Group(score(scored).detach().cpu(), members))
    for group in list(found):
        for name, dim in list(group.members):
            if dim == 1 and getattr(twin.get_submodule(name), "groups", 1) > 1:
                _tie(group, name, found)
    return found


def _tie(group: Group, name: str, groups: list[Group]) -> None:
    """A depthwise convolution's outputs, several a channel, join its inputs (tp: two groups)."""
    outputs = next(g for g in groups if (name, 0) in g.members)
    each = len(outputs.scores) // len(group.scores)
    group.scores = group.scores + outputs.scores.view(-1, each).mean(1)
    del group.members[name, 1]  # its weight has one input a group
    group.members |= {member: follows // each for member, follows in outputs.members.items()}
    groups.remove(outputs)


def _counter(model: nn.Module, groups: list[Group]) -> Callable[[Tensor], Tensor]:
    """Widths of all groups (… x groups) -> the parameters that stay, w' Q w, w = (1, widths): a
    weight is outputs x inputs x kernel, each a multiple of a width or 1."""
    place = {
        member: (i, len(follows) // len(group.scores))
        for i, group in enumerate(groups, 1)
        for member, follows in group.members.items()
    }
    q = torch.zeros(len(groups) + 1, len(groups) + 1, dtype=torch.int64)
    for name, p in model.named_parameters():
        layer, (outputs, *rest) = name.rpartition(".")[0], p.shape
        i, outputs = place.get((layer, 0), (0, outputs))
        j, inputs = place.get((layer, 1), (0, rest[0])) if rest else (0, 1)
        q[i, j] += outputs * inputs * prod(rest[1:])
    padded = lambda widths: F.pad(widths, (1, 0), value=1)
    return lambda widths: (padded(widths) @ q * padded(widths)).sum(-1)


def _widths(
    model: nn.Module, groups: list[Group], target: float, scope: str, round_to: int, least: int
) -> list[int]:
    """Channels to keep in each: bisect the share removed on the *rounded* widths, then fill up."""
    count = _counter(model, groups)
    full = torch.tensor([len(g.scores) for g in groups])
    scores = torch.cat([g.scores / g.scores.mean().clamp_min(1e-12) for g in groups])
    rank = scores.argsort(stable=True).argsort() / len(scores)  # so that equals are cut as well

    def at(share: float) -> Tensor:
        together = torch.stack([(r >= share).sum() for r in rank.split(full.tolist())])
        left = together if scope == "global" else (1 - share) * full
        return ((left / round_to).round() * round_to).long().clamp(min=least).minimum(full)

    most, low, high = 1.002 * target, 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if count(at(middle)) > most else (low, middle)
    widths = at(high)
    for step in (round_to, 1):  # single channels only where coarse steps miss by half a percent
        while count(widths) < 0.995 * target:
            wider = widths + step * torch.eye(len(groups), dtype=torch.int64)
            left = count(wider).where((wider <= full).all(1), 0)
            if not (left := left.where(left <= most, 0)).any():
                break
            widths = wider[left.argmax()]
    return widths.tolist()


def _cut(model: Detector, groups: list[Group], widths: list[int], suffix: str) -> Detector:
    """The detector of the kept channels, with their weights."""
    stay: dict[tuple[str, int], Tensor] = {}
    for group, width in zip(groups, widths, strict=True):
        kept = torch.zeros(len(group.scores), dtype=torch.bool)
        kept[group.scores.topk(width).indices] = True
        stay |= {key: kept[follows].nonzero().flatten() for key, follows in group.members.items()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        for dim in range(tensor.ndim):
            if (member := (name.rpartition(".")[0], dim)) in stay:
                tensor = tensor.index_select(dim, stay[member].to(tensor.device))
        tensors[name] = tensor.clone()
    name = model.arch.name.partition("-r")[0] + suffix
    small = Detector(replace(fitted(model.arch, tensors), name=name))
    small.load_state_dict(tensors)
    return small.to(next(model.parameters()).device)
