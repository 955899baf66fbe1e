"""One training loop for everything that trains. Knows nothing of the techniques."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from data_prep.errors import InputError
from data_prep.paths import regular, written
from dflib import augment
from dflib.data import Dataset, Part
from dflib.measure import instruction_sets

log = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]  # model or session: pixels in [0, 1], N x 3 x H x W -> logits
Place = tuple[int, Tensor, int]  # of a batch: the view's number, images' rows, rows in all
# logits, labels, images, and the place where the recipe has views -> scalar
Loss = Callable[[Tensor, Tensor, Tensor, Place | None], Tensor]
# inside, no convolution in TF32, a GPU's default, which moves scores by 1e-3
full_precision = partial(torch.backends.cudnn.flags, enabled=True, allow_tf32=False)
COLUMNS = ("epoch", "lr", "loss", "accuracy", "val_loss", "val_accuracy", "val_auroc")
VISIBLE = {"disable": None} if tqdm.__module__ == "tqdm.asyncio" else {}  # no bar in a log file


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, linear warm-up, then a cosine to zero."""

    epochs: int = 20
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    label_smoothing: float = 0.0
    patience: int = 0  # epochs without a better val_auroc; the best one's weights count. 0: no end
    augment: bool = True
    ema: float = 0.0  # decay a step of the averaged weights, which are then what counts; 0: none
    amp: bool = True
    seed: int = 0
    head_lr: float = 0.0  # of `model.head`, a fresh one on a pretrained network; 0: as all
    freeze_bn: bool = False  # BatchNorm keeps the statistics that it came with
    views: int = 0  # fixed ones of each image, in turns, an epoch each; 0: new ones in each epoch


