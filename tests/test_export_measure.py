"""Deployed files against the models they came from, and what they cost."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import InputError
from data_prep.paths import PROJECT
from dflib import export, measure, models
from dflib.edge import adopt
from dflib.models import Architecture, Block, Dense, Detector


def test_the_file_computes_what_the_model_does_at_any_batch_with_batchnorm_folded(exported):
    session, model = export.OnnxModel(exported["onnx"]), exported["model"]
    assert session.size == 32
    for n in (1, 2, 7):
        x = torch.rand(n, 3, 32, 32).to(memory_format=torch.channels_last)
        ours = model(x).detach()
        assert session(x).shape == (n, 2)
        torch.testing.assert_close(session(x), ours, rtol=0, atol=1e-4)
        assert (ours.std() > 1e-3) or n == 1  # not a constant
    graph = onnx.load(exported["onnx"]).graph
    assert [i.name for i in graph.input] == ["pixels"]
    assert [o.name for o in graph.output] == ["logits"]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    for path in (PROJECT, Path(torch.__file__).parent, "site-packages", ".py"):  # of this machine
        assert str(path).encode() not in exported["onnx"].read_bytes()


def test_export_leaves_the_model_as_it_was(tmp_path):
    model = Detector(Architecture("t", 32, (Block(4, pool=True),), (Dense(4, 0.5),))).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export.to_onnx(model, tmp_path / "model.onnx")
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_rounding_on_the_threshold_is_no_other_decision(toy):
    score = lambda shift: lambda x: torch.tensor([[0.0, -shift]]).repeat(len(x), 1)
    for shift, threshold, alike in ((1e-7, 0.5, 1), (1e-4, 0.5, 0), (1e-4, 0.6, 1)):
        found = export.parity(score(0.0), score(shift), toy().test, threshold=threshold)
        assert found["same_decisions"] == alike


def graph_file(path, graph: str) -> None:
    """Write a file of what follows a graph's name, as `onnx.parser` reads it."""
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> g {graph}'), path)


