"""Grad-CAM against a computation by hand, on every kind of network; the residual against a closed form and the audit's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats

from data_prep import shortcut
from data_prep.errors import InputError
from dflib import adapters, explain, lowrank, models, prune, train

ARCHITECTURES = {
    "BL": lambda: models.architecture("BL", size=32),
    "S90": lambda: models.architecture("S90", size=32),
    **{
        name: lambda name=name: models.architecture("BL", size=64, backbone=name)
        for name in models.BACKBONES[1:]
    },
}


def detector(name: str) -> models.Detector:
    with train.seeded(0):
        return models.Detector(ARCHITECTURES[name]()).eval()


def images(n: int, size: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradcam_is_what_its_definition_gives(name):
    model = detector(name)
    batch = images(3, model.arch.size)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    kept = {}
    hook = last.register_forward_hook(lambda _m, _i, out: kept.update(out=out))
    logits, found = model(train.pixels(batch)), []
    hook.remove()
    for target in (0, 1):
        (gradient,) = torch.autograd.grad(logits[:, target].sum(), kept["out"], retain_graph=True)
        cam = (
            (gradient.mean((2, 3), keepdim=True) * kept["out"]).sum(1, keepdim=True).relu().detach()
        )
        cam = F.interpolate(cam, (model.arch.size,) * 2, mode="bilinear")[:, 0]
        expected = cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-37)
        np.testing.assert_allclose(
            explain.gradcam(model, batch, target=target), expected, atol=1e-4
        )
        found.append(expected)
    assert np.max(found) == 1  # not all of it zero


def test_gradcam_finds_what_decides():
    """A detector whose last convolution fires on bright pixels of the left half alone."""
    model = models.Detector(models.Architecture("t", 32, (models.Block(1),), ())).eval()
    state = {k: torch.zeros_like(v) for k, v in model.state_dict().items()} | {
        "features.0.norm.running_var": torch.ones(1)
    }
    state["features.0.conv.weight"][0, :, 1, 1] = 1
    state["features.0.norm.weight"][:] = 1
    state["head.0.weight"][1] = 1
    model.load_state_dict(state)
    x = torch.zeros(2, 3, 32, 32)
    x[0, :, :, :16] = 1
    maps = explain.gradcam(model, x)
    assert maps[0, :, :16].min() == 1 and maps[0, :, 16:].max() == 0
    assert not maps[1].any()  # nothing speaks for it: no division by zero


@pytest.mark.parametrize("change", ["pruned", "factorised", "adapter", "masked"])
def test_gradcam_of_every_compressed_form(change):
    model = detector("BL")
    if change == "pruned":
        model = prune.structured(model, rate=0.9)
    elif change == "factorised":
        model = lowrank.factorise(model, lowrank.choose_ranks(model, rate=0.6))
    elif change == "adapter":
        model = adapters.insert(model, "features.3")
    else:
        prune.apply_masks(model, prune.magnitude_masks(model, rate=0.9))
    maps = explain.gradcam(model, images(2, 32))
    assert maps.shape == (2, 32, 32) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1


def test_gradcam_leaves_the_model_as_it_was():
    model = detector("S90").train().requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        maps = explain.gradcam(model, images(2, 32))
    assert maps.shape == (2, 32, 32) and model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_what_has_no_gradients_is_refused():
    with pytest.raises(InputError, match=r"function has no gradients: .*run\.model\(\)"):
        explain.gradcam(lambda x: x, images(1, 32))
    with pytest.raises(InputError, match="Linear has no convolution"):
        explain.gradcam(torch.nn.Linear(2, 2), images(1, 32))


def test_residual_of_a_wave_is_what_a_gaussian_leaves():
    """A Gaussian of sigma 1 multiplies a wave of frequency f by exp(-2 (pi f)^2)."""
    x, f = np.arange(64), 1 / 8
    wave = 0.5 + 0.25 * np.cos(2 * np.pi * f * x)
    found = explain.residual(torch.tensor(wave).expand(1, 3, 64, 64))[0]
    expected = 255 * 0.25 * np.cos(2 * np.pi * f * x) * (1 - np.exp(-2 * (np.pi * f) ** 2))
    np.testing.assert_allclose(
        found[:, 8:-8], np.broadcast_to(expected, (64, 64))[:, 8:-8], atol=0.05
    )


def test_bytes_and_floats_give_the_same_residual():
    batch = images(2, 32)
    np.testing.assert_allclose(
        explain.residual(batch), explain.residual(train.pixels(batch)), atol=1e-3
    )


def test_spectrum_is_the_audits(picture, tmp_path):
    grey = Image.open(picture(tmp_path / "a.png", size=(128, 128), mode="L"))
    batch = np.broadcast_to(np.asarray(grey), (1, 3, 128, 128))
    np.testing.assert_allclose(explain.spectrum(batch), shortcut.residual_spectrum(grey), atol=1e-2)


def test_doubled_pixels_show_in_the_spectrum():
    small = images(8, 16)
    doubled = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    middle = 16
    plain, peaked = explain.spectrum(images(8, 32)), explain.spectrum(doubled)
    assert (
        peaked[middle, 0] < plain[middle, 0] - 2
    )  # sinc: nothing at the Nyquist frequency of doubled pixels


def test_the_shape_is_checked():
    with pytest.raises(InputError, match=r"shape \(2, 32, 32\): expected N x 3 x H x W"):
        explain.residual(np.zeros((2, 32, 32)))


def test_similarity_is_scipys_rank_correlation_and_the_overlap_of_the_hottest_pixels():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 5, 8, 8))
    after[:3] += 2 * before[:3]
    after[4] = before[4] = 0.5
    found = explain.similarity(before, after)
    for a, b, rank, iou in zip(before[:4], after[:4], found["rank"], found["iou"], strict=False):
        assert rank == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
        hot = [
            set(np.argsort(x.ravel())[-13:]) for x in (a, b)
        ]  # 20 % of 64 pixels, the part of one counting as one
        assert iou == pytest.approx(len(hot[0] & hot[1]) / len(hot[0] | hot[1]))
    assert found["rank"][4] == 0
    with pytest.raises(InputError, match=r"shapes \(5, 8, 8\) and \(4, 8, 8\)"):
        explain.similarity(before, after[:4])
