"""One class for every detector, described by data: baseline and students of arXiv 2504.21066.

A model is a list of `Block`s and of `Dense` layers, or another's network by name (`backbones`). Its
checkpoint rebuilds it. Nothing here trains or compresses.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data_prep.errors import InputError, check_rate, choose, short
from data_prep.paths import written
from dflib import backbones

STACKS = {  # the authors' table: convolutions, hidden linear layers
    "BL": ("64 64M 128 128M 256 256M 512M 128M", (256, 256)),
    "S60": ("32M 64M 128M 256M 128M 128 128", (128, 128)),
    "S70": ("32M 64M 128M 128M 128M 128", (128,)),
    "S80": ("32M 64M 128M 128M 128M 64 64", (128,)),
    "S90": ("32:1:32M 64:32:64M 64:64:64M 128:64:128M 128:128:64M", (128,)),
}
STUDENT_RATES = {0.6: "S60", 0.7: "S70", 0.8: "S80", 0.9: "S90"}
FORMAT = "dflib-1"  # of checkpoints

REACH = 16.0  # grey levels that are 1: traces are small, and int8 still tells an eighth of a level
_A, _B, _ONE = torch.tensor([[1, -2, 2, -2, 1], [0, 1, -2, 1, 0], [0, 0, 1, 0, 0]]).double()
SRM = torch.stack(  # second differences along a line, in a 3 x 3 and in a 5 x 5 neighbourhood
    [_ONE.outer(_B) / 2, -_B.outer(_B) / 4, -(_A.outer(_A) + 2 * _B.outer(_B)) / 12]
)
# what a checkpoint may describe: a file of some bytes must not make us build a tower of layers
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Width = Annotated[int, Field(ge=1, le=2**16)]
Several = Field(max_length=512)  # layers
HEADER = 2**20  # bytes of a checkpoint's head, names and description: ours have a tenth


@dataclass(frozen=True, config=STRICT)
class Block:
    """Convolution, then BatchNorm, ReLU and perhaps a 2x2 max pool."""

    width: Width
    pool: bool = False
    kernel: Literal[1, 3, 5, 7, 9, 11] = 3
    separable: bool = False  # convolution to `mid` channels in `groups`, then a 1x1 to `width`
    mid: Annotated[int, Field(ge=0, le=2**16)] = 0
    groups: Width = 1


@dataclass(frozen=True, config=STRICT)
class Dense:
    """Dropout, then a linear layer to `width` and a ReLU."""

    width: Width
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, config=STRICT)
class Architecture:
    """Everything that rebuilds a detector's shape. In: 3 x size x size; out: `classes` logits."""

    name: str
    size: Annotated[int, Field(le=4096)]
    blocks: Annotated[tuple[Block, ...], Several]
    head: Annotated[tuple[Dense, ...], Several]
    classes: Literal[2] = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # pixels are normalised inside the model:
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # the deployed file takes those in [0, 1]
    backbone: str = "vgg"  # ours, which blocks and head describe; else see `backbones`
    # of a pruned one of those: layer, inputs, outputs
    shapes: Annotated[tuple[tuple[str, Width, Width], ...], Several] = ()
    # of products of thin layers: layer, then its ranks (see `factors`)
    ranks: Annotated[tuple[tuple[str, Width] | tuple[str, Width, Width], ...], Several] = ()
    # behind which layers adapters stand, how wide, in which form (dflib.adapters)
    adapters: Annotated[tuple[tuple[str, Width, Literal["serial", "residual"]], ...], Several] = ()
    front: str = ""  # srm: the network sees residuals instead of pixels (`Detector.set_front`)

    def to_json(self) -> str:
        """What differs from the defaults."""
        return ARCHITECTURE.dump_json(self, exclude_defaults=True).decode()


ARCHITECTURE = TypeAdapter(Architecture)


