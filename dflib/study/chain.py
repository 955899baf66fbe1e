"""Techniques one after the other: prune, distill, int8 (CPKDQ), or any order of `parse_steps`."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from dflib import distill, export, models, prune, quantize, train
from dflib.models import Detector
from dflib.study import methods
from dflib.study.runs import Run


def steps(run: Run) -> tuple[tuple[str, float | None], ...]:
    """The steps of a CPKDQ or chain run."""
    rate = run.spec.rate
    return methods.parse_steps(methods.CPKDQ.format(rate=rate) if rate else run.settings["steps"])


def make(run: Run, *, on_epoch: Callable | None = None) -> tuple[Detector, Path | None]:
    """Do all steps, starting from BL; returns the last float model, and the int8 file or None.
    What each step made stays in the run's folder, as `1-prune.safetensors`, …."""
    model, deployed, before, s = run.parent("BL").model(), None, "", run.settings
    short = run.recipe(epochs=s["finetune_epochs"], lr=s["finetune_lr"])
    for i, (kind, rate) in enumerate(steps(run), 1):
        if kind.startswith("int8"):
            onnx = run.once("model.onnx", partial(export.to_onnx, model))
            options = {"calibration": s["calibration"], "images": s["calibration_images"]}
            options["keep_float"] = tuple(filter(None, s["keep_float"].split(",")))
            make_int8 = partial(quantize.static_int8, onnx, part=run.data.train, **options)
            if kind == "int8-linear":
                make_int8 = partial(quantize.dynamic_linear, onnx)
            deployed = run.once("model.int8.onnx", make_int8)
        else:
            recipe = student_recipe(run) if before == "student" else short
            tune = partial(run.fit, recipe=recipe, stage=f"-{i}", on_epoch=on_epoch)
            step = partial(_step, run, model, kind, rate, tune)
            model = models.load(run.once(f"{i}-{kind}.safetensors", step))
        before = kind
    return model, deployed


def prune_in_steps(run: Run, model: Detector, rate: float) -> Detector:
    """`prune.gradually` as the run's settings say; rate: the share of BL's parameters."""
    s, seed = run.settings, run.spec.seed
    options = {key: s[key] for key in ("importance", "scope", "round_to")}
    if s["importance"] == "taylor":
        order = torch.Generator().manual_seed(seed)
        batches = run.data.train.batches(s["batch"], device=train.best_device(), shuffle=order)
        options["batches"] = list(islice(batches, 8))
    recipe = run.recipe(epochs=s["step_epochs"], lr=s["finetune_lr"])
    tune = lambda m, i: run.fit(m, recipe, as_timing="compress_s", stage=f"-step{i}")
    rate = _own(run, model, rate)
    with train.seeded(seed):
        return prune.gradually(model, rate=rate, steps=s["prune_steps"], tune=tune, **options)


def teacher_of(run: Run) -> distill.Distillation:
    """The run's teacher, with its temperature, alpha and label smoothing."""
    options = {key: run.settings[key] for key in ("temperature", "alpha", "label_smoothing")}
    return distill.Distillation(run.teacher(), **options)


def student_recipe(run: Run) -> train.Recipe:
    """How a student is trained: `distill_epochs` where given, else as long as BL."""
    return run.recipe(epochs=run.settings["distill_epochs"] or run.settings["epochs"])


def _own(run: Run, model: Detector, rate: float) -> float:
    """The share of the model's parameters to remove, for a share `rate` of BL's to be gone."""
    return 1 - (1 - rate) * models.parameters(run.parent("BL").model()) / models.parameters(model)


def _step(run: Run, model: Detector, kind: str, rate: float, tune: Callable, path: Path) -> None:
    """One step that makes a float model, from the one before it to the file `path`."""
    s = run.settings
    if kind == "prune":
        model = prune_in_steps(run, model, rate)
    elif kind == "mask":
        masks = prune.magnitude_masks(model, rate=_own(run, model, rate), scope=s["scope"])
        prune.apply_masks(model, masks)
    elif kind == "student":
        with train.seeded(run.spec.seed):
            model = Detector(models.student(rate, size=s["size"], backbone=s["backbone"]))
    else:
        zeros = {name: mask for name, mask in prune.masks_of(model).items() if not mask.all()}
        loss = teacher_of(run) if kind == "distill" else None
        keep = lambda m: prune.apply_masks(m, zeros)
        tune(model, as_timing="compress_s", loss=loss, after_step=keep)
    models.save(model, path)
