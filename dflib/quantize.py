"""Quantization with ONNX Runtime. `dynamic_linear`: the paper's CQ, int8 weights in the linear
layers only. `static_int8`: convolutions too.

Weights take 7 of the 8 bits: processors without VNNI, and browsers, add pairs of products in 16
bits, where 8 would overflow in silence. So a file says the same on all (ONNX Runtime's
`reduce_range`).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnxruntime.quantization import CalibrationMethod, quantize_dynamic, quantize_static

from data_prep.errors import InputError, choose
from data_prep.paths import written
from dflib.data import Part

CALIBRATIONS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
FEWEST = 16  # calibration images: fewer say too little about an activation's range


def dynamic_linear(source: Path, target: Path) -> Path:
    """An int8 file of an fp32 ONNX file: linear layers alone, activations are quantized on the fly.
    Raises `InputError` when the source is missing, damaged, or has no linear layer.

    >>> dynamic_linear(Path("model.onnx"), Path("model.int8.onnx"))  # doctest: +SKIP
    """
    with _quantizing(source, target) as (model, new):
        how = {"per_channel": True, "reduce_range": True}
        quantize_dynamic(model, new, op_types_to_quantize=["MatMul", "Gemm"], **how)
        if not any(node.op_type == "MatMulInteger" for node in onnx.load(new).graph.node):
            raise InputError(f"{source} has no linear layer to quantize")
    return Path(target)


def static_int8(
    source: Path,
    target: Path,
    part: Part,
    *,
    calibration: str = "minmax",
    images: int = 128,
    keep_float: Sequence[str] = (),
) -> Path:
    """An int8 file of an fp32 ONNX file: convolutions and linear layers, QDQ, weights per channel.

    part: *training* images, of which up to `images` give each activation its range (arXiv
    1806.08342), by one of CALIBRATIONS. keep_float: names of `layers` that stay in float. So does
    the last one (with 8-bit logits many images would share a score), and what comes before the
    first. Raises `InputError` when the source is missing, damaged or has nothing to quantize, or
    for too few calibration images.

    >>> static_int8(Path("model.onnx"), Path("int8.onnx"), data.train)  # doctest: +SKIP
    """
    choose("calibration", calibration, CALIBRATIONS)
    reader = _Reader(calibration_images(part, images))
    with _quantizing(source, target) as (model, new):
        found, nodes = layers(source), [node.name for node in model.graph.node]
        in_float = {choose("layer", name, found) for name in keep_float} | {*list(found)[-1:]}
        if not found.keys() - in_float:
            raise InputError(f"{source} has no layer left to quantize, of {len(found)} in all")
        before = nodes[: nodes.index(next(iter(found.values())))]
        quantize_static(
            model,
            new,
            reader,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CALIBRATIONS[calibration],
            nodes_to_exclude=[*before, *(found[name] for name in in_float)],
            # the stride (of all methods) bounds the memory
            extra_options={"CalibTensorRangeSymmetric": False, "CalibStridedMinMax": 1},
        )
    return Path(target)


def layers(source: Path) -> dict[str, str]:
    """Convolutions and linear layers of an fp32 ONNX file, by their names in the model -> nodes; by
    the node's path where the exporter has renamed a weight (it folded a BatchNorm in)."""
    graph = onnx.load(source).graph
    weights = {t.name for t in graph.initializer} - {"filters"}  # of the front end
    found = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    names = {}
    for node in found:
        if (weight := node.input[1]) in weights:
            path = node.name.rpartition("/")[0].strip("/")
            named = weight.endswith(".weight")
            names[weight.removesuffix(".weight") if named else path] = node.name
    return names


def calibration_images(part: Part, images: int) -> np.ndarray:
    """Up to `images` of a part, half of each class, always the same: n x 3 x H x W in [0, 1]."""
    rng, half = np.random.default_rng(0), images // 2
    rows = [rng.permutation(np.flatnonzero(part.labels == label))[:half] for label in (0, 1)]
    found = [len(r) for r in rows]
    if min(found) < FEWEST // 2:
        raise InputError(
            f"{found[0]} real and {found[1]} fake images to calibrate with: at least {FEWEST // 2} "
            f"of each are needed (calibration_images={images}, {len(part)} images in this part)"
        )
    chosen = np.stack([part.image(i) for i in np.sort(np.concatenate(rows))])
    return np.ascontiguousarray(chosen.transpose(0, 3, 1, 2), dtype=np.float32) / 255


class _Reader:
    """Calibration images as ONNX Runtime asks for them, some batches of 8 at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches = [{"pixels": images[i : i + 8]} for i in range(0, len(images), 8)]

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict | None:
        return next(self.left, None)


@contextmanager
def _quantizing(source: Path, target: Path) -> Iterator[tuple[onnx.ModelProto, Path]]:
    """The model in `source`, and a file that becomes `target` when all went well."""
    if not Path(source).is_file():
        raise InputError(f"{source} is not there: export the model first, dflib.export.to_onnx")
    root = logging.getLogger()
    level, root.level = root.level, logging.ERROR  # it recommends what the exporter has done
    try:  # the calibration prints its progress
        with written(Path(target)) as new, redirect_stdout(io.StringIO()):
            model = onnx.load(source)
            if not model.graph.node:
                raise onnx.checker.ValidationError("an empty graph")
            del model.graph.value_info[:]  # before 1.31 the quantizer trips over old shapes
            yield model, new
    except (onnx.checker.ValidationError, DecodeError) as error:
        raise InputError(f"{source} is damaged or no ONNX file: export the model again") from error
    finally:
        root.level = level


def quantize_array(values: np.ndarray, *, bits: int = 8) -> tuple[np.ndarray, float]:
    """Symmetric uniform: integers q and a scale s, values ~ s * q, |q| <= 2^(bits-1) - 1.

    >>> q, s = quantize_array(np.array([-1.0, 0.0, 0.5]))
    >>> q.tolist()
    [-127, 0, 64]
    """
    levels = 2 ** (bits - 1) - 1
    scale = float(np.abs(values).max(initial=0)) / levels or 1.0
    return np.clip(np.rint(values / scale), -levels, levels).astype(np.int32), scale
