"""Networks that others made, in BL's place: of timm, of torchvision, or a user's own file.

A network is cut before its last linear layer, into `features` and `head`. Nothing here trains.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import math
import re
import shutil
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data_prep.errors import InputError, choose, short
from data_prep.paths import outputs_root, written

KINDS = ("timm", "torchvision", "own")
WANTED = "N x 3 x H x W in [0, 1] -> logits, N x 2 (real, fake) or N x 1 (positive: fake)"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HOW = "write vgg, timm/NAME, timm/NAME:STRIDE, torchvision/NAME or FILE.py:function"


def settled(backbone: str, pretrained: str = "") -> tuple[str, str]:
    """Both as a run keeps them, a user's files as copies; `InputError` for what is not there."""
    kind, _, name = backbone.partition("/")
    path, _, function = backbone.rpartition(":")
    if path.endswith(".py") and kind != "own":
        backbone = f"{kept(Path(path))}:{function}"
    elif backbone.endswith(".onnx") and kind != "own":
        raise InputError(f"backbone {backbone}: python -m dflib adopt {backbone} makes it usable")
    elif backbone != "vgg" and kind not in KINDS:
        near = "torchvision" if backbone in _known("torchvision") else "timm"
        what = f"unknown backbone {short(backbone)}, did you mean '{near}/{backbone}'?"
        raise InputError(f"{what} {HOW}")
    elif kind in ("timm", "torchvision"):
        plain_name = name.partition(":")[0] if kind == "timm" else name
        choose(f"{kind} network", plain_name.partition(".")[0], _known(kind))
    if pretrained and backbone == "vgg":
        raise InputError("pretrained is for another backbone than vgg, which starts from nothing")
    if pretrained == "true" and "own/" in backbone:
        raise InputError(f"pretrained=true: {backbone} has no publisher; give pretrained=FILE")
    if pretrained not in ("", "true") and not pretrained.startswith("own/"):
        pretrained = kept(Path(pretrained))
    return backbone, pretrained


@lru_cache
def _known(kind: str) -> tuple[str, ...]:
    """All networks of timm or torchvision that take images."""
    if kind == "timm":
        import timm

        return tuple(timm.list_models())
    torchvision = _torchvision()
    return tuple(torchvision.models.list_models(module=torchvision.models))


def kept(file: Path, name: str = "") -> str:
    """Copy a user's file to `adopted/` of the outputs; its name there, "own/NAME-HASH.py": so the
    run's id covers what is in it."""
    file = file.expanduser()
    if not file.is_file():
        raise InputError(f"{file} is not there, or no file")
    called = re.sub(r"[^\w.-]+", "-", name or file.stem)
    name = f"{called}-{_digest(file)}{file.suffix}"
    place = outputs_root() / "adopted" / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with written(place) as new:
            shutil.copyfile(file, new)
    return f"own/{name}"


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:12]


def own_file(name: str) -> Path:
    """Where a file that was kept ("own/NAME") lies; checked by its hash."""
    place = outputs_root() / "adopted" / Path(name).name
    if not place.is_file():
        raise InputError(f"own/{place.name} is not in {place.parent}: adopt the file again")
    if _digest(place) not in place.name:
        raise InputError(f"{place} was changed after it was adopted: adopt the changed file")
    return place


def normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a network wants its pixels in; its own file: (0, 1)."""
    kind, _, name = backbone.partition("/")
    if kind == "timm":
        import timm

        cfg = timm.get_pretrained_cfg(name.partition(":")[0])
        return (tuple(cfg.mean), tuple(cfg.std)) if cfg else IMAGENET
    return IMAGENET if kind == "torchvision" else ((0.0,) * 3, (1.0,) * 3)


def split(backbone: str, size: int, pretrained: str = "") -> tuple[nn.Module, nn.Sequential]:
    """A network's features and head for two classes, from its weights ("true", "own/NAME") or none.

    A published classifier makes way for a fresh one, unless a file of weights has one or two
    outputs. Raises `InputError` for weights that do not fit or cannot be had, and for a network
    that is not as `WANTED`.
    """
    kind, _, name = backbone.partition("/")
    if kind == "timm":
        name, shallow, stride = name.partition(":")
    if kind == "own" and name.endswith(".onnx"):
        return OnnxNetwork(own_file(name)), nn.Sequential()
    state, classes = None, None
    if pretrained not in ("", "true"):
        state = _weights(own_file(pretrained))
    try:
        net = _network(kind, name, size, pretrained, None)
        if state is not None:
            last = _classifier(net)
            rows = len(state[f"{last}.weight"]) if f"{last}.weight" in state else 0
            classes = rows if rows in (1, 2) and kind != "own" else None
            net = _network(kind, name, size, "", classes) if classes else net
            adapt = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
            if adapt and hasattr(net, "pretrained_cfg"):  # timm's take older names
                state = adapt(state, net)
            net.load_state_dict(state)
        if kind == "timm" and shallow:
            net, classes = Shallow(net, stride), None
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a user's function, timm, hubs, torch
        if pretrained == "true":
            where = {"timm": f"huggingface.co/timm/{name}"}.get(kind, "download.pytorch.org")
            why = f"cannot be had from {where} ({short(str(error), 200)})"
            bring = "bring them as a file, pretrained=FILE.safetensors"
            raise InputError(f"weights of {backbone} {why}: {bring}") from error
        what = f"{type(error).__name__}: {short(str(error), 300)}"
        raise InputError(f"{backbone} cannot be made: {what}") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"{backbone} gives {type(net).__name__}: expected an nn.Module, {WANTED}")
    return _cut(net, backbone, size, keep=kind == "own" or classes is not None)


class Shallow(nn.Module):
    """A network of timm up to its last layer at a stride ("16"): what lies deeper sees large parts
    of an image, and holds most of the parameters."""

    def __init__(self, net: nn.Module, stride: str) -> None:
        super().__init__()
        there = [str(each["reduction"]) for each in net.feature_info]
        choose("stride", stride, there, hint=f"Of {type(net).__name__}.")
        last = len(there) - 1 - there[::-1].index(stride)
        net.prune_intermediate_layers([last], prune_norm=True, prune_head=True)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z = self.net.forward_features(x)
        if z.ndim != 4:
            raise InputError("a transformer has no stride to stop at: take all of it")
        return z.mean((1, 2) if getattr(self.net, "output_fmt", "") == "NHWC" else (2, 3))


def _network(kind: str, name: str, size: int, pretrained: str, classes: int | None) -> nn.Module:
    """The whole network, from published weights where `pretrained` says "true"."""
    given = {} if classes is None else {"num_classes": classes}
    if kind == "timm":
        import timm

        cfg = timm.get_pretrained_cfg(name)
        if cfg and cfg.fixed_input_size:
            given["img_size"] = size
        make = partial(timm.create_model, name, pretrained=pretrained == "true", **given)
        try:
            return make()
        except RuntimeError as error:
            if "meta tensor" not in str(error):
                raise
            with torch.device("cpu"):  # an older timm's transformers
                return make().to("meta")
    if kind == "torchvision":
        weights = "DEFAULT" if pretrained == "true" else None
        return _torchvision().models.get_model(name, weights=weights, **given)
    if kind != "own":
        raise InputError(f"unknown backbone {short(f'{kind}/{name}')}: {HOW}")
    file, _, function = name.partition(":")
    module = _module(own_file(file))
    names = [n for n, f in vars(module).items() if callable(f) and not n.startswith("_")]
    return getattr(module, choose(f"function of {file}", function, names))()


@lru_cache
def _module(file: Path):
    spec = importlib.util.spec_from_file_location(f"own_{file.stem}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _torchvision():
    with torch.device("cpu"):  # at its first import torch 2.6 computes with tensors
        import torchvision
    return torchvision


def _weights(file: Path) -> dict[str, Tensor]:
    """A state dict from a file, without running what a pickle may hold."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model", "model_state_dict"):
            state = state.get(key, state)
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    except Exception as error:  # torch, pickle, zip and safetensors have their own kinds
        want = "expected a state dict, in safetensors or written by torch.save"
        raise InputError(f"{file.name}: {want} ({short(str(error), 200)})") from error


def _classifier(net: nn.Module) -> str:
    """The name of the last linear layer; "" for none."""
    return next((n for n, m in [*net.named_modules()][::-1] if isinstance(m, nn.Linear)), "")


