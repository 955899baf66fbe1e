"""Distillation: a student learns from a teacher's softened probabilities (Hinton et al. 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dflib.train import Place


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    label_smoothing: float = 0.0,
) -> Tensor:
    """alpha * T^2 * KL(teacher || student, both softened by T) + (1 - alpha) * cross-entropy.

    student, teacher: logits, N x C; labels: int64, N. Finite for any finite logits. In float64, as
    float32 has no digits left for differences of about 1/T^2. arXiv 1503.02531.

    >>> z = torch.tensor([[4.0, -4.0]])
    >>> kd_loss(z, z, torch.tensor([0]), alpha=1.0).item()
    0.0
    """
    p, q = (F.log_softmax(logits.double() / temperature, 1) for logits in (teacher, student))
    soft = temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")
    hard = F.cross_entropy(student, labels, label_smoothing=label_smoothing)
    return alpha * soft.to(student.dtype) + (1 - alpha) * hard


class Distillation:
    """A loss for `train.fit`: the teacher sees the student's augmented images (arXiv 2106.05237).

    Where the recipe has fixed `views`, it sees each once, and its logits are kept. options: of
    `kd_loss`; label_smoothing is the recipe's, which `fit` leaves to us.

    >>> train.fit(student, data, recipe, loss=Distillation(teacher))  # doctest: +SKIP
    """

    def __init__(self, teacher: nn.Module, **options: float) -> None:
        self.teacher, self.options = teacher.eval().requires_grad_(False), options
        self.kept: dict[int, Tensor] = {}  # view -> logits of all images, NaN: not seen yet

    def __call__(
        self, logits: Tensor, labels: Tensor, images: Tensor, place: Place | None = None
    ) -> Tensor:
        if place is None:
            return kd_loss(logits, self._answer(images), labels, **self.options)
        view, rows, total = place
        unseen = torch.full((total, logits.shape[1]), torch.nan, device=images.device)
        kept = self.kept.setdefault(view, unseen)
        rows = rows.to(images.device)
        new = kept[rows, 0].isnan()
        if new.any():
            kept[rows[new]] = self._answer(images[new]).float()
        return kd_loss(logits, kept[rows], labels, **self.options)

    @torch.no_grad()
    def _answer(self, images: Tensor) -> Tensor:
        self.teacher.to(images.device, memory_format=torch.channels_last)
        return self.teacher(images)


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of images on which the two decide alike. Logits, N x C each."""
    return (student.argmax(1) == teacher.argmax(1)).float().mean().item()
