"""Int8: the error bound of uniform quantization, and what ONNX Runtime makes of the linear layers."""

from __future__ import annotations

from dataclasses import replace

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
    values=arrays(
        np.float64,
        array_shapes(max_dims=3, max_side=6),
        elements=st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-100),
    ),
    bits=st.integers(2, 16),
)
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
    path = quantize.dynamic_linear(
        exported["onnx"], tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    )
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
    weights = {
        tuple(i.dims): onnx.numpy_helper.to_array(i) for i in onnx.load(int8).graph.initializer
    }
    q, ours = (
        weights[(1024, 256)].astype(np.float64),
        exported["model"].head[1].weight.detach().double().numpy().T,
    )
    scale = np.abs(ours).max(0) / 127
    assert np.abs(q * scale - ours).max() <= scale.max() * 0.51


def test_the_file_is_smaller_by_what_the_linear_layers_lose(exported, int8):
    linear = sum(
        m.weight.numel() for m in exported["model"].modules() if isinstance(m, torch.nn.Linear)
    )
    saved = exported["onnx"].stat().st_size - int8.stat().st_size
    assert saved == pytest.approx(3 * linear, rel=0.05)


def test_the_logits_stay_close(exported, int8, toy):
    data = toy()
    x = torch.cat([train.pixels(x) for x, _ in data.train.batches(64)])
    before, after = exported["model"](x).detach(), export.OnnxModel(int8)(x)
    assert after.shape == before.shape
    difference = (before - after).abs().max().item()
    assert (
        1e-6 < difference < 0.1 * (before.max() - before.min()).item()
    )  # it is rounded, and not by much


# ---- static: convolutions too


@pytest.fixture(scope="module")
def static(exported, toy, tmp_path_factory):
    before = exported["onnx"].read_bytes()
    path = quantize.static_int8(
        exported["onnx"], tmp_path_factory.mktemp("static") / "model.int8.onnx", toy().train
    )
    assert exported["onnx"].read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.int8.onnx"]
    return path


NAMES = [
    "features.0.conv",
    "features.1.depthwise",
    "features.1.pointwise",
    "features.2.conv",
    "head.1",
    "head.4",
    "head.6",
]


def int8_layers(path) -> set[str]:
    """Layers whose weights are stored as int8 and reach a convolution or linear layer through DequantizeLinear."""
    graph = onnx.load(path).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    from_int8 = {
        n.output[0]: n.input[0]
        for n in graph.node
        if n.op_type == "DequantizeLinear" and kinds.get(n.input[0]) == onnx.TensorProto.INT8
    }
    used = [
        from_int8[n.input[1]]
        for n in graph.node
        if n.op_type in ("Conv", "Gemm") and n.input[1] in from_int8
    ]
    return {name.removesuffix(".weight_quantized") for name in used}


def test_layers_have_the_names_that_the_model_gave_them(exported):
    assert list(quantize.layers(exported["onnx"])) == NAMES
    modules = dict(exported["model"].named_modules())
    assert all(isinstance(modules[name], torch.nn.Conv2d | torch.nn.Linear) for name in NAMES)


def test_every_layer_but_the_last_becomes_int8(static, exported, toy, tmp_path):
    assert int8_layers(static) == set(NAMES[:-1])
    kept = ("features.0.conv", "head.1")
    path = quantize.static_int8(
        exported["onnx"], tmp_path / "kept.onnx", toy().train, keep_float=kept
    )
    assert int8_layers(path) == set(NAMES[:-1]) - set(kept)


def test_weights_have_a_symmetric_scale_for_each_channel(static, exported):
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(static).graph.initializer}
    exact = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(exported["onnx"]).graph.initializer
    }["features.2.conv.weight"]
    q, scale = stored["features.2.conv.weight_quantized"], stored["features.2.conv.weight_scale"]
    assert not stored["features.2.conv.weight_zero_point"].any()
    np.testing.assert_allclose(scale, 2 * np.abs(exact).max((1, 2, 3)) / 255, rtol=0.01)
    for channel in range(16):
        assert np.abs(q[channel] - np.rint(exact[channel] / scale[channel])).max() <= 1


def test_the_file_is_a_quarter(static, exported):
    weights = sum(p.numel() for p in exported["model"].parameters() if p.ndim > 1)
    saved = exported["onnx"].stat().st_size - static.stat().st_size
    assert 2.9 * weights - 20_000 < saved < 3 * weights


@pytest.mark.parametrize("calibration", quantize.CALIBRATIONS)
def test_the_deployed_logits_stay_close_however_calibrated(
    exported, toy, tmp_path, capfd, calibration
):
    data = toy(200)
    path = quantize.static_int8(
        exported["onnx"], tmp_path / "q.onnx", data.train, calibration=calibration, images=32
    )
    x = torch.cat([train.pixels(x) for x, _ in data.test.batches(64)])  # not seen in calibration
    before, after = exported["model"](x).detach(), export.OnnxModel(path)(x)
    noise, signal = (after - before).std().item(), before.std().item()
    assert 1e-4 * signal < noise < 0.1 * signal
    assert len(after.unique(dim=0)) > 0.9 * len(
        x
    )  # the logits themselves are not rounded to 8 bits
    assert capfd.readouterr() == ("", "")


