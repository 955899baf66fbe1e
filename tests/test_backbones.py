"""torchvision's networks in BL's place: trained, pruned, as teachers, exported, quantized."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import onnx as onnx_
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.errors import InputError
from dflib import distill, export, measure, models, prune, quantize, train
from dflib.models import Detector, architecture

CPU = torch.device("cpu")
QUICK = train.Recipe(epochs=1, batch=18)
THEIRS = models.BACKBONES[1:]


@pytest.mark.parametrize("name", THEIRS)
def test_the_network_is_torchvisions(name):
    import torchvision

    with train.seeded(0):
        theirs = getattr(torchvision.models, name)(num_classes=2).eval()
    with train.seeded(0):
        ours = Detector(architecture("BL", size=64, backbone=name)).eval()
    assert models.count(ours.arch) == sum(p.numel() for p in theirs.parameters())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs((x - 0.5) / 0.5))


@pytest.mark.parametrize("name", THEIRS)
def test_the_whole_way(name, toy, tmp_path):
    """BL, CPF-S, CKD and CQ-S on a small set; each file decides as the model it came from."""
    data = toy()
    with train.seeded(0):
        model = Detector(architecture("BL", size=32, backbone=name))
    train.fit(model, data, QUICK, device=CPU)
    small = prune.structured(model, rate=0.8)
    assert models.parameters(small) == pytest.approx(0.2 * models.parameters(model), rel=0.01)
    train.fit(small, data, QUICK, device=CPU)
    assert models.load(models.save(small, tmp_path / "small.safetensors")).arch == small.arch
    student = Detector(models.student(0.9, size=32, backbone=name))
    assert models.parameters(student) == pytest.approx(0.1 * models.parameters(model), rel=0.01)
    train.fit(student, data, QUICK, loss=distill.Distillation(model), device=CPU)
    assert measure.macs(small) < 0.7 * measure.macs(model)
    onnx = export.to_onnx(small, tmp_path / "model.onnx")
    assert export.parity(small, export.OnnxModel(onnx), data.test)["max_logit_difference"] < 1e-3
    int8 = quantize.static_int8(onnx, tmp_path / "int8.onnx", data.train)
    tensors = [t for t in onnx_.load(int8).graph.initializer if len(t.dims) > 1]
    integers = [math.prod(t.dims) for t in tensors if t.data_type == onnx_.TensorProto.INT8]
    assert sum(integers) > 0.85 * models.parameters(small)
    assert train.predict(export.OnnxModel(int8), data.test).shape == (len(data.test),)


def test_a_backbone_that_there_is_not():
    with pytest.raises(InputError, match="unknown backbone 'resnet', did you mean 'resnet18'"):
        architecture("BL", backbone="resnet")


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": [["features.1.nothing", 8, 8]]},
        {"shapes": [["features.0", 3, 40]]},
        {"backbone": "resnet50x"},
    ],
)
def test_a_checkpoint_whose_shapes_do_not_fit_is_refused(change, tmp_path):
    model = Detector(architecture("BL", size=32, backbone="mobilenet_v3_small"))
    path = models.save(model, tmp_path / "model.safetensors")
    arch = json.dumps(json.loads(model.arch.to_json()) | change)
    save_file(load_file(path), path, metadata={"format": "dflib-1", "architecture": arch})
    with pytest.raises(InputError, match="do not fit"):
        models.load(path)


def test_a_checkpoint_that_names_every_field_loads(tmp_path):
    """As earlier versions wrote them."""
    model = Detector(architecture("S90", size=32))
    path = models.save(model, tmp_path / "model.safetensors")
    arch = json.dumps(asdict(model.arch))
    save_file(load_file(path), path, metadata={"format": "dflib-1", "architecture": arch})
    assert models.load(path).arch == model.arch
