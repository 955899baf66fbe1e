"""Quantization with ONNX Runtime. `dynamic_linear`: the paper's CQ, int8 weights in the linear layers only."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from data_prep.errors import InputError


def dynamic_linear(source: Path, target: Path) -> Path:
    """Quantize the linear layers of an fp32 ONNX file to int8 (weights per channel beforehand, activations on the fly).

    Convolutions stay in float. Written atomically. Raises `InputError` when the source is missing, damaged, or has no linear layer.

    >>> dynamic_linear(Path("model.onnx"), Path("model.int8.onnx"))  # doctest: +SKIP
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not Path(source).is_file():
        raise InputError(f"{source} is not there: export the model first, dflib.export.to_onnx")
    new = Path(target).with_name(Path(target).name + ".new")
    root = logging.getLogger()
    level, root.level = root.level, logging.ERROR  # it recommends a step that shape-infers, which the exporter has done
    try:
        quantize_dynamic(
            source, new, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8, per_channel=True
        )
    except onnx.checker.ValidationError as error:
        raise InputError(
            f"{source} is damaged or no ONNX file: export the model again, dflib.export.to_onnx"
        ) from error
    finally:
        root.level = level
    if not any(node.op_type == "MatMulInteger" for node in onnx.load(new).graph.node):
        new.unlink()
        raise InputError(f"{source} has no linear layer to quantize")
    new.replace(target)
    return Path(target)


def quantize_array(values: np.ndarray, *, bits: int = 8) -> tuple[np.ndarray, float]:
    """Symmetric uniform quantization: integers q and a scale s with values ~ s * q, |q| <= 2^(bits-1) - 1.

    >>> q, s = quantize_array(np.array([-1.0, 0.0, 0.5]))
    >>> q.tolist()
    [-127, 0, 64]
    """
    if not 2 <= bits <= 16:
        raise InputError(f"{bits} bits: 2 to 16 can be had")
    levels = 2 ** (bits - 1) - 1
    scale = float(np.abs(values).max(initial=0)) / levels or 1.0
    return np.clip(np.rint(values / scale), -levels, levels).astype(np.int32), scale
