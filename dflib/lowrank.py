"""Low-rank factorisation: a layer becomes a product of thin ones. Linear layers by truncated SVD, convolutions by Tucker-2 (arXiv 1511.06530)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log, prod

import torch
from torch import Tensor, nn

from data_prep.errors import InputError, check_rate, choose
from dflib.models import Detector, factors, parameters

Ranks = dict[
    str, tuple[int, ...]
]  # layer -> (rank,) of a linear layer, (of its inputs, of its outputs) of a convolution
SWEEPS = 5  # of the alternating least squares after the first SVDs (HOOI)


def factorisable(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions (not 1x1, not grouped) and linear layers, by name, but for the last linear layer."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    last = [n for n, m in layers.items() if isinstance(m, nn.Linear)][-1:]
    thick = lambda m: isinstance(m, nn.Linear) or (m.groups == 1 and max(m.kernel_size) > 1)
    return {n: m for n, m in layers.items() if n not in last and thick(m)}


def choose_ranks(model: nn.Module, *, rate: float) -> Ranks:
    """Ranks that remove a share `rate` of all parameters, to within 1 % of what is to stay.

    From rank one on, again and again the step that raises the kept energy (cumulated squared singular values) most for its parameters,
    relative to what is kept already: so no side of any layer starves. A layer that would need more parameters than it has stays as it is, and is not in the result.
    Raises `InputError` for a rate outside (0, 1), or one that no ranks meet (says which can).

    >>> from dflib.models import architecture
    >>> ranks = choose_ranks(Detector(architecture("BL", size=32)), rate=0.9)
    """
    check_rate(rate)
    layers, total = factorisable(model), parameters(model)
    energy = {n: [_kept(u) for u in _unfoldings(m.weight.detach())] for n, m in layers.items()}
    ranks = {n: [1] * len(e) for n, e in energy.items()}
    size = {n: _size(m, ranks[n]) for n, m in layers.items()}
    target = (1 - rate) * total
    left = target - (total - sum(m.weight.numel() for m in layers.values()) + sum(size.values()))
    if left < 0:
        raise InputError(
            f"rate {rate:g} cannot be met by low rank: rates up to about {1 - (target - left) / total:.4f} can"
        )
    while True:
        steps = []
        for n, m in layers.items():
            for axis, kept in enumerate(energy[n]):
                if (rank := ranks[n][axis]) < len(kept):
                    cost = _size(m, _more(ranks[n], axis)) - size[n]
                    if cost <= left:
                        steps.append((log(kept[rank] / kept[rank - 1]) / max(cost, 1e-9), n, axis))
        if not steps:
            break
        _, n, axis = max(steps)
        ranks[n] = _more(ranks[n], axis)
        left, size[n] = left + size[n] - _size(layers[n], ranks[n]), _size(layers[n], ranks[n])
    if left > 0.01 * target:
        raise InputError(
            f"rate {rate:g} cannot be met within 1 % by low rank: the nearest is {1 - (target - left) / total:.4f}"
        )
    return {n: tuple(r) for n, r in ranks.items() if size[n] < layers[n].weight.numel()}


def factorise(model: Detector, ranks: Ranks) -> Detector:
    """A new detector whose layers in `ranks` are products of thin ones, as close to the old ones as the ranks allow; `model` stays as it is.

    Its architecture carries the ranks, so its checkpoint rebuilds itself. Raises `InputError` for an unknown layer or a rank that it
    cannot have.

    >>> small = factorise(model, choose_ranks(model, rate=0.9))     # doctest: +SKIP
    """
    layers, state = (
        factorisable(model),
        {k: v.detach().cpu() for k, v in model.state_dict().items()},
    )
    for name, rank in ranks.items():
        choose("layer", name, layers)
        for i, factor in enumerate(decompose(layers[name], rank)):
            state |= {f"{name}.{i}.{k}": v.detach().cpu() for k, v in factor.state_dict().items()}
        for key in ("weight", "bias"):
            state.pop(f"{name}.{key}", None)
    thin = tuple((name, *rank) for name, rank in ranks.items())
    small = Detector(
        replace(model.arch, name=f"{model.arch.name}-lowrank", ranks=(*model.arch.ranks, *thin))
    )
    small.load_state_dict(state)
    return small.eval()


def decompose(
    layer: nn.Module, ranks: tuple[int, ...], *, between: Callable[[], nn.Module] | None = None
) -> nn.Sequential:
    """One layer as a product: two linear layers (SVD), or 1x1, k x k and 1x1 convolutions (Tucker-2). At full rank it computes the same.

    between: a module to put between the factors, `nn.ReLU` say. Then it no longer approximates the layer, at any rank.
    Raises `InputError` for ranks that the layer cannot have.

    >>> layer, x = nn.Linear(8, 5), torch.randn(3, 8)
    >>> torch.allclose(decompose(layer, (5,))(x), layer(x), atol=1e-5)
    True
    """
    weight = layer.weight.detach()
    most = tuple(min(u.shape) for u in _unfoldings(weight))
    if len(ranks) != len(most) or not all(1 <= r <= m for r, m in zip(ranks, most, strict=True)):
        raise InputError(
            f"ranks {tuple(ranks)} of a layer of shape {tuple(weight.shape)}: 1 to {most} can be had"
        )
    product = factors(layer, ranks)
    found = _svd(weight, *ranks) if weight.ndim == 2 else _tucker2(weight, *ranks)
    with torch.no_grad():
        for factor, values in zip(product, found, strict=True):
            factor.weight.copy_(values.view_as(factor.weight))
        if layer.bias is not None:
            product[-1].bias.copy_(layer.bias)
    if between:
        product = nn.Sequential(*[m for factor in product for m in (factor, between())][:-1])
    return product.to(weight.device).train(layer.training)


def _svd(weight: Tensor, rank: int) -> list[Tensor]:
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return [root[:, None] * v[:rank], u[:, :rank] * root]


def _tucker2(weight: Tensor, inputs: int, outputs: int) -> list[Tensor]:
    """W[o, i, h, w] ~ sum over a, b of B[o, b] core[b, a, h, w] A[i, a], with orthonormal A and B."""
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
    """The matrix of a linear layer; of a convolution, one row an input, and one row an output."""
    return [weight] if weight.ndim == 2 else [weight.transpose(0, 1).flatten(1), weight.flatten(1)]


def _kept(matrix: Tensor) -> list[float]:
    """Energy that the first 1, 2, … singular values hold: their squares, cumulated."""
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).double()
    energy = torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp(min=0)
    return energy.cumsum(0).clamp(min=1e-30).tolist()


def _size(layer: nn.Module, ranks: Sequence[int]) -> int:
    """Weights of the product (see `models.factors`), or of the layer where those are fewer."""
    outputs, inputs, *kernel = layer.weight.shape
    if not kernel:
        return min(layer.weight.numel(), ranks[0] * (inputs + outputs))
    a, b = ranks
    return min(layer.weight.numel(), inputs * a + a * b * prod(kernel) + b * outputs)


def _more(ranks: list[int], axis: int) -> list[int]:
    return [r + (i == axis) for i, r in enumerate(ranks)]
