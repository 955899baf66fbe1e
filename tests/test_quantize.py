"""Int8: the error bound of uniform quantization, and what ONNX Runtime makes of our layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from data_prep.errors import InputError
from dflib import export, quantize, train

NUMBERS = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-100)


@given(
    values=arrays(np.float64, array_shapes(max_dims=3, max_side=6), elements=NUMBERS),
    bits=st.integers(2, 16),
)
def test_the_error_is_half_a_step_at_most(values, bits):
    q, scale = quantize.quantize_array(values, bits=bits)
    most = 2 ** (bits - 1) - 1
    assert q.shape == values.shape
    assert np.issubdtype(q.dtype, np.integer)
    assert np.abs(q).max(initial=0) <= most
    assert np.abs(q * scale - values).max(initial=0) <= scale / 2 * (1 + 1e-9)
    assert scale == (np.abs(values).max() / most if values.any() else 1.0)
    assert (np.sign(q) * np.sign(values) >= 0).all()


@pytest.fixture(scope="module")
def files(exported, toy, tmp_path_factory):
    """Both int8 files of the exported model, each alone in its folder; the float file stays."""
    source, made = exported["onnx"], {}
    before = source.read_bytes()
    for name, how in (
        ("dynamic", quantize.dynamic_linear),
        ("static", lambda *paths: quantize.static_int8(*paths, toy().train)),
    ):
        made[name] = how(source, tmp_path_factory.mktemp(name) / "model.int8.onnx")
        assert [p.name for p in made[name].parent.iterdir()] == ["model.int8.onnx"]
    assert source.read_bytes() == before
    return made


def nodes(path, *kinds: str) -> int:
    return sum(node.op_type in kinds for node in onnx.load(path).graph.node)


def stored(path) -> dict[str, np.ndarray]:
    """The tensors in a file, by name."""
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_the_three_linear_layers_become_int8_and_the_convolutions_stay_float(exported, files):
    int8 = files["dynamic"]
    assert nodes(int8, "MatMulInteger") == nodes(exported["onnx"], "Gemm", "MatMul") == 3
    assert nodes(int8, "Gemm", "MatMul", "ConvInteger", "QLinearConv") == 0
    assert nodes(int8, "Conv") == nodes(exported["onnx"], "Conv") == 4
    tensors = stored(int8)
    used = [i for n in onnx.load(int8).graph.node if n.op_type == "Conv" for i in n.input]
    assert {tensors[i].dtype for i in used if i in tensors} == {np.dtype(np.float32)}
    assert [t.dtype for t in tensors.values() if t.size == 1024 * 256] == [np.int8]
    (q,) = (t.astype(float) for t in tensors.values() if t.shape == (1024, 256))
    ours = exported["model"].head[1].weight.detach().double().numpy().T
    scale = np.abs(ours).max(0) / 64
    assert np.abs(q * scale - ours).max() <= scale.max() * 0.51


# ---- static: convolutions too

CONVS = ["features.0.conv", "features.1.depthwise", "features.1.pointwise", "features.2.conv"]
NAMES = [*CONVS, "head.1", "head.4", "head.6"]


def int8_layers(path) -> set[str]:
    """Layers whose weights are stored as int8, and dequantized on their way."""
    graph, tensors = onnx.load(path).graph, stored(path)
    from_int8 = {
        n.output[0]: n.input[0]
        for n in graph.node
        if n.op_type == "DequantizeLinear" and tensors.get(n.input[0], np.ones(1)).dtype == np.int8
    }
    layers = [n for n in graph.node if n.op_type in ("Conv", "Gemm") and n.input[1] in from_int8]
    return {from_int8[n.input[1]].removesuffix(".weight_quantized") for n in layers}


def test_every_layer_but_the_last_becomes_int8(files, exported, toy, tmp_path):
    assert list(quantize.layers(exported["onnx"])) == NAMES  # as the model names them
    kinds = torch.nn.Conv2d | torch.nn.Linear
    assert all(isinstance(exported["model"].get_submodule(name), kinds) for name in NAMES)
    assert int8_layers(files["static"]) == set(NAMES[:-1])
    kept = ("features.0.conv", "head.1")
    path, part = tmp_path / "kept.onnx", toy().train
    quantize.static_int8(exported["onnx"], path, part, keep_float=kept)
    assert int8_layers(path) == set(NAMES[:-1]) - set(kept)
    # a symmetric scale for each channel
    tensors, name = stored(files["static"]), "features.2.conv.weight"
    exact = stored(exported["onnx"])[name]
    q, scale = tensors[f"{name}_quantized"], tensors[f"{name}_scale"]
    assert not tensors[f"{name}_zero_point"].any()
    np.testing.assert_allclose(scale, np.abs(exact).max((1, 2, 3)) / 64, rtol=0.02)
    for channel in range(16):
        assert np.abs(q[channel] - np.rint(exact[channel] / scale[channel])).max() <= 1


def test_a_file_computes_the_same_on_every_processor(exported, toy, tmp_path):
    """Those without VNNI add in 16 bits. Largest weights, brightest pixels: 8 bits overflow."""
    model = onnx.load(exported["onnx"])
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim > 1:  # a weight: all that its largest number allows
            full = np.sign(values) * np.abs(values).max()
            tensor.CopyFrom(onnx.numpy_helper.from_array(full.astype(values.dtype), tensor.name))
    onnx.save(model, source := tmp_path / "full.onnx")
    file = quantize.static_int8(source, tmp_path / "q.onnx", toy().train)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    in_float = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    images = torch.cat([train.pixels(x) for x, _ in toy().test.batches(64)])
    exact = in_float.run(None, {"pixels": images.contiguous().numpy()})[0]
    here = export.OnnxModel(file)(images).numpy()
    assert np.abs(here - exact).max() < 0.02 * np.ptp(exact)
    small = quantize.dynamic_linear(source, tmp_path / "d.onnx")
    for path in (file, small):
        weights = [w for w in stored(path).values() if w.dtype == np.int8 and w.ndim > 1]
        assert weights and max(np.abs(w.astype(int)).max() for w in weights) <= 64


@pytest.mark.parametrize("calibration", quantize.CALIBRATIONS)
def test_the_deployed_logits_stay_close_however_calibrated(
    exported, toy, tmp_path, capfd, calibration
):
    data, path = toy(200), tmp_path / "q.onnx"
    options = {"calibration": calibration, "images": 32}
    quantize.static_int8(exported["onnx"], path, data.train, **options)
    x = torch.cat([train.pixels(x) for x, _ in data.test.batches(64)])  # not seen in calibration
    before, after = exported["model"](x).detach(), export.OnnxModel(path)(x)
    noise, signal = (after - before).std().item(), before.std().item()
    assert 1e-4 * signal < noise < 0.1 * signal
    assert len(after.unique(dim=0)) > 0.9 * len(x)  # the logits are not rounded to 8 bits
    assert capfd.readouterr() == ("", "")


def test_calibration_takes_as_many_of_each_class_and_always_the_same(toy):
    part = toy(100).train
    chosen = quantize.calibration_images(part, 20)
    assert (chosen.shape, chosen.dtype) == ((20, 3, 32, 32), np.float32)
    assert chosen.min() >= 0 and chosen.max() <= 1
    np.testing.assert_array_equal(chosen, quantize.calibration_images(part, 20))
    label = {part.image(i).tobytes(): part.labels[i] for i in range(len(part))}
    arrays = np.rint(255 * chosen.transpose(0, 2, 3, 1)).astype(np.uint8)
    assert sum(label[image.tobytes()] for image in arrays) == 10
    assert len(quantize.calibration_images(part, 10_000)) == 60
    one = replace(part, table=part.table[part.table["label"] == 1])
    with pytest.raises(InputError, match="0 real and 30 fake images to calibrate with"):
        quantize.calibration_images(one, 128)


FEW = r"5 real and 5 fake images to calibrate with: at least 8 of each .*calibration_images=10"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": "entrpy"}, "unknown calibration 'entrpy', did you mean 'entropy'"),
        ({"images": 10}, FEW),
        ({"keep_float": ["features.0.conf"]}, "unknown layer .*, did you mean 'features.0.conv'"),
        ({"keep_float": NAMES}, "no layer left to quantize, of 7 in all"),
    ],
)
def test_a_request_that_cannot_be_met_leaves_nothing(exported, toy, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        quantize.static_int8(exported["onnx"], tmp_path / "q.onnx", toy().train, **options)
    assert not list(tmp_path.iterdir())


def relu() -> bytes:
    """A file without a layer that has weights."""
    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("kind", ["gone", "empty", "random", "cut", "relu"])
def test_a_file_that_cannot_be_quantized_is_named_and_leaves_nothing(
    exported, toy, tmp_path, kind, static
):
    source, options = tmp_path / "model.onnx", {"part": toy().train} if static else {}
    contents = {"empty": b"", "random": b"random" * 50, "relu": relu()}
    contents["cut"] = exported["onnx"].read_bytes()[:1000]
    if kind != "gone":
        source.write_bytes(contents[kind])
    quantized = quantize.static_int8 if static else quantize.dynamic_linear
    told = {"gone": "is not there: export the model first", "relu": "has no l"}
    told = told.get(kind, "(is damaged or no ONNX file|has no l)")
    with pytest.raises(InputError, match=rf"model\.onnx {told}"):
        quantized(source, tmp_path / "q.onnx", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"] * (kind != "gone")
