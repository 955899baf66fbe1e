"""One class for every detector, described by data. Baseline and students of arXiv 2504.21066 (table in the README).

A model is a list of `Block`s and a list of `Dense` layers, or one of torchvision's by name with the shapes that pruning left; its
checkpoint carries all of that, and rebuilds its own shape.
Knows nothing of how models are trained or compressed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data_prep.errors import InputError, check_rate, choose


@dataclass(frozen=True)
class Block:
    """Convolution, then BatchNorm, ReLU and perhaps a 2x2 max pool.

    separable: `kernel` x `kernel` convolution to `mid` channels in `groups`, then a 1x1 convolution to `width` (both before the BatchNorm).
    """

    width: int
    pool: bool = False
    kernel: int = 3
    separable: bool = False
    mid: int = 0
    groups: int = 1
    adapter: str = ""  # serial | residual: an adapter stands behind the block (dflib.adapters)


@dataclass(frozen=True)
class Dense:
    """Dropout, then a linear layer to `width` (and a ReLU, unless it is the last)."""

    width: int
    dropout: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """Everything that rebuilds a detector's shape. Input: 3 x size x size; output: `classes` logits."""

    name: str
    size: int
    blocks: tuple[Block, ...]
    head: tuple[Dense, ...]
    classes: int = 2
    mean: tuple[float, float, float] = (
        0.5,
        0.5,
        0.5,
    )  # pixels in [0, 1] are normalised inside the model:
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # the deployed file takes plain pixels
    backbone: str = "vgg"  # ours, which blocks and head describe; else one of torchvision's
    shapes: tuple[
        tuple[str, int, int], ...
    ] = ()  # torchvision's layers that pruning changed: name, inputs, outputs
    ranks: tuple[
        tuple, ...
    ] = ()  # layers that are products of thin ones: name, then the ranks (see `factors`)
    front: str = (
        ""  # srm: the network sees a high-frequency residual instead of the pixels (see `residual`)
    )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        data = json.loads(text)
        data["blocks"] = tuple(Block(**b) for b in data["blocks"])
        data["head"] = tuple(Dense(**d) for d in data["head"])
        data["mean"], data["std"] = tuple(data["mean"]), tuple(data["std"])
        for key in ("shapes", "ranks"):
            data[key] = tuple(map(tuple, data.get(key, ())))
        return cls(**data)


class ConvBlock(nn.Sequential):
    """conv (or depthwise + pointwise) -> BatchNorm -> ReLU [-> max pool]."""

    def __init__(self, inputs: int, block: Block) -> None:
        same = block.kernel // 2  # an integer: quantized padding='same' is wrong in some runtimes
        if block.separable:
            convs = {
                "depthwise": nn.Conv2d(
                    inputs, block.mid, block.kernel, padding=same, groups=block.groups
                ),
                "pointwise": nn.Conv2d(block.mid, block.width, 1),
            }
        else:
            convs = {
                "conv": nn.Conv2d(
                    inputs, block.width, block.kernel, padding=same, groups=block.groups
                )
            }
        super().__init__()
        layers = {**convs, "norm": nn.BatchNorm2d(block.width), "relu": nn.ReLU()}
        if block.pool:
            layers["pool"] = nn.MaxPool2d(2)
        if block.adapter:
            layers["adapter"] = Adapter(block.width, residual=block.adapter == "residual")
        for name, layer in layers.items():
            self.add_module(name, layer)


class Adapter(ConvBlock):
    """Depthwise 3x3 -> 1x1 -> BatchNorm -> ReLU (arXiv 2504.21066); residual: the input is added before the ReLU (He et al. 2015).

    The residual form's BatchNorm scale starts at zero, so at first relu(x + 0) = x: blocks end in a ReLU, x is never negative.
    """

    def __init__(self, width: int, *, residual: bool) -> None:
        super().__init__(width, Block(width, separable=True, mid=width, groups=width))
        self.residual = residual
        if residual:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.pointwise(self.depthwise(x)))
        return self.relu(x + y if self.residual else y)


