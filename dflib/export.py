"""Files that run elsewhere: ONNX, checked against the model they came from."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from data_prep.errors import InputError, short
from data_prep.paths import written
from dflib.backbones import OnnxNetwork, session
from dflib.data import Part
from dflib.models import Detector, fused
from dflib.train import Forward, logits

MARK = "written_by_dflib_export"  # in each file: such a one may be replaced (edge.files)
MOST = 2**28  # numbers in a tensor: the first layer of BL at 2,048 pixels
SAME_SCORE = 1e-5  # of a probability: on the threshold itself, rounding alone decides
SAME_LOGITS = 1e-3  # that a float file may differ by, in units of the largest logit or of 1
SAME_DECISIONS = 0.98  # of an int8 file: below, it is flagged


def to_onnx(model: Detector, path: Path) -> Path:
    """Write an fp32 ONNX file: `pixels` in [0, 1], batch x 3 x size x size -> `logits`, batch x 2.

    Normalisation is inside, BatchNorm is folded into the convolutions. Written atomically; `model`
    stays as it is. The same model gives the same bytes. `InputError` where it cannot be exported.

    >>> to_onnx(model, Path("detector.onnx"))  # doctest: +SKIP
    """
    if isinstance(model.features, OnnxNetwork):
        with written(Path(path)) as new:
            _mark(model.features.file, new)
        return Path(path)
    image = torch.rand(2, 3, model.arch.size, model.arch.size)
    device, training = next(model.parameters()).device, model.training
    model.cpu().eval()
    try:
        with written(Path(path)) as new, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its internals
            torch.onnx.export(
                fused(model),
                (image,),
                new,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=18,
                dynamo=False,  # 0.1 s instead of 3 s, and the same from torch 2.6 to 2.14
            )
            _mark(new, new)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:  # of another's network
        why = short(str(error).partition("\n")[0], 200)
        raise InputError(f"{model.arch.backbone} cannot be exported to ONNX: {why}") from error
    finally:
        model.to(device).train(training)
    return Path(path)


def _mark(file: Path, marked: Path) -> None:
    model = onnx.load(file)
    model.metadata_props.add(key=MARK, value="1")
    onnx.save(model, marked)


class OnnxModel:
    """A deployed file as `train.predict` takes it: pixels in [0, 1], N x 3 x H x W -> logits.

    It sees one image at a time, as where it is used: dynamic int8 has one activation scale for a
    batch. Raises `InputError` when the file is missing, cannot be loaded, or is no detector.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            read(path)
            self.session = session(path, threads=1)
        except Exception as error:  # its exceptions have no common base of their own
            why = short(str(error), 200)
            raise InputError(f"ONNX Runtime cannot load {path}: {why}") from error
        nodes = (*self.session.get_inputs(), *self.session.get_outputs())
        shapes, self.input = [node.shape for node in nodes], nodes[0].name
        self.size = side = (shapes[0] or [None])[-1]
        ours = [shape[1:] for shape in shapes] == [[3, side, side], [2]]
        if not ours or not isinstance(side, int) or side > 4096:
            told = f"inputs and outputs are {shapes}, not batch x 3 x size x size and batch x 2"
            raise InputError(f"{path} is not one of dflib's detectors: {told}")

    def __call__(self, images: Tensor) -> Tensor:
        values = np.ascontiguousarray(images.numpy(), dtype=np.float32)
        one = lambda image: self.session.run(None, {self.input: image[None]})[0]
        try:
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                return torch.from_numpy(np.stack([*threads.map(one, values)]).reshape(-1, 2))
        except Exception as error:  # as above; a shape other than the one that it declares
            raise InputError(f"{self.path} cannot be run: {short(str(error), 200)}") from error


def read(path: Path, *, external: bool = False) -> onnx.ModelProto:
    """An ONNX file; `ValueError` for one that reads others (but external), branches or is giant."""
    if not Path(path).is_file():
        raise ValueError(f"{Path(path).name} is not there")
    if Path(path).stat().st_size > 2**31:  # protobuf's own limit
        raise ValueError("it has more than 2 GB")
    file = onnx.load(path, load_external_data=external)
    values = [value for node in file.graph.node for value in node.attribute]
    tensors = [*file.graph.initializer]
    for value in values:
        tensors += [value.t, *value.tensors]
    if any(t.external_data or t.data_location for t in tensors):
        raise ValueError("it keeps its weights in another file")
    if file.functions or any(value.HasField("g") or value.graphs for value in values):
        raise ValueError("it has graphs in its graph")
    inferred = onnx.shape_inference.infer_shapes(file, data_prop=True).graph
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        sides = [max(1, side.dim_value) for side in value.type.tensor_type.shape.dim]
        if math.prod(sides) > MOST:
            raise ValueError(f"{value.name[:50]} would hold {math.prod(sides):.1g} numbers")
    return file


def parity(
    model: Detector,
    session: Forward,
    part: Part,
    *,
    threshold: float = 0.5,
    limit: int | None = None,
) -> dict:
    """Largest difference in logits, share of equal decisions: a model and its file, on a part.
    limit: on so many of its images, evenly spaced. `judged` says what the figures mean."""
    rows = np.linspace(0, len(part) - 1, min(limit or len(part), len(part))).astype(int)
    part = replace(part, table=part.table.iloc[rows])
    ours, theirs = (logits(forward, part, batch=64) for forward in (model, session))
    mine, other = (found.softmax(1)[:, 1] for found in (ours, theirs))
    same = ((mine >= threshold) == (other >= threshold)) | ((mine - other).abs() < SAME_SCORE)
    return {
        "max_logit_difference": (ours - theirs).abs().max().item(),
        "same_decisions": same.float().mean().item(),
        "images": len(part),
        "largest_logit": ours.abs().max().item(),
    }


def judged(same: dict, *, exact: bool = True) -> str | None:
    """Whether a file is its model's, by their `parity`: None, or a flag in words.

    exact: a float file; `InputError` where it differs by more than `SAME_LOGITS`, or in a decision
    (a NaN is a difference). An int8 file is flagged below `SAME_DECISIONS`.
    """
    off, alike = same["max_logit_difference"], same["same_decisions"]
    if exact and not (off <= SAME_LOGITS * max(1.0, same["largest_logit"]) and alike == 1):
        may = f"a float file may differ by {SAME_LOGITS:g} of the largest logit, in no decision"
        what = "the exported file does not compute the model"
        raise InputError(f"refused: {what} ({told(same)}; {may})")
    return None if alike >= SAME_DECISIONS else f"check before use: {told(same)}"


def told(same: dict) -> str:
    """A `parity` in words."""
    most, alike = same["max_logit_difference"], same["same_decisions"]
    return f"logits differ by up to {most:.2g}, {alike:.2%} of {same['images']} decisions are equal"
