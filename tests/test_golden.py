"""What each versioned part of the code computes on a tiny fixed input. A number here changes only
with its version in `methods.VERSIONS`, so that runs of different code never share an id.

After a change that is meant: raise the version; `python tests/test_golden.py` writes golden.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data_prep import cache, integrity, transform
from dflib import adapters, distill, export, lowrank, metrics, models, prune, quantize, train
from dflib.data import Dataset, Part
from dflib.study import methods

CPU = torch.device("cpu")
BLOCKS = (
    models.Block(8, pool=True),
    models.Block(16, pool=True, separable=True, mid=16, groups=8),
    models.Block(16, pool=True),
)
ARCH = models.Architecture("t", 32, BLOCKS, (models.Dense(64), models.Dense(32)))
THEIRS = models.architecture("BL", size=32, backbone="timm/lcnet_050")  # its sizes alone are kept


def detector(arch: models.Architecture = ARCH) -> models.Detector:
    """Weights from a formula: no library's random numbers decide what is kept below."""
    model = models.Detector(arch).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.7 + i)
            p.copy_((wave.view(p.shape) * 0.3 + (p.ndim == 1) * 0.5).float())
    return model


def images(n: int = 64) -> np.ndarray:
    """uint8, n x 32 x 32 x 3; those of odd rows carry stripes."""
    grid = np.indices((n, 32, 32, 3)).astype(float)
    found = 100 + 60 * np.sin(grid[1] / 5 + grid[0]) + 30 * np.cos(grid[2] / 3 + grid[3])
    found[1::2, :, ::2] += 40
    return found.clip(0, 255).astype(np.uint8)


def data() -> Dataset:
    table = pd.DataFrame({"row": np.arange(64), "label": np.arange(64) % 2})
    table["generator"] = np.where(table["label"], "stripes", "camera")
    table["path"] = table["group"] = [f"i{i}" for i in range(64)]
    pieces = (table[:40], table[40:52], table[52:])
    parts = [Part(images(), piece.reset_index(drop=True)) for piece in pieces]
    return Dataset("toy", 32, "strict", "resize", *parts, ("real", "fake"))


def batch() -> torch.Tensor:
    return train.pixels(torch.from_numpy(images(4)).permute(0, 3, 1, 2))


def outputs(model: Callable) -> list[float]:
    with torch.no_grad():
        return model(batch()).flatten().tolist()


def of_data() -> list[float]:
    photo = Image.fromarray(np.tile(images(1)[0], (3, 4, 1))[:90, :120])
    found = [cache.fit(photo, size=32, mode=mode).mean((0, 1)) for mode in cache.MODES]
    grey = np.asarray(integrity.to_rgb(photo.convert("LA"))).mean((0, 1))
    return np.concatenate([*found, grey, np.asarray(transform.jpeg(photo, 60)).mean((0, 1))])


def of_models() -> list[float]:
    archs = [models.architecture("BL", size=size) for size in (32, 224)]
    archs += [models.architecture("BL", size=32, backbone="torchvision/resnet18")]
    archs += [models.student(rate, size=size) for rate in (0.6, 0.9) for size in (32, 224)]
    return [*map(models.count, archs), *outputs(detector()), models.count(THEIRS)]


def of_train() -> list[float]:
    model = detector()
    recipe = train.Recipe(epochs=2, batch=40, lr=1e-3, augment=False, amp=False)
    history = train.fit(model, data(), recipe, device=CPU)
    return [*history["loss"], *history["val_loss"], *outputs(model)]


def of_evaluate() -> list[float]:
    labels = np.arange(40) % 2
    scores = 0.5 + 0.4 * np.sin(np.arange(40) * 1.3) * 0.5 + 0.2 * (labels - 0.5)
    names = np.where(labels, np.where(np.arange(40) % 4 == 1, "a", "b"), "real")
    found = metrics.evaluate(labels, scores, names, threshold=0.5, draws=100)
    kept = [found[name][k] for name in ("a", "all") for k in ("accuracy", "f1", "auroc", "ap")]
    kept += [*found["all"]["ci95"]["auroc"], metrics.best_threshold(labels, scores)]
    return [*kept, *train.predict(detector(), data().test)]


