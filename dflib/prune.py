"""Pruning. `magnitude_masks`: the paper's CPF, which sets small weights to zero and keeps the tensors dense.
`structured`: whole channels go (CPF-S), and with them bytes and time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.errors import InputError, check_rate, choose
from dflib.models import Detector, fitted, parameters
from dflib.train import pixels

SCOPES = ("layer", "global")
IMPORTANCES = ("l1", "taylor", "bn", "random")
FLOOR = 0.1  # `global` leaves each layer at least a tenth of what `layer` would: an empty layer lets nothing through
Masks = dict[str, Tensor]  # parameter name -> bool, True where the weight stays


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the convolutions and linear layers, by name, but for the last linear layer (the classifier itself)."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    last = [name for name, m in layers.items() if isinstance(m, nn.Linear)][-1]
    return {f"{name}.weight": m.weight for name, m in layers.items() if name != last}


def magnitude_masks(model: nn.Module, *, rate: float, scope: str = "layer") -> Masks:
    """Masks that keep the largest weights, so that a share `rate` of *all* the model's parameters becomes zero.

    scope: "layer" removes the same share of every layer, "global" compares weights across layers (Han et al. 2015, arXiv 1506.02626), but
    for the largest of each layer (`FLOOR`): no layer is emptied (layer collapse: Tanaka et al. 2020, arXiv 2006.05467).
    Raises `InputError` for an unknown scope or a rate that the prunable weights cannot meet.

    >>> from dflib.models import Detector, architecture
    >>> masks = magnitude_masks(Detector(architecture("BL", size=32)), rate=0.9)
    >>> round(1 - float(masks["features.1.conv.weight"].float().mean()), 2)
    0.9
    """
    check_rate(rate)
    choose("scope", scope, SCOPES)
    weights = prunable(model)
    total, available = (
        sum(p.numel() for p in model.parameters()),
        sum(w.numel() for w in weights.values()),
    )
    share = (
        rate * total / available
    )  # biases, BatchNorm and the last layer stay, so the others give a little more
    if share >= 1:
        raise InputError(
            f"rate {rate:g} cannot be met: only {available / total:.4f} of the parameters are prunable weights; take a rate below that"
        )
    if scope == "layer":
        return {name: _largest(w.detach().abs(), share) for name, w in weights.items()}
    floor = 1 - FLOOR * (1 - share)
    safe = [
        w.detach().abs().masked_fill(_largest(w.detach().abs(), floor), torch.inf)
        for w in weights.values()
    ]
    together = _largest(torch.cat([magnitude.flatten() for magnitude in safe]), share)
    pieces = together.split([w.numel() for w in weights.values()])
    return {
        name: piece.view_as(w) for (name, w), piece in zip(weights.items(), pieces, strict=True)
    }


def masks_of(model: nn.Module) -> Masks:
    """The masks of a pruned model, read off its zeros: what keeps them at zero when it is trained for another task."""
    return {name: w.detach() != 0 for name, w in prunable(model).items()}


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the pruned weights to zero, in place. As `after_step` of `train.fit` it keeps them at zero through fine-tuning."""
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, mask in masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))


def sensitivity(
    model: nn.Module,
    score: Callable[[nn.Module], float],
    *,
    shares: Iterable[float] = (0.5, 0.75, 0.9),
) -> dict[str, list[float]]:
    """`score(model)` with one layer at a time pruned by magnitude: layer -> a value for each share of its weights removed.

    `model` is as before in the end. Han et al. 2015, arXiv 1506.02626.

    >>> sensitivity(model, lambda m: accuracy(m), shares=(0.5, 0.9))  # doctest: +SKIP
    """
    found = {}
    for name, weight in prunable(model).items():
        whole = weight.detach().clone()
        found[name.removesuffix(".weight")] = scores = []
        for share in shares:
            with torch.no_grad():
                weight.copy_(whole * _largest(whole.abs(), share))
            scores.append(score(model))
        with torch.no_grad():
            weight.copy_(whole)
    return found


def _largest(magnitude: Tensor, share: float) -> Tensor:
    """True for all but the `share` smallest entries, and for one at least; exact in number even where magnitudes are equal."""
    keep = torch.ones(magnitude.numel(), dtype=torch.bool, device=magnitude.device)
    remove = min(round(share * magnitude.numel()), magnitude.numel() - 1)
    keep[magnitude.flatten().argsort(stable=True)[:remove]] = False
    return keep.view_as(magnitude)


@dataclass
class Group:
    """Channels that can only go together: `scores` (W), and for each tensor dimension tied to them, the channel that each index follows.

    members: (layer, 0 for its outputs or 1 for its inputs) -> int64, as long as that dimension, entries in [0, W).
    """

    scores: Tensor
    members: dict[tuple[str, int], Tensor]

    def __len__(self) -> int:
        return len(self.scores)


