"""Chains of techniques for real: what each step leaves, and what an interruption costs."""

import shutil
from pathlib import Path

import pytest
import torch

from data_prep.errors import InputError
from dflib import export, models, prune, train
from dflib.study import chain
from dflib.study.runs import Run, spec

QUICK = {"epochs": 1, "limit": 24, "batch": 16, "latency_runs": 2, "draws": 20}


@pytest.fixture(scope="module")
def baseline(tiny_dataset, tmp_path_factory) -> Path:
    """An outputs root with a finished BL."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("chain-outputs")
        patch.setenv("DFLIB_OUTPUTS", str(root))
        run = Run(spec("BL", preset="tiny", dataset=tiny_dataset, settings=QUICK))
        with train.seeded(0):
            model = models.Detector(models.architecture("BL", size=32))
        run.fit(model, run.recipe())
        run.finish(model)
    return root


@pytest.fixture
def start(baseline, tiny_dataset, tmp_path, monkeypatch):
    """start(steps): a chain that is to be made, in an outputs root of its own."""
    shutil.copytree(baseline, tmp_path / "outputs")
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "outputs"))
    request = {"preset": "tiny", "dataset": tiny_dataset}
    settings = QUICK | {"prune_steps": 2}
    return lambda steps: Run(spec("chain", **request, settings=settings | {"steps": steps}))


def test_every_step_takes_its_share_of_the_baselines_parameters(start):
    run = start("prune:0.6,finetune,mask:0.9,distill,int8")
    model, int8 = chain.make(run)
    full = models.parameters(run.parent("BL").model())
    files = sorted(run.folder.glob("[0-9]-*"))
    assert [p.stem for p in files] == ["1-prune", "2-finetune", "3-mask", "4-distill"]
    stages = [models.load(p) for p in files]
    assert [models.parameters(m) / full for m in stages] == pytest.approx([0.4] * 4, rel=0.01)
    assert [models.nonzero(m) / full for m in stages[2:]] == pytest.approx([0.1, 0.1], rel=0.01)
    before, after = (prune.masks_of(m) for m in stages[2:])  # zeros stay through distillation
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(stages[2].features[0].norm.bias, stages[3].features[0].norm.bias)
    assert all(torch.equal(v, stages[3].state_dict()[k]) for k, v in model.state_dict().items())
    float_file = run.folder / "model.onnx"
    whole = run.parent("BL").folder / "model.onnx"
    sizes = [file.stat().st_size for file in (int8, float_file, whole)]
    assert sizes[0] < 0.4 * sizes[1] < 0.5 * sizes[2]
    x = train.pixels(next(run.data.test.batches(8))[0])
    deployed = export.OnnxModel(float_file)(x)
    torch.testing.assert_close(deployed, model(x).detach(), rtol=1e-3, atol=1e-3)
    result = run.finish(model, deployed=int8)
    assert result["deployed"] == "model.int8.onnx"
    assert result["cost"]["params"] == models.parameters(model)
    assert result["timings"]["compress_s"] > 0


def test_a_student_can_start_a_chain(start):
    run = start("student:0.9,distill,int8-linear")
    model, int8 = chain.make(run)
    assert model.arch == models.student(0.9, size=32)
    assert int8.exists() and chain.make(start("prune:0.5"))[1] is None


def test_after_an_interruption_the_chain_goes_on_to_the_same_result(start):
    class Interruption(Exception):
        pass

    def interrupt(history):
        raise Interruption

    run = start("prune:0.8,distill")
    with pytest.raises(Interruption):
        chain.make(run, on_epoch=interrupt)
    first = run.folder / "1-prune.safetensors"
    written = first.stat().st_mtime_ns
    assert not (run.folder / "2-distill.safetensors").exists()
    again, _ = chain.make(run)
    assert first.stat().st_mtime_ns == written
    for made in set(run.folder.iterdir()) - {run.folder / "lock"}:
        made.unlink()
    whole, _ = chain.make(run)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_finished_run_refuses_a_model_of_another_shape(start):
    finished = start("int8").parent("BL")
    with pytest.raises(InputError, match="of another shape: take run.model()"):
        finished.fit(models.Detector(models.student(0.9, size=32)), finished.recipe())
