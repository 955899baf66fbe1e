"""Knowledge distillation: a student learns from a teacher's softened probabilities (Hinton et al. 2015, arXiv 1503.02531), and, where
asked for, from where the teacher looks (attention transfer, Zagoruyko and Komodakis 2017, arXiv 1612.03928).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.errors import InputError


def kd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 4.0, alpha: float = 0.9
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


def attention_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean over images of the squared distance between attention maps, summed over the sides that both have.

    student, teacher: activations, N x C x H x W each, in order; the last of each side H counts, as the mean square over its channels, scaled
    to length 1. Raises `InputError` when no side above 1 is common.

    >>> attention_loss([torch.ones(1, 4, 2, 2)], [torch.ones(1, 9, 2, 2)]).item()
    0.0
    """
    ours, theirs = (
        {a.shape[-1]: F.normalize(a.float().square().mean(1).flatten(1)) for a in maps} for maps in (student, teacher)
    )
    common = {side for side in ours.keys() & theirs.keys() if side > 1}
    if not common:
        raise InputError(
            f"no attention to transfer: the student's maps have sides {sorted(ours)}, the teacher's {sorted(theirs)}"
        )
    return sum((ours[side] - theirs[side]).square().sum(1).mean() for side in common)


class Ensemble(nn.Module):
    """Several teachers as one: logits, N x C, whose softmax at `temperature` is the mean of theirs at that temperature (Hinton et al. 2015).

    Teachers trained on different generators are wrong about different ones (experts of domains: Zhou et al. 2021, arXiv 2003.07325).

    >>> Ensemble([nn.Identity(), nn.Identity()], temperature=4.0)(torch.tensor([[1.0, -1.0]])).diff().item()
    -2.0
    """

    def __init__(self, teachers: Sequence[nn.Module], *, temperature: float) -> None:
        super().__init__()
        self.teachers, self.temperature = nn.ModuleList(teachers), temperature

    def forward(self, images: Tensor) -> Tensor:
        soft = torch.stack([F.log_softmax(m(images).double() / self.temperature, 1) for m in self.teachers])
        return self.temperature * (soft.logsumexp(0) - log(len(soft)))


class Distillation:
    """A loss for `train.fit`: the teacher looks at the same augmented images as the student ("patient and consistent", arXiv 2106.05237).

    attention: weight of `attention_loss` between the blocks of teacher and `student`; 0 leaves it out (1 to 10 is a start).
    Raises `InputError` for a temperature outside (0, 10000], an alpha outside [0, 1] or an attention below 0.
    """

    def __init__(
        self, teacher: nn.Module, *, temperature: float = 4.0, alpha: float = 0.9, attention: float = 0.0, student: nn.Module | None = None
    ) -> None:  # fmt: skip
        if not 0 < temperature <= 1e4:
            raise InputError(
                f"temperature {temperature:g} must be positive, and 10000 at most (the loss no longer changes with it); 4 is usual"
            )
        if not 0 <= alpha <= 1:
            raise InputError(
                f"alpha {alpha:g} is outside [0, 1]: it is the weight of the teacher against the labels; 0.9 is usual"
            )
        if not attention >= 0 or (attention and student is None):
            raise InputError(
                f"attention {attention:g} must be 0 or more, and above 0 it needs the student, whose maps it compares"
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.alpha, self.attention = temperature, alpha, attention
        self.maps: dict[bool, list[Tensor]] = {True: [], False: []}  # the student's (in training), the teacher's
        for model in (student, teacher) if attention else ():
            for block in model.features:
                block.register_forward_hook(lambda block, _, output: self.maps[block.training].append(output))

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        self.teacher.to(images.device, memory_format=torch.channels_last)
        self.maps[False].clear()  # a student in eval mode was validated in between
        with torch.no_grad():
            teacher = self.teacher(images)
        loss = kd_loss(logits, teacher, labels, temperature=self.temperature, alpha=self.alpha)
        if self.attention:
            loss = loss + self.attention * attention_loss(self.maps[True], self.maps[False])
            self.maps[True].clear()
        return loss


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of images on which the two decide alike. Logits, N x C each."""
    return (student.argmax(1) == teacher.argmax(1)).float().mean().item()
