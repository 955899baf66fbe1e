"""Distillation: a student learns from a teacher's softened probabilities (Hinton et al. 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.errors import InputError


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

    student, teacher: logits, N x C. labels: int64, N, or shares of the classes, N x C.
    label_smoothing: of the cross-entropy, as without a teacher.
    Finite for any finite logits: both sides stay in log space. In float64, because T^2 multiplies
    differences of about 1/T^2, for which float32 has no digits left. arXiv 1503.02531.

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

    Raises `InputError` for a temperature outside (0, 10000] or an alpha outside [0, 1].

    >>> train.fit(student, data, recipe, loss=Distillation(teacher))  # doctest: +SKIP
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        alpha: float = 0.9,
        label_smoothing: float = 0.0,
    ) -> None:
        if not 0 < temperature <= 1e4:
            raise InputError(f"temperature {temperature:g} is outside (0, 10000]; 4 is usual")
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha {alpha:g} is outside [0, 1], the teacher's share; try 0.9")
        self.teacher = teacher.eval().requires_grad_(False)
        self.options = {"temperature": temperature, "alpha": alpha}
        self.options["label_smoothing"] = label_smoothing  # the recipe's, which `fit` leaves to us

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        self.teacher.to(images.device, memory_format=torch.channels_last)
        with torch.no_grad():
            teacher = self.teacher(images)
        return kd_loss(logits, teacher, labels, **self.options)


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of images on which the two decide alike. Logits, N x C each."""
    return (student.argmax(1) == teacher.argmax(1)).float().mean().item()