def _cut(net: nn.Module, backbone: str, size: int, *, keep: bool):
    """Features and head. keep: the head computes what the network's own last layer did."""
    name, seen = _classifier(net), []
    twin = copy.deepcopy(net).to("meta").train()
    if name:
        twin.get_submodule(name).register_forward_hook(lambda *found: seen.append(found[-1]))
    fixed = _watched(twin)
    try:
        with torch.no_grad():
            z = twin(torch.empty(2, 3, size, size, device="meta"))
    except Exception as error:  # whatever the network's code raises
        why = f"an image of {size} x {size} does not go through: {short(str(error), 200)}"
        raise InputError(f"{backbone}: {why}; wanted is {WANTED}") from error
    shape = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
    if not isinstance(z, Tensor) or z.ndim not in (1, 2) or len(z) != 2:
        raise InputError(f"{backbone}: two images give {shape}; wanted is {WANTED}")
    if keep and z.ndim == 2 and z.shape[1] > 2:
        raise InputError(f"{backbone}: {z.shape[1]} outputs for an image; wanted is {WANTED}")
    for layer, pads in fixed.items():
        net.set_submodule(layer, _padded(net.get_submodule(layer), pads))
    last = net.get_submodule(name) if seen and seen[-1] is z else None
    if last is not None:
        net.set_submodule(name, nn.Identity())
    elif z.ndim == 1:
        net = nn.Sequential(net, nn.Unflatten(0, (-1, 1)))
    width = last.in_features if last is not None else z.shape[1] if z.ndim == 2 else 1
    head = nn.Linear(width, 2)
    if keep:
        weight, bias = (last.weight, last.bias) if last is not None else (torch.eye(width), None)
        with torch.no_grad():  # of one logit: "real" has 0
            head.weight.copy_(torch.cat([torch.zeros(2 - len(weight), width), weight]))
            head.bias.zero_()[2 - len(weight) :] += 0 if bias is None else bias
    return net, nn.Sequential(head)


def _watched(twin: nn.Module) -> dict[str, tuple[int, ...]]:
    """Layers that pad as TensorFlow does, by the input's size -> their pads, after a forward."""
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        def hook(layer: nn.Module, inputs: tuple) -> None:
            pads = []
            for side in (1, 0):  # width first, as F.pad wants it
                length, stride = inputs[0].shape[2 + side], layer.stride[side]
                reach = layer.dilation[side] * (layer.kernel_size[side] - 1)
                more = max(0, (math.ceil(length / stride) - 1) * stride + reach + 1 - length)
                pads += [more // 2, more - more // 2]
            found[name] = tuple(pads)

        return hook

    for name, layer in twin.named_modules():
        if type(layer).__name__ == "Conv2dSame":
            layer.register_forward_pre_hook(note(name))
    return found


def _padded(conv: nn.Conv2d, pads: Sequence[int]) -> nn.Sequential:
    """The same with fixed pads, which exporters and torch.fx understand."""
    same = {k: getattr(conv, k) for k in ("kernel_size", "stride", "dilation", "groups")}
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, **same, bias=conv.bias is not None)
    plain.load_state_dict(conv.state_dict())
    return nn.Sequential(nn.ZeroPad2d(tuple(pads)), plain)


def plain(model: nn.Module) -> nn.Module:
    """A copy; timm's BatchNorm with an activation is two layers there, as torch.fx knows them."""
    model = copy.deepcopy(model)
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, nn.BatchNorm2d) and hasattr(layer, "act"):
            norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
            norm.load_state_dict(layer.state_dict())
            model.set_submodule(name, nn.Sequential(norm, layer.drop, layer.act).eval())
    return model


def session(file: Path, *, threads: int = 0):
    """An ONNX file in ONNX Runtime, on the CPU, which logs nothing; threads: 0 for all cores."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    how = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}  # 1 prints errors
    return ort.InferenceSession(file, options, **how)


class OnnxNetwork(nn.Module):
    """A user's ONNX file, run by ONNX Runtime: it can become int8, and teach. Its weights are there
    to be counted and saved; nothing can train them."""

    def __init__(self, file: Path) -> None:
        import onnx

        super().__init__()
        self.file, self.session = file, session(file)
        tensors = onnx.load(file).graph.initializer
        for i, each in enumerate(t for t in tensors if t.data_type == onnx.TensorProto.FLOAT):
            values = torch.from_numpy(onnx.numpy_helper.to_array(each).copy())
            self.register_parameter(f"w{i}", nn.Parameter(values, requires_grad=False))

    def macs(self, size: int) -> int:
        """Multiply-accumulate operations of convolutions and linear layers for one image."""
        import onnx

        model = onnx.load(self.file)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        values = (*graph.value_info, *graph.output)
        shape = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        shape |= {t.name: list(t.dims) for t in graph.initializer}
        total = 0
        for node in graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in shape:
                weight, out = shape[node.input[1]], shape.get(node.output[0], [])
                each = weight[1:] if node.op_type == "Conv" else [math.prod(weight) / out[-1]]
                total += math.prod(out) * math.prod(each)
        return int(total)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x.new_empty(len(x), 2)
        found = [self.session.run(None, {"pixels": one[None].cpu().numpy()})[0] for one in x]
        return torch.cat([*map(torch.from_numpy, found)]).to(x.device)