def of_prune() -> list[float]:
    model, found = detector(), []
    for scope in ("layer", "global"):
        masked = detector()
        masks = prune.magnitude_masks(masked, rate=0.7, scope=scope)
        prune.apply_masks(masked, masks)
        found += [int(mask.sum()) for mask in masks.values()] + outputs(masked)
    small = prune.structured(model, rate=0.5, round_to=1)
    theirs = models.parameters(prune.structured(detector(THEIRS), rate=0.5))
    return [*found, models.parameters(small), *outputs(small), theirs]


def of_distill() -> list[float]:
    student, teacher = torch.tensor([[1.0, -1], [0.2, 0.3]]), torch.tensor([[-2.0, 2], [1.0, -1]])
    labels = torch.tensor([0, 1])
    options = [{}, {"temperature": 2.0, "alpha": 0.3}, {"label_smoothing": 0.2}]
    losses = [distill.kd_loss(student, teacher, labels, **each).item() for each in options]
    loss = distill.Distillation(detector(), label_smoothing=0.1)
    return [*losses, loss(student.repeat(2, 1), labels.repeat(2), batch()).item()]


def of_quantize() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        file = export.to_onnx(detector(), Path(folder) / "m.onnx")
        dynamic = quantize.dynamic_linear(file, Path(folder) / "d.onnx")
        static = quantize.static_int8(file, Path(folder) / "s.onnx", data().train, images=32)
        return [x for each in (dynamic, static) for x in outputs(export.OnnxModel(each))]


def of_lowrank() -> list[float]:
    ranks = lowrank.choose_ranks(detector(), rate=0.5)
    thin = lowrank.factorise(detector(), ranks)
    return [*(r for rank in ranks.values() for r in rank), *outputs(thin)]


def of_adapters() -> list[float]:
    found = [adapters.select(detector(), names) for names in ("norms", "features.0,head")]
    for form in ("serial", "residual"):
        adapted = adapters.insert(detector(), "features.1", form=form)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        found += [models.parameters(adapted), trained]
    theirs = adapters.insert(detector(THEIRS), "features.blocks.1")
    return [*found, *outputs(adapted), models.parameters(theirs)]


# relative tolerances: rounding of another CPU, or of its int8 instructions, is no change
TOLERANCE = {"train": 0.02, "quantize": 0.05}
# {part: its version, and the numbers that it computes}
GOLDEN = Path(__file__).with_name("golden.json")


@pytest.mark.parametrize("name", methods.VERSIONS)
def test_what_is_computed_changes_with_its_version_alone(name):
    kept = json.loads(GOLDEN.read_text())[name]
    same_version = kept["version"] == methods.VERSIONS[name]
    assert same_version, "write the new numbers: see this file's first lines"
    found = np.array(globals()[f"of_{name}"](), float)
    expected = np.array(kept["numbers"].split(), float)
    rtol = TOLERANCE.get(name, 1e-4)
    same = found == pytest.approx(expected, rel=rtol, abs=rtol * np.abs(expected).min())
    assert same, f"{name} computes something else: raise methods.VERSIONS[{name!r}]"


def test_a_version_is_in_the_ids_of_the_methods_that_use_it_and_of_no_others(
    tiny_dataset, tiny_source, monkeypatch
):
    from dflib.study.runs import spec

    def ids() -> dict[str, str]:
        request = {"preset": "tiny", "dataset": tiny_dataset, "source": tiny_source, "rate": 0.9}
        return {code: spec(code, **request).run_id for code in methods.METHODS}

    users = {
        "prune": {"CPF", "CPF-S", "SCRATCH", "CPKDQ", "chain", "TL+P+FT", "TL+P+A"},
        "distill": {"CKD", "CPKDQ", "chain", "TL+KD", "TL+KD+A"},
        "quantize": {"CQ", "CQ-S", "CPKDQ", "chain", "TL+FT+Q"},
        "lowrank": {"LRF"},
        "adapters": {c for c in methods.METHODS if c.startswith("TL")},
    }
    before = ids()
    for name in methods.VERSIONS:
        with monkeypatch.context() as patch:
            patch.setitem(methods.VERSIONS, name, 99)
            after = ids()
        changed = {code for code in before if before[code] != after[code]}
        assert changed == users.get(name, {*methods.METHODS}), name


if __name__ == "__main__":
    computed = {part: globals()[f"of_{part}"]() for part in methods.VERSIONS}
    texts = {part: " ".join(f"{x:.9g}" for x in values) for part, values in computed.items()}
    each = {k: {"version": v, "numbers": texts[k]} for k, v in methods.VERSIONS.items()}
    GOLDEN.write_text(json.dumps(each, indent=1) + "\n")
