"""What happens to training images before the model sees them, by torch's seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augmented(images: Tensor) -> Tensor:
    """Mirrored with probability 1/2, shifted (the whole batch) by up to an eighth, contrast and
    brightness ± 10 %. Nothing is resampled: the traces of a generator stay."""
    n, _, height, width = images.shape
    flip = torch.rand(n, 1, 1, 1, device=images.device) < 0.5
    images = torch.where(flip, images.flip(3), images)
    reach = height // 8
    top, left = torch.randint(0, 2 * reach + 1, (2,)).tolist()
    images = F.pad(images, (reach,) * 4, mode="reflect")
    images = images[:, :, top : top + height, left : left + width]
    gain, shift = 1 + 0.2 * (torch.rand(2, n, 1, 1, 1, device=images.device) - 0.5)
    centre = images.mean(dim=(1, 2, 3), keepdim=True)
    images = ((images - centre) * gain + centre * shift).clamp(0, 1)
    return images.contiguous(memory_format=torch.channels_last)


def view(images: Tensor, rows: Tensor, number: int) -> Tensor:
    """`augmented`, always alike for an image (its row) and a number: so answers can be kept."""
    cuda = [images.device] if images.device.type == "cuda" else []
    found = []
    with torch.random.fork_rng(devices=cuda):
        for image, row in zip(images.split(1), rows.tolist(), strict=True):
            torch.manual_seed(row * 10_007 + number)
            found.append(augmented(image))
    return torch.cat(found).contiguous(memory_format=torch.channels_last)
