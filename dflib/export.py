"""Files that run elsewhere: ONNX, checked against the model they came from."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.errors import InputError
from dflib.data import Part
from dflib.models import Detector
from dflib.train import full_precision, pixels

log = logging.getLogger(__name__)


def to_onnx(model: Detector, path: Path) -> Path:
    """Write an fp32 ONNX file: input `pixels`, float32 in [0, 1], batch x 3 x size x size; output `logits`, batch x 2.

    Normalisation is inside, BatchNorm is folded into the convolutions. Written atomically; `model` stays as it is.

    >>> to_onnx(model, Path("detector.onnx"))                       # doctest: +SKIP
    """
    path, size = Path(path), model.arch.size
    device, training = next(model.parameters()).device, model.training
    model.cpu().eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its internals
            program = torch.onnx.export(
                model,
                (torch.rand(2, 3, size, size),),
                dynamo=True,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    finally:
        model.to(device).train(training)
    new = path.with_name(path.name + ".new")
    program.save(new, external_data=False)
    new.replace(path)
    return path


class OnnxModel:
    """A deployed file as `train.predict` takes it: pixels in [0, 1], N x 3 x H x W -> logits, N x 2.

    Raises `InputError` when the file is missing, ONNX Runtime cannot load it, or it is no detector.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads  # 0: ONNX Runtime's own choice
        options.log_severity_level = 3
        if not Path(path).is_file():
            raise InputError(f"model file {path} is not there")
        try:
            self.session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base of their own
            raise InputError(
                f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}"
            ) from error
        nodes = (*self.session.get_inputs(), *self.session.get_outputs())
        side = nodes[0].shape[-1] if nodes[0].shape else None
        if not isinstance(side, int) or [node.shape[1:] for node in nodes] != [
            [3, side, side],
            [2],
        ]:
            raise InputError(
                f"{path} is not one of dflib's detectors: its inputs and outputs are {[node.shape for node in nodes]}, not batch x 3 x size x size and batch x 2"
            )
        self.input, self.size = nodes[0].name, side

    def __call__(self, images: Tensor) -> Tensor:
        values = np.ascontiguousarray(images.numpy(), dtype=np.float32)
        return torch.from_numpy(self.session.run(None, {self.input: values})[0])


def parity(model: Detector, path: Path, part: Part, *, limit: int = 256) -> dict:
    """Largest difference in logits, and share of equal decisions, between a model and its file on up to `limit` images."""
    session, model = OnnxModel(path), model.eval()
    images = torch.from_numpy(
        np.stack(
            [
                part.image(i)
                for i in np.linspace(0, len(part) - 1, min(limit, len(part))).astype(int)
            ]
        )
    )
    x = pixels(images.permute(0, 3, 1, 2))
    device = next(model.parameters()).device
    with torch.inference_mode(), full_precision():
        ours, theirs = model(x.to(device)).cpu(), session(x)
    return {
        "max_logit_difference": (ours - theirs).abs().max().item(),
        "same_decisions": (ours.argmax(1) == theirs.argmax(1)).float().mean().item(),
        "images": len(x),
    }
