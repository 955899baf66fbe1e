"""What happens to a batch of training images, and to their labels, before the model sees them. All randomness is torch's global generator's."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIGMA = 3.0  # largest blur, in pixels
QUALITIES = (30, 100)  # of the JPEG, from and to


def augmented(images: Tensor) -> Tensor:
    """Mirror each image with probability 1/2, shift the batch by up to an eighth (reflected), and vary each one's brightness and contrast by 10 %.

    Nothing here resamples or smooths: the traces of a generator stay as they are.
    """
    n, _, height, width = images.shape
    flip = torch.rand(n, 1, 1, 1, device=images.device) < 0.5
    images = torch.where(flip, images.flip(3), images)
    reach = height // 8
    top, left = torch.randint(0, 2 * reach + 1, (2,)).tolist()
    images = F.pad(images, (reach,) * 4, mode="reflect")[
        :, :, top : top + height, left : left + width
    ]
    gain, shift = 1 + 0.2 * (torch.rand(2, n, 1, 1, 1, device=images.device) - 0.5)
    centre = images.mean(dim=(1, 2, 3), keepdim=True)
    return (
        ((images - centre) * gain + centre * shift)
        .clamp(0, 1)
        .contiguous(memory_format=torch.channels_last)
    )


def blended(
    images: Tensor, labels: Tensor, *, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Pairs of images blended (mix-up) or pasted into each other (CutMix), and the shares of the classes in each, N x 2; with both, a coin decides.

    mixup, cutmix: of the Beta distribution of the shares; 0: not this one. arXiv 1710.09412, arXiv 1905.04899.

    >>> blended(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]), cutmix=1.0)[1].shape
    torch.Size([4, 2])
    """
    from torchvision.transforms import v2

    ways = [
        way(alpha=alpha, num_classes=2)
        for way, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha
    ]
    images, shares = (
        v2.RandomChoice(ways)(images, labels) if len(ways) > 1 else ways[0](images, labels)
    )
    return images.contiguous(memory_format=torch.channels_last), shares


def blur_jpeg(images: Tensor, probability: float) -> Tensor:
    """Blur each image with this probability, then encode it as JPEG with this probability (Wang et al. 2020, arXiv 1912.11035).

    images: uint8, N x 3 x H x W; sigma is drawn from (0, 3) pixels, the quality from 30 to 100. The paper takes 0.5 or 0.1.

    >>> blur_jpeg(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 0.5).shape
    torch.Size([2, 3, 32, 32])
    """
    n = len(images)
    blurs, codes = torch.rand(2, n) < probability
    sigma, quality = SIGMA * torch.rand(n), torch.randint(QUALITIES[0], QUALITIES[1] + 1, (n,))
    images = images.clone(memory_format=torch.channels_last)
    if blurs.any():
        images[blurs] = blurred(images[blurs], sigma[blurs])
    if codes.any():
        images[codes] = encoded(images[codes], quality[codes].tolist())
    return images


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of uint8 images N x 3 x H x W, each with its own sigma (N, in pixels, 3 at most), rounded; mirrored at the edges."""
    rows, columns = (_gaussian(side, sigma.to(images.device))[:, None] for side in images.shape[2:])
    return (rows @ images.float() @ columns.mT).round_().clamp_(0, 255).byte()


def _gaussian(side: int, sigma: Tensor) -> Tensor:
    """The blur of a line of `side` pixels as a matrix, for each sigma: N x side x side; cut off at 4 sigma, as scipy does."""
    i = torch.arange(side, device=sigma.device)
    sigma = sigma.clamp(min=1e-3)[:, None, None]
    weight = lambda d: torch.exp(-((d / sigma) ** 2) / 2) * (d.abs() <= (4 * sigma + 0.5).floor())
    apart, over = (
        i[:, None] - i,
        i[:, None] + i + 1,
    )  # the distance to a pixel, and to its mirror image before the edge
    total = weight(apart) + weight(over) + weight(2 * side - over)
    return total / total.sum(2, keepdim=True)


def encoded(images: Tensor, qualities: list[int]) -> Tensor:
    """uint8 images N x 3 x H x W as JPEG of these qualities, and decoded again: Pillow, on the CPU, on as many threads as torch has."""

    def there_and_back(image: np.ndarray, quality: int) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        return np.array(Image.open(buffer))

    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        decoded = np.stack(list(pool.map(there_and_back, arrays, qualities)))
    return torch.from_numpy(decoded).to(images.device).permute(0, 3, 1, 2)