class Detector(nn.Module):
    """A detector built from its `Architecture`. forward: pixels in [0, 1], N x 3 x size x size -> logits, N x classes (real, fake).

    >>> Detector(architecture("BL", size=32))(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 2])
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        if arch.size % 32 or arch.size < 32:
            raise InputError(
                f"image size {arch.size} is not a multiple of 32: the detectors halve it five times"
            )
        self.set_front(arch)
        self.register_buffer("mean", torch.tensor(arch.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(arch.std).view(1, 3, 1, 1), persistent=False)
        self.features, self.head = _stack(arch) if arch.backbone == "vgg" else _torchvision(arch)
        for name, inputs, outputs in arch.shapes:
            self.set_submodule(name, _resized(self.get_submodule(name), inputs, outputs))
        for name, *ranks in arch.ranks:
            self.set_submodule(name, factors(self.get_submodule(name), ranks))

    def set_front(self, arch: Architecture) -> None:
        """Take over the front end of an architecture that is otherwise this one's; it has no parameters, so no weight changes."""
        self.arch = arch
        srm = choose("front end", arch.front, FRONTS) == "srm"
        self.register_buffer(
            "filters", torch.tensor(SRM)[:, None] if srm else None, persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        x = residual(x, self.filters) if self.arch.front else (x - self.mean) / self.std
        return self.head(self.features(x).flatten(1))


def residual(x: Tensor, filters: Tensor) -> Tensor:
    """High-frequency residual of pixels in [0, 1], N x 3 x H x W, in units of `REACH` grey levels and clamped to [-1, 1]: N x 3 x H x W.

    filters: three fixed high-pass filters on the grey image, `SRM` (Fridrich and Kodovsky 2012; in a network: Zhou et al. 2018, arXiv 1805.04953).

    >>> residual(torch.full((1, 3, 32, 32), 0.7), torch.tensor(SRM)[:, None]).abs().max().round(decimals=4).item()
    0.0
    """
    grey = nn.functional.pad(x.mean(1, keepdim=True), (2, 2, 2, 2), mode="reflect")
    found = nn.functional.conv2d(grey, filters)
    return (found * (255 / REACH)).clamp(-1, 1)


def fused(model: Detector) -> nn.Module:
    """The model for inference on a CPU: BatchNorm folded into the convolutions (as ONNX Runtime does), channels_last; equal but for rounding.

    >>> fused(Detector(architecture("BL", size=32)))(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 2])
    """
    from torch.fx.experimental.optimization import fuse

    return fuse(model.eval()).to(memory_format=torch.channels_last)


def _stack(arch: Architecture) -> tuple[nn.Sequential, nn.Sequential]:
    features, head, channels, side = nn.Sequential(), nn.Sequential(), 3, arch.size
    for block in arch.blocks:
        features.append(ConvBlock(channels, block))
        channels, side = block.width, side // 2 if block.pool else side
    width = channels * side * side
    for dense in arch.head:
        head.extend([nn.Dropout(dense.dropout), nn.Linear(width, dense.width), nn.ReLU()])
        width = dense.width
    return features, head.append(nn.Linear(width, arch.classes))


def _torchvision(arch: Architecture) -> tuple[nn.Sequential, nn.Sequential]:
    """torchvision's network without its weights, cut before the classifier."""
    import torchvision

    net = getattr(torchvision.models, choose("backbone", arch.backbone, BACKBONES))(
        num_classes=arch.classes
    )
    *body, head = net.children()
    return nn.Sequential(*body), head if isinstance(head, nn.Sequential) else nn.Sequential(head)


def _resized(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """The same layer with other numbers of channels (a depthwise convolution stays one)."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(outputs, layer.eps, layer.momentum)
    groups = outputs if layer.groups > 1 else 1
    options = {
        "stride": layer.stride,
        "padding": layer.padding,
        "groups": groups,
        "bias": layer.bias is not None,
    }
    return nn.Conv2d(inputs, outputs, layer.kernel_size, **options)


def factors(layer: nn.Module, ranks: Sequence[int]) -> nn.Sequential:
    """Fresh thin layers in place of a linear one (ranks: one) or of a convolution (ranks: of its inputs, of its outputs)."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        (rank,) = ranks
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias),
        )
    inputs, outputs = ranks
    core = nn.Conv2d(inputs, outputs, layer.kernel_size, layer.stride, layer.padding, bias=False)
    first = nn.Conv2d(layer.in_channels, inputs, 1, bias=False)
    return nn.Sequential(first, core, nn.Conv2d(outputs, layer.out_channels, 1, bias=bias))