def best_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> torch.dtype:
    """bfloat16 where it is native (a T4 emulates it), float16 on older GPUs, float32 elsewhere."""
    if device.type == "cuda":
        recent = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if recent else torch.float16
    native = {"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_sets())
    return torch.bfloat16 if native else torch.float32


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
    """Train `model` in place on `data.train`, watching `data.val`; returns a row for each epoch:
    COLUMNS, seconds, cpu_seconds.

    loss: cross-entropy unless given. after_step: pruning puts its zeros back, say. checkpoint:
    written after each epoch; from one, training goes on to the same end as without interruption.
    Raises `InputError` for a checkpoint of another recipe or model, a batch of 1, no trainable
    parameters, an infinite loss.

    >>> fit(model, data, Recipe(epochs=3))  # doctest: +SKIP
    """
    if recipe.batch < 2:
        raise InputError(f"batch {recipe.batch}: BatchNorm needs at least 2 images in a batch")
    device = device or best_device()
    model.to(device, memory_format=torch.channels_last)
    if not recipe.epochs:  # as it is
        model.eval()
        return pd.DataFrame(columns=[*COLUMNS, "seconds", "cpu_seconds"])
    smooth = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    loss = loss or (lambda z, labels, *_: smooth(z, labels))
    parts = _parts(model, recipe, device, steps=-(-len(data.train) // recipe.batch))
    kept = parts["ema"].module if recipe.ema else model  # what is validated, and is the result
    hooks = [f for f in (after_step, recipe.ema and parts["ema"].update_parameters) if f]
    state = _resume(checkpoint, parts, recipe)
    history = state["history"]
    epochs = tqdm(range(len(history), recipe.epochs), "training", leave=False, **VISIBLE)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in epochs:
            if recipe.patience and len(history) - _best(history) >= recipe.patience:
                break
            started, busy = perf_counter(), process_time()
            row = {"epoch": epoch + 1, "lr": parts["schedule"].get_last_lr()[0]}
            row |= _train_epoch(data.train, recipe, loss, hooks, epoch, **parts)
            row |= _validate(kept, data.val, recipe)
            took = {"seconds": perf_counter() - started, "cpu_seconds": process_time() - busy}
            history.append(row | took)
            if recipe.patience and _best(history) == len(history):
                state["best"] = {k: v.cpu().clone() for k, v in kept.state_dict().items()}
            if checkpoint:
                states = {name: part.state_dict() for name, part in parts.items()}
                with written(checkpoint) as new:
                    torch.save({"parts": states, "state": state, "recipe": asdict(recipe)}, new)
            if on_epoch:
                on_epoch(pd.DataFrame(history))
    model.load_state_dict(state["best"] or kept.state_dict())
    model.eval()
    return pd.DataFrame(history)


def predict(forward: Forward, part: Part, *, batch: int = 256) -> np.ndarray:
    """Probability of fake for each image of a part, in order (float64, N), in full precision."""
    return probabilities(logits(forward, part, batch=batch))


def probabilities(z: Tensor) -> np.ndarray:
    """P(fake) of logits, N x 2 -> N (float64); `InputError` where they are NaN or infinite."""
    if wrong := int((~z.isfinite()).any(1).sum()):
        what = f"{wrong} of {len(z)} images get logits that are NaN or infinite"
        raise InputError(f"{what}: the model's weights or its file are damaged, make it again")
    return z.double().softmax(1)[:, 1].numpy()


def logits(forward: Forward, part: Part, *, batch: int = 256, amp: bool = False) -> Tensor:
    """The logits (float64, N x 2) behind `predict`; amp: in mixed precision."""
    model = isinstance(forward, nn.Module)
    device = next(forward.eval().parameters()).device if model else torch.device("cpu")
    with torch.inference_mode(), full_precision(), _autocast(device, amp):
        found = [forward(pixels(x)).double().cpu() for x, _ in part.batches(batch, device=device)]
    return torch.cat(found)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What happens inside depends on `seed` alone; torch's global generator is put back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and BatchNorm statistics (Polyak and Juditsky 1992),
    of decay min(decay, (1 + t) / (10 + t)) in step t: TensorFlow's rule, for short trainings."""

    @torch.no_grad()
    def mean(averages: list[Tensor], weights: list[Tensor], t: Tensor) -> None:
        d = min(decay, (1 + t.item()) / (10 + t.item()))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, 1 - d)
        else:  # counters
            torch._foreach_copy_(averages, weights)

    return AveragedModel(model, multi_avg_fn=mean, use_buffers=True)


def _parts(model: nn.Module, recipe: Recipe, device: torch.device, steps: int) -> dict:
    """All that has a state in a training; steps: in an epoch."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("every parameter of the model is frozen: see dflib.adapters.select")
    if recipe.head_lr:
        head = {*model.head.parameters()}
        body, last = ([p for p in trainable if (p in head) == own] for own in (False, True))
        trainable = [{"params": body}, {"params": last, "lr": recipe.head_lr}]
    optimizer = torch.optim.AdamW(trainable, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = _warmup_cosine(optimizer, recipe, steps)
    float16 = recipe.amp and precision(device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=float16)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    return parts | ({"ema": averaged(model, recipe.ema)} if recipe.ema else {})


def _warmup_cosine(optimizer, recipe: Recipe, steps: int) -> lr_scheduler.LRScheduler:
    total = max(1, recipe.epochs * steps)
    warm = min(total - 1, round(recipe.warmup * total))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2

    return lr_scheduler.LambdaLR(optimizer, factor)


def _train_mode(model: nn.Module, *, freeze_bn: bool = False) -> None:
    """Train mode, but where all is frozen: no dropout there, and BatchNorm keeps its statistics."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        frozen = own and not any(p.requires_grad for p in own)
        if frozen or (freeze_bn and isinstance(module, nn.BatchNorm2d)):
            module.eval()


def _train_epoch(part, recipe, loss, hooks, epoch, *, model, optimizer, schedule, scaler, **_):
    _train_mode(model, freeze_bn=recipe.freeze_bn)
    seed = recipe.seed * 100_003 + epoch  # its own: a resumed epoch is the same
    number = epoch % max(1, recipe.views)  # of the view
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    order = torch.Generator().manual_seed(seed)
    sums = torch.zeros(2, device=device)  # of the loss, of right decisions
    for images, labels, rows in part.indexed(recipe.batch, device=device, shuffle=order):
        if len(images) < 2:
            continue  # BatchNorm cannot normalise a single image
        x = pixels(images)
        place = (number, rows, len(part)) if recipe.views else None
        if recipe.augment:
            x = augment.view(x, rows, number) if recipe.views else augment.augmented(x)
        with _autocast(device, recipe.amp):
            z = model(x)
            value = loss(z.float(), labels, x, place)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        for hook in hooks:
            hook(model)
        right = (z.detach().argmax(1) == labels).sum()
        sums += torch.stack([value.detach() * len(labels), right])
    total, right = (sums / len(part)).tolist()
    if not math.isfinite(total):
        lower = float(f"{min(recipe.lr / 3, 1e-3):.1g}")  # where it is absurd, the usual
        hint = f"--set lr={lower:g} (finetune_lr=, transfer_lr=, adapter_lr= likewise)"
        told = f"the training loss is {total} at learning rate {recipe.lr:.2g}"
        raise InputError(f"{told}: lower it with {hint}")
    return {"loss": total, "accuracy": right}


def _validate(model: nn.Module, part: Part, recipe: Recipe) -> dict:
    z, labels = logits(model, part, amp=recipe.amp).float(), torch.tensor(part.labels)
    score = z[:, 1] - z[:, 0]
    auroc = roc_auc_score(part.labels, score) if score.isfinite().all() else 0.0
    right = (z.argmax(1) == labels).float().mean().item()
    loss = F.cross_entropy(z, labels).item()
    return {"val_loss": loss, "val_accuracy": right, "val_auroc": float(auroc)}


def _autocast(device: torch.device, amp: bool) -> torch.autocast:
    dtype = precision(device)
    return torch.autocast(device.type, dtype, enabled=amp and dtype != torch.float32)


def _best(history: list[dict]) -> int:
    """The first epoch with the best validation AUROC; 0 before any."""
    return max(history, key=lambda row: row["val_auroc"], default={"epoch": 0})["epoch"]


def _resume(path: Path | None, parts: dict, recipe: Recipe) -> dict:
    """The state in a checkpoint, its parts loaded; the beginning's for none or a damaged one."""
    beginning = {"history": [], "best": None}
    if path is None or not Path(path).exists():
        return beginning
    try:
        saved = torch.load(regular(path, 2**40), map_location="cpu", weights_only=True)
        theirs = Recipe(**saved["recipe"])  # what an older version did not write has its default
        states, state = [saved["parts"][name] for name in parts], saved["state"]
    except Exception:  # torch, pickle and zip have their own kinds
        log.warning("checkpoint %s is damaged: training starts anew", path)
        return beginning
    anew = "remove it to start anew"
    if theirs != recipe:
        raise InputError(f"checkpoint {path} is of another recipe, {theirs}: {anew}")
    try:
        for part, own in zip(parts.values(), states, strict=True):
            part.load_state_dict(own)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {path} is of another model: {anew}") from error
    log.info("going on after epoch %d of %d", len(state["history"]), recipe.epochs)
    return state
