"""Grad-CAM against a computation by hand, on every kind of network; residual and spectrum."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data_prep import shortcut
from data_prep.errors import InputError
from dflib import explain, models, train

THEIRS = ("torchvision/resnet18", "torchvision/mobilenet_v3_small", "timm/lcnet_050")
ARCHITECTURES = {
    **{name: models.architecture(name, size=32) for name in ("BL", "S90")},
    **{b: models.architecture("BL", size=64, backbone=b) for b in THEIRS},
}


def detector(name: str) -> models.Detector:
    with train.seeded(0):
        return models.Detector(ARCHITECTURES[name]).eval()


def images(n: int, size: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradcam_is_what_its_definition_gives(name):
    model = detector(name)
    side, kept, found = model.arch.size, {}, []
    batch = images(3, side)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    hook = last.register_forward_hook(lambda _m, _i, out: kept.update(out=out))
    logits = model(train.pixels(batch))
    hook.remove()
    for target in (0, 1):
        (gradient,) = torch.autograd.grad(logits[:, target].sum(), kept["out"], retain_graph=True)
        cam = (gradient.mean((2, 3), keepdim=True) * kept["out"]).sum(1, keepdim=True)
        cam = F.interpolate(cam.relu().detach(), (side, side), mode="bilinear")[:, 0]
        expected = cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-37)
        maps = explain.gradcam(model, batch, target=target)
        np.testing.assert_allclose(maps, expected, atol=1e-4)
        found.append(expected)
    assert np.max(found) == 1  # not all of it zero


def test_gradcam_finds_what_decides():
    """A detector whose last convolution fires on bright pixels of the left half alone."""
    model = models.Detector(models.Architecture("t", 32, (models.Block(1),), ())).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.features[0].conv.weight[0, :, 1, 1] = 1
        model.features[0].norm.weight[:] = 1
        model.head[0].weight[1] = 1
    x = torch.zeros(2, 3, 32, 32)
    x[0, :, :, :16] = 1
    maps = explain.gradcam(model, x)
    assert maps[0, :, :16].min() == 1 and maps[0, :, 16:].max() == 0
    assert not maps[1].any()  # nothing speaks for it: no division by zero


def test_gradcam_leaves_the_model_as_it_was():
    model = detector("S90").train().requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        maps = explain.gradcam(model, images(2, 32))
    assert maps.shape == (2, 32, 32) and model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_what_has_no_convolution_is_refused():
    for model, kind in ((lambda x: x, "function"), (torch.nn.Linear(2, 2), "Linear")):
        with pytest.raises(InputError, match=rf"{kind} has no convolution: .*run\.model\(\)"):
            explain.gradcam(model, images(1, 32))


def test_residual_of_a_wave_is_what_a_gaussian_leaves():
    """A Gaussian of sigma 1 multiplies a wave of frequency f by exp(-2 (pi f)^2)."""
    x, f = np.arange(64), 1 / 8
    wave = 0.5 + 0.25 * np.cos(2 * np.pi * f * x)
    found = explain.residual(torch.tensor(wave).expand(1, 3, 64, 64))[0]
    expected = 255 * 0.25 * np.cos(2 * np.pi * f * x) * (1 - np.exp(-2 * (np.pi * f) ** 2))
    expected = np.broadcast_to(expected, (64, 64))[:, 8:-8]
    np.testing.assert_allclose(found[:, 8:-8], expected, atol=0.05)


def test_spectrum_is_the_audits(picture, tmp_path):
    grey = Image.open(picture(tmp_path / "a.png", size=(128, 128), mode="L"))
    batch = np.broadcast_to(np.asarray(grey), (1, 3, 128, 128))
    expected = shortcut.spectrum(np.asarray(grey, dtype=np.float32))
    np.testing.assert_allclose(explain.spectrum(batch), expected, atol=1e-2)


def test_the_shape_is_checked():
    with pytest.raises(InputError, match=r"shape \(2, 32, 32\): expected N x 3 x H x W"):
        explain.residual(np.zeros((2, 32, 32)))
