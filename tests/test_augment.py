"""What is done to training images, against the Gaussian's formula."""

from itertools import product

import numpy as np
import pytest
import torch
from skimage import data
from threadpoolctl import threadpool_limits

from dflib import augment, train


def photographs(n: int = 6, side: int = 64) -> torch.Tensor:
    """Different patches of a photograph: uint8, n x 3 x side x side."""
    whole = torch.from_numpy(data.astronaut()).permute(2, 0, 1)
    return torch.stack([whole[:, 40 * i : 40 * i + side, 50 * i : 50 * i + side] for i in range(n)])


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """The formula, cut off at 4 sigma, on an image mirrored at its edges: 3 x H x W."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    for axis in (1, 2):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        line = lambda x: np.convolve(x, weights / weights.sum(), mode="valid")
        image = np.apply_along_axis(line, axis, np.pad(image, pad, mode="symmetric"))
    return image


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.5, 3.0])
def test_the_blur_is_the_gaussians_formula(sigma):
    image = photographs(1, 32)[0].permute(1, 2, 0).numpy()
    found = augment.degraded(image, sigma, 0)
    assert found.dtype == np.uint8 and found.shape == image.shape
    expected = gaussian(image.transpose(2, 0, 1).astype(float), sigma or 1e-3)
    assert np.abs(found.transpose(2, 0, 1) - expected).max() <= 0.5 + 1e-3


def test_images_are_blurred_and_encoded_as_often_as_asked():
    with train.seeded(0):
        images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(400, -1, -1, -1)
        worse = augment.blur_jpeg(images, 0.3)
    changed = (worse != images).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(1 - 0.7**2, abs=0.07)
    detail = lambda x: (x[..., 1:].float() - x[..., :-1].float()).abs().mean((1, 2, 3))
    # noise that lost half its detail was blurred
    smooth = (detail(worse) < 0.5 * detail(images[:1])).float().mean().item()
    assert 0.18 < smooth < 0.31 and worse.dtype == torch.uint8
    assert len(worse[changed].flatten(1).unique(dim=0)) > 150  # each has its own sigma and quality


def test_the_seed_alone_decides_what_is_drawn():
    results = []
    for threads in (1, 2):
        with train.seeded(5), threadpool_limits(threads):
            assert torch.get_num_threads() == threads
            results.append(augment.blur_jpeg(photographs(), 0.5))
    assert torch.equal(*results)
    with train.seeded(6):
        assert not torch.equal(augment.blur_jpeg(photographs(), 0.5), results[0])


def test_augmentation_shifts_mirrors_and_scales_but_never_resamples():
    torch.manual_seed(0)
    n, reach = 24, 4
    images = 0.3 + 0.4 * torch.rand(n, 3, 32, 32)
    result = augment.augmented(images)
    assert result.shape == images.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    found = []
    for before, after in zip(images.numpy(), result.numpy(), strict=True):
        for flip in (False, True):
            whole = before[:, :, ::-1] if flip else before
            padded = np.pad(whole, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
            for top, left in product(range(2 * reach + 1), repeat=2):
                crop = padded[:, top : top + 32, left : left + 32]
                gain = np.cov(crop.ravel(), after.ravel())[0, 1] / crop.var(ddof=1)
                offset = after.mean() - gain * crop.mean()
                if np.abs(gain * crop + offset - after).max() < 1e-4:
                    found.append((flip, top, left, gain, after.mean() / crop.mean()))
    # each image is one crop of its mirrored or unmirrored self, brightness and contrast aside
    assert len(found) == n
    flips, tops, lefts, gains, shifts = zip(*found, strict=True)
    assert 4 <= sum(flips) <= 20
    assert len(set(tops)) == len(set(lefts)) == 1
    for values in (gains, shifts):
        assert 0.9 - 1e-3 <= min(values) < max(values) <= 1.1 + 1e-3
