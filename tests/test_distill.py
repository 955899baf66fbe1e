"""The distillation loss against numpy and its closed-form gradient, and a teacher that stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import nn

from data_prep.errors import InputError
from dflib import distill, train
from dflib.models import Architecture, Block, Dense, Detector


def formula(
    s: np.ndarray, t: np.ndarray, labels: np.ndarray, temperature: float, alpha: float
) -> float:
    soft = np.mean(
        [
            entropy(softmax(b / temperature), softmax(a / temperature))
            for a, b in zip(s, t, strict=True)
        ]
    )
    hard = -np.mean(log_softmax(s, axis=1)[np.arange(len(s)), labels])
    return alpha * temperature**2 * soft + (1 - alpha) * hard


def logits(n: int, classes: int = 2):
    return arrays(np.float64, (n, classes), elements=st.floats(-20, 20))


cases = st.integers(1, 6).flatmap(
    lambda n: st.tuples(logits(n), logits(n), arrays(np.int64, n, elements=st.integers(0, 1)))
)


@given(case=cases, temperature=st.floats(0.5, 20), alpha=st.floats(0, 1))
def test_the_loss_is_that_of_the_formula(case, temperature, alpha):
    s, t, labels = case
    ours = distill.kd_loss(
        torch.tensor(s), torch.tensor(t), torch.tensor(labels), temperature=temperature, alpha=alpha
    )
    assert ours.item() == pytest.approx(
        formula(s, t, labels, temperature, alpha), rel=1e-6, abs=1e-8
    )


@given(case=cases, temperature=st.sampled_from([100.0, 1000.0, 10_000.0]))
def test_float32_logits_keep_their_digits_at_extreme_temperatures(case, temperature):
    """T^2 KL tends to the squared distance of the centred logits over 4 (two classes); plain float32 is off by T^2 * 1e-7."""
    s, t, labels = case
    s, t = s.astype(np.float32), t.astype(np.float32)
    ours = distill.kd_loss(
        torch.tensor(s), torch.tensor(t), torch.tensor(labels), temperature=temperature, alpha=1.0
    )
    centred = [
        z.astype(np.float64) - z.mean(axis=1, keepdims=True, dtype=np.float64) for z in (s, t)
    ]
    limit = ((centred[0] - centred[1]) ** 2).sum(1).mean() / 4
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(limit, rel=80 / temperature, abs=1e-3)


@given(case=cases, share=st.floats(0, 1))
def test_blended_labels_blend_the_cross_entropy(case, share):
    s, t, labels = (torch.tensor(x) for x in case)
    blend = (
        share * torch.eye(2, dtype=s.dtype)[labels]
        + (1 - share) * torch.eye(2, dtype=s.dtype)[1 - labels]
    )
    each = [distill.kd_loss(s, t, y, alpha=0.3).item() for y in (labels, 1 - labels)]
    assert distill.kd_loss(s, t, blend, alpha=0.3).item() == pytest.approx(
        share * each[0] + (1 - share) * each[1], abs=1e-7
    )


@given(case=cases, temperature=st.floats(0.5, 20), alpha=st.floats(0, 1))
def test_the_gradient_is_the_closed_form(case, temperature, alpha):
    s, t, labels = case
    student, teacher = torch.tensor(s, requires_grad=True), torch.tensor(t, requires_grad=True)
    distill.kd_loss(
        student, teacher.detach(), torch.tensor(labels), temperature=temperature, alpha=alpha
    ).backward()
    soft = (
        alpha * temperature * (softmax(s / temperature, axis=1) - softmax(t / temperature, axis=1))
    )
    hard = (1 - alpha) * (softmax(s, axis=1) - np.eye(2)[labels])
    np.testing.assert_allclose(student.grad, (soft + hard) / len(s), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gap", [120.0, 1e4, 1e6])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_finite_at_any_gap(gap, temperature):  # log(softmax) is NaN from a gap of about 120 T
    s = torch.tensor([[gap, -gap], [-gap, gap], [gap, -gap]], requires_grad=True)
    t = torch.tensor([[-gap, gap], [-gap, gap], [0.0, 0.0]])
    loss = distill.kd_loss(s, t, torch.tensor([0, 1, 1]), temperature=temperature)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    assert (
        loss.item()
        == pytest.approx(
            formula(
                s.detach().double().numpy(),
                t.double().numpy(),
                np.array([0, 1, 1]),
                temperature,
                0.9,
            ),
            rel=1e-4,
        )
        or gap > 200
    )


def test_a_student_that_agrees_pays_nothing_and_the_weights_do_what_they_say():
    z, other, labels = torch.randn(5, 2), torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 1])
    assert distill.kd_loss(z, z, labels, alpha=1.0).item() == pytest.approx(0, abs=1e-7)
    hard = torch.nn.functional.cross_entropy(z, labels).item()
    assert distill.kd_loss(z, other, labels, alpha=0.0).item() == pytest.approx(hard)
    # T^2 keeps the size of the gradient as T grows: for T -> infinity it is that of matching centred logits
    student = z.double().requires_grad_()
    distill.kd_loss(student, other.double(), labels, temperature=1e4, alpha=1.0).backward()
    difference = (z - z.mean(1, keepdim=True)) - (other - other.mean(1, keepdim=True))
    torch.testing.assert_close(student.grad, difference.double() / 2 / 5, rtol=1e-3, atol=1e-6)


def detector(seed: int) -> Detector:
    with train.seeded(seed):
        return Detector(
            Architecture("t", 32, (Block(8, pool=True), Block(8, pool=True)), (Dense(8, 0.5),))
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature 0 must be positive"),
        ({"temperature": -1.0}, "temperature -1 must be positive"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": 1e5}, "temperature 100000 must be positive, and 10000 at most"),
        ({"attention": -1.0}, "attention -1 must be 0 or more"),
        ({"attention": 2.0}, "above 0 it needs the student"),
        ({"alpha": 1.1}, r"alpha 1\.1 is outside \[0, 1\]"),
        ({"alpha": -0.1}, r"alpha -0\.1 is outside"),
        ({"alpha": float("nan")}, "alpha nan"),
    ],
)
def test_temperature_and_alpha_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        distill.Distillation(detector(0), **options)


def test_the_loss_of_training_asks_the_teacher_about_the_same_images():
    teacher = detector(0).train()
    loss = distill.Distillation(teacher, temperature=3.0, alpha=0.7)
    images, student, labels = (
        torch.rand(4, 3, 32, 32),
        torch.randn(4, 2),
        torch.tensor([0, 1, 1, 0]),
    )
    with torch.no_grad():
        t = teacher.eval()(images)
    assert loss(student, labels, images).item() == pytest.approx(
        formula(student.double().numpy(), t.double().numpy(), labels.numpy(), 3.0, 0.7), rel=1e-4
    )


def test_the_teacher_stays_frozen_and_the_student_comes_nearer(toy):
    data, teacher, student = toy(), detector(0), detector(1)
    train.fit(teacher, data, train.Recipe(epochs=4, batch=12, lr=5e-3), device=torch.device("cpu"))
    teacher.train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}

    def distance() -> float:
        return np.abs(train.predict(student, data.test) - train.predict(teacher, data.test)).mean()

    first = distance()
    loss = distill.Distillation(teacher, alpha=1.0)
    train.fit(
        student,
        data,
        train.Recipe(epochs=6, batch=12, lr=5e-3),
        loss=loss,
        device=torch.device("cpu"),
    )
    assert all(
        torch.equal(v, before[k]) for k, v in teacher.state_dict().items()
    )  # BatchNorm statistics too
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert distance() < first / 2


def test_agreement_is_the_share_of_equal_decisions():
    a = torch.tensor([[1.0, 0], [0, 1], [3, 2], [2, 3]])
    b = torch.tensor([[5.0, 4], [9, 1], [0, 1], [0, 9]])
    assert distill.agreement(a, b) == 0.5
    assert distill.agreement(a, a * 7) == 1.0


def test_attention_is_the_distance_of_normalised_mean_squares():
    s, t = torch.randn(3, 4, 6, 6), torch.randn(3, 7, 6, 6)
    maps = [(a.double().numpy() ** 2).mean(1).reshape(3, -1) for a in (s, t)]
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps]
    expected = ((unit[0] - unit[1]) ** 2).sum(1).mean()
    earlier, later = (
        torch.randn(3, 2, 6, 6),
        torch.randn(3, 2, 3, 3),
    )  # the last of a side counts, other sides do not
    assert distill.attention_loss([earlier, s], [t, later]).item() == pytest.approx(
        expected, rel=1e-4
    )
    assert distill.attention_loss([s], [5 * s]).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(
        InputError, match=r"the student's maps have sides \[3\], the teacher's \[6\]"
    ):
        distill.attention_loss([later], [s])


def test_attention_pulls_the_students_maps_to_the_teachers(toy):
    data, teacher = toy(), detector(0)

    def distance(student: Detector) -> float:
        x = train.pixels(next(data.train.batches(16))[0])
        maps = [[m.features[0](x), m.features[:2](x)] for m in (student.eval(), teacher.eval())]
        return distill.attention_loss(*maps).item()

    ends = {}
    for weight in (0.0, 20.0):
        student = detector(1)
        loss = distill.Distillation(teacher, attention=weight, student=student)
        train.fit(
            student,
            data,
            train.Recipe(epochs=30, batch=12, lr=1e-2),
            loss=loss,
            device=torch.device("cpu"),
        )
        ends[weight] = distance(student)
        assert loss.maps[True] == []  # validation leaves nothing behind
    assert ends[20.0] < 0.7 * ends[0.0]


def test_an_ensembles_softened_probabilities_are_the_mean_of_its_teachers():
    z = [torch.randn(5, 2, generator=torch.Generator().manual_seed(i)) * 10**i for i in range(3)]
    fixed = [nn.Module() for _ in z]
    for module, logits in zip(fixed, z, strict=True):
        module.forward = lambda images, logits=logits: logits
    for t in (1.0, 4.0, 100.0):
        ensemble = distill.Ensemble(fixed, temperature=t)(torch.zeros(5))
        mean = np.mean([softmax(logits.double().numpy() / t, axis=1) for logits in z], axis=0)
        np.testing.assert_allclose(softmax(ensemble.numpy() / t, axis=1), mean, rtol=1e-6)
    hard = [nn.Module() for _ in range(2)]
    for module, sign in zip(hard, (1, -1), strict=True):
        module.forward = lambda images, sign=sign: sign * torch.tensor([[1e4, -1e4]])
    undecided = distill.Ensemble(hard, temperature=1.0)(torch.zeros(1))
    assert undecided.isfinite().all() and undecided.diff().abs().item() < 1e-6


def test_an_ensemble_of_one_teaches_as_that_one():
    student, teacher = torch.randn(4, 2), nn.Linear(3, 2)
    images, labels = torch.rand(4, 3), torch.tensor([0, 1, 1, 0])
    losses = []
    for each in (teacher, distill.Ensemble([teacher], temperature=3.0)):
        losses.append(distill.kd_loss(student, each(images), labels, temperature=3.0).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
