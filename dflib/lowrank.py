"""Low-rank factorisation: a layer becomes a product of thin ones. Linear layers by truncated SVD,
convolutions by Tucker-2 (arXiv 1511.06530).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from math import log, prod

import torch
from torch import Tensor, nn

from data_prep.errors import InputError, check_rate, choose
from dflib.models import Detector, factors, parameters

Ranks = dict[str, tuple[int, ...]]  # layer -> (rank,), of a convolution (of inputs, of outputs)
SWEEPS = 5  # of the alternating least squares after the first SVDs (HOOI)


def factorisable(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers but the last, and convolutions that are not grouped, by name; none of a kind
    with a forward of its own (timm has some)."""
    layers = {n: m for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}
    last = [n for n, m in layers.items() if isinstance(m, nn.Linear)][-1:]
    return {n: m for n, m in layers.items() if n not in last and getattr(m, "groups", 1) == 1}


def choose_ranks(model: nn.Module, *, rate: float) -> Ranks:
    """Ranks that remove a share `rate` of all parameters, to within 1 % of what is to stay.

    From rank one on, again and again the step that raises the kept energy (cumulated squared
    singular values) most for its parameters, relative to what is kept already. A layer that would
    get no smaller is not in the result. Raises `InputError` for a rate that no ranks meet.
    """
    check_rate(rate)
    layers, total = factorisable(model), parameters(model)
    energy = {n: [_kept(u) for u in _unfoldings(m.weight.detach())] for n, m in layers.items()}
    ranks = {n: (1,) * len(sides) for n, sides in energy.items()}
    target = (1 - rate) * total
    left = target - total + sum(m.weight.numel() - _size(m, ranks[n]) for n, m in layers.items())

    def steps(name: str) -> Iterator[tuple]:
        """One rank more on a side: its gain for each parameter, layer, side, ranks, parameters."""
        layer, now = layers[name], ranks[name]
        for side, kept in enumerate(energy[name]):
            if (rank := now[side]) < len(kept):
                more = tuple(r + (i == side) for i, r in enumerate(now))
                cost = _size(layer, more) - _size(layer, now)
                yield log(kept[rank] / kept[rank - 1]) / max(cost, 1e-9), name, side, more, cost

    open_to = {name: list(steps(name)) for name in layers}
    while affordable := [s for each in open_to.values() for s in each if s[-1] <= left]:
        _, name, _, ranks[name], cost = max(affordable)
        open_to[name] = list(steps(name))
        left -= cost
    if not 0 <= left <= 0.01 * target:
        met = f"{1 - (target - left) / total:.4f}"
        hint = f"the nearest is {met}" if left > 0 else f"rates up to about {met} can"
        raise InputError(f"rate {rate:g} cannot be met within 1 % by low rank: {hint}")
    return {n: r for n, r in ranks.items() if _size(layers[n], r) < layers[n].weight.numel()}


def factorise(model: Detector, ranks: Ranks) -> Detector:
    """A new detector, whose layers in `ranks` are products of thin ones, as near as ranks allow;
    `InputError` for an unknown layer or a rank that it cannot have.

    >>> small = factorise(model, choose_ranks(model, rate=0.9))  # doctest: +SKIP
    """
    small, layers = copy.deepcopy(model), factorisable(model)
    for name, rank in ranks.items():
        small.set_submodule(name, decompose(layers[choose("layer", name, layers)], rank))
    thin = tuple((name, *rank) for name, rank in ranks.items())
    name = f"{model.arch.name}-lowrank"
    small.arch = replace(model.arch, name=name, ranks=(*model.arch.ranks, *thin))
    return small.requires_grad_(True).eval()


def decompose(layer: nn.Module, ranks: tuple[int, ...]) -> nn.Sequential:
    """One layer as a product, equal at full rank: two linear or two 1x1 ones, or 1x1, k x k, 1x1.

    >>> layer, x = nn.Linear(8, 5), torch.randn(3, 8)
    >>> torch.allclose(decompose(layer, (5,))(x), layer(x), atol=1e-5)
    True
    """
    weight = layer.weight.detach()
    most = tuple(min(u.shape) for u in _unfoldings(weight))
    if len(ranks) != len(most) or not all(1 <= r <= m for r, m in zip(ranks, most, strict=True)):
        shape = tuple(weight.shape)
        raise InputError(f"ranks {tuple(ranks)} of a layer {shape}: 1 to {most} can be had")
    product = factors(layer, ranks)
    if len(ranks) == 1:
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        root = s[: ranks[0]].sqrt()
        found = [root[:, None] * v[: ranks[0]], u[:, : ranks[0]] * root]
    else:
        found = _tucker2(weight, *ranks)
    with torch.no_grad():
        for factor, values in zip(product, found, strict=True):
            factor.weight.copy_(values.view_as(factor.weight))
        if layer.bias is not None:
            product[-1].bias.copy_(layer.bias)
    return product.to(weight.device).train(layer.training)


def _tucker2(weight: Tensor, inputs: int, outputs: int) -> list[Tensor]:
    """W[o,i,h,w] ~ sum over a, b of B[o,b] core[b,a,h,w] A[i,a], with orthonormal A and B."""
    a = _basis(_unfoldings(weight)[0], inputs)
    for _ in range(SWEEPS):
        b = _basis(torch.einsum("oihw,ia->oahw", weight, a).flatten(1), outputs)
        a = _basis(torch.einsum("oihw,ob->ibhw", weight, b).flatten(1), inputs)
    return [a.T, torch.einsum("oihw,ob,ia->bahw", weight, b, a), b]


def _basis(matrix: Tensor, rank: int) -> Tensor:
    """Its first left singular vectors: the last eigenvectors of its small Gram matrix."""
    wide = matrix.double()
    return torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)[:, :rank].to(matrix.dtype)


def _unfoldings(weight: Tensor) -> list[Tensor]:
    """The matrix of a linear or 1x1 layer; of others, one row an input, and one row an output."""
    outputs = weight.flatten(1)
    one = outputs.shape[1] == weight.shape[1]  # no kernel, or of one pixel
    return [outputs] if one else [weight.transpose(0, 1).flatten(1), outputs]


def _kept(matrix: Tensor) -> list[float]:
    """Energy that the first 1, 2, … singular values hold: their squares, cumulated."""
    wide = (matrix if len(matrix) <= matrix.shape[1] else matrix.T).double()
    energy = torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp(min=0)
    return energy.cumsum(0).clamp(min=1e-30).tolist()


def _size(layer: nn.Module, ranks: tuple[int, ...]) -> int:
    """Weights of the product (see `models.factors`), or of the layer where those are fewer."""
    outputs, inputs, *kernel = layer.weight.shape
    a, b = ranks[0], ranks[-1]
    core = a * b * prod(kernel) if prod(kernel) > 1 else 0
    return min(layer.weight.numel(), inputs * a + core + b * outputs)
