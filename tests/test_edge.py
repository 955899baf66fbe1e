"""Exported files compute what the run does, or are refused; `predict.py` decides like dflib."""

import copy
import os
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import finished as finished_run
from made import lived_in, python, untrained

from data_prep.errors import InputError
from data_prep.paths import images_root
from dflib import adapters, data, models, prune, quantize, train
from dflib.edge import files
from dflib.edge.predict import Predictor
from dflib.study import runs

MODES = ("resize", "center_crop", "texture_crop")


@pytest.fixture(scope="module")
def finished(tiny_dataset) -> dict[str, runs.Run]:
    """A finished run for each input mode."""
    own = {"weight_decay": 0.5}  # no other test's run
    return {mode: untrained(tiny_dataset, mode=mode, **own) for mode in MODES}


def is_int8(path) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_the_file_is_checked_against_the_run_on_the_whole_test_set(finished, tmp_path, format):
    run, file = finished["resize"], tmp_path / "edge" / "detector.onnx"
    done = files.export_run(run.spec.run_id, format=format, out=file)
    assert sorted(p.name for p in file.parent.iterdir()) == ["detector.onnx", "predict.py"]
    assert done["parity"]["images"] == len(run.data.test)
    assert done["bytes"] == file.stat().st_size
    sides = (run.model(), files.export.OnnxModel(file))
    ours, theirs = (train.logits(side, run.data.test) for side in sides)
    difference = (ours - theirs).abs().max().item()
    assert done["parity"]["max_logit_difference"] == pytest.approx(difference, abs=1e-5)
    assert difference < 1e-4 or format == "onnx-int8"
    assert is_int8(file) == (format == "onnx-int8")


