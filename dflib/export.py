"""Files that run elsewhere: ONNX, checked against the model they came from."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.errors import InputError
from dflib.data import Part
from dflib.models import Detector, fused
from dflib.train import Forward, logits

SAME_SCORE = 1e-6  # of a probability: on the threshold itself, rounding alone decides


def to_onnx(model: Detector, path: Path) -> Path:
    """Write an fp32 ONNX file: `pixels` in [0, 1], batch x 3 x size x size -> `logits`, batch x 2.

    Normalisation is inside, BatchNorm is folded into the convolutions. Written atomically; `model`
    stays as it is.

    >>> to_onnx(model, Path("detector.onnx"))  # doctest: +SKIP
    """
    size, new = model.arch.size, Path(f"{path}.new")
    device, training = next(model.parameters()).device, model.training
    model.cpu().eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its internals
            torch.onnx.export(
                fused(model),
                (torch.rand(2, 3, size, size),),
                new,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=18,
                dynamo=False,  # 0.1 s instead of 3 s, and the same from torch 2.6 to 2.14
            )
    finally:
        model.to(device).train(training)
    return new.replace(path)


class OnnxModel:
    """A deployed file as `train.predict` takes it: pixels in [0, 1], N x 3 x H x W -> logits.

    Raises `InputError` when the file is missing, cannot be loaded, or is no detector.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if not Path(path).is_file():
            raise InputError(f"model file {path} is not there")
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base of their own
            reason = str(error).splitlines()[0]
            raise InputError(f"ONNX Runtime cannot load {path}: {reason}") from error
        nodes = (*self.session.get_inputs(), *self.session.get_outputs())
        shapes, self.input = [node.shape for node in nodes], nodes[0].name
        self.size = side = (shapes[0] or [None])[-1]
        if [shape[1:] for shape in shapes] != [[3, side, side], [2]] or not isinstance(side, int):
            wanted = "not batch x 3 x size x size and batch x 2"
            raise InputError(
                f"{path} is not one of dflib's detectors: inputs and outputs are {shapes}, {wanted}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        values = np.ascontiguousarray(images.numpy(), dtype=np.float32)
        return torch.from_numpy(self.session.run(None, {self.input: values})[0])


def parity(
    model: Detector,
    session: Forward,
    part: Part,
    *,
    threshold: float = 0.5,
    limit: int | None = None,
) -> dict:
    """Largest difference in logits, share of equal decisions: a model and its file, on a part.

    limit: on so many of its images, evenly spaced.

    >>> parity(model, OnnxModel(path), data.test)["same_decisions"]  # doctest: +SKIP
    """
    rows = np.linspace(0, len(part) - 1, min(limit or len(part), len(part))).astype(int)
    part = replace(part, table=part.table.iloc[rows])
    ours, theirs = (logits(forward, part, batch=64) for forward in (model, session))
    mine, other = (found.softmax(1)[:, 1] for found in (ours, theirs))
    same = ((mine >= threshold) == (other >= threshold)) | ((mine - other).abs() < SAME_SCORE)
    return {
        "max_logit_difference": (ours - theirs).abs().max().item(),
        "same_decisions": same.float().mean().item(),
        "images": len(part),
    }
