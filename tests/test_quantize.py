"""Int8: the error bound of uniform quantization, and what ONNX Runtime makes of the linear layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from data_prep.errors import InputError
from dflib import export, quantize, train


@given(
    values=arrays(np.float64, array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-100)),
    bits=st.integers(2, 16),
)  # fmt: skip
def test_the_error_is_half_a_step_at_most(values, bits):
    q, scale = quantize.quantize_array(values, bits=bits)
    assert q.shape == values.shape
    assert np.issubdtype(q.dtype, np.integer)
    assert np.abs(q).max(initial=0) <= 2 ** (bits - 1) - 1
    assert np.abs(q * scale - values).max(initial=0) <= scale / 2 * (1 + 1e-9)
    assert scale == (np.abs(values).max() / (2 ** (bits - 1) - 1) if values.any() else 1.0)
    assert (np.sign(q) * np.sign(values) >= 0).all()


def test_whole_steps_are_exact():
    steps = np.arange(-127, 128)
    for scale in (0.5, 3.0, 1e-3):
        q, found = quantize.quantize_array(steps * scale)
        assert found == pytest.approx(scale)
        assert np.array_equal(q, steps)


@pytest.mark.parametrize("bits", [1, 0, 17, -8])
def test_bits_are_checked(bits):
    with pytest.raises(InputError, match=f"{bits} bits: 2 to 16"):
        quantize.quantize_array(np.ones(3), bits=bits)


@pytest.fixture(scope="module")
def int8(exported, tmp_path_factory):
    before = exported["onnx"].read_bytes()
    path = quantize.dynamic_linear(exported["onnx"], tmp_path_factory.mktemp("int8") / "model.int8.onnx")
    assert exported["onnx"].read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.int8.onnx"]
    return path


def nodes(path, *kinds: str) -> int:
    return sum(node.op_type in kinds for node in onnx.load(path).graph.node)


def test_the_three_linear_layers_become_int8_and_the_convolutions_stay_float(exported, int8):
    assert nodes(int8, "MatMulInteger") == nodes(exported["onnx"], "Gemm", "MatMul") == 3
    assert nodes(int8, "Gemm", "MatMul", "ConvInteger", "QLinearConv") == 0
    assert nodes(int8, "Conv") == nodes(exported["onnx"], "Conv") == 4
    weights = {i.name: i for i in onnx.load(int8).graph.initializer}
    kinds = {
        i: weights[i].data_type
        for node in onnx.load(int8).graph.node
        if node.op_type == "Conv"
        for i in node.input
        if i in weights
    }
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT}
    large = [i for i in weights.values() if np.prod(i.dims) == 1024 * 256]
    assert [i.data_type for i in large] == [onnx.TensorProto.INT8]


def test_the_weights_are_rounded_to_half_a_step_per_channel(exported, int8):
    weights = {tuple(i.dims): onnx.numpy_helper.to_array(i) for i in onnx.load(int8).graph.initializer}
    q, ours = weights[(1024, 256)].astype(np.float64), exported["model"].head[1].weight.detach().double().numpy().T
    scale = np.abs(ours).max(0) / 127
    assert np.abs(q * scale - ours).max() <= scale.max() * 0.51


def test_the_file_is_smaller_by_what_the_linear_layers_lose(exported, int8):
    linear = sum(m.weight.numel() for m in exported["model"].modules() if isinstance(m, torch.nn.Linear))
    saved = exported["onnx"].stat().st_size - int8.stat().st_size
    assert saved == pytest.approx(3 * linear, rel=0.05)


def test_the_logits_stay_close(exported, int8, toy):
    data = toy()
    x = torch.cat([train.pixels(x) for x, _ in data.train.batches(64)])
    before, after = exported["model"](x).detach(), export.OnnxModel(int8)(x)
    assert after.shape == before.shape
    difference = (before - after).abs().max().item()
    assert 1e-6 < difference < 0.1 * (before.max() - before.min()).item()  # it is rounded, and not by much


def test_what_cannot_be_quantized_is_named_and_leaves_nothing(exported, tmp_path):
    target = tmp_path / "model.int8.onnx"
    with pytest.raises(InputError, match=r"nowhere\.onnx is not there: export the model first"):
        quantize.dynamic_linear(tmp_path / "nowhere.onnx", target)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported["onnx"].read_bytes()[:1000])
    with pytest.raises(InputError, match=r"damaged\.onnx is damaged or no ONNX file"):
        quantize.dynamic_linear(damaged, target)
    damaged.unlink()
    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "relu.onnx"
    )
    with pytest.raises(InputError, match=r"relu\.onnx has no linear layer"):
        quantize.dynamic_linear(tmp_path / "relu.onnx", target)
    assert [p.name for p in tmp_path.iterdir()] == ["relu.onnx"]