def structured(
    model: Detector,
    *,
    rate: float,
    importance: str = "l1",
    scope: str = "layer",
    round_to: int = 8,
    least: int = 8,
    keep: tuple[str, ...] = (),
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    of: int | None = None,
    within: float = 0.01,
) -> Detector:
    """A new, smaller detector without the least important channels: a share `rate` of all parameters gone, to within 1 %.

    importance: "l1" (group magnitude, as DepGraph, arXiv 2301.12900), "taylor" (arXiv 1906.10771; needs `batches` of uint8 images N x 3 x H x W
    and labels), "bn" (scale of the BatchNorm, arXiv 1708.06519; magnitude where there is none), "random" (a baseline).
    scope: "layer" takes the same share of channels everywhere, "global" compares normalised scores. Widths are multiples of `round_to` where
    the layer is wide enough, and never below `least`. keep: layers that keep all their outputs. of: parameters that `rate` refers to (the model's own).
    Raises `InputError` for unknown names, and for a rate that no such widths meet (it says which can be).

    >>> from dflib.models import architecture
    >>> small = structured(Detector(architecture("BL", size=32)), rate=0.9)
    >>> round(parameters(small) / 3_017_922, 2), small.arch.blocks[0].width % 8
    (0.1, 0)
    """
    check_rate(rate)
    choose("importance", importance, IMPORTANCES)
    choose("scope", scope, SCOPES)
    groups = [g for g in _groups(model, importance, batches) if len(g) > least]
    outputs = {name for g in groups for name, dim in g.members if dim == 0}
    for name in keep:
        choose("layer", name, sorted(outputs))
    groups = [g for g in groups if not any((name, 0) in g.members for name in keep)]
    target, count = (1 - rate) * (of or parameters(model)), _counter(model, groups)
    widths = _widths(groups, count, target, scope, round_to, least)
    left = int(count(widths[None]))
    if abs(left / target - 1) > within:
        most, here = (
            1 - n / target * (1 - rate)
            for n in (int(count(torch.full((1, len(groups)), least))), left)
        )
        hint = (
            f"rates up to {most:.4f} can"
            if rate > most
            else f"the nearest is {here:.4f}; a smaller round_to helps"
        )
        raise InputError(
            f"rate {rate:g} cannot be met within {within:.0%} with {least} channels or more in each layer: {hint}"
        )
    return _cut(model, groups, widths.tolist(), left, rate)


def gradually(
    model: Detector, *, rate: float, steps: int, tune: Callable[[Detector, int], object], **options
) -> Detector:
    """`structured` in several steps of equal ratio, with `tune(model, step)` (a short fine-tuning, in place) after each but the last.

    >>> gradually(model, rate=0.9, steps=3, tune=lambda m, i: train.fit(m, data, recipe))  # doctest: +SKIP
    """
    check_rate(rate)
    total = parameters(model)
    for i in range(1, steps):
        model = structured(
            model, rate=1 - (1 - rate) ** (i / steps), of=total, within=0.1, **options
        )
        tune(model, i)
    return structured(model, rate=rate, of=total, **options)


def _groups(
    model: Detector, importance: str, batches: Iterable[tuple[Tensor, Tensor]]
) -> list[Group]:
    """The dependency graph's groups of channels with their scores, by torch-pruning; the classifier's outputs are in none."""
    import torch_pruning as tp

    twin = copy.deepcopy(model).eval().requires_grad_(True)
    names = {layer: name for name, layer in twin.named_modules()}
    device = next(twin.parameters()).device
    image = torch.rand(2, 3, model.arch.size, model.arch.size, device=device)
    graph = tp.DependencyGraph().build_dependency(twin, example_inputs=image)
    magnitude = tp.importance.GroupMagnitudeImportance(p=1)
    score = {
        "l1": magnitude,
        "taylor": tp.importance.GroupTaylorImportance(),
        "bn": tp.importance.BNScaleImportance(),
        "random": lambda group: torch.rand(len(group[0].idxs)),
    }[importance]
    if importance == "taylor" and not _backward(twin, batches, device):
        raise InputError('importance "taylor" needs batches: a few of data.train.batches(64), say')
    found = []
    for group in graph.get_all_groups([twin.head[-1]], [nn.Conv2d, nn.Linear]):
        members, scored = {}, tp.dependency.Group()
        for item in group:
            if (layer := item.dep.target.module) in names:
                own = isinstance(layer, nn.BatchNorm2d) or getattr(layer, "groups", 1) == len(
                    layer.weight
                )  # in is out
                dim = int(not own and graph.is_in_channel_pruning_fn(item.dep.handler))
                follows = torch.empty(len(item.idxs), dtype=torch.int64)
                follows[item.idxs] = torch.tensor(item.root_idxs)
                members[names[layer], dim] = follows
                if not dim or layer.weight.shape[1] == len(
                    follows
                ):  # but for several filters a channel: `_tied` adds them
                    scored.add_dep(item.dep, item.idxs)
                    scored[-1].root_idxs = item.root_idxs
        scores = score(scored)
        found.append(
            Group((magnitude(scored) if scores is None else scores).detach().cpu(), members)
        )
    return _tied(twin, found)


