"""The fixed front ends: what they compute, and that nothing that trains, compresses or exports a detector touches them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from scipy.ndimage import correlate
from skimage import data

from data_prep.errors import InputError
from dflib import adapters, export, lowrank, models, prune, quantize, train
from dflib.models import Architecture, Block, Dense, Detector

each_front = pytest.mark.parametrize("front", ["srm", "npr"])


def photographs(n: int = 4, side: int = 32) -> torch.Tensor:
    whole = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 255
    return torch.stack([whole[:, 60 * i : 60 * i + side, 70 * i : 70 * i + side] for i in range(n)])


def detector(front: str) -> Detector:
    blocks = (Block(16, pool=True), Block(16, pool=True), Block(32))
    with train.seeded(0):
        model = Detector(Architecture("t", 32, blocks, (Dense(64, 0.5),), front=front))
        for _ in range(5):
            model(photographs())
    return model.eval()


def test_srm_is_three_filters_on_the_grey_image():
    images = photographs()
    found = models.residual(images, detector("srm").filters).numpy()
    line, three, five = (np.array(f) for f in models.SRM)
    assert all(abs(f.sum()) < 1e-12 and f[2, 2] == -1 for f in (line, three, five))
    for image, result in zip(images.double().numpy(), found, strict=True):
        grey = 255 * image.mean(0)
        for kernel, channel in zip((line, three, five), result, strict=True):
            expected = np.clip(correlate(grey, kernel, mode="mirror") / 16, -1, 1)
            np.testing.assert_allclose(channel, expected, atol=1e-4)


def test_npr_is_the_image_minus_its_halved_and_doubled_self():
    images = photographs()
    halved = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="nearest")
    doubled = torch.nn.functional.interpolate(halved, scale_factor=2.0, mode="nearest")
    expected = ((images - doubled) * 255 / 16).clamp(-1, 1)
    torch.testing.assert_close(models.residual(images), expected)
    assert not models.residual(
        doubled
    ).any()  # what was enlarged by nearest neighbours leaves nothing


@each_front
def test_a_front_end_has_no_parameters_and_travels_with_the_checkpoint(front, tmp_path):
    model = detector(front)
    assert models.count(model.arch) == models.count(replace(model.arch, front=""))
    assert model.state_dict().keys() == Detector(replace(model.arch, front="")).state_dict().keys()
    again = models.load(models.save(model, tmp_path / "model.safetensors"))
    assert again.arch.front == front
    images = photographs()
    assert torch.equal(again(images), model(images))
    assert not torch.allclose(model(images), model(0.5 * images + 0.1))
    torch.testing.assert_close(
        model(images * 0.5 + 0.2), model(images * 0.5 + 0.1), rtol=1e-3, atol=1e-4
    )  # no low frequency
    torch.testing.assert_close(models.fused(model)(images), model(images), rtol=1e-3, atol=1e-4)


def test_an_architecture_from_before_has_none_and_an_unknown_one_is_refused():
    text = detector("").arch.to_json().replace(', "front": ""', "")
    assert "front" not in text and Architecture.from_json(text).front == ""
    with pytest.raises(InputError, match="unknown front end 'nrp', did you mean 'npr'"):
        Detector(replace(detector("").arch, front="nrp"))


@each_front
def test_the_exported_file_holds_it_and_int8_leaves_it_in_float(front, toy, tmp_path):
    model, images = detector(front), toy(60)
    file = export.to_onnx(model, tmp_path / "model.onnx")
    same = export.parity(model, file, images.test)
    assert same["max_logit_difference"] < 1e-4 and same["same_decisions"] == 1
    assert list(quantize.layers(file)) == [
        "features.0.conv",
        "features.1.conv",
        "features.2.conv",
        "head.1",
        "head.3",
    ]
    int8 = quantize.static_int8(file, tmp_path / "int8.onnx", images.train)
    nodes = onnx.load(int8).graph.node
    first = [n.op_type for n in nodes].index("QuantizeLinear")
    before = [n.op_type for n in nodes[:first]]
    assert "Clip" in before and (
        front != "srm" or "Conv" in before
    )  # the residual is computed before anything is rounded
    assert sum(n.op_type == "DequantizeLinear" for n in nodes) >= 8
    scale = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(int8).graph.initializer}[
        nodes[first].input[1]
    ]
    assert scale <= 2.01 / 255  # of 16 grey levels: an eighth of one
    assert quantize.signal_to_noise(file, int8, images.train)["output"].iloc[0] > 25


@each_front
def test_compression_and_adapters_keep_it(front):
    model, images = detector(front), photographs()
    assert not any("filters" in name for name in prune.prunable(model))
    small = prune.structured(model, rate=0.5, round_to=1, least=4)
    thin = lowrank.factorise(model, lowrank.choose_ranks(model, rate=0.5))
    adapted = adapters.insert(model, "features.1", form="residual")
    for other in (small, thin, adapted):
        assert other.arch.front == front and not any(
            "filters" in name for name in other.state_dict()
        )
    assert torch.equal(adapted(images), model(images))
    assert models.parameters(small) == pytest.approx(0.5 * models.parameters(model), rel=0.01)
