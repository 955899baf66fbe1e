"""What is done to training images."""

from itertools import product

import numpy as np
import torch

from dflib import augment


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
