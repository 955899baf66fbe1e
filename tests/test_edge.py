"""Exported files: they compute what the run does, or are refused; `predict.py` decides like dflib without it."""

from __future__ import annotations

import subprocess
import sys
import venv

import onnx
import pytest
import torch

from data_prep.errors import InputError
from data_prep.paths import images_root
from dflib import adapters, measure, models, prune, quantize, train
from dflib.edge import files
from dflib.edge.predict import Predictor
from dflib.study import runs

MODES = ("resize", "center_crop", "texture_crop")


@pytest.fixture(scope="module")
def finished(tiny_dataset) -> dict[str, runs.Run]:
    """A finished run for each input mode, of untrained weights with lived-in BatchNorm statistics."""
    made = {}
    for mode in MODES:
        settings = {
            "mode": mode,
            "latency_runs": 1,
            "weight_decay": 0.5,
        }  # the decay: no other test's run
        made[mode] = runs.Run(
            runs.spec("BL", preset="tiny", dataset=tiny_dataset, settings=settings)
        )
        with train.seeded(0):
            model = models.Detector(models.student(0.9, size=32)).train()
            model(torch.rand(16, 3, 32, 32))
        made[mode].finish(model)
    return made


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_the_file_is_checked_against_the_run_on_the_whole_test_set(finished, tmp_path, format):
    run = finished["resize"]
    done = files.export_run(run.spec.run_id, format=format, out=tmp_path / "edge" / "detector.onnx")
    assert sorted(p.name for p in (tmp_path / "edge").iterdir()) == ["detector.onnx", "predict.py"]
    assert (
        done["parity"]["images"] == len(run.data.test)
        and done["bytes"] == (tmp_path / "edge" / "detector.onnx").stat().st_size
    )
    x = torch.cat([train.pixels(images) for images, _ in run.data.test.batches(64)])
    ours, theirs = (
        run.model()(x).detach(),
        files.export.OnnxModel(tmp_path / "edge" / "detector.onnx")(x),
    )
    assert done["parity"]["max_logit_difference"] == pytest.approx(
        (ours - theirs).abs().max().item(), abs=1e-5
    )
    assert done["parity"]["max_logit_difference"] < 1e-4 or format == "onnx-int8"
    int8 = any(
        n.op_type == "QuantizeLinear"
        for n in onnx.load(tmp_path / "edge" / "detector.onnx").graph.node
    )
    assert int8 == (format == "onnx-int8")