def test_a_file_that_is_no_detector_is_named(exported, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(InputError, match=r"model\.onnx is not there"):
        export.OnnxModel(path)
    data = exported["onnx"].read_bytes()
    for contents in (b"", b"random" * 50, data[: len(data) // 2], data[:300]):
        path.write_bytes(contents)
        with pytest.raises(InputError, match=r"ONNX Runtime cannot load .*model\.onnx") as caught:
            export.OnnxModel(path)
        assert "\n" not in str(caught.value)
    for shape in ("[1, 3, 8, 8]", "[n, 5]", "", "[n, 3, h, w]", "[n, 3, s, s]"):
        graph_file(path, f"(float{shape} x) => (float{shape} y) {{ y = Relu(x) }}")
        with pytest.raises(InputError, match=r"model\.onnx is not one of dflib's detectors"):
            export.OnnxModel(path)


def detector(nodes: str, *, known="", side=32) -> str:
    """A graph with a detector's inputs and outputs: pixels -> m, 2 numbers -> `nodes` -> logits."""
    return f"""(float[n, 3, {side}, {side}] pixels) => (float[n, 2] logits)
        <float[3, 2] w = {{0.1, 0.1, 0.1, 0.1, 0.1, 0.1}} {known}>
        {{ p = GlobalAveragePool(pixels)  f = Flatten(p)  m = MatMul(f, w)  {nodes} }}"""


SOUND = "logits = Identity(m)"
MADE = "z = ConstantOfShape(sides)  top = ReduceMax <keepdims = 0> (z)  logits = Add(m, top)"
BRANCH = "b () => (float[n, 2] b) { b = Identity(m) }"
BRANCHES = f"logits = If (yes) <then_branch = {BRANCH}, else_branch = {BRANCH}>"
GIANTS = {  # graphs that ask for 10^10 numbers, or for another file, in 500 bytes: what is said
    "made": (
        detector(MADE, known=", int64[2] sides = {100000, 100000}"),
        "z would hold 1e.10 numbers",
    ),
    "another file's": (detector(SOUND), "keeps its weights in another file"),
    "a branch": (detector(BRANCHES, known=", bool yes = {1}"), "graphs in its graph"),
    "pixels": (detector(SOUND, side=2**16), "pixels would hold 1e.10 numbers"),
}


def keep_outside(path) -> None:
    """Make the file say that its weights lie in another one."""
    model = onnx.load(path)
    (weight,) = model.graph.initializer
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("where", GIANTS)
def test_a_file_that_asks_for_more_than_it_holds_is_refused(tmp_path, where, monkeypatch):
    path = tmp_path / "model.onnx"
    graph_file(path, detector(SOUND))
    assert export.OnnxModel(path)(torch.rand(3, 3, 32, 32)).shape == (3, 2)  # the frame is sound
    graph, message = GIANTS[where]
    graph_file(path, graph)
    if where == "another file's":
        keep_outside(path)
    (tmp_path.parent / "secret.bin").write_bytes(bytes(24))
    with pytest.raises(InputError, match=rf"cannot load .*model\.onnx: .*{message}"):
        export.OnnxModel(path)
    monkeypatch.setattr(adopt, "_outputs", lambda *_: pytest.fail("it runs"))
    os.mkfifo(tmp_path / "pipe.onnx")
    for file in (path, tmp_path / "pipe.onnx"):
        with pytest.raises(InputError, match=rf"{file.name} cannot be loaded"):
            adopt.onnx_file(file, size=32)


def test_a_graph_that_breaks_as_it_runs_is_named(tmp_path):
    """Declared as 2 logits; it makes another number of them, or cannot go on."""
    path = tmp_path / "model.onnx"
    for node in ("logits = Concat <axis = 1> (m, m)", "logits = Reshape(m, s)"):
        graph_file(path, detector(node, known=", int64[2] s = {-1, 7}"))
        with pytest.raises(InputError, match=r"model\.onnx"):
            export.OnnxModel(path)(torch.rand(3, 3, 32, 32))


EDITS = st.tuples(st.integers(0, 10**6), st.integers(0, 12), st.binary(max_size=6))


@settings(max_examples=60)
@given(st.lists(EDITS, min_size=1, max_size=3))
def test_a_damaged_file_is_an_input_error_or_answers(exported, tmp_path_factory, edits):
    data, path = exported["onnx"].read_bytes(), tmp_path_factory.getbasetemp() / "damaged.onnx"
    head = data[:40_000]  # the graph; all else are weights
    for place, gone, new in edits:
        at = place % len(head)
        head = head[:at] + new + head[at + gone :]
    path.write_bytes(head + data[40_000:])
    try:
        assert export.OnnxModel(path)(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


# ---- what it costs


def test_a_profile_says_how_it_was_taken(exported):
    (found,) = measure.profiles([exported["onnx"]], runs=8)
    latency = found["latency_ms"]
    assert latency.keys() == {"p50", "p95", "low", "high", "busy", "runtime", "threads", "cpu"}
    assert 0 < latency["low"] < latency["p50"] < latency["high"]  # of five processes
    assert latency["p50"] <= latency["p95"]
    assert latency["runtime"] == f"onnxruntime {version('onnxruntime')}"
    assert (latency["threads"], latency["cpu"]) == (1, measure.cpu_name())
    own = psutil.Process().memory_info().rss / 1e6  # this one has loaded torch
    assert 10 < found["peak_rss_mb"] < 0.5 * own


def test_files_that_are_timed_together_keep_their_own_times_and_memory(tmp_path):
    little = Architecture("t", 32, (Block(4, pool=True),), (Dense(4, 0.5),))
    shapes = {"small": little, "large": models.architecture("BL", size=32)}
    file = {n: export.to_onnx(Detector(a), tmp_path / f"{n}.onnx") for n, a in shapes.items()}
    alone = measure.profiles([file["small"]], runs=10)[0]
    names = "large", "small", "large"
    first, between, last = measure.profiles([file[name] for name in names], runs=10)
    for found in (first, last):
        assert found["latency_ms"]["p50"] > 5 * between["latency_ms"]["p50"]
        assert found["peak_rss_mb"] > between["peak_rss_mb"] + 10
    assert between["peak_rss_mb"] == pytest.approx(alone["peak_rss_mb"], rel=0.05)


def test_a_profile_waits_for_the_lock(exported):
    code = "import sys; from dflib import measure; measure.profiles([sys.argv[1]], runs=1)"
    with measure.alone():
        other = subprocess.Popen([sys.executable, "-c", code, exported["onnx"]])
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=2)
    assert other.wait(timeout=60) == 0


def test_a_busy_machine_is_noticed(exported):
    """One other process for each core: it takes a share of this one's, wherever it is."""
    code = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in measure.own_cores()]
    try:
        assert measure.profiles([exported["onnx"]], runs=5)[0]["latency_ms"]["busy"]
    finally:
        for other in others:
            other.kill()
            other.wait()


@given(n=st.integers(1, 64), wall=st.floats(0.1, 100), own=st.floats(0, 1), other=st.floats(0, 1))
def test_the_share_of_others_is_what_is_left_of_the_load(n, wall, own, other):
    """own, other: shares of the first core's and of all cores' time; one's own is no load."""
    percent = [100 * min(1.0, other + (own * (1 - other) if core == 0 else 0)) for core in range(n)]
    share = measure.others_share(percent, wall, own * (1 - other) * wall)
    assert share == pytest.approx(other, abs=1e-9)


HERE = {"runtime": "onnxruntime 1", "threads": 1, "cpu": "a CPU", "busy": False}
times = st.lists(st.floats(0.01, 1e4), min_size=5, max_size=5)


def record(ms: list[float], **more) -> dict:
    return HERE | {"p50": float(np.median(ms)), "low": min(ms), "high": max(ms)} | more


@given(ours=times, theirs=times)
def test_faster_only_where_the_spreads_are_apart(ours, theirs):
    told = measure.speed(record(ours), record(theirs))
    every = [b / a for a in ours for b in theirs]
    assert told["ratio"] == pytest.approx(np.median(theirs) / np.median(ours))
    assert (told["low"], told["high"]) == pytest.approx((min(every), max(every)))
    apart = "faster" if max(ours) < min(theirs) else "slower" if min(ours) > max(theirs) else ""
    assert told["words"] == (apart or "not told apart")
    back = {"faster": "slower", "slower": "faster"}.get(told["words"], "not told apart")
    assert measure.speed(record(theirs), record(ours))["words"] == back


OLD = {key: value for key, value in record([9.0]).items() if key not in ("low", "high", "busy")}
ELSEWHERE = ({"runtime": "torch 2"}, {"threads": 2}, {"cpu": "another"}, {"busy": True})


@pytest.mark.parametrize("other", [OLD, *(record([9.0], **more) for more in ELSEWHERE)])
def test_times_of_other_or_busy_machines_or_without_a_spread_are_not_told_apart(other):
    for pair in ((record([1.0]), other), (other, record([1.0]))):
        assert measure.speed(*pair)["words"] == "not told apart"


def test_a_file_that_cannot_be_run_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    for contents in (None, b"damaged"):
        if contents:
            path.write_bytes(contents)
        with pytest.raises(InputError, match="model.onnx could not be measured: .+") as caught:
            measure.profiles([path])
        assert "\n" not in str(caught.value)


def test_the_cost_of_a_file(exported, tmp_path):
    model = models.load(exported["checkpoint"])
    with torch.no_grad():
        model.head[1].weight[:200] = 0
    cost, file = measure.cost(model, exported["onnx"], runs=2), exported["onnx"]
    sizes = {"params", "nonzero", "macs", "file_bytes", "gzip_bytes"}
    assert cost.keys() == sizes | {"latency_ms", "peak_rss_mb"}
    assert cost["params"] == sum(p.numel() for p in model.parameters())
    zeros = sum(int((p == 0).sum()) for p in exported["model"].parameters())
    assert cost["params"] - cost["nonzero"] == 200 * 1024 + zeros
    assert cost["file_bytes"] == file.stat().st_size
    shutil.copy(file, tmp_path / "copy")
    subprocess.run(["gzip", "-6", tmp_path / "copy"], check=True)
    assert cost["gzip_bytes"] == pytest.approx((tmp_path / "copy.gz").stat().st_size, rel=0.01)
