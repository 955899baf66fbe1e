"""Knowledge distillation: a student learns from a teacher's softened probabilities (Hinton et al. 2015, arXiv 1503.02531)."""

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
) -> Tensor:
    """alpha * T^2 * KL(teacher || student, both softened by T) + (1 - alpha) * cross-entropy with the labels.

    student, teacher: logits, N x C. labels: int64, N, or shares of the classes, N x C. Finite for any finite logits (both sides stay in log
    space), and exact for large T: T^2 multiplies differences of about 1/T^2, for which float32 has no digits left.

    >>> z = torch.tensor([[4.0, -4.0]])
    >>> kd_loss(z, z, torch.tensor([0]), alpha=1.0).item()
    0.0
    """
    t = temperature
    p, q = (F.log_softmax(logits.double() / t, 1) for logits in (teacher, student))
    soft = t * t * F.kl_div(q, p, log_target=True, reduction="batchmean")
    return alpha * soft.to(student.dtype) + (1 - alpha) * F.cross_entropy(student, labels)


class Distillation:
    """A loss for `train.fit`: the teacher looks at the same augmented images as the student ("patient and consistent", arXiv 2106.05237).

    Raises `InputError` for a temperature outside (0, 10000] or an alpha outside [0, 1].
    """

    def __init__(self, teacher: nn.Module, *, temperature: float = 4.0, alpha: float = 0.9) -> None:
        if not 0 < temperature <= 1e4:
            raise InputError(
                f"temperature {temperature:g} must be positive, and 10000 at most (the loss no longer changes with it); 4 is usual"
            )
        if not 0 <= alpha <= 1:
            raise InputError(
                f"alpha {alpha:g} is outside [0, 1]: it is the weight of the teacher against the labels; 0.9 is usual"
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.alpha = temperature, alpha

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        self.teacher.to(images.device, memory_format=torch.channels_last)
        with torch.no_grad():
            teacher = self.teacher(images)
        return kd_loss(logits, teacher, labels, temperature=self.temperature, alpha=self.alpha)


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of images on which the two decide alike. Logits, N x C each."""
    return (student.argmax(1) == teacher.argmax(1)).float().mean().item()