RUNNER = """
import runpy, sys
sys.modules.update(dict.fromkeys(("dflib", "data_prep", "torch", "pandas", "filelock")))  # importing one of them fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("mode", MODES)
def test_predict_py_decides_like_dflib_and_needs_nothing_of_it(finished, tmp_path, mode, picture):
    run = finished[mode]
    files.export_run(run.folder, format="onnx", out=tmp_path / "detector.onnx")
    images = [images_root(run.spec.dataset) / p for p in run.data.test.table["path"].iloc[:4]]
    images += [
        picture(tmp_path / "grey.png", mode="L", size=(90, 61)),
        picture(tmp_path / "cmyk.jpg", mode="CMYK", size=(40, 70)),
    ]
    images += [picture(tmp_path / "alpha.png", mode="RGBA", size=(50, 50))]
    command = [sys.executable, "-c", RUNNER, str(tmp_path / "predict.py"), *map(str, images)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    predictor = Predictor(run.folder)
    for line, path in zip(done.stdout.splitlines(), images, strict=True):
        name, probability, label = line.split("\t")
        ours = predictor(path)
        assert (name, label) == (str(path), ours["label"])
        assert float(probability) == pytest.approx(ours["probability"], abs=1e-5)


def test_predict_py_runs_in_a_fresh_environment_of_three_packages(finished, tmp_path):
    run, python = finished["resize"], tmp_path / "venv" / "bin" / "python"
    files.export_run(run.folder, format="onnx", out=tmp_path / "edge" / "detector.onnx")
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "onnxruntime",
        "numpy",
        "pillow",
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"PyPI cannot be had: {done.stderr.strip().splitlines()[-1]}")
    images = [images_root(run.spec.dataset) / p for p in run.data.test.table["path"].iloc[:4]]
    command = [python, "-I", "-W", "error", "predict.py", *images]
    done = subprocess.run(
        command, cwd=tmp_path / "edge", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [float(line.split("\t")[1]) for line in done.stdout.splitlines()]
    assert found == pytest.approx(
        [Predictor(tmp_path / "edge" / "detector.onnx")(p)["probability"] for p in images], abs=1e-5
    )


@pytest.mark.parametrize("kind", ["delta", "chain", "chain-int8", "resnet18", "mobilenet_v3_small"])
def test_every_kind_of_run_is_exported(tiny_dataset, tmp_path, kind):
    settings = {"latency_runs": 1, "weight_decay": 0.3}
    backbone = kind if "_" in kind or kind == "resnet18" else "vgg"
    method, deployed, base = "BL", None, None
    if backbone != "vgg":
        settings["backbone"] = backbone
    elif kind != "delta":
        method, settings["steps"] = (
            "chain",
            "prune:0.5,int8" if kind == "chain-int8" else "prune:0.5,finetune",
        )
    else:
        settings["weight_decay"] = 0.2  # a run of its own
    run = runs.Run(runs.spec(method, preset="tiny", dataset=tiny_dataset, settings=settings))
    with train.seeded(0):
        model = models.Detector(models.architecture("BL", size=32, backbone=backbone)).train()
        model(torch.rand(16, 3, 32, 32))
        model.eval()
        if kind == "delta":
            base, model = model, adapters.insert(model)
        elif method == "chain":
            model = prune.structured(model, rate=0.5)
    run.folder.mkdir(parents=True, exist_ok=True)
    if kind == "chain-int8":
        onnx_file = files.export.to_onnx(model, run.folder / "model.onnx")
        deployed = quantize.static_int8(onnx_file, run.folder / "model.int8.onnx", run.data.train)
    run.finish(model, deployed=deployed, base=base)
    out = tmp_path / "detector.onnx"
    done = files.export_run(run.spec.run_id, format="onnx", out=out)
    assert (
        done["parity"]["max_logit_difference"] < files.SAME_LOGITS
        and done["parity"]["same_decisions"] == 1
    )
    assert not any(n.op_type == "QuantizeLinear" for n in onnx.load(out).graph.node)
    done = files.export_run(run.spec.run_id, format="onnx-int8", out=out)
    assert done["parity"]["images"] == len(run.data.test)
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(out).graph.node)
    assert kind != "chain-int8" or out.read_bytes() == deployed.read_bytes()


def test_a_file_that_computes_something_else_is_refused_and_nothing_is_left(
    finished, tmp_path, monkeypatch
):
    run = finished["resize"]
    with train.seeded(1):
        other = models.Detector(models.student(0.9, size=32)).eval()
    write = files.export.to_onnx
    monkeypatch.setattr(
        files.export, "to_onnx", lambda model, path: write(other, path)
    )  # the exporter is wrong
    with pytest.raises(
        InputError, match=r"refused: the exported file does not compute .*logits differ by up to"
    ):
        files.export_run(run.spec.run_id, format="onnx", out=tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


def test_rounding_on_the_threshold_is_no_other_decision(finished):
    part, model = (
        finished["resize"].data.test,
        lambda x: torch.tensor([[0.0, 0.0]]).repeat(len(x), 1),
    )
    other = lambda shift: lambda x: torch.tensor([[0.0, -shift]]).repeat(len(x), 1)
    assert files.compare(model, other(1e-7), part, threshold=0.5)["same_decisions"] == 1
    assert files.compare(model, other(1e-4), part, threshold=0.5)["same_decisions"] == 0


def test_int8_that_decides_otherwise_is_flagged():
    bad = {"max_logit_difference": 3.0, "same_decisions": 0.9, "images": 100}
    assert "check before use: logits differ by up to 3, 90.00% of 100" in files._judged(
        bad, exact=False
    )
    assert files._judged(bad | {"same_decisions": 0.99}, exact=False) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onxx"}, "unknown format 'onxx', did you mean 'onnx'"),
        ({"run": "BL-s0-32px-nothing"}, "unknown run 'BL-s0-32px-nothing'"),
        ({"out": "detector.pt"}, r"--out .*detector\.pt: .* ends in \.onnx, e\.g\. detector\.onnx"),
    ],
)
def test_a_request_that_cannot_be_met_is_named(finished, tmp_path, options, message):
    request = {
        "run": finished["resize"].spec.run_id,
        "format": "onnx",
        "out": "detector.onnx",
    } | options
    with pytest.raises(InputError, match=message):
        files.export_run(request["run"], format=request["format"], out=tmp_path / request["out"])
    assert not list(tmp_path.iterdir())


def test_without_executorch_the_error_says_how_to_get_it(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(
        InputError, match=r'ExecuTorch is not installed: pip install -e "\.\[executorch\]"'
    ):
        files.export_run(
            finished["resize"].spec.run_id, format="executorch", out=tmp_path / "detector.pte"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own
def test_executorch_computes_the_same(finished, tmp_path):
    pytest.importorskip("executorch.runtime")
    run = finished["resize"]
    done = files.export_run(run.spec.run_id, format="executorch", out=tmp_path / "detector.pte")
    assert done["parity"]["max_logit_difference"] < 1e-3 and done["parity"]["same_decisions"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["detector.pte"]
    cost = measure.profile(tmp_path / "detector.pte", runs=5)
    assert cost["latency_ms"]["runtime"].startswith("executorch ") and cost["latency_ms"]["p50"] > 0
    (tmp_path / "broken.pte").write_bytes((tmp_path / "detector.pte").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"ExecuTorch cannot load .*broken\.pte"):
        files.ExecutorchModel(tmp_path / "broken.pte")
