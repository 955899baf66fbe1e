"""What happens to training images before the model sees them, by torch's seed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from data_prep import transform


def augmented(images: Tensor) -> Tensor:
    """Mirrored with probability 1/2, shifted by up to an eighth, contrast and brightness ± 10 %.

    The shift is the batch's, and reflects. Nothing is resampled: the traces of a generator stay.
    """
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


def blur_jpeg(images: Tensor, probability: float) -> Tensor:
    """Blur each image with this probability, then encode it as JPEG with this probability.

    images: uint8, N x 3 x H x W. sigma: from 0 to 3 pixels; quality: 30 to 100 (arXiv 1912.11035).
    """
    n = len(images)
    blurs, codes = torch.rand(2, n) < probability
    sigma, quality = 3 * torch.rand(n) * blurs, torch.randint(30, 101, (n,)) * codes
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        worse = np.stack(list(pool.map(degraded, arrays, sigma.tolist(), quality.tolist())))
    return torch.from_numpy(worse).to(images.device).permute(0, 3, 1, 2)


def degraded(image: np.ndarray, sigma: float, quality: int) -> np.ndarray:
    """uint8, H x W x 3: blurred by a Gaussian of sigma pixels, then a JPEG; 0 leaves that out."""
    if sigma:
        image = gaussian_filter(image, (sigma, sigma, 0), output=np.float32).round().astype("uint8")
    return np.asarray(transform.jpeg(Image.fromarray(image), quality)) if quality else image