def _vgg(name: str, size: int, stack: str, head: tuple[Dense, ...]) -> Architecture:
    """Read a stack like "64 64M 128": widths of 3x3 convolutions, M = followed by a max pool."""
    blocks = tuple(Block(int(w.rstrip("M")), pool=w.endswith("M")) for w in stack.split())
    return Architecture(name, size, blocks, head)


def _separable(name: str, size: int, head: tuple[Dense, ...]) -> Architecture:
    """The 90 % student: five separable blocks, each pooled. (mid, width, groups) as in the authors' table."""
    stages = [(32, 32, 1), (64, 64, 32), (64, 64, 64), (128, 128, 64), (128, 64, 128)]
    blocks = tuple(Block(w, pool=True, separable=True, mid=m, groups=g) for m, w, g in stages)
    return Architecture(name, size, blocks, head)


DELTA = (
    "dflib-delta-2"  # the format of files that hold what differs from a base alone (dflib.adapters)
)
FRONTS = ("", "srm")
REACH = 16.0  # grey levels: traces are small, edges need not be larger, and int8 then still tells an eighth of a level
SRM = [  # second differences along a line, in a 3 x 3 and in a 5 x 5 neighbourhood
    [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0.5, -1, 0.5, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    [
        [0, 0, 0, 0, 0],
        [0, -0.25, 0.5, -0.25, 0],
        [0, 0.5, -1, 0.5, 0],
        [0, -0.25, 0.5, -0.25, 0],
        [0, 0, 0, 0, 0],
    ],
    [
        [n / 12 for n in row]
        for row in (
            [-1, 2, -2, 2, -1],
            [2, -6, 8, -6, 2],
            [-2, 8, -12, 8, -2],
            [2, -6, 8, -6, 2],
            [-1, 2, -2, 2, -1],
        )
    ],
]
NAMES = (
    "BL",
    "S60",
    "S70",
    "S80",
    "S90",
)  # the baseline, and the student for each of the paper's rates
BACKBONES = (
    "vgg",
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
)  # of BL; all but ours are torchvision's
STUDENT_RATES = {0.6: "S60", 0.7: "S70", 0.8: "S80", 0.9: "S90"}


def architecture(name: str, *, size: int = 224, backbone: str = "vgg") -> Architecture:
    """The baseline ("BL") or one of the paper's students ("S60" … "S90") at an image size that is a multiple of 32.

    At 224 px: 4,590,786 / 1,800,066 / 1,340,418 / 902,146 / 441,378 parameters. BL can have a `backbone` of torchvision's instead.
    Raises `InputError` for other names.

    >>> parameters(Detector(architecture("S90")))
    441378
    """
    choose("model", name, NAMES)
    if choose("backbone", backbone, BACKBONES) != "vgg" and name == "BL":
        return Architecture(name, size, (), (), backbone=backbone)
    half = 0.5
    return {
        "BL": lambda: _vgg(
            name, size, "64 64M 128 128M 256 256M 512M 128M", (Dense(256, half), Dense(256, half))
        ),
        "S60": lambda: _vgg(
            name, size, "32M 64M 128M 256M 128M 128 128", (Dense(128, half), Dense(128, half))
        ),
        "S70": lambda: _vgg(name, size, "32M 64M 128M 128M 128M 128", (Dense(128, half),)),
        "S80": lambda: _vgg(name, size, "32M 64M 128M 128M 128M 64 64", (Dense(128, half),)),
        "S90": lambda: _separable(name, size, (Dense(128, half),)),
    }[name]()


def student(rate: float, *, size: int = 224, backbone: str = "vgg") -> Architecture:
    """The student with a share `rate` of BL's parameters removed, 0 < rate < 1.

    For the paper's rates at 224 px and its BL: the paper's own. Otherwise the nearest of them, scaled in width to within 1 % of the target
    (a stack of ours also where BL is a `backbone` of torchvision's); widths are multiples of 16, or of 8, 4 or 1 where no coarser step meets
    the target: 30 channels take a processor more time than 32.
    Raises `InputError` for a rate outside (0, 1), or one that no width meets (says what range can be met).

    >>> student(0.9).name
    'S90'
    """
    check_rate(rate)
    nearest = STUDENT_RATES[min(STUDENT_RATES, key=lambda r: abs(r - rate))]
    arch = architecture(nearest, size=size)
    if size == 224 and rate in STUDENT_RATES and backbone == "vgg":
        return arch
    full = count(architecture("BL", size=size, backbone=backbone))
    target = (1 - rate) * full
    for step in (16, 8, 4, 1):
        best = _fitting(arch, target, step)
        if abs(count(best) / target - 1) <= 0.01:
            return replace(best, name=f"{nearest}-r{rate:g}")
    smallest = count(scaled(arch, 1 / 32))
    raise InputError(
        f"rate {rate} cannot be met within 1 % at {size} px: rates up to about {1 - smallest / full:.5f} can"
    )


def _fitting(arch: Architecture, target: float, step: int) -> Architecture:
    """`arch` scaled towards `target` parameters, in widths that are multiples of `step`; the first hidden layer takes up the rest, as little as can be."""
    low, high = 1 / 32, 32.0
    for _ in range(16):  # bisect the width multiplier on the rounded widths
        middle = (low * high) ** 0.5
        low, high = (middle, high) if count(scaled(arch, middle, step)) <= target else (low, middle)

    def strain(factor: float) -> float:
        hidden = _with_hidden(scaled(arch, factor, step), target).head[0].width
        return abs(math.log(hidden / (arch.head[0].width * factor)))

    return _with_hidden(scaled(arch, min((low, high), key=strain), step), target)


def scaled(arch: Architecture, factor: float, step: int = 1) -> Architecture:
    """Every width times `factor`, rounded to a multiple of `step`; depthwise blocks keep their channels per group."""

    def width(w: int) -> int:
        return max(1, round(w * factor / step)) * step

    blocks, channels = [], 3
    for block in arch.blocks:
        if (
            block.separable and block.groups > 1
        ):  # `mid` is a whole multiple of the groups, which are the input's channels
            groups = channels
            blocks.append(
                replace(
                    block,
                    groups=groups,
                    mid=groups * (block.mid // block.groups),
                    width=width(block.width),
                )
            )
        else:
            blocks.append(
                replace(block, mid=width(block.mid) if block.mid else 0, width=width(block.width))
            )
        channels = blocks[-1].width
    return replace(
        arch, blocks=tuple(blocks), head=tuple(replace(d, width=width(d.width)) for d in arch.head)
    )


def _with_hidden(arch: Architecture, target: float) -> Architecture:
    """The first hidden layer takes up what the steps of the other widths leave (parameters are affine in its width)."""

    def at(width: int) -> Architecture:
        return replace(arch, head=(replace(arch.head[0], width=width), *arch.head[1:]))

    width = arch.head[0].width
    slope = count(at(width + 1)) - count(at(width))
    return at(max(1, round(width + (target - count(arch)) / slope)))


def fitted(arch: Architecture, tensors: dict[str, Tensor]) -> Architecture:
    """`arch` with the widths that `tensors` (a state dict cut in width) have: what a pruned model is described by.

    >>> model = Detector(architecture("S90", size=32))
    >>> fitted(model.arch, model.state_dict()) == model.arch
    True
    """
    shape = {
        k.removesuffix(".weight"): tuple(v.shape)
        for k, v in tensors.items()
        if k.endswith(".weight")
    }
    if arch.backbone != "vgg":
        with torch.device("meta"):
            full = Detector(replace(arch, shapes=())).named_modules()
        found = {
            n: _channels(layer, shape[n])
            for n, layer in full
            if _channels(layer, shape.get(n)) != _channels(layer)
        }
        return replace(arch, shapes=tuple((name, *size) for name, size in found.items()))
    blocks, channels = [], 3
    for i, block in enumerate(arch.blocks):
        if block.separable:
            groups = channels if block.groups > 1 else 1
            block = replace(block, mid=shape[f"features.{i}.depthwise"][0], groups=groups)
        channels = shape[f"features.{i}.norm"][0]
        blocks.append(replace(block, width=channels))
    head = tuple(
        replace(dense, width=shape[f"head.{3 * i + 1}"][0]) for i, dense in enumerate(arch.head)
    )
    return replace(arch, blocks=tuple(blocks), head=head)


def _channels(layer: nn.Module, shape: tuple[int, ...] | None = None) -> tuple[int, int] | None:
    """Inputs and outputs of a layer whose weight has that shape (its own unless given); None for layers without a weight."""
    if not isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
        return None
    shape = shape or layer.weight.shape
    return (shape[0] if getattr(layer, "groups", 0) > 1 or len(shape) == 1 else shape[1]), shape[0]


def count(arch: Architecture) -> int:
    """Parameters of the detector that `arch` describes, without making its tensors."""
    with torch.device("meta"):
        return parameters(Detector(arch))


def parameters(model: nn.Module) -> int:
    """Number of parameters (weights and biases; buffers do not count)."""
    return sum(p.numel() for p in model.parameters())


def nonzero(model: nn.Module) -> int:
    """Number of parameters that are not exactly zero."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def save(model: Detector, path: Path) -> Path:
    """Write weights as safetensors, with the architecture as JSON in the metadata (no pickle); atomically."""
    path = Path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    new = path.with_name(path.name + ".new")
    save_file(tensors, new, metadata={"format": "dflib-1", "architecture": model.arch.to_json()})
    new.replace(path)
    return path


def load(path: Path) -> Detector:
    """Rebuild a detector from its checkpoint, in eval mode, on the CPU.

    Raises `InputError` when the file is missing, damaged, not a checkpoint of ours, or its weights do not fit its architecture.
    """
    metadata, tensors = read(path)
    if metadata.get("format") == DELTA:
        raise InputError(
            f"{path} holds only what differs from the model {metadata.get('base')}: dflib.adapters.load_delta(path, base)"
        )
    if metadata.get("format") != "dflib-1":
        raise InputError(
            f"checkpoint {path} is not one of dflib's: its metadata has no architecture"
        )
    return build(path, metadata.get("architecture"), tensors)


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file; raises `InputError` when it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"checkpoint {path} is not there: python -m dflib results lists the finished runs"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"checkpoint {path} is damaged or not a safetensors file ({error}): make the run again"
        ) from error


def build(path: Path, architecture: str | None, tensors: dict[str, Tensor]) -> Detector:
    """The detector of an architecture in JSON with these weights, in eval mode; raises `InputError` naming the file when they do not fit."""
    try:
        model = Detector(Architecture.from_json(architecture))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"checkpoint {path}: weights and architecture do not fit ({str(error).splitlines()[0]})"
        ) from error
    return model.eval()
