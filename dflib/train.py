"""One training loop for everything that trains: baseline, fine-tuning, students, adapters. Knows nothing of the techniques."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from data_prep.errors import InputError
from dflib import augment
from dflib.data import Dataset, Part

log = logging.getLogger(__name__)

_VISIBLE = (
    {"disable": None} if tqdm.__module__ == "tqdm.asyncio" else {}
)  # a terminal or a notebook, not a log file

Loss = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # (logits N x C, labels N, or N x C under mixup and cutmix, images in [0, 1]) -> scalar


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, linear warm-up, then a cosine to zero."""

    epochs: int = 20
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    label_smoothing: float = 0.0
    patience: int = 0  # epochs without a better validation AUROC before stopping; then the best epoch's weights count. 0: never
    augment: bool = True
    mixup: float = 0.0  # of the Beta distribution that blends pairs of images and their labels (arXiv 1710.09412); 0: none
    cutmix: float = 0.0  # the same for a rectangle of one image pasted into another (arXiv 1905.04899); with both, a coin decides
    blur_jpeg: float = 0.0  # probability of a blur, and of a JPEG, of each image (arXiv 1912.11035)
    ema: float = 0.0  # decay a step of an average of the weights, which is what is validated and kept; 0: the last weights
    amp: bool = True
    seed: int = 0


def best_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> torch.dtype:
    """Mixed-precision type by capability: bfloat16 where the hardware computes in it, float16 on older GPUs, else float32.

    `torch.cuda.is_bf16_supported()` is not asked: it says yes on a T4, by emulation.
    """
    if device.type == "cuda":
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    flags = torch.cpu.get_capabilities()
    return (
        torch.bfloat16
        if flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("arm_bf16")
        else torch.float32
    )


def pixels(images: Tensor) -> Tensor:
    """uint8 N x 3 x H x W -> float in [0, 1], on the same device, channels_last."""
    return images.to(dtype=torch.float32, memory_format=torch.channels_last).div_(255)