class ConvBlock(nn.Sequential):
    """conv (or depthwise + pointwise) -> BatchNorm -> ReLU [-> max pool]."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        size = {"kernel_size": block.kernel, "groups": block.groups}
        size["padding"] = block.kernel // 2  # some runtimes quantize padding="same" wrongly
        if block.separable:
            self.depthwise = nn.Conv2d(inputs, block.mid, **size)
            self.pointwise = nn.Conv2d(block.mid, block.width, 1)
        else:
            self.conv = nn.Conv2d(inputs, block.width, **size)
        self.norm = nn.BatchNorm2d(block.width)
        self.relu = nn.ReLU()
        if block.pool:
            self.pool = nn.MaxPool2d(2)


class Adapter(ConvBlock):
    """Depthwise 3x3 -> 1x1 -> BatchNorm -> ReLU (arXiv 2504.21066). residual: relu(x + y), where y
    is zero at first: x, a ReLU's output, comes out."""

    def __init__(self, width: int, *, residual: bool) -> None:
        super().__init__(width, Block(width, separable=True, mid=width, groups=width))
        self.residual = residual
        if residual:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.pointwise(self.depthwise(x)))
        return self.relu(x + y if self.residual else y)


class Detector(nn.Module):
    """A detector as its `Architecture` says: pixels in [0, 1], N x 3 x H x W -> logits, N x 2.

    pretrained: the weights that another's network begins with (`backbones.split`).

    >>> Detector(architecture("BL", size=32))(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 2])
    """

    def __init__(self, arch: Architecture, pretrained: str = "") -> None:
        super().__init__()
        if arch.size % 32 or arch.size < 32:
            raise InputError(f"image size {arch.size} is not a multiple of 32 (halved 5 times)")
        self.arch = arch
        self.set_front(arch.front)
        for name, values in (("mean", arch.mean), ("std", arch.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        foreign = arch.backbone != "vgg" and (arch.backbone, arch.size, pretrained)
        self.features, self.head = backbones.split(*foreign) if foreign else _stack(arch)
        for name, inputs, outputs in arch.shapes:
            _resize(self.get_submodule(name), inputs, outputs)
        for name, *ranks in arch.ranks:
            self.set_submodule(name, factors(self.get_submodule(name), ranks))
        for name, width, form in arch.adapters:
            layer = self.get_submodule(name)
            layer.adapter = Adapter(width, residual=form == "residual")
            if foreign:  # what it gives may be negative
                layer.adapter.relu = nn.Identity()
            if not isinstance(layer, nn.Sequential):  # that calls its last child by itself
                layer.register_forward_hook(lambda layer, _, z: layer.adapter(z))

    def set_front(self, front: str) -> None:
        """What the network sees: "" is the pixels, "srm" high-pass residuals of the grey image
        (Fridrich and Kodovsky 2012; in a network: arXiv 1805.04953)."""
        self.arch = replace(self.arch, front=choose("front end", front, ("", "srm")))
        self.register_buffer("filters", SRM.float()[:, None] if front else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.arch.front:
            grey = nn.functional.pad(x.mean(1, keepdim=True), (2, 2, 2, 2), mode="reflect")
            x = (nn.functional.conv2d(grey, self.filters) * (255 / REACH)).clamp(-1, 1)
        else:
            x = (x - self.mean) / self.std
        return self.head(self.features(x).flatten(1))


def fused(model: Detector) -> nn.Module:
    """For inference on a CPU: channels_last, BatchNorm folded into the convolutions."""
    from torch.fx.experimental.optimization import fuse

    plain = backbones.plain(model.eval())
    with suppress(torch.fx.proxy.TraceError):  # the exporter folds what it can
        plain = fuse(plain)
    with suppress(RuntimeError):  # it has a tensor of five dimensions
        plain.to(memory_format=torch.channels_last)
    return plain


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


def _resize(layer: nn.Module, inputs: int, outputs: int) -> None:
    """Other numbers of channels, freshly initialised (a depthwise convolution stays one)."""
    depthwise = getattr(layer, "groups", 1) > 1
    sides = {"in_channels": inputs, "in_features": inputs, "out_channels": outputs}
    sides |= {"out_features": outputs, "num_features": outputs, "normalized_shape": (outputs,)}
    sides |= {"groups": outputs} if depthwise else {}
    for name in sides.keys() & vars(layer).keys():
        setattr(layer, name, sides[name])
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if tensor.ndim:  # not a counter
            shape = (outputs, 1 if depthwise else inputs, *tensor.shape[2:])[: tensor.ndim]
            fresh = tensor.detach().new_empty(shape)
            setattr(layer, name, nn.Parameter(fresh) if name in layer._parameters else fresh)
    layer.reset_parameters()


def factors(layer: nn.Module, ranks: Sequence[int]) -> nn.Sequential:
    """Fresh thin layers in place of a linear or 1x1 one (a rank) or another convolution (two)."""
    bias, (first, last) = layer.bias is not None, (ranks[0], ranks[-1])
    if isinstance(layer, nn.Linear):
        thin = nn.Linear(layer.in_features, first, bias=False)
        return nn.Sequential(thin, nn.Linear(last, layer.out_features, bias))
    if len(ranks) == 1:
        thin = nn.Conv2d(layer.in_channels, first, 1, layer.stride, bias=False)
        return nn.Sequential(thin, nn.Conv2d(first, layer.out_channels, 1, bias=bias))
    same = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation")}
    core = nn.Conv2d(first, last, **same, bias=False)
    thin = nn.Conv2d(layer.in_channels, first, 1, bias=False)
    return nn.Sequential(thin, core, nn.Conv2d(last, layer.out_channels, 1, bias=bias))


def _block(word: str) -> Block:
    """A word of `STACKS`: "64" (width), "64M" (then a pool), "64:32:64" (mid:groups:width)."""
    *separable, width = map(int, word.rstrip("M").split(":"))
    mid, groups = separable or (0, 1)
    return Block(width, word.endswith("M"), separable=bool(separable), mid=mid, groups=groups)


def architecture(name: str, *, size: int = 224, backbone: str = "vgg") -> Architecture:
    """The baseline "BL" or a student of the paper, "S60" … "S90"; size: a multiple of 32.

    backbone: of BL, another's network instead of ours. Raises `InputError` for other names.

    >>> parameters(Detector(architecture("S90")))
    441378
    """
    choose("model", name, STACKS)
    if backbone != "vgg" and name == "BL":
        mean, std = backbones.normalisation(backbone)
        return Architecture(name, size, (), (), mean=mean, std=std, backbone=backbone)
    stack, hidden = STACKS[name]
    blocks = tuple(_block(word) for word in stack.split())
    return Architecture(name, size, blocks, tuple(Dense(width, dropout=0.5) for width in hidden))


def student(rate: float, *, size: int = 224, backbone: str = "vgg") -> Architecture:
    """The student with a share `rate` of BL's parameters removed, 0 < rate < 1.

    For the paper's rates at 224 px and its BL: the paper's own. Otherwise the nearest of them,
    scaled to within 1 % of the target, in widths that are multiples of 16 where possible. Raises
    `InputError` for a rate that cannot be met.

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
    most = 1 - count(scaled(arch, 1 / 32)) / full
    raise InputError(
        f"rate {rate} cannot be met within 1 % at {size} px: rates up to about {most:.5f} can"
    )


def _fitting(arch: Architecture, target: float, step: int) -> Architecture:
    """`arch` scaled towards `target` parameters, in widths that are multiples of `step`."""
    low, high = 1 / 32, 32.0
    for _ in range(16):  # bisect the factor on the rounded widths
        middle = (low * high) ** 0.5
        low, high = (middle, high) if count(scaled(arch, middle, step)) <= target else (low, middle)
    options = [_filled(scaled(arch, factor, step), target) for factor in (low, high)]
    asked = [arch.head[0].width * factor for factor in (low, high)]
    strain = [abs(math.log(o.head[0].width / n)) for o, n in zip(options, asked, strict=True)]
    return options[strain.index(min(strain))]


def _filled(arch: Architecture, target: float) -> Architecture:
    """The first hidden layer takes up what the steps leave: parameters are affine in its width."""
    first, *rest = arch.head
    wider = replace(arch, head=(replace(first, width=first.width + 1), *rest))
    missing, slope = target - count(arch), count(wider) - count(arch)
    width = max(1, round(first.width + missing / slope))
    return replace(arch, head=(replace(first, width=width), *rest))


def scaled(arch: Architecture, factor: float, step: int = 1) -> Architecture:
    """Every width times `factor`, as a multiple of `step`."""
    return _with_widths(arch, lambda layer, width: max(1, round(width * factor / step)) * step)


def _with_widths(arch: Architecture, width: Callable[[str, int], int]) -> Architecture:
    """`arch` with width(layer's name, its width) everywhere; depthwise layers stay depthwise."""
    blocks, channels = [], 3
    for i, block in enumerate(arch.blocks):
        groups, mid = 1, block.mid and width(f"features.{i}.depthwise", block.mid)
        if block.groups > 1:  # a group for each input, with as many channels as before
            groups, mid = channels, channels * (block.mid // block.groups)
        channels = width(f"features.{i}.norm", block.width)
        blocks.append(replace(block, width=channels, mid=mid, groups=groups))
    head = [replace(d, width=width(f"head.{3 * i + 1}", d.width)) for i, d in enumerate(arch.head)]
    return replace(arch, blocks=tuple(blocks), head=tuple(head))


def fitted(arch: Architecture, tensors: dict[str, Tensor]) -> Architecture:
    """`arch` with the widths of `tensors`, a state dict cut in width: describes a pruned model."""
    shape = {k.removesuffix(".weight"): tuple(t.shape) for k, t in tensors.items()}
    if arch.backbone == "vgg":
        return _with_widths(arch, lambda layer, width: shape[layer][0])
    with torch.device("meta"):
        layers = dict(Detector(replace(arch, shapes=())).named_modules())
    cut = []
    for name, after in shape.items():
        if name in layers and after != layers[name].weight.shape:
            tied = len(after) == 1 or getattr(layers[name], "groups", 1) > 1  # as many in as out
            cut.append((name, after[0] if tied else after[1], after[0]))
    return replace(arch, shapes=tuple(cut))


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
    """Write weights as safetensors, the architecture in the metadata; atomically, no pickle."""
    return write(path, model.state_dict(), architecture=model.arch.to_json())


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    """Write tensors as a file that `load` knows; atomically."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with written(Path(path)) as new:
        save_file(tensors, new, metadata={"format": FORMAT, **metadata})
    return Path(path)


def load(path: Path, *, base: Detector | None = None) -> Detector:
    """Rebuild a detector from its checkpoint, in eval mode, on the CPU.

    base: the model that a file of differences belongs to (`adapters.save_delta`). Raises
    `InputError` for a file that is missing, damaged, not ours, or of another base.
    """
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path} is not there: python -m dflib results lists the runs")
    try:
        with Path(path).open("rb") as file:
            if (header := int.from_bytes(file.read(8), "little")) > HEADER:
                raise ValueError(f"a header of {header:,} bytes")
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        what = f"damaged or not a safetensors file ({short(str(error), 200)})"
        raise InputError(f"checkpoint {path} is {what}: make the run again") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"checkpoint {path} is not one of dflib's")
    theirs, ours = metadata.get("base", "none")[:20], fingerprint(base) if base else "none"
    if theirs != ours:
        hint = "a file of differences needs its own: dflib.models.load(path, base=model)"
        raise InputError(f"checkpoint {path} has the base {theirs}, not {ours}: {hint}")
    tensors = base.state_dict() | tensors if base else tensors
    try:
        return _built(metadata.get("architecture"), tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        wrong = f"weights and architecture do not fit ({short(str(error), 200)})"
        raise InputError(f"checkpoint {path}: {wrong}") from error


def _built(architecture: str | None, tensors: dict[str, Tensor]) -> Detector:
    """The detector of an architecture (JSON); shapes are compared before anything is allocated."""
    arch = ARCHITECTURE.validate_json(architecture[:HEADER])
    with torch.device("meta"), torch.inference_mode():
        twin = Detector(arch).eval()
        twin(torch.empty(1, 3, arch.size, arch.size))
    told = lambda t: (*t.shape, "float" if t.is_floating_point() else t.dtype)
    ours, theirs = ({k: told(t) for k, t in d.items()} for d in (twin.state_dict(), tensors))
    for name in sorted(ours | theirs):
        if ours.get(name) != theirs.get(name):
            raise ValueError(f"{name}: {ours.get(name)} described, {theirs.get(name)} there")
    model = Detector(arch)
    model.load_state_dict(tensors)
    return model.eval()


def fingerprint(model: nn.Module) -> str:
    """Hash of all weights and buffers: which model a file of differences belongs to."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
