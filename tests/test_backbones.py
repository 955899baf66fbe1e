"""Networks of others in BL's place: timm's, torchvision's, a user's own in PyTorch and in ONNX."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import onnx as onnx_
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from data_prep.errors import InputError
from dflib import backbones, distill, export, lowrank, measure, models, prune, quantize, train
from dflib.edge import adopt
from dflib.models import Detector, architecture
from dflib.study import runs

pytestmark = pytest.mark.usefixtures("outputs_root")

CPU = torch.device("cpu")
QUICK = train.Recipe(epochs=1, batch=18)
VIT = {"backbone": "timm/vit_tiny_patch16_224", "size": 224}
THEIRS = ("torchvision/efficientnet_b0", "timm/mobilenetv3_small_100", "timm/tf_efficientnet_lite0")
OWN = """
from functools import partial
from torch import nn

class Net(nn.Module):
    def __init__(self, outputs, flat=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(),
                                  nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(64, outputs)
        self.flat = flat

    def forward(self, x):
        z = self.classifier(self.body(x))
        return z[:, 0] if self.flat else z

two, one, three = partial(Net, 2), partial(Net, 1), partial(Net, 3)
flat, image = partial(Net, 1, flat=True), partial(nn.Conv2d, 3, 2, 1)

def nothing():
    return None

def pair():
    net = Net(2)
    net.forward = lambda x: (x, x)
    return net

def stops():
    raise SystemExit(3)

def broken():
    raise OSError("no such thing")
"""


@pytest.fixture
def own(tmp_path) -> Path:
    file = tmp_path / "theirs.py"
    file.write_text(OWN)
    return file


def lived_in(model: nn.Module) -> nn.Module:
    """BatchNorms that have seen something, and a head that tells images apart."""
    with train.seeded(1), torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.8, 1.2)
    return model.eval()


# --- published networks


@pytest.mark.parametrize(
    "name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100", "convnext_atto"]
)
def test_a_network_up_to_a_stride_is_the_beginning_of_the_whole_one(name, tmp_path):
    with train.seeded(0):
        whole = timm.create_model(name).eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    weights = backbones.kept(tmp_path / "weights.safetensors")
    features, head = backbones.split(f"timm/{name}:16", 64, weights)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        every = whole.forward_intermediates(x, intermediates_only=True, norm=False)
        deepest = every[[each["reduction"] for each in whole.feature_info].index(16)]
        found = features.eval()(x)
    torch.testing.assert_close(found, deepest.mean((2, 3)), atol=1e-5, rtol=1e-4)
    count = lambda net: sum(p.numel() for p in net.parameters())
    assert head[0].in_features == found.shape[1] and count(features) < count(whole) / 2


def test_a_network_with_channels_last_gives_channels():
    net = Detector(architecture("BL", size=224, backbone="timm/swin_tiny_patch4_window7_224:16"))
    assert net.head[0].in_features == 384


@pytest.mark.parametrize("name", [*THEIRS, "timm/vit_tiny_patch16_224", "timm/resnet18"])
def test_published_weights_give_the_publishers_features(name, tmp_path):
    kind, _, plain = name.partition("/")
    make = timm.create_model if kind == "timm" else torchvision.models.get_model
    with train.seeded(0):
        theirs, size = lived_in(make(plain)), 224 if "vit" in name else 64
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    _, kept = backbones.settled(name, str(tmp_path / "theirs.safetensors"))
    ours = Detector(architecture("BL", size=size, backbone=name), kept).eval()
    x = torch.rand(2, 3, size, size)
    normal = (x - ours.mean) / ours.std
    seen = []
    last = [m for m in theirs.modules() if isinstance(m, nn.Linear)][-1]
    last.register_forward_hook(lambda layer, inputs, z: seen.append(inputs[0]))
    with torch.no_grad():
        theirs(normal)
        torch.testing.assert_close(ours.features(normal), seen[0])
    assert ours.head[-1].out_features == 2


def test_a_files_own_classifier_of_two_classes_is_kept(tmp_path):
    theirs = lived_in(timm.create_model("resnet18", num_classes=2))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "fine.pth")
    _, kept = backbones.settled("timm/resnet18", str(tmp_path / "fine.pth"))
    ours = Detector(architecture("BL", size=64, backbone="timm/resnet18"), kept).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs((x - ours.mean) / ours.std))


@pytest.mark.parametrize("name", THEIRS)
def test_the_whole_way(name, toy, tmp_path):
    """BL, CPF-S, LRF, CKD and CQ-S on a small set; each file decides as the model it came from."""
    data = toy()
    with train.seeded(0):
        model = Detector(architecture("BL", size=32, backbone=name))
    train.fit(model, data, replace(QUICK, head_lr=1e-2, freeze_bn=True), device=CPU)
    small = prune.structured(model, rate=0.8)
    assert models.parameters(small) == pytest.approx(0.2 * models.parameters(model), rel=0.01)
    train.fit(small, data, QUICK, device=CPU)
    assert models.load(models.save(small, tmp_path / "small.safetensors")).arch == small.arch
    thin = lowrank.factorise(model, lowrank.choose_ranks(model, rate=0.5))
    assert models.parameters(thin) == pytest.approx(0.5 * models.parameters(model), rel=0.01)
    assert models.load(models.save(thin, tmp_path / "thin.safetensors")).arch == thin.arch
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


def test_a_transformer_is_taught_from_and_made_small_where_it_can_be(tmp_path):
    name = "timm/vit_tiny_patch16_224"
    with train.seeded(0):
        model = Detector(architecture("BL", size=224, backbone=name)).eval()
    thin = lowrank.factorise(model, lowrank.choose_ranks(model, rate=0.5))
    assert models.parameters(thin) == pytest.approx(0.5 * models.parameters(model), rel=0.01)
    file = export.to_onnx(thin, tmp_path / "thin.onnx")
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(export.OnnxModel(file)(x), thin(x), atol=1e-4, rtol=1e-3)
    with pytest.raises(InputError, match=rf"no channels of {name} can be cut .* CPF, CKD, CQ"):
        prune.structured(model, rate=0.5)


# --- a user's own


@pytest.mark.parametrize("function", ["two", "one", "flat"])
def test_an_own_network_computes_what_it_did(function, own, tmp_path):
    namespace: dict = {}
    exec(OWN, namespace)
    theirs = lived_in(namespace[function]())
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    names = backbones.settled(f"{own}:{function}", str(tmp_path / "w.safetensors"))
    own.write_text("raise RuntimeError('changed since')")
    ours = Detector(architecture("BL", size=64, backbone=names[0]), names[1]).eval()
    again = models.load(models.save(ours, tmp_path / "ours.safetensors"))
    small = prune.structured(ours, rate=0.4, round_to=1, least=1, within=0.2)
    assert models.parameters(small) < 0.7 * models.parameters(ours)
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        z = theirs(x)
        wanted = z.softmax(1)[:, 1] if function == "two" else z.reshape(-1).sigmoid()
        for model in (ours, again):
            torch.testing.assert_close(model(x).softmax(1)[:, 1], wanted)
        assert small(x).shape == (3, 2)


@pytest.mark.parametrize(
    ("outputs", "fake_index", "last"),
    [
        (2, 1, None),
        (2, 0, nn.Softmax(1)),
        (1, 1, nn.Sigmoid()),
        (1, 0, None),
        (1, 1, nn.Flatten(0)),
    ],
)
def test_an_onnx_detector_computes_what_it_did(outputs, fake_index, last, tmp_path, toy):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    theirs = nn.Sequential(*layers, nn.Linear(32, outputs)).eval()
    squashed = nn.Sequential(theirs, *([last] if last else []))
    file, x = tmp_path / "theirs.onnx", torch.rand(3, 3, 32, 32)
    any_number = {"dynamic_axes": {"pixels": {0: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its age
        names = {"input_names": ["pixels"], "output_names": ["logits"]}  # as ours are called
        torch.onnx.export(squashed, (x,), file, dynamo=False, **names, **any_number)
    name = adopt.onnx_file(file, size=32, mean=mean, std=std, fake_index=fake_index)
    model = Detector(architecture("BL", size=32, backbone=name)).eval()
    normal = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        z = theirs(normal)
        wanted = z.softmax(1)[:, fake_index] if outputs == 2 else z[:, 0].sigmoid()
        wanted = 1 - wanted if outputs == 1 and not fake_index else wanted
        torch.testing.assert_close(model(x).softmax(1)[:, 1], wanted)
    assert models.parameters(model) >= sum(p.numel() for p in theirs.parameters())
    assert measure.macs(model) == 16 * 16 * 8 * 27 + 32 * outputs
    written = export.to_onnx(model, tmp_path / "model.onnx")
    data = toy()
    int8 = quantize.static_int8(written, tmp_path / "int8.onnx", data.train)
    assert export.parity(model, export.OnnxModel(int8), data.test)["same_decisions"] > 0.8
    loss = distill.Distillation(model)
    student = Detector(models.student(0.9, size=32))
    train.fit(student, data, QUICK, loss=loss, device=CPU)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"backbone": "resnet18"}, r"unknown backbone 'resnet18', did you mean 'torchvision/resn"),
        ({"backbone": "timm/resnet19"}, r"unknown timm network 'resnet19', did you mean 'resnet"),
        ({"backbone": "torchvision/resnet"}, "unknown torchvision network 'resnet', did you mean"),
        ({"backbone": "timm/resnet18:7"}, "unknown stride '7'.* 4, 8, 16, 32"),
        ({"backbone": "timm/resnet18:"}, "unknown stride"),
        (VIT | {"backbone": f"{VIT['backbone']}:16"}, "a transformer has no stride"),
        ({"backbone": "own/gone-1.py:net"}, "own/gone-1.py is not in .*: adopt the file again"),
        ({"backbone": "there/is/no.py:net"}, "there/is/no.py is not there, or no file"),
        ({"backbone": "model.onnx"}, "python -m dflib adopt model.onnx makes it usable"),
        ({"pretrained": "true"}, "pretrained is for another backbone than vgg"),
        ({"backbone": "timm/resnet18", "pretrained": "no.pth"}, "no.pth is not there, or no file"),
        ({"epochs": 0}, "epochs=0 trains nothing: give pretrained=FILE"),
        ({"backbone": "OWN:two", "epochs": 0, "method": "CKD"}, "say distill_epochs=30, say"),
        (VIT | {"method": "TL+P+A"}, "vit_tiny_patch16_224 has no feature maps that an adapter"),
        ({"method": "TL+FT", "source": "imagenet"}, "source imagenet is a pretrained network: set"),
        (VIT | {"method": "CPF-S"}, "can be cut"),
        ({"backbone": "OWN:two", "method": "CPF-S", "rate": 0.999}, "rate 0.999 cannot be met"),
        ({"teacher": "no-run", "method": "CKD"}, "unknown run 'no-run'"),
        ({"backbone": "OWN:three"}, r"3 outputs for an image; wanted is N x 3 x H x W in \[0, 1\]"),
        ({"backbone": "OWN:image"}, r"two images give \(2, 2, 32, 32\); wanted is .* -> logits"),
        ({"backbone": "OWN:broken"}, "cannot be made: OSError: 'no such thing'"),
        ({"backbone": "OWN:nothing"}, "gives NoneType: expected an nn.Module"),
        ({"backbone": "OWN:pair"}, "two images give tuple; wanted is"),
        ({"backbone": "OWN:stops"}, "cannot be made: SystemExit: '3'"),
        ({"backbone": "OWN:missing"}, "unknown function of theirs-.*.py 'missing'"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(ask, message, own, tiny_dataset, tiny_source):
    ask = {k: v.replace("OWN", str(own)) if isinstance(v, str) else v for k, v in ask.items()}
    method, source = ask.pop("method", "BL"), ask.pop("source", tiny_source)
    rate = ask.pop("rate", 0.5) if method in ("CKD", "CPF-S", "TL+P+A") else None
    request = {"dataset": tiny_dataset, "preset": "tiny", "rate": rate}
    request |= {"source": source} if method.startswith("TL") else {}
    with pytest.raises(InputError, match=message):
        runs.spec(method, **request, settings=ask)


def test_the_transferred_teacher_is_for_transfers_alone(tiny_dataset, tiny_source):
    request = {"dataset": tiny_dataset, "preset": "tiny", "rate": 0.5}
    request["settings"] = {"teacher": "transferred"}
    assert runs.spec("CKD", **request).settings["teacher"] == ""
    chosen = runs.spec("TL+KD", source=tiny_source, **request).settings
    assert chosen["teacher"] == "transferred"


@pytest.mark.parametrize(
    "state", [{"body.0.weight": torch.zeros(1)}, {"x": torch.zeros(1)}, None], ids=str
)
def test_weights_that_do_not_fit_are_refused(state, own, tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"nothing") if state is None else save_file(state, file)
    names = backbones.settled(f"{own}:two", str(file))
    with pytest.raises(InputError, match=r"cannot be made: RuntimeError|expected a state dict"):
        Detector(architecture("BL", size=64, backbone=names[0]), names[1])


def test_a_pickle_is_not_run(own, tmp_path):
    class Bad:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trace",))

    torch.save({"x": Bad()}, tmp_path / "w.pth")
    names = backbones.settled(f"{own}:two", str(tmp_path / "w.pth"))
    with pytest.raises(InputError, match="expected a state dict"):
        Detector(architecture("BL", size=64, backbone=names[0]), names[1])
    assert not (tmp_path / "trace").exists()


def test_an_adopted_file_that_was_changed_is_refused(own):
    name, _ = backbones.settled(f"{own}:two")
    backbones.own_file(name.partition(":")[0]).write_text("two = print")
    with pytest.raises(InputError, match="was changed after it was adopted"):
        Detector(architecture("BL", size=64, backbone=name))


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": [["features.blocks.1.nothing", 8, 8]]},
        {"shapes": [["features.conv_stem", 3, 40]]},
        {"backbone": "timm/resnet50x"},
        {"backbone": "own/../../theirs.py:two"},
    ],
)
def test_a_checkpoint_whose_shapes_do_not_fit_is_refused(change, tmp_path):
    model = Detector(architecture("BL", size=32, backbone="timm/mobilenetv3_small_100"))
    path = models.save(model, tmp_path / "model.safetensors")
    arch = json.dumps(json.loads(model.arch.to_json()) | change)
    save_file(load_file(path), path, metadata={"format": "dflib-1", "architecture": arch})
    with pytest.raises(InputError, match="do not fit|adopt the file again"):
        models.load(path)


# --- teachers that answer once


class Forgetful(distill.Distillation):
    """Asks the teacher each time."""

    def __call__(self, logits, labels, images, place=None):
        return super().__call__(logits, labels, images)


def test_a_teacher_answers_once_for_each_view(toy):
    """With fixed views a student learns the same, and the teacher sees each image once a view."""
    data, students, asked = toy(), {}, {}
    recipe = train.Recipe(epochs=6, batch=18, views=2, amp=False)
    for kind in (distill.Distillation, Forgetful):
        with train.seeded(0):
            teacher = Detector(architecture("S90", size=32)).eval()
            students[kind] = Detector(architecture("S90", size=32))
        seen = asked[kind] = []
        count = lambda _, inputs, seen=seen: seen.append(len(inputs[0]))
        teacher.register_forward_pre_hook(count)
        train.fit(students[kind], data, recipe, loss=kind(teacher), device=CPU)
    assert sum(asked[distill.Distillation]) <= 2 * len(data.train)
    assert sum(asked[Forgetful]) == 3 * sum(asked[distill.Distillation])
    pairs = zip(*(student.parameters() for student in students.values()), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