RUNNER = """
import runpy, sys
names = ("dflib", "data_prep", "torch", "pandas", "filelock")
sys.modules.update(dict.fromkeys(names))  # importing one of them fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def answers(*words: object) -> list[list[str]]:
    """What `predict.py` prints: path, probability and label of each image."""
    done = python("-c", RUNNER, *words)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("mode", MODES)
def test_predict_py_decides_like_dflib_and_needs_nothing_of_it(finished, tmp_path, mode, picture):
    run = finished[mode]
    files.export_run(run.folder, format="onnx", out=tmp_path / "detector.onnx")
    odd = {"grey.png": "L", "cmyk.jpg": "CMYK", "alpha.png": "RGBA"}
    images = [images_root(run.spec.dataset) / p for p in run.data.test.table["path"].iloc[:4]]
    images += [picture(tmp_path / name, mode=m, size=(90, 61)) for name, m in odd.items()]
    predictor, told = Predictor(run.folder), answers(tmp_path / "predict.py", *images)
    for (name, probability, label), path in zip(told, images, strict=True):
        ours = predictor(path)
        assert (name, label) == (str(path), ours["label"])
        assert float(probability) == pytest.approx(ours["probability"], abs=1e-5)


def test_a_run_of_int8_is_exported_as_it_was_and_in_float(tiny_dataset, tmp_path):
    model = prune.structured(lived_in(models.architecture("BL", size=32)), rate=0.5)
    int8 = partial(quantize.static_int8, images=16)  # unlike a new one
    own = {"weight_decay": 0.3, "steps": "prune:0.5,int8"}
    run = finished_run(model, "chain", tiny_dataset, int8=int8, **own)
    out = tmp_path / "detector.onnx"
    same = files.export_run(run.spec.run_id, format="onnx", out=out)["parity"]
    assert same["max_logit_difference"] < 1e-3 and same["same_decisions"] == 1
    assert not is_int8(out)
    same = files.export_run(run.spec.run_id, format="onnx-int8", out=out)["parity"]
    assert same["images"] == len(run.data.test)
    assert out.read_bytes() == (run.folder / "model.int8.onnx").read_bytes()


# ---- only over what was written here


USERS = {
    "text": lambda path: path.write_text("my own notes, in which written_by_dflib_export stands"),
    "a detector": lambda path: onnx.save(onnx.ModelProto(producer_name="mine"), path),
    "a line more": lambda path: path.write_bytes(path.read_bytes() + b"print('mine')"),
    "a letter less": lambda path: path.write_bytes(path.read_bytes().replace(b"e", b"", 1)),
    "a link": lambda path: (path.unlink(), path.symlink_to("elsewhere")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}
NAMES = ("detector.onnx", "predict.py", "index.html", "ort.wasm.min.mjs")
EDITS = ("a line more", "a letter less")  # of a text: it is no longer ours
CASES = [(n, u) for n in NAMES for u in USERS if u not in EDITS or n != "detector.onnx"]


def listing(folder: Path) -> dict:
    """What stands in a folder, by name."""
    kind = lambda p: p.readlink() if p.is_symlink() else p.read_bytes() if p.is_file() else "?"
    return {p.name: kind(p) for p in folder.iterdir()}


@pytest.fixture(scope="module")
def with_page(finished, tmp_path_factory) -> Path:
    """A folder as one export leaves it."""
    folder = tmp_path_factory.mktemp("page") / "made" / "by it"
    run = finished["resize"].folder
    files.export_run(run, format="onnx", out=folder / "detector.onnx", page=True)
    return folder


@pytest.mark.parametrize(("name", "users"), CASES)
def test_a_file_of_the_users_is_not_replaced(finished, with_page, tmp_path, name, users):
    shutil.copytree(with_page, folder := tmp_path / "edge")
    USERS[users](folder / name)
    before = listing(folder)
    message = f"{re.escape(name)} is there, and is not .*--force"
    with pytest.raises(InputError, match=message), files.replacing(folder, NAMES):
        pytest.fail("it began to work")
    request = {"format": "onnx", "out": folder / "detector.onnx", "page": True}
    with pytest.raises(InputError, match=message):
        files.export_run(finished["resize"].folder, **request)
    assert listing(folder) == before
    with files.replacing(folder, [name], force=True) as new:
        (new / name).write_text("new")
    assert listing(folder) == before | {name: b"new"}


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_its_own_files_are_replaced(finished, with_page, tmp_path, format):
    shutil.copytree(with_page, folder := tmp_path / "edge")
    request = {"out": folder / "detector.onnx", "page": True}
    for run in (finished["center_crop"], finished["resize"], finished["resize"]):
        files.export_run(run.folder, format=format, **request)
    assert sorted(listing(folder)) == sorted(listing(with_page))
    if format == "onnx":
        assert listing(folder) == listing(with_page)  # the same run, the same bytes
    (folder / "detector.new.onnx").write_text("mine")
    files.export_run(run.folder, format=format, **request)
    assert (folder / "detector.new.onnx").read_text() == "mine"


@pytest.fixture
def idle(monkeypatch) -> None:
    """Whoever begins to work fails the test."""
    monkeypatch.setattr(files.export, "to_onnx", lambda *_: pytest.fail("it began to work"))


def test_where_nothing_can_be_written_is_said_before_the_work(finished, tmp_path, idle):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "detector.onnx").mkdir()
    with pytest.raises(InputError, match="that folder is a run's own"):
        own = finished["center_crop"].folder / "model.onnx"
        files.export_run(finished["resize"].folder, format="onnx", out=own, force=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere"), tmp_path):
        with pytest.raises(InputError, match=r"nothing was written to|is a folder"):
            files.export_run(finished["resize"].folder, format="onnx", out=folder / "detector.onnx")
    assert [*(tmp_path / "detector.onnx").iterdir()] == []


SUFFIX = r"--out .*detector\.pt: .* ends in \.onnx, e\.g\. detector\.onnx"
MISSING = r'ExecuTorch is not installed: pip install -e "\.\[executorch\]"'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onxx"}, "unknown format 'onxx', did you mean 'onnx'"),
        ({"run": "BL-s0-32px-nothing"}, "unknown run 'BL-s0-32px-nothing'"),
        ({"out": "detector.pt"}, SUFFIX),
        ({"format": "executorch", "out": "detector.pte"}, MISSING),
        ({"run": "texture_crop", "page": True}, "cannot prepare images by texture_crop"),
        ({"out": "new/detector.onnx", "page": True}, "onnxruntime-web, and .* cannot be had"),
    ],
)
def test_a_request_that_cannot_be_met_is_named_before_the_work(
    finished, tmp_path, idle, monkeypatch, options, message
):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files.pages, "URL", "http://127.0.0.1:9/nobody-listens.tgz")
    request = {"run": "resize", "format": "onnx", "out": "detector.onnx"} | options
    run, out = request.pop("run"), tmp_path / request.pop("out")
    with pytest.raises(InputError, match=message):
        files.export_run(finished[run].spec.run_id if run in MODES else run, out=out, **request)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_no_file_behind(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "script", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(InputError, match=r"nothing was written to .*No space"):
        files.export_run(finished["resize"].folder, format="onnx", out=tmp_path / "a/b/it.onnx")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ---- what is in the files


def test_int8_is_calibrated_with_what_the_run_was_trained_on(tiny_dataset, tmp_path):
    """Of a run that holds a generator out, of few images: its own training part, and no other."""
    for own in ({"hold_out": "nearest"}, {"target_images": 12}):
        run = untrained(tiny_dataset, weight_decay=0.8, **own)
        out, float_file = tmp_path / "int8.onnx", run.folder / "model.onnx"
        files.export_run(run.folder, format="onnx-int8", out=out)
        whole = data.open(tiny_dataset, size=32, limit=run.settings["limit"]).train
        right, wrong = (
            quantize.static_int8(float_file, tmp_path / "it.onnx", part).read_bytes()
            for part in (run.data.train, whole)
        )
        assert out.read_bytes() == right != wrong


# ---- times, once more


def test_finished_runs_are_timed_again_in_turns(finished, tmp_path):
    """The command rewrites their latency, and nothing else; an unknown run stops it before."""
    some = [finished[mode] for mode in ("resize", "center_crop")]
    written = lambda: [(run.folder / "result.json").stat().st_mtime_ns for run in some]
    before, ages = [run.result for run in some], written()
    names = [str(some[0].folder), some[1].spec.run_id]
    call = lambda names: python("-m", "dflib", "measure", "--run", names)
    wrong = call(f"{names[0]},BL-s0-32px-nothing")
    assert wrong.returncode == 2 and "unknown run 'BL-s0-32px-nothing'" in wrong.stderr
    assert [run.result for run in some] == before
    assert call(" , ").stderr.startswith("error: ' , ' is empty")
    done = call(", ".join(names))
    assert (done.returncode, done.stderr) == (0, "")
    for run, old in zip(some, before, strict=True):
        assert run.spec.run_id in done.stdout
        new = run.result
        latency, earlier = (r["cost"].pop("latency_ms") for r in (new, old))
        assert new == old and latency != earlier
        assert latency.keys() == earlier.keys() and latency["low"] <= latency["p50"]
        assert f"{latency['p50']:.3f}".rstrip("0") in done.stdout
    assert "times as fast: " in done.stdout
    assert not [f for run in some for f in run.folder.glob("*.new")]
    assert written() == ages  # the latest is still the latest


# ---- one score for an image, wherever it stands


@pytest.fixture(scope="module")
def forwards(exported, toy, tmp_path_factory) -> dict:
    """The same detector in every form that can answer: (forward, what rounding may do)."""
    folder, float_file, model = tmp_path_factory.mktemp("f"), exported["onnx"], exported["model"]
    base = lived_in(model.arch)
    adapted = adapters.insert(base, "features.1", form="residual")
    delta = adapters.save_delta(adapted, base, folder / "delta.safetensors")
    dynamic = quantize.dynamic_linear(float_file, folder / "dynamic.onnx")
    static = quantize.static_int8(float_file, folder / "static.onnx", toy().train)
    found = {
        "torch": (model, 1e-6),
        "fused": (models.fused(models.load(exported["checkpoint"])), 1e-6),
        "delta": (models.load(delta, base=base), 1e-6),
        "onnx": (files.export.OnnxModel(float_file), 0),
        "dynamic int8": (files.export.OnnxModel(dynamic), 0),
        "static int8": (files.export.OnnxModel(static), 0),
    }
    try:
        pte = files.to_executorch(model, folder / "detector.pte")
        found["executorch"] = (files.executorch_model(pte), 0)
    except InputError:
        assert not find_spec("executorch")
    return found


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own, where it is first imported
@settings(max_examples=15)
@given(order=st.lists(st.integers(0, 11), min_size=1, max_size=20), batch=st.integers(1, 9))
def test_a_score_depends_on_no_neighbour_and_no_place(forwards, toy, order, batch):
    part = toy(60).test  # twelve images, the first three with all contrast taken, or made extreme
    images = np.array(part.pixels[part.table["row"]])
    images[0], images[1], images[2] = 0, 255, images[2] // 64
    part = replace(part, pixels=images, table=part.table.assign(row=range(12)))
    rows = lambda chosen: replace(part, table=part.table.iloc[chosen])
    for name, (forward, rounding) in forwards.items():
        alone = [train.predict(forward, rows([i]))[0] for i in order]
        together = train.predict(forward, rows(order), batch=batch)
        assert np.abs(together - alone).max() <= rounding, name


def test_predict_gives_the_stored_score(tiny_dataset):
    """Of protocol paper, which takes the files as they are; a float run's is PyTorch's."""
    dynamic = lambda file, new, part: quantize.dynamic_linear(file, new)
    for method, int8 in (("BL", None), ("CQ", dynamic), ("CQ-S", quantize.static_int8)):
        options = {"protocol": "paper", "limit": 20, "weight_decay": 0.6}
        model = lived_in(models.student(0.9, size=32))
        run = finished_run(model, method, tiny_dataset, int8=int8, **options)
        predictor, base = Predictor(run.spec.run_id), images_root(tiny_dataset)
        for row in runs.predictions(run.folder).itertuples():
            answer = predictor(base / row.path)
            assert abs(answer["probability"] - row.score) <= (0 if int8 else 1e-6), method


def test_a_file_that_is_not_its_models_fails_the_run(tiny_dataset, monkeypatch):
    """A wrong export, and one that answers with NaN, which no comparison calls larger."""
    settings = {"latency_runs": 1, "limit": 20, "weight_decay": 0.7}
    run = runs.Run(runs.spec("BL", preset="tiny", dataset=tiny_dataset, settings=settings))
    model, write = lived_in(models.student(0.9, size=32)), files.export.to_onnx
    for shift in (0.1, float("nan"), float("inf")):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.head[-1].bias += shift
        monkeypatch.setattr(files.export, "to_onnx", lambda _, path, o=other: write(o, path))
        with pytest.raises(InputError, match="refused: the exported file does not compute the mo"):
            run.finish(model)
        assert not run.finished
    monkeypatch.undo()
    same = run.finish(model)["parity"]
    assert same["same_decisions"] == 1 and same["max_logit_difference"] < 1e-3


def test_parity_is_judged_by_its_bounds():
    good = {"max_logit_difference": 1e-4, "same_decisions": 1.0, "images": 9, "largest_logit": 4.0}
    judged = files.export.judged
    assert judged(good) is None
    assert judged(good | {"max_logit_difference": 0.02, "largest_logit": 30.0}) is None
    nan = float("nan")
    bad = [{"max_logit_difference": 0.02}, {"max_logit_difference": nan}, {"same_decisions": 0.99}]
    for each in bad:
        with pytest.raises(InputError, match="refused"):
            judged(good | each)
    bad = good | {"max_logit_difference": 3.0, "same_decisions": 0.9, "images": 100}
    text = "check before use: logits differ by up to 3, 90.00% of 100"
    assert text in judged(bad, exact=False)
    assert judged(bad | {"same_decisions": 0.99}, exact=False) is None


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_are_an_error_not_a_label(tmp_path, tiny_dataset, bias):
    model = lived_in(models.student(0.9, size=32))
    with torch.no_grad():
        model.head[-1].bias[0] = bias
    paths = [models.save(model, tmp_path / "m.safetensors")]
    paths.append(files.export.to_onnx(model, tmp_path / "m.onnx"))
    image = next(images_root(tiny_dataset).rglob("*.png"))
    for path in paths:
        answer = Predictor(path)(image)
        assert answer["label"] is None and answer["probability"] is None
        assert "NaN or infinite" in answer["error"]
    part = data.open(tiny_dataset, size=32, limit=2).test
    with pytest.raises(InputError, match="4 of 4 images get logits that are NaN or infinite"):
        train.predict(files.export.OnnxModel(paths[1]), part)


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own
def test_executorch_computes_the_same(finished, tmp_path):
    pytest.importorskip("executorch.runtime")
    run = finished["resize"]
    done = files.export_run(run.spec.run_id, format="executorch", out=tmp_path / "detector.pte")
    assert done["parity"]["max_logit_difference"] < 1e-3 and done["parity"]["same_decisions"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["detector.pte"]
