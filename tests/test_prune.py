"""Magnitude pruning: exactly so many zeros, the smallest weights, and they stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from data_prep.errors import InputError
from dflib import models, prune, train
from dflib.models import Architecture, Block, Dense, Detector, architecture

ARCH = Architecture(
    "t",
    32,
    (Block(8, pool=True), Block(16, pool=True), Block(16, pool=True, separable=True, mid=16, groups=16)),
    (Dense(24), Dense(12)),
)
PRUNED = ["features.0.conv", "features.1.conv", "features.2.depthwise", "features.2.pointwise", "head.1", "head.4"]


def detector(seed: int = 0) -> Detector:
    """All parameters away from zero, the layers' scales far apart."""
    with train.seeded(seed):
        model = Detector(ARCH)
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.randn_like(p) * (1 + i % 5) + 1e-3)
    return model


rates = st.floats(0.01, 0.95)


@given(rate=rates, seed=st.integers(0, 3))
@settings(max_examples=40)
def test_per_layer_each_layer_gives_the_same_share_and_its_smallest(rate, seed):
    model = detector(seed)
    masks = prune.magnitude_masks(model, rate=rate)
    assert sorted(masks) == sorted(f"{name}.weight" for name in PRUNED)
    total = sum(p.numel() for p in model.parameters())
    share = rate * total / sum(m.numel() for m in masks.values())
    for name, mask in masks.items():
        weights = model.get_parameter(name).detach().abs().numpy()
        k = round(share * weights.size)
        assert mask.numel() - int(mask.sum()) == k
        if 0 < k < weights.size:
            cut = np.sort(weights.ravel())[k - 1 : k + 1]  # the k-th smallest goes, the next stays
            assert np.array_equal(mask.numpy(), weights > cut[0])
            assert cut[0] < cut[1]
    prune.apply_masks(model, masks)
    assert total - models.nonzero(model) == pytest.approx(rate * total, abs=len(masks) / 2)


@given(rate=rates, seed=st.integers(0, 3))
@settings(max_examples=40)
def test_globally_one_threshold_cuts_all_layers(rate, seed):
    model = detector(seed)
    masks = prune.magnitude_masks(model, rate=rate, scope="global")
    total = sum(p.numel() for p in model.parameters())
    weights = {name: model.get_parameter(name).detach().abs().numpy() for name in masks}
    together = np.sort(np.concatenate([w.ravel() for w in weights.values()]))
    k = round(rate * total / together.size * together.size)
    threshold = together[k - 1] if k else -1.0
    for name, mask in masks.items():
        assert np.array_equal(mask.numpy(), weights[name] > threshold)
    prune.apply_masks(model, masks)
    assert total - models.nonzero(model) == k


def test_masks_are_read_back_from_the_zeros():
    model = detector()
    masks = prune.magnitude_masks(model, rate=0.7)
    prune.apply_masks(model, masks)
    read = prune.masks_of(model)
    assert read.keys() == masks.keys()
    assert all(torch.equal(read[name], mask) for name, mask in masks.items())


def test_the_two_scopes_differ_where_layers_do():
    model = detector()
    layer, together = (prune.magnitude_masks(model, rate=0.6, scope=s) for s in prune.SCOPES)
    share = {name: float(1 - layer[name].float().mean()) for name in layer}
    assert max(share.values()) - min(share.values()) < 0.02
    share = [float(1 - together[name].float().mean()) for name in together]
    assert max(share) - min(share) > 0.2


@pytest.mark.parametrize("scope", prune.SCOPES)
def test_the_classifier_biases_and_norms_are_left_alone(scope):
    model = detector()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = prune.magnitude_masks(model, rate=0.9, scope=scope)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # making masks changes nothing
    prune.apply_masks(model, masks)
    for key, value in model.state_dict().items():
        if key in masks:
            assert torch.equal(value, before[key] * masks[key])
        else:
            assert torch.equal(value, before[key])
    assert "head.6.weight" in before.keys() - masks.keys()


def test_equal_magnitudes_are_cut_in_exact_number():
    model = detector()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    total = sum(p.numel() for p in model.parameters())
    for scope, tolerance in (("layer", 3), ("global", 0.5)):
        masks = prune.magnitude_masks(model, rate=0.5, scope=scope)
        assert sum(int((~m).sum()) for m in masks.values()) == pytest.approx(0.5 * total, abs=tolerance)


@pytest.mark.parametrize(("scope", "tolerance"), [("layer", 1e-4), ("global", 1e-6)])
@pytest.mark.parametrize("rate", [0.6, 0.9])
def test_the_baseline_loses_the_share_of_all_its_parameters(rate, scope, tolerance):
    with train.seeded(0):
        model = Detector(architecture("BL", size=32))
        for p in model.parameters():
            nn.init.normal_(p)
    prune.apply_masks(model, prune.magnitude_masks(model, rate=rate, scope=scope))
    assert 1 - models.nonzero(model) / models.parameters(model) == pytest.approx(rate, abs=tolerance)


@pytest.mark.parametrize("scope", prune.SCOPES)
def test_zeros_stay_through_fine_tuning_and_the_others_move(toy, scope):
    model = detector()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.1)
    masks = prune.magnitude_masks(model, rate=0.8, scope=scope)
    prune.apply_masks(model, masks)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recipe = train.Recipe(epochs=2, batch=12, weight_decay=0.1)
    train.fit(model, toy(), recipe, after_step=lambda m: prune.apply_masks(m, masks), device=torch.device("cpu"))
    for name, mask in masks.items():
        weights = model.get_parameter(name).detach()
        assert (weights[~mask] == 0).all()
        assert (weights[mask] != 0).all()
        if mask.any():  # `global` may empty a layer
            assert (weights[mask] != before[name][mask]).any()
    unmasked = detector()
    unmasked.load_state_dict(before)
    train.fit(unmasked, toy(), recipe, device=torch.device("cpu"))
    assert models.nonzero(unmasked) > models.nonzero(model)  # without `after_step` they grow back


def test_a_rate_that_cannot_be_met_says_which_can():
    model = detector()
    total = sum(p.numel() for p in model.parameters())
    most = sum(model.get_parameter(f"{n}.weight").numel() for n in PRUNED) / total
    with pytest.raises(InputError, match=f"rate 0.99 cannot be met: only {most:.4f} of the parameters are prunable"):
        prune.magnitude_masks(model, rate=0.99)
    assert prune.magnitude_masks(model, rate=most - 1e-3)


@pytest.mark.parametrize(("options", "message"), [({"rate": 90}, r"did you mean 0\.9\?"), ({"rate": 0.0}, "rate 0 is outside"), ({"rate": 1.0}, "rate 1 is outside"), ({"rate": 0.5, "scope": "Layers"}, "unknown scope 'Layers', did you mean 'layer'")])  # fmt: skip
def test_bad_requests_are_named(options, message):
    with pytest.raises(InputError, match=message):
        prune.magnitude_masks(detector(), **options)
