"""Quantization with ONNX Runtime. `dynamic_linear`: the paper's CQ, int8 weights in the linear layers only. `static_int8`: convolutions too."""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.errors import InputError, choose

if TYPE_CHECKING:
    import pandas as pd

    from dflib.data import Part

CALIBRATIONS = ("minmax", "entropy", "percentile")
FEWEST = 16  # calibration images: fewer say too little about an activation's range
_BATCH = 8


def dynamic_linear(source: Path, target: Path) -> Path:
    """Quantize the linear layers of an fp32 ONNX file to int8 (weights per channel beforehand, activations on the fly).

    Convolutions stay in float. Written atomically. Raises `InputError` when the source is missing, damaged, or has no linear layer.

    >>> dynamic_linear(Path("model.onnx"), Path("model.int8.onnx"))  # doctest: +SKIP
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _written(source, target) as (own, new):
        quantize_dynamic(
            own,
            new,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
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
    """Quantize convolutions and linear layers of an fp32 ONNX file to int8: QDQ, weights per channel, activations by calibration.

    part: *training* images, of which up to `images` (as many of each class, always the same) give each activation its range: by its
    extremes ("minmax"), the least Kullback-Leibler divergence ("entropy") or the 99.999th percentile ("percentile"); Krishnamoorthi 2018,
    arXiv 1806.08342. keep_float: layers to leave in float, by their names in `layers`. The last one always is: with 8-bit logits many
    images would share a score. So is all that comes before the first: normalisation, or a front end. Written atomically.
    Raises `InputError` when the source is missing, damaged or has nothing to quantize, for an unknown calibration or layer, or when the
    calibration images are fewer than 16 or of one class.

    >>> static_int8(Path("model.onnx"), Path("model.int8.onnx"), data.train, calibration="entropy")  # doctest: +SKIP
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    choose("calibration", calibration, CALIBRATIONS)
    reader = _Reader(calibration_images(part, images))
    methods = (CalibrationMethod.MinMax, CalibrationMethod.Entropy, CalibrationMethod.Percentile)
    with _written(source, target) as (own, new):
        nodes = layers(source)
        for name in keep_float:
            choose("layer", name, nodes)
        last = list(nodes)[-1:]
        if not set(nodes) - {*keep_float, *last}:
            raise InputError(
                f"{source} has no layer left to quantize: {len(nodes)} in all, {len(keep_float)} kept in float"
            )
        quantize_static(
            own,
            new,
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[CALIBRATIONS.index(calibration)],
            nodes_to_exclude=[
                *_before(source, next(iter(nodes.values()))),
                *(nodes[name] for name in (*keep_float, *last)),
            ],
            extra_options={
                "CalibTensorRangeSymmetric": False,
                "CalibStridedMinMax": 1,
            },  # the stride (of all methods) bounds the memory
        )
    return Path(target)


def layers(source: Path) -> dict[str, str]:
    """Names of the convolutions and linear layers of an fp32 ONNX file, as in the model that it came from -> names of their nodes."""
    import onnx

    graph = onnx.load(source).graph
    weights = {t.name for t in graph.initializer}
    weights.discard("filters")  # of the front end
    found = [
        n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in weights
    ]
    return {n.input[1].removesuffix(".weight"): n.name for n in found}


def _before(source: Path, node: str) -> list[str]:
    """Names of the nodes that come before one."""
    import onnx

    names = [n.name for n in onnx.load(source).graph.node]
    return names[: names.index(node)]


def calibration_images(part: Part, images: int) -> np.ndarray:
    """Up to `images` images of a part, half of each class, always the same: float32 in [0, 1], n x 3 x H x W."""
    rng, half = np.random.default_rng(0), images // 2
    rows = [rng.permutation(np.flatnonzero(part.labels == label))[:half] for label in (0, 1)]
    found = [len(r) for r in rows]
    if min(found) < FEWEST // 2:
        raise InputError(
            f"{found[0]} real and {found[1]} fake images to calibrate with: at least {FEWEST // 2} of each are needed "
            f"(calibration_images={images}, {len(part)} images in this part)"
        )
    chosen = np.stack([part.image(i) for i in np.sort(np.concatenate(rows))])
    return np.ascontiguousarray(chosen.transpose(0, 3, 1, 2), dtype=np.float32) / 255


