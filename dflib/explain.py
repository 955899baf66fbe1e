"""Where a detector looks, and what it may see there: Grad-CAM (by captum) and the high-pass residual. Knows nothing of runs."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep import shortcut
from data_prep.errors import InputError
from dflib.train import pixels

LUMA = (0.299, 0.587, 0.114)


def gradcam(model: nn.Module, images: Tensor, *, target: int = 1) -> np.ndarray:
    """Heat maps of what speaks for class `target` (1: fake) at the model's last convolution: float32, N x H x W in [0, 1].

    images: N x 3 x H x W, uint8 or pixels in [0, 1], at the model's size. Each map is scaled by its own maximum: maps tell where, not how
    much. All zero where nothing at that layer speaks for the class. As coarse as that layer's grid (2 x 2 at 32 px for BL), interpolated.
    The model (any of ours, torchvision's included) and its gradients are left as they were. Selvaraju et al. 2017, arXiv 1610.02391.
    Raises `InputError` for a model without a convolution (an ONNX session has no gradients: take the run's weights).

    >>> from dflib.models import Detector, architecture
    >>> gradcam(Detector(architecture("BL", size=32)), torch.rand(2, 3, 32, 32)).shape
    (2, 32, 32)
    """
    from captum.attr import LayerGradCam

    if not isinstance(model, nn.Module):
        raise InputError(
            f"{type(model).__name__} has no gradients: Grad-CAM needs the run's weights, run.model()"
        )
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    if not convolutions:
        raise InputError(
            f"{type(model).__name__} has no convolution: Grad-CAM has nothing to look at"
        )
    device, training = next(model.parameters()).device, model.training
    x = (
        (pixels(images) if images.dtype == torch.uint8 else images.detach())
        .to(device)
        .requires_grad_()
    )
    try:
        with torch.enable_grad():  # also inside no_grad
            maps = LayerGradCam(model.eval(), convolutions[-1]).attribute(
                x, target=target, relu_attributions=True
            )
    finally:
        model.train(training)
    maps = F.interpolate(
        maps.detach().float(), images.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-37)).cpu().numpy()


def similarity(before: np.ndarray, after: np.ndarray, *, top: float = 0.2) -> dict[str, np.ndarray]:
    """How alike two models' heat maps of the same images are: {"rank": Spearman's correlation of the pixels, "iou": intersection over union of each
    map's `top` share of pixels}, (N,) each. 1: the same places. A map that is the same everywhere has rank 0. IoU of unrelated maps: top / (2 - top).

    before, after: N x H x W, of `gradcam`. Source: Adebayo et al. 2018, arXiv 1810.03292 (rank correlation of saliency maps).

    >>> maps = np.arange(32.0).reshape(2, 4, 4)
    >>> similarity(maps, -maps)["rank"].tolist(), similarity(maps, maps)["iou"].tolist()
    ([-1.0, -1.0], [1.0, 1.0])
    """
    from scipy.stats import rankdata

    if before.shape != after.shape or before.ndim != 3:
        raise InputError(
            f"heat maps have shapes {before.shape} and {after.shape}: expected N x H x W, both alike"
        )
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (before, after)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    limit = (1 - top) * ranks[0].shape[1]
    hot = [r > limit for r in ranks]
    union = np.maximum((hot[0] | hot[1]).sum(1), 1)
    rank = np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)
    return {"rank": rank.round(12), "iou": (hot[0] & hot[1]).sum(1) / union}


def residual(images: Tensor | np.ndarray) -> np.ndarray:
    """What a blur takes away from the luminance, in grey levels around 0: float32, N x H x W. Generators leave their traces there.

    images: N x 3 x H x W, uint8 or pixels in [0, 1].

    >>> float(abs(residual(torch.full((1, 3, 8, 8), 0.5))).max()) < 1e-4  # nothing fine in a plain surface
    True
    """
    return shortcut.residual(_luma(images))


def spectrum(images: Tensor | np.ndarray) -> np.ndarray:
    """Mean log power spectrum of the images' residuals: float, H x W, zero frequency in the middle.

    images: as for `residual`. Upsampling shows as peaks at its multiples (Durall et al. 2020, arXiv 2003.01826).

    >>> spectrum(torch.rand(4, 3, 32, 32)).shape
    (32, 32)
    """
    return shortcut.spectrum(_luma(images)).mean(0)


def _luma(images: Tensor | np.ndarray) -> np.ndarray:
    images = np.asarray(images.detach().cpu() if isinstance(images, Tensor) else images)
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images have shape {tuple(images.shape)}: expected N x 3 x H x W")
    scale = 1 if images.dtype == np.uint8 else 255
    return np.einsum("nchw,c->nhw", images.astype(np.float32), np.array(LUMA, np.float32) * scale)
