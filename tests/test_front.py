"""The fixed front end: what it computes, and that nothing that compresses or exports changes it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from scipy.ndimage import correlate
from skimage import data
from torch import nn

from dflib import adapters, export, lowrank, models, prune, quantize, train
from dflib.models import Architecture, Block, Dense, Detector

LINE = np.array([[0.5, -1, 0.5]])
THREE = np.array([[-1, 2, -1], [2, -4, 2], [-1, 2, -1]]) / 4
FIVE = [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2]]
FIVE = np.array([*FIVE, *FIVE[1::-1]]) / 12


def photographs(n: int = 4, side: int = 32) -> torch.Tensor:
    whole = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 255
    return torch.stack([whole[:, 60 * i : 60 * i + side, 70 * i : 70 * i + side] for i in range(n)])


def detector(front: str = "srm") -> Detector:
    blocks = (Block(16, pool=True), Block(16, pool=True), Block(32))
    with train.seeded(0):
        model = Detector(Architecture("t", 32, blocks, (Dense(64, 0.5),), front=front))
        for _ in range(5):
            model(photographs())
    return model.eval()


def test_srm_is_three_filters_on_the_grey_image():
    model, images = detector(), photographs()
    model.features = model.head = nn.Identity()
    found = model(images).view(images.shape).numpy()
    for image, result in zip(images.double().numpy(), found, strict=True):
        grey = 255 * image.mean(0)
        for kernel, channel in zip((LINE, THREE, FIVE), result, strict=True):
            expected = np.clip(correlate(grey, kernel, mode="mirror") / 16, -1, 1)
            np.testing.assert_allclose(channel, expected, atol=1e-4)


def test_a_front_end_has_no_parameters_and_travels_with_the_checkpoint(tmp_path):
    model, images, plain = detector(), photographs(), detector("")
    assert models.count(model.arch) == models.count(plain.arch)
    assert model.state_dict().keys() == plain.state_dict().keys()
    again = models.load(models.save(model, tmp_path / "model.safetensors"))
    assert again.arch.front == "srm"
    assert torch.equal(again(images), model(images))
    assert not torch.allclose(model(images), model(0.5 * images + 0.1))
    brighter = [model(images * 0.5 + shift) for shift in (0.1, 0.2)]  # no low frequency is seen
    torch.testing.assert_close(*brighter, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(models.fused(model)(images), model(images), rtol=1e-3, atol=1e-4)
    plain.load_state_dict(model.state_dict())
    plain.set_front("srm")
    assert plain.arch == model.arch and torch.equal(plain(images), model(images))


def test_the_exported_file_holds_it_and_int8_leaves_it_in_float(toy, tmp_path):
    model, images = detector(), toy(60)
    file = export.to_onnx(model, tmp_path / "model.onnx")
    same = export.parity(model, export.OnnxModel(file), images.test)
    assert same["max_logit_difference"] < 1e-4 and same["same_decisions"] == 1
    layers = [*(f"features.{i}.conv" for i in range(3)), "head.1", "head.3"]
    assert list(quantize.layers(file)) == layers
    int8 = quantize.static_int8(file, tmp_path / "int8.onnx", images.train)
    graph = onnx.load(int8).graph
    kinds = [n.op_type for n in graph.node]
    first = kinds.index("QuantizeLinear")
    assert {"Clip", "Conv"} <= set(kinds[:first])  # the residual, before anything is rounded
    assert kinds.count("DequantizeLinear") >= 8
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    assert values[graph.node[first].input[1]] <= 2.01 / 255  # of 16 grey levels: an eighth of one


def test_compression_and_adapters_keep_it():
    model, images = detector(), photographs()
    assert not any("filters" in name for name in prune.prunable(model))
    small = prune.structured(model, rate=0.5, round_to=1, least=4)
    thin = lowrank.factorise(model, lowrank.choose_ranks(model, rate=0.5))
    adapted = adapters.insert(model, "features.1", form="residual")
    for other in (small, thin, adapted):
        assert other.arch.front == "srm"
        assert not any("filters" in name for name in other.state_dict())
    assert torch.equal(adapted(images), model(images))
    assert models.parameters(small) == pytest.approx(0.5 * models.parameters(model), rel=0.01)
