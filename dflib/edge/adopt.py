"""A detector that is there already, in ONNX, as a file that this workbook can evaluate."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper

from data_prep.errors import InputError, short
from dflib import backbones
from dflib.export import OnnxModel, read

SQUASH = ("Softmax", "Sigmoid")  # at the end: what comes before is taken, the logits


def onnx_file(
    file: Path,
    *,
    size: int,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    fake_index: int = 1,
    name: str = "",
) -> str:
    """Keep an ONNX detector as one of ours (`pixels` in [0, 1] -> `logits`: real, fake): its name.

    mean, std: what its pixels are normalised by. fake_index: which of its two outputs is for fakes;
    of one output, 1 where a positive one says fake, else 0. A last softmax or sigmoid is left out.
    Raises `InputError` for another contract: images, N x 3 x H x W -> N x 2 or N x 1.
    """
    if fake_index not in (0, 1):
        raise InputError(f"--fake-index {fake_index}: expected 0 or 1")
    if len(mean) != 3 or len(std) != 3 or not (np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise InputError(f"--mean {mean} --std {std}: expected three numbers each, std above 0")
    try:
        model = read(file, external=True)  # before any of it runs
        outputs = _outputs(file, size)
    except InputError:
        raise
    except Exception as error:  # onnx, protobuf and ONNX Runtime have their own kinds
        raise InputError(f"{file} cannot be loaded: {short(str(error), 200)}") from error
    model = compose.add_prefix(model, "theirs/")  # its own names may be ours
    _before(model.graph, size, mean, std)
    _after(model.graph, outputs, fake_index)
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / f"{name or file.stem}.onnx"
        onnx.save(model, new)
        OnnxModel(new)(torch.rand(2, 3, size, size))  # raises for what it cannot run
        return backbones.kept(new)


def _outputs(file: Path, size: int) -> int:
    """How many outputs an image has, 1 or 2, 0 for a bare number; found by running one."""
    session = backbones.session(file)
    inputs, [output, *others] = session.get_inputs(), session.get_outputs()
    wanted = f"wanted is N x 3 x {size} x {size} (--size) -> N x 2 or N x 1"
    shape = [side if isinstance(side, int) else "any" for side in inputs[0].shape]
    pairs = zip(shape, (1, 3, size, size), strict=False)
    odd = len(shape) != 4 or any(side not in (expected, "any") for side, expected in pairs)
    if len(inputs) > 1 or others or odd:
        there = f"{len(inputs)} inputs, the first {shape}, and {1 + len(others)} outputs"
        raise InputError(f"{file} has {there}; {wanted}")
    found = session.run(None, {inputs[0].name: np.zeros((1, 3, size, size), np.float32)})[0]
    if found.shape not in ((1, 2), (1, 1), (1,)):
        raise InputError(f"{file}: an image gives {found.shape} ({output.name}); {wanted}")
    return found.shape[1] if found.ndim == 2 else 0


def _before(graph, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """A new input `pixels`, and the normalisation between it and the old one."""
    old = graph.input[0].name
    for name, values in {"their_mean": mean, "their_std": std}.items():
        array = np.array(values, np.float32).reshape(1, 3, 1, 1)
        graph.initializer.append(numpy_helper.from_array(array, name))
    shift = helper.make_node("Sub", ["pixels", "their_mean"], ["their_centred"])
    scale = helper.make_node("Div", ["their_centred", "their_std"], [old])
    graph.node.insert(0, shift)
    graph.node.insert(1, scale)
    shape = ["batch", 3, size, size]
    graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape))


def _after(graph, outputs: int, fake_index: int) -> None:
    """A new output `logits`, N x 2: real, then fake."""
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    theirs = last.input[0] if last.op_type in SQUASH else graph.output[0].name
    nodes = []
    if outputs == 0:  # a number an image
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), "their_shape"))
        nodes.append(helper.make_node("Reshape", [theirs, "their_shape"], ["their_column"]))
        theirs = "their_column"
    if outputs == 2:
        order = np.array([1 - fake_index, fake_index])
        graph.initializer.append(numpy_helper.from_array(order, "their_order"))
        nodes.append(helper.make_node("Gather", [theirs, "their_order"], ["logits"], axis=1))
    else:  # the real's logit is 0
        nodes.append(helper.make_node("Sub", [theirs, theirs], ["their_zero"]))
        pair = ["their_zero", theirs] if fake_index else [theirs, "their_zero"]
        nodes.append(helper.make_node("Concat", pair, ["logits"], axis=1))
    graph.node.extend(nodes)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph.output[0].CopyFrom(logits)
