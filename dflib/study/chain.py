"""Techniques one after the other: prune, distill, int8 (CPKDQ), or any other order that `methods.parse_steps` lets through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dflib import distill, export, models, prune, quantize, train
from dflib.models import Detector
from dflib.study import methods
from dflib.study.runs import Run


def steps(run: Run) -> tuple[tuple[str, float | None], ...]:
    """The steps of a CPKDQ or chain run."""
    return methods.parse_steps(
        run.settings["steps"] if run.spec.rate is None else methods.CPKDQ.format(rate=run.spec.rate)
    )


def make(run: Run, *, on_epoch: Callable | None = None) -> tuple[Detector, Path | None]:
    """Do all steps, starting from BL; returns the last float model, and the int8 file if there is one (else None).

    What each step made stays in the run's folder (`1-prune.safetensors`, …): after an interruption the next step goes on from it.

    >>> model, deployed = make(engine.start("chain", settings={"steps": "student:0.9,distill,int8"}))  # doctest: +SKIP
    """
    model, deployed, done = run.parent("BL").model(), None, []
    for i, (kind, rate) in enumerate(steps(run), 1):
        if kind.startswith("int8"):
            onnx = run.once("model.onnx", partial(export.to_onnx, model))
            deployed = run.once("model.int8.onnx", partial(_int8, run, kind, onnx))
        else:
            path = run.once(
                f"{i}-{kind}.safetensors",
                partial(_save, run, model, kind, rate, f"-{i}", done, on_epoch),
            )
            model = models.load(path)
        done.append(kind)
    return model, deployed


def prune_in_steps(run: Run, model: Detector, rate: float, **options) -> Detector:
    """`prune.gradually` as the run's settings say, with a short fine-tuning after each step but the last (options: of `train.fit`).

    rate: share of BL's parameters that are gone in the end (a model that is smaller already gives up the rest).
    """
    s, full = run.settings, models.parameters(run.parent("BL").model())
    own = 1 - (1 - rate) * full / models.parameters(model)
    recipe = run.recipe(epochs=s["step_epochs"], lr=s["finetune_lr"])
    batches = []
    if s["importance"] == "taylor":
        loader = run.data.train.batches(
            s["batch"],
            device=train.best_device(),
            shuffle=torch.Generator().manual_seed(run.spec.seed),
        )
        batches = [batch for _, batch in zip(range(8), loader, strict=False)]
    with train.seeded(run.spec.seed):
        return prune.gradually(
            model,
            rate=own,
            steps=s["prune_steps"],
            importance=s["importance"],
            scope=s["scope"],
            round_to=s["round_to"],
            batches=batches,
            tune=lambda m, i: run.fit(
                m, recipe, as_timing="compress_s", stage=f"-step{i}", **options
            ),
        )


def teacher_of(run: Run) -> distill.Distillation:
    """BL as the teacher, with the run's temperature and alpha."""
    s = run.settings
    return distill.Distillation(
        run.parent("BL").model(), temperature=s["temperature"], alpha=s["alpha"]
    )


def student_recipe(run: Run) -> train.Recipe:
    """How a student is trained, with a teacher or without: `distill_epochs` where given, else as long as BL."""
    return run.recipe(epochs=run.settings["distill_epochs"] or run.settings["epochs"])


def _save(
    run: Run,
    model: Detector,
    kind: str,
    rate: float,
    stage: str,
    done: list[str],
    on_epoch,
    path: Path,
) -> None:
    """One step that makes a float model, from the one before it to the file `path`."""
    if kind == "prune":
        model = prune_in_steps(run, model, rate)
    elif kind == "mask":
        full = models.parameters(run.parent("BL").model())
        prune.apply_masks(
            model,
            prune.magnitude_masks(
                model,
                rate=1 - (1 - rate) * full / models.parameters(model),
                scope=run.settings["scope"],
            ),
        )
    elif kind == "student":
        with train.seeded(run.spec.seed):
            model = Detector(
                models.student(rate, size=run.settings["size"], backbone=run.settings["backbone"])
            )
    else:
        short = run.recipe(epochs=run.settings["finetune_epochs"], lr=run.settings["finetune_lr"])
        recipe = student_recipe(run) if done[-1:] == ["student"] else short
        masks = prune.masks_of(model) if "mask" in done else {}
        loss = teacher_of(run) if kind == "distill" else None
        keep_zeros = lambda m: prune.apply_masks(m, masks)
        run.fit(
            model,
            recipe,
            as_timing="compress_s",
            stage=stage,
            loss=loss,
            after_step=keep_zeros,
            on_epoch=on_epoch,
        )
    models.save(model, path)


def _int8(run: Run, kind: str, onnx: Path, target: Path) -> None:
    if kind == "int8":
        s = run.settings
        keep = tuple(filter(None, s["keep_float"].split(",")))
        options = {
            "calibration": s["calibration"],
            "images": s["calibration_images"],
            "keep_float": keep,
        }
        quantize.static_int8(onnx, target, run.data.train, **options)
    else:
        quantize.dynamic_linear(onnx, target)