def _backward(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> int:
    """Add up the gradients of the loss over some batches; returns how many there were."""
    n = 0
    for images, labels in batches:
        F.cross_entropy(model(pixels(images.to(device))), labels.to(device)).backward()
        n += 1
    return n


def _tied(model: nn.Module, groups: list[Group]) -> list[Group]:
    """Tie the outputs of a depthwise convolution with several filters a channel to its inputs (torch-pruning sees two groups)."""
    for group in list(groups):
        for name, dim in list(group.members):
            layer = model.get_submodule(name)
            if dim == 1 and getattr(layer, "groups", 1) > 1:
                other = next(g for g in groups if (name, 0) in g.members)
                each = len(other) // len(group)  # filters a channel
                group.scores = group.scores + other.scores.view(-1, each).mean(1)
                del group.members[name, 1]  # its weight has one input a group
                group.members |= {
                    member: follows // each for member, follows in other.members.items()
                }
                groups = [g for g in groups if g is not other]
    return groups


def _counter(model: Detector, groups: list[Group]) -> Callable[[Tensor], Tensor]:
    """A function from widths (plans x groups) to the parameters that each plan leaves, without cutting anything."""
    tensors = [(name.rpartition(".")[0], p.shape) for name, p in model.named_parameters()]
    size = torch.tensor([[s[0], s[1] if len(s) > 1 else 1, s[2:].numel()] for _, s in tensors]).T
    tied = lambda group, *member: len(group.members.get(member, ())) // len(group)
    each = [
        torch.tensor(
            [[tied(g, layer, dim) if len(s) > dim else 0 for g in groups] for layer, s in tensors]
        )
        for dim in (0, 1)
    ]
    full = torch.tensor([len(g) for g in groups])

    def count(widths: Tensor) -> Tensor:
        outputs, inputs = (size[dim] - (full - widths) @ each[dim].T for dim in (0, 1))
        return (outputs * inputs * size[2]).sum(1)

    return count


def _widths(
    groups: list[Group],
    count: Callable[[Tensor], Tensor],
    target: float,
    scope: str,
    round_to: int,
    least: int,
) -> Tensor:
    """Channels to keep in each group: bisect the share removed on the *rounded* widths, then fill what the rounding left over."""
    full = torch.tensor([len(g) for g in groups])
    scores = torch.cat([g.scores / g.scores.mean().clamp_min(1e-12) for g in groups])
    rank = torch.empty_like(scores)
    rank[scores.argsort(stable=True)] = torch.arange(len(scores)) / len(
        scores
    )  # so that equal scores are cut as well

    def at(share: float) -> Tensor:
        together = torch.stack([(r >= share).sum() for r in rank.split(full.tolist())])
        left = together if scope == "global" else (1 - share) * full
        return ((left / round_to).round() * round_to).long().clamp(min=least).minimum(full)

    most, low, high = 1.002 * target, 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if count(at(middle)[None]) > most else (low, middle)
    widths = at(high)
    for step in (
        round_to,
        1,
    ):  # single channels only where the coarse steps do not come within half a percent
        while count(widths[None]) < 0.995 * target:
            wider = widths + step * torch.eye(len(groups), dtype=torch.int64)
            left = count(wider)
            left[(left > most) | (wider > full).any(1)] = 0
            if not left.any():
                break
            widths = wider[left.argmax()]
    return widths


def _cut(
    model: Detector, groups: list[Group], widths: list[int], left: int, rate: float
) -> Detector:
    """The detector of the kept channels, its weights copied; `load_state_dict` and the count make sure that nothing was skipped."""
    stay: dict[tuple[str, int], Tensor] = {}
    for group, width in zip(groups, widths, strict=True):
        kept = torch.zeros(len(group), dtype=torch.bool)
        kept[group.scores.topk(width).indices] = True
        stay |= {
            member: kept[follows].nonzero().flatten() for member, follows in group.members.items()
        }
    tensors = {}
    for name, tensor in model.state_dict().items():
        for dim in range(min(tensor.ndim, 2)):
            index = stay.get((name.rpartition(".")[0], dim))
            tensor = tensor if index is None else tensor.index_select(dim, index.to(tensor.device))
        tensors[name] = tensor.clone()
    small = Detector(
        replace(fitted(model.arch, tensors), name=f"{model.arch.name.partition('-r')[0]}-r{rate:g}")
    )
    small.load_state_dict(tensors)
    assert parameters(small) == left
    return small.to(next(model.parameters()).device)