def test_the_range_of_an_activation_is_that_of_the_calibration_images(exported, toy, tmp_path):
    """minmax: scale and zero point of the first activation span exactly what the chosen images give."""
    part = toy().train
    path = quantize.static_int8(exported["onnx"], tmp_path / "q.onnx", part, images=20)
    x = torch.from_numpy(quantize.calibration_images(part, 20))
    with torch.no_grad():
        block = exported["model"].features[0]
        top = block.relu(block.norm(block.conv((x - 0.5) / 0.5))).max().item()
    graph = onnx.load(path).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    first = next(n for n in graph.node if n.op_type == "Conv")
    scale = next(
        n.input[1]
        for n in graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] == first.output[0]
    )
    assert float(stored[scale]) == pytest.approx(
        top / 255, rel=1e-3
    )  # from 0 (ReLU) to the largest value, in 255 steps


def test_calibration_takes_as_many_of_each_class_and_always_the_same(toy):
    part = toy(100).train
    chosen = quantize.calibration_images(part, 20)
    assert (
        chosen.shape == (20, 3, 32, 32)
        and chosen.dtype == np.float32
        and chosen.min() >= 0
        and chosen.max() <= 1
    )
    np.testing.assert_array_equal(chosen, quantize.calibration_images(part, 20))
    all_of_them = {part.image(i).tobytes(): part.labels[i] for i in range(len(part))}
    labels = [
        all_of_them[np.rint(255 * x.transpose(1, 2, 0)).astype(np.uint8).tobytes()] for x in chosen
    ]
    assert sum(labels) == 10
    assert len(quantize.calibration_images(part, 10_000)) == 60


def test_the_noise_of_each_layer_is_that_of_its_arithmetic(static, exported, toy):
    table = quantize.signal_to_noise(exported["onnx"], static, toy().train)
    assert list(table.index) == NAMES and list(table.columns) == ["weights", "output"]
    assert table.loc["head.6"].isna().all()
    assert table.drop("head.6").gt(15).all(axis=None) and table.lt(90).any(axis=None)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(static).graph.initializer}
    exact = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(exported["onnx"]).graph.initializer
    }
    name = "features.2.conv.weight"
    restored = stored[f"{name}_quantized"] * stored[f"{name}_scale"][:, None, None, None]
    expected = 20 * np.log10(np.linalg.norm(exact[name]) / np.linalg.norm(restored - exact[name]))
    assert table.loc["features.2.conv", "weights"] == pytest.approx(expected, abs=1e-3)


def test_a_layer_kept_in_float_loses_nothing_itself(exported, toy, tmp_path):
    part = toy().train
    path = quantize.static_int8(
        exported["onnx"],
        tmp_path / "q.onnx",
        part,
        keep_float=["features.0.conv", "features.1.depthwise"],
    )
    table = quantize.signal_to_noise(exported["onnx"], path, part)
    assert np.isnan(table.loc["features.0.conv", "weights"]) and table.loc["head.1"].notna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": "entrpy"}, "unknown calibration 'entrpy', did you mean 'entropy'"),
        (
            {"images": 10},
            r"5 real and 5 fake images to calibrate with: at least 8 of each .*calibration_images=10",
        ),
        (
            {"keep_float": ["features.0.conf"]},
            "unknown layer 'features.0.conf', did you mean 'features.0.conv'",
        ),
        ({"keep_float": NAMES}, "no layer left to quantize: 7 in all, 7 kept"),
    ],
)
def test_a_request_that_cannot_be_met_leaves_nothing(exported, toy, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        quantize.static_int8(exported["onnx"], tmp_path / "q.onnx", toy().train, **options)
    assert not list(tmp_path.iterdir())


def test_calibration_images_of_one_class_are_refused(exported, toy, tmp_path):
    part = toy().train
    one = replace(part, table=part.table[part.table["label"] == 1].reset_index(drop=True))
    with pytest.raises(InputError, match="0 real and 18 fake images to calibrate with"):
        quantize.static_int8(exported["onnx"], tmp_path / "q.onnx", one)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("contents", [b"", b"random" * 50, None])
def test_a_damaged_file_is_named_and_leaves_nothing(exported, toy, tmp_path, contents):
    source = tmp_path / "model.onnx"
    source.write_bytes(exported["onnx"].read_bytes()[:1000] if contents is None else contents)
    with pytest.raises(
        InputError, match=r"model\.onnx (is damaged or no ONNX file|has no layer left)"
    ):
        quantize.static_int8(source, tmp_path / "q.onnx", toy().train)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


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
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "relu.onnx",
    )
    with pytest.raises(InputError, match=r"relu\.onnx has no linear layer"):
        quantize.dynamic_linear(tmp_path / "relu.onnx", target)
    assert [p.name for p in tmp_path.iterdir()] == ["relu.onnx"]