def signal_to_noise(
    source: Path, quantized: Path, part: Part, *, images: int = FEWEST
) -> pd.DataFrame:
    """What each layer lost, in decibels (20: the noise is a tenth of the signal; 40: a hundredth). One row a layer, in order.

    Columns: weights (its own rounding), output (what it puts out in `quantized` against `source`: all noise up to here, on images of `part`).
    NaN: stays in float.

    >>> signal_to_noise(Path("model.onnx"), Path("model.int8.onnx"), data.train)  # doctest: +SKIP
    """
    import onnx
    import pandas as pd
    from onnxruntime.quantization import qdq_loss_debug as debug

    energy: dict[str, np.ndarray] = {}  # of a tensor's signal and of its noise
    batch = calibration_images(part, images)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("quantized.onnx", "float.onnx")]
        copies = [file.with_name(f"copy-{file.name}") for file in files]  # see `_written`
        for path, copy in zip((quantized, source), copies, strict=True):
            shutil.copy(path, copy)
        for path, file in zip(copies, files, strict=True):
            debug.modify_model_output_intermediate_tensors(path, file)
        for i in range(len(batch)):  # one at a time: all activations of both graphs are in memory
            both = [
                debug.collect_activations(str(file), _Reader(batch[i : i + 1])) for file in files
            ]
            for name, tensors in debug.create_activation_matching(*both).items():
                exact, noisy = (tensors[k][0].astype(np.float64) for k in ("float", "post_qdq"))
                energy[name] = energy.get(name, 0) + np.array(
                    [(exact**2).sum(), ((noisy - exact) ** 2).sum()]
                )
        weights = debug.create_weight_matching(*map(str, reversed(copies)))
    decibel = lambda signal, noise: 10 * np.log10(signal / noise) if noise else np.inf
    rounding = {
        name: decibel((w["float"] ** 2).sum(), ((w["dequantized"] - w["float"]) ** 2).sum())
        for name, w in weights.items()
    }
    nodes, rows = onnx.load(source).graph.node, {}
    output, activation = (
        {n.name: n.output[0] for n in nodes},
        {n.input[0]: n.output[0] for n in nodes if n.op_type in ("Relu", "Clip")},
    )
    for layer, node in layers(source).items():
        tensor = activation.get(output[node], output[node])
        rows[layer] = [
            rounding.get(f"{layer}.weight"),
            decibel(*energy[tensor]) if tensor in energy else None,
        ]
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["weights", "output"], dtype=float
    ).rename_axis("layer")


class _Reader:
    """Calibration images as ONNX Runtime asks for them, a batch at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches = [{"pixels": images[i : i + _BATCH]} for i in range(0, len(images), _BATCH)]
        self.set_range(0, len(self.batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict | None:
        return next(self.left, None)

    def __iter__(self) -> Iterator[dict]:
        return self.left


@contextmanager
def _written(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """A copy of `source`, and a file beside `target` that is put in place when all went well; names what is wrong with `source`.

    The copy, as ONNX Runtime writes beside what it reads: two runs may read one file, or it lies in a read-only folder. It is without the shapes of
    intermediate tensors: before version 1.31 the quantizer transposes weights, and then trips over their old shapes.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not Path(source).is_file():
        raise InputError(f"{source} is not there: export the model first, dflib.export.to_onnx")
    new = Path(target).with_name(Path(target).name + ".new")
    root = logging.getLogger()
    level, root.level = (
        root.level,
        logging.ERROR,
    )  # it recommends a step that shape-infers, which the exporter has done
    try:
        # the calibration prints its progress
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            copy, model = Path(folder) / Path(source).name, onnx.load(source)
            del model.graph.value_info[:]
            onnx.save(model, copy)
            yield copy, new
        new.replace(target)
    except (onnx.checker.ValidationError, DecodeError) as error:
        raise InputError(
            f"{source} is damaged or no ONNX file: export the model again, dflib.export.to_onnx"
        ) from error
    finally:
        root.level = level
        new.unlink(missing_ok=True)


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
