"""Where a detector looks, and what it may see there: Grad-CAM and the high-pass residual."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep import shortcut
from data_prep.errors import InputError
from dflib.train import pixels


def gradcam(model: nn.Module, images: Tensor, *, target: int = 1) -> np.ndarray:
    """Heat maps of what speaks for class `target` (1: fake) at the model's last convolution.

    images: N x 3 x H x W at the model's size, uint8 or pixels in [0, 1]. Returns float32 in [0, 1],
    N x H x W: each map over its maximum, interpolated from that layer's grid (2 x 2 at 32 px for
    BL). arXiv 1610.02391. Raises `InputError` for what has no convolution.

    >>> from dflib.models import Detector, architecture
    >>> gradcam(Detector(architecture("BL", size=32)), torch.rand(2, 3, 32, 32)).shape
    (2, 32, 32)
    """
    from captum.attr import LayerGradCam

    modules = model.modules() if isinstance(model, nn.Module) else ()
    convolutions = [layer for layer in modules if isinstance(layer, nn.Conv2d)]
    if not convolutions:
        hint = "Grad-CAM needs the run's weights, run.model()"
        raise InputError(f"{type(model).__name__} has no convolution: {hint}")
    device, training = next(model.parameters()).device, model.training
    x = pixels(images) if images.dtype == torch.uint8 else images.detach()
    cam = LayerGradCam(model.eval(), convolutions[-1])
    try:
        with torch.enable_grad():  # also inside no_grad
            x = x.to(device).requires_grad_()
            maps = cam.attribute(x, target=target, relu_attributions=True).detach().float()
    finally:
        model.train(training)
    maps = F.interpolate(maps, x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-37)).cpu().numpy()


def residual(images: Tensor | np.ndarray) -> np.ndarray:
    """What a blur takes away from the luminance: N x 3 x H x W, uint8 or pixels in [0, 1] -> grey
    levels around 0, N x H x W."""
    return shortcut.residual(_luma(images))


def spectrum(images: Tensor | np.ndarray) -> np.ndarray:
    """Mean log power spectrum of the images' residuals, H x W, zero frequency in the middle:
    upsampling shows as peaks at its multiples (arXiv 2003.01826)."""
    return shortcut.spectrum(_luma(images)).mean(0)


def _luma(images: Tensor | np.ndarray) -> np.ndarray:
    images = np.asarray(images.detach().cpu() if isinstance(images, Tensor) else images)
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images have shape {images.shape}: expected N x 3 x H x W")
    scale = 1 if images.dtype == np.uint8 else 255
    return np.einsum("nchw,c->nhw", images.astype(np.float32), shortcut.LUMA * scale)