def fit(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    loss: Loss | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
) -> pd.DataFrame:
    """Train `model` in place on `data.train`, watching `data.val`; returns the history, one row an epoch.

    loss: cross-entropy unless given (distillation passes its own). after_step: called after each step (pruning puts its zeros back).
    checkpoint: a file written after each epoch; where it exists, training goes on from it to the same result as without the interruption.
    Columns: epoch, lr, loss, accuracy (training batches), val_loss, val_accuracy, val_auroc, seconds.
    Raises `InputError` when the checkpoint is damaged or belongs to another recipe or model, for a batch of 1, or when the loss is no longer finite.

    >>> fit(model, data, Recipe(epochs=3))                          # doctest: +SKIP
    """
    if recipe.batch < 2:
        raise InputError(f"batch {recipe.batch}: BatchNorm needs at least 2 images in a batch")
    device = device or best_device()
    model.to(device, memory_format=torch.channels_last)
    loss = loss or (
        lambda logits, labels, images: F.cross_entropy(
            logits, labels, label_smoothing=recipe.label_smoothing
        )
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError(
            "every parameter of the model is frozen: select layers to train, dflib.adapters.select"
        )
    optimizer = torch.optim.AdamW(trainable, lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = -(-len(data.train) // recipe.batch)
    schedule = _warmup_cosine(optimizer, recipe, steps)
    scaler = torch.amp.GradScaler(
        device.type, enabled=recipe.amp and precision(device) == torch.float16
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    ema = averaged(model, recipe.ema) if recipe.ema else None
    parts |= {"ema": ema} if ema else {}
    kept = ema.module if ema else model
    keep = lambda: [f(model) for f in (after_step, ema and ema.update_parameters) if f]
    state = _resume(checkpoint, parts, recipe, device) or {
        "epoch": 0,
        "history": [],
        "best": None,
        "best_auroc": -1.0,
        "best_epoch": 0,
    }

    bar = tqdm(
        total=recipe.epochs,
        initial=state["epoch"],
        desc="training",
        unit="epoch",
        leave=False,
        **_VISIBLE,
    )
    with bar, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while state["epoch"] < recipe.epochs and not _out_of_patience(state, recipe):
            epoch = state["epoch"]
            seed = (
                recipe.seed * 100_003 + epoch
            )  # each epoch starts from its own: a resumed one is the same
            torch.manual_seed(seed)
            started = time.perf_counter()
            row = {"epoch": epoch + 1, "lr": schedule.get_last_lr()[0]}
            row |= _train_epoch(
                model, data.train, recipe, loss, optimizer, schedule, scaler, keep, device, seed
            )
            row |= _validate(kept, data.val, device, amp=recipe.amp)
            row["seconds"] = time.perf_counter() - started
            state["history"].append(row)
            state["epoch"] += 1
            if row["val_auroc"] > state["best_auroc"]:
                state |= {"best_auroc": row["val_auroc"], "best_epoch": state["epoch"]}
                state["best"] = (
                    {k: v.detach().cpu().clone() for k, v in kept.state_dict().items()}
                    if recipe.patience
                    else None
                )
            _save(checkpoint, parts, state, recipe)
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.3f}", val_auroc=f"{row['val_auroc']:.3f}")
            if on_epoch:
                on_epoch(pd.DataFrame(state["history"]))
    if ema or state["best"] is not None:
        model.load_state_dict(state["best"] or kept.state_dict())
    model.eval()
    return pd.DataFrame(state["history"])


def predict(
    forward: Callable[[Tensor], Tensor],
    part: Part,
    *,
    batch: int = 256,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """Probability of fake for each image of a part, in order (float64, N), in full precision.

    forward: a model in eval mode, or a deployed session: pixels in [0, 1], N x 3 x H x W -> logits N x 2.
    """
    return logits(forward, part, batch=batch, device=device).softmax(1)[:, 1].numpy()


def logits(
    forward: Callable[[Tensor], Tensor],
    part: Part,
    *,
    batch: int = 256,
    device: torch.device | str | None = None,
) -> Tensor:
    """The logits (float64, N x 2) behind `predict`."""
    if isinstance(forward, nn.Module):
        device = device or next(forward.parameters()).device
        forward.eval()
    with torch.inference_mode(), full_precision():
        found = [
            forward(pixels(images)).double().cpu()
            for images, _ in part.batches(batch, device=device or "cpu")
        ]
    return torch.cat(found)


def full_precision() -> contextlib.AbstractContextManager:
    """Convolutions of float32 compute in it inside, on GPUs too: cuDNN would round to TF32, and a score differ by 1e-3 from that of the exported file.

    >>> with full_precision():
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make what happens inside depend on `seed` alone, and leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Compute with n threads inside, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _warmup_cosine(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    total = max(1, recipe.epochs * steps)
    warm = min(total - 1, round(recipe.warmup * total))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, total - warm))
    if not warm:
        return cosine
    linear = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1 / (warm + 1), total_iters=warm
    )
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], milestones=[warm])


def _train_mode(model: nn.Module) -> None:
    """Train mode, but for layers whose parameters are all frozen: no dropout there, and BatchNorm keeps its statistics."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


def _train_epoch(
    model, part, recipe, loss, optimizer, schedule, scaler, after_step, device, seed
) -> dict:
    _train_mode(model)
    order = torch.Generator().manual_seed(seed)
    sums = torch.zeros(2, device=device)  # of the loss, of right decisions
    for images, labels in part.batches(recipe.batch, device=device, shuffle=order):
        if len(images) < 2:
            continue  # BatchNorm cannot normalise a single image
        x = pixels(augment.blur_jpeg(images, recipe.blur_jpeg) if recipe.blur_jpeg else images)
        x, targets = augment.augmented(x) if recipe.augment else x, labels
        if recipe.mixup or recipe.cutmix:
            x, targets = augment.blended(x, labels, mixup=recipe.mixup, cutmix=recipe.cutmix)
        with _autocast(device, recipe.amp):
            logits = model(x)
            value = loss(logits.float(), targets, x)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        after_step()
        sums += torch.stack(
            [value.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()]
        )
    total, correct = sums
    if not torch.isfinite(total):
        raise InputError(
            f"the training loss is {total.item()} at learning rate {schedule.get_last_lr()[0]:.2g}: lower it with --set lr={recipe.lr / 3:.1g}"
        )
    return {"loss": (total / len(part)).item(), "accuracy": (correct / len(part)).item()}


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the model's weights and BatchNorm statistics; `update_parameters(model)` after each step.

    average = d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)) in step t: a short training is not held back by where it
    began (the rule of TensorFlow's ExponentialMovingAverage; averaging itself: Polyak and Juditsky 1992). Zeros and frozen weights stay as they are.

    >>> averaged(nn.Linear(1, 1), 0.999).n_averaged.item()
    0
    """

    @torch.no_grad()
    def mean(averages: list[Tensor], current: list[Tensor], t: Tensor) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(
                averages, current, 1 - min(decay, (1 + t.item()) / (10 + t.item()))
            )
        else:  # counters
            torch._foreach_copy_(averages, current)

    return AveragedModel(model, multi_avg_fn=mean, use_buffers=True)


def _validate(model: nn.Module, part: Part, device: torch.device, *, amp: bool) -> dict:
    model.eval()
    with torch.inference_mode(), _autocast(device, amp):
        outputs = [
            (model(pixels(images)).float(), labels)
            for images, labels in part.batches(256, device=device)
        ]
    logits, labels = (torch.cat(t).cpu() for t in zip(*outputs, strict=True))
    score = logits[:, 1] - logits[:, 0]
    return {
        "val_loss": F.cross_entropy(logits, labels).item(),
        "val_accuracy": (logits.argmax(1) == labels).float().mean().item(),
        "val_auroc": float(roc_auc_score(labels.numpy(), score.numpy()))
        if score.isfinite().all()
        else 0.0,
    }


def _autocast(device: torch.device, amp: bool):
    dtype = precision(device)
    return torch.autocast(device.type, dtype, enabled=amp and dtype != torch.float32)


def _out_of_patience(state: dict, recipe: Recipe) -> bool:
    return bool(recipe.patience) and state["epoch"] - state["best_epoch"] >= recipe.patience


def _save(path: Path | None, parts: dict, state: dict, recipe: Recipe) -> None:
    if path is None:
        return
    new = Path(path).with_name(Path(path).name + ".new")
    torch.save(
        {
            "parts": {k: v.state_dict() for k, v in parts.items()},
            "state": state,
            "recipe": asdict(recipe),
        },
        new,
    )
    new.replace(path)


def _resume(path: Path | None, parts: dict, recipe: Recipe, device: torch.device) -> dict | None:
    if path is None or not Path(path).exists():
        return None
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        theirs = Recipe(**saved["recipe"])  # what an older version did not write has its default
    except Exception as error:  # torch, pickle and zip have their own kinds
        raise InputError(
            f"checkpoint {path} is damaged or not one of dflib's: remove it to start anew"
        ) from error
    if theirs != recipe:
        raise InputError(
            f"checkpoint {path} belongs to another recipe ({asdict(theirs)}): remove it to start anew"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"checkpoint {path} belongs to another model: remove it to start anew"
        ) from error
    log.info("going on after epoch %d of %d", saved["state"]["epoch"], recipe.epochs)
    return saved["state"]
