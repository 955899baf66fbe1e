"""Low rank: exact at full rank, the best below (Eckart-Young), targets met, checkpoints."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import lived_in
from torch import nn

from data_prep.errors import InputError
from dflib import export, lowrank, models, train
from dflib.models import Detector, architecture


@pytest.fixture(scope="module")
def baseline():
    return lived_in(architecture("BL", size=32))


def error(product, layer, x) -> float:
    with torch.no_grad():
        return ((product(x) - layer(x)).norm() / layer(x).norm()).item()


@given(
    inputs=st.integers(2, 12),
    outputs=st.integers(2, 12),
    kernel=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_full_rank_computes_the_same(inputs, outputs, kernel, seed):
    with train.seeded(seed):
        linear, conv = (
            nn.Linear(inputs, outputs),
            nn.Conv2d(inputs, outputs, kernel, padding="same"),
        )
        x, image = torch.randn(5, inputs), torch.randn(2, inputs, 6, 6)
    assert error(lowrank.decompose(linear, (min(inputs, outputs),)), linear, x) < 1e-4
    full = (min(inputs, outputs * kernel**2), min(outputs, inputs * kernel**2))
    full = full if kernel > 1 else (min(inputs, outputs),)  # a 1x1 one is a matrix
    assert error(lowrank.decompose(conv, full), conv, image) < 1e-4


def test_a_truncated_svd_is_the_best_of_its_rank():
    """Eckart-Young: the error is the root of the energy that was cut off, as for no other."""
    with train.seeded(0):
        layer = nn.Linear(20, 12)
    weight = layer.weight.detach().double().numpy()
    singular = np.linalg.svd(weight, compute_uv=False)
    for rank in (1, 5, 11):
        product = lowrank.decompose(layer, (rank,))
        first, last = (factor.weight.detach().double().numpy() for factor in product)
        cut = np.sqrt((singular[rank:] ** 2).sum())
        assert np.linalg.norm(last @ first - weight) == pytest.approx(cut, rel=1e-4)


@given(st.integers(1, 8), st.integers(1, 10))
def test_tucker2_lies_between_its_bounds(inputs, outputs):
    """De Lathauwer et al. 2000: at least what either side cuts off is lost, at most their sum."""
    with train.seeded(2):
        conv = nn.Conv2d(8, 10, 3)
    w = conv.weight.detach()
    first, core, last = (f.weight.detach() for f in lowrank.decompose(conv, (inputs, outputs)))
    lost = (w - torch.einsum("obxy,bahw,aixy->oihw", last, core, first)).square().sum().item()
    sides = ((w.transpose(0, 1), inputs), (w, outputs))
    cut = [torch.linalg.svdvals(side.flatten(1))[rank:] for side, rank in sides]
    energies = [c.square().sum().item() for c in cut]
    assert max(energies) - 1e-4 <= lost <= sum(energies) + 1e-4


@pytest.mark.parametrize("name", ["BL", "S60", "S90"])
@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_the_target_is_met_within_one_percent(name, rate):
    model = Detector(architecture(name, size=32)).eval()
    try:
        ranks = lowrank.choose_ranks(model, rate=rate)
    except InputError as told:
        assert name == "S90"  # its 1x1 convolutions have no thinner product here
        assert "rates up to about" in str(told)
        return
    small = lowrank.factorise(model, ranks)
    stay = (1 - rate) * models.parameters(model)
    assert 0.99 * stay <= models.parameters(small) <= stay
    size = lambda m, name: models.parameters(m.get_submodule(name))
    assert all(size(small, name) < size(model, name) for name in ranks)
    assert min(min(r) for r in ranks.values()) >= 1


def test_a_checkpoint_rebuilds_the_thin_layers(baseline, tmp_path):
    small = lowrank.factorise(baseline, lowrank.choose_ranks(baseline, rate=0.8))
    again = models.load(models.save(small, tmp_path / "model.safetensors"))
    assert again.arch == small.arch and small.arch.ranks
    assert all(f"{name}.1.weight" in again.state_dict() for name, *_ in small.arch.ranks)
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(again(x), small(x))
    assert models.count(small.arch) == models.parameters(small)
    onnx = export.OnnxModel(export.to_onnx(small, tmp_path / "model.onnx"))
    torch.testing.assert_close(onnx(x), small(x).detach(), rtol=0, atol=1e-4)


def test_the_model_stays_as_it_is_and_the_product_is_close(baseline):
    before = {k: v.clone() for k, v in baseline.state_dict().items()}
    x = torch.rand(16, 3, 32, 32)
    gaps = []
    for rate in (0.2, 0.95):
        small = lowrank.factorise(baseline, lowrank.choose_ranks(baseline, rate=rate))
        gaps.append((small.features(x) - baseline.features(x)).norm().item())
        assert not set(small.parameters()) & set(baseline.parameters())
    assert gaps[0] < gaps[1]
    assert all(torch.equal(v, before[k]) for k, v in baseline.state_dict().items())


RANKS, RATE = lowrank.factorise, lambda model, rate: lowrank.choose_ranks(model, rate=rate)


@pytest.mark.parametrize(
    ("ask", "given", "message"),
    [
        (RANKS, {"heat.1": (3,)}, "unknown layer 'heat.1', did you mean 'head.1'"),
        (RANKS, {"head.6": (1,)}, "unknown layer 'head.6'"),
        (RANKS, {"head.1": (300,)}, r"ranks \(300,\) of a layer \(256, 128\): 1 to \(128,\)"),
        (RANKS, {"features.1.conv": (0, 3)}, r"ranks \(0, 3\) .*1 to \(64, 64\)"),
        (RATE, 1.5, "outside"),
        (RATE, 0.9999, r"rates up to about 0\.99\d+ can"),
    ],
)
def test_ranks_and_rates_that_cannot_be_are_named(baseline, ask, given, message):
    with pytest.raises(InputError, match=message):
        ask(baseline, given)
