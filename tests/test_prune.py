"""Pruning: exactly so many zeros, the smallest, and they stay; whole channels, the target met."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import lived_in
from torch import nn

from data_prep.errors import InputError
from dflib import models, prune, train
from dflib.models import Architecture, Block, Dense, Detector, architecture

BLOCKS = (
    Block(8, pool=True),
    Block(16, pool=True),
    Block(16, pool=True, separable=True, mid=16, groups=16),
)
ARCH = Architecture("t", 32, BLOCKS, (Dense(24), Dense(12)))
CONVS = ["features.0.conv", "features.1.conv", "features.2.depthwise", "features.2.pointwise"]
PRUNED = [*CONVS, "head.1", "head.4"]


def detector(seed: int = 0) -> Detector:
    """All parameters away from zero, the layers' scales far apart."""
    with train.seeded(seed):
        model = Detector(ARCH)
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.randn_like(p) * (1 + i % 5) + 1e-3)
    return model


def magnitudes(model: Detector, masks: prune.Masks) -> dict[str, np.ndarray]:
    return {name: model.get_parameter(name).detach().abs().numpy() for name in masks}


rates = st.floats(0.01, 0.95)


@given(rate=rates, seed=st.integers(0, 3))
@settings(max_examples=40)
def test_per_layer_each_layer_gives_the_same_share_and_its_smallest(rate, seed):
    model = detector(seed)
    masks = prune.magnitude_masks(model, rate=rate)
    assert sorted(masks) == sorted(f"{name}.weight" for name in PRUNED)
    total = models.parameters(model)
    share = rate * total / sum(m.numel() for m in masks.values())
    for name, weights in magnitudes(model, masks).items():
        k = round(share * weights.size)
        assert weights.size - int(masks[name].sum()) == k
        if 0 < k < weights.size:
            cut = np.sort(weights.ravel())[k - 1 : k + 1]  # the k-th smallest goes, the next stays
            assert np.array_equal(masks[name].numpy(), weights > cut[0])
            assert cut[0] < cut[1]
    prune.apply_masks(model, masks)
    assert total - models.nonzero(model) == pytest.approx(rate * total, abs=len(masks) / 2)


@given(rates, st.integers(0, 3), st.sampled_from(PRUNED), st.sampled_from([1.0, 1e-9]))
@settings(max_examples=40)
def test_globally_one_threshold_cuts_all_but_the_largest_of_each_layer(rate, seed, layer, scale):
    """Also where all weights of one layer are smaller than those of the others."""
    model = detector(seed)
    with torch.no_grad():
        model.get_parameter(f"{layer}.weight").mul_(scale)
    masks = prune.magnitude_masks(model, rate=rate, scope="global")
    total, weights = models.parameters(model), magnitudes(model, masks)
    share = rate * total / sum(w.size for w in weights.values())
    floor = 1 - 0.1 * (1 - share)  # a tenth of what "layer" would keep is safe
    safe = {}
    for name, w in weights.items():
        n = w.size - min(round(floor * w.size), w.size - 1)
        safe[name] = w >= np.sort(w.ravel())[-n]
        assert masks[name].numpy()[safe[name]].all()
    k = round(rate * total)
    others = np.sort(np.concatenate([w[~safe[name]] for name, w in weights.items()]))
    threshold = others[k - 1] if k else -1.0
    for name, mask in masks.items():
        assert np.array_equal(mask.numpy(), safe[name] | (weights[name] > threshold))
    prune.apply_masks(model, masks)
    assert total - models.nonzero(model) == k
    read = prune.masks_of(model)
    assert read.keys() == masks.keys() and all(torch.equal(read[k], m) for k, m in masks.items())


def test_a_rate_that_cannot_be_met_says_which_can():
    model = detector()
    prunable = sum(model.get_parameter(f"{n}.weight").numel() for n in PRUNED)
    most = prunable / models.parameters(model)
    with pytest.raises(InputError, match=f"rate 0.99 cannot be met: {most:.4f} is the most"):
        prune.magnitude_masks(model, rate=0.99)
    assert prune.magnitude_masks(model, rate=most - 1e-3)


# ---- structured


THEIRS = ("timm/resnet18", "torchvision/mobilenet_v3_small", "timm/mobilenetv2_100")
SHAPES = {
    "BL": architecture("BL", size=32),
    "S60": architecture("S60", size=64),
    "S90": architecture("S90", size=32),
    **{name: architecture("BL", size=32, backbone=name) for name in THEIRS},
}


@pytest.fixture(scope="module")
def trained() -> dict[str, Detector]:
    return {name: lived_in(arch) for name, arch in SHAPES.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_dead_channels_go_and_the_function_stays(trained, name):
    """Half of each group's channels are made dead; what is pruned is among them: equal outputs."""
    model = copy.deepcopy(trained[name])
    generator = torch.Generator().manual_seed(1)
    state = model.state_dict()
    for group in prune._groups(model, "l1", ()):
        dead = torch.rand(len(group.scores), generator=generator) < 0.5
        for (layer, dim), follows in group.members.items():
            for key in ("weight", "bias", "running_mean"):
                if dim == 0 and f"{layer}.{key}" in state:
                    state[f"{layer}.{key}"][dead[follows]] = 0
            if dim == 1:
                state[f"{layer}.weight"][:, dead[follows]] = 0
    small = prune.structured(model, rate=0.4, least=2, round_to=1).eval()
    x = torch.rand(3, 3, model.arch.size, model.arch.size)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert models.parameters(small) < 0.61 * models.parameters(model)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("importance", "scope"),
    [("l1", "layer"), ("taylor", "global"), ("random", "layer")],
)
def test_the_target_is_met_and_the_shape_rebuilds_itself(
    trained, name, importance, scope, tmp_path
):
    model = trained[name]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.randint(0, 256, (4, 3, *[model.arch.size] * 2), dtype=torch.uint8)
    batches = [(images, torch.tensor([0, 1, 1, 0]))]
    options = {"importance": importance, "scope": scope, "batches": batches}
    small = prune.structured(model, rate=0.8, **options).eval()
    assert models.parameters(small) == models.count(small.arch)
    assert models.parameters(small) == pytest.approx(0.2 * models.parameters(model), rel=0.01)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    convs = lambda m: [layer.out_channels for layer in m.modules() if isinstance(layer, nn.Conv2d)]
    widths = zip(convs(small), convs(model), strict=True)
    assert all(min(8, old) <= new <= old for new, old in widths)
    again = models.load(models.save(small, tmp_path / "small.safetensors"))
    x = torch.rand(2, 3, model.arch.size, model.arch.size)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
    assert again.arch == small.arch


def test_in_steps_the_same_target_with_tuning_between(trained):
    seen, total = [], models.parameters(trained["S60"])
    tune = lambda m, i: seen.append((i, models.parameters(m) / total))
    small = prune.gradually(trained["S60"], rate=0.875, steps=3, tune=tune)
    assert [i for i, _ in seen] == [1, 2]
    assert [n for _, n in seen] == pytest.approx([0.5, 0.25], rel=0.1)
    assert models.parameters(small) / total == pytest.approx(0.125, rel=0.01)


CHANNELS, BOTH = [prune.structured], [prune.structured, prune.magnitude_masks]
LIMITS = "cannot be met within 1% with {} channels or more in each layer"


@pytest.mark.parametrize(
    ("ways", "options", "message"),
    [
        (BOTH, {"rate": 90}, r"did you mean 0\.9\?"),
        (BOTH, {"rate": 0.0}, "rate 0 is outside"),
        (BOTH, {"rate": 1.0}, "rate 1 is outside"),
        (BOTH, {"scope": "Layers"}, "unknown scope 'Layers', did you mean 'layer'"),
        (CHANNELS, {"importance": "l2"}, "unknown importance 'l2'"),
        (CHANNELS, {"importance": "taylor"}, '"taylor" needs batches'),
        (CHANNELS, {"rate": 0.999}, rf"rate 0\.999 {LIMITS.format(8)}: 0\.99\d\d is the most"),
        (CHANNELS, {"least": 250}, rf"{LIMITS.format(250)}: 0\.\d+ is the (most|nearest)"),
    ],
)
def test_what_cannot_be_done_is_named(trained, ways, options, message):
    for prune_ in ways:
        with pytest.raises(InputError, match=message):
            prune_(trained["BL"], **{"rate": 0.5} | options)
