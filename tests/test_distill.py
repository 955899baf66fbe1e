"""The distillation loss against numpy and its closed-form gradient, and a teacher that stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from test_train import CPU, small

from dflib import distill, train


def formula(
    s: np.ndarray, t: np.ndarray, labels: np.ndarray, temperature: float, alpha: float
) -> float:
    pairs = zip(s / temperature, t / temperature, strict=True)
    soft = np.mean([entropy(softmax(b), softmax(a)) for a, b in pairs])
    hard = -np.mean(log_softmax(s, axis=1)[np.arange(len(s)), labels])
    return alpha * temperature**2 * soft + (1 - alpha) * hard


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_labels_are_smoothed_as_without_a_teacher(smoothing):
    z, labels = torch.tensor([[2.0, -1.0], [0.3, 0.4]]), torch.tensor([0, 1])
    alone = torch.nn.functional.cross_entropy(z, labels, label_smoothing=smoothing)
    with_ = distill.kd_loss(z, z.flip(0), labels, alpha=0.0, label_smoothing=smoothing)
    assert with_.item() == pytest.approx(alone.item())
    model = small(0)
    loss = distill.Distillation(model, alpha=0.0, label_smoothing=smoothing)
    assert loss(z, labels, torch.rand(2, 3, 32, 32)).item() == pytest.approx(alone.item())


def logits(n: int):
    return arrays(np.float64, (n, 2), elements=st.floats(-20, 20))


cases = st.integers(1, 6).flatmap(
    lambda n: st.tuples(logits(n), logits(n), arrays(np.int64, n, elements=st.integers(0, 1)))
)


@given(case=cases, temperature=st.floats(0.5, 20), alpha=st.floats(0, 1))
def test_the_loss_is_that_of_the_formula(case, temperature, alpha):
    ours = distill.kd_loss(*map(torch.tensor, case), temperature=temperature, alpha=alpha)
    expected = formula(*case, temperature, alpha)
    assert ours.item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@given(case=cases, temperature=st.sampled_from([100.0, 1000.0, 10_000.0]))
def test_float32_logits_keep_their_digits_at_extreme_temperatures(case, temperature):
    """T^2 KL tends to the squared distance of the centred logits over 4 (two classes)."""
    s, t = (torch.tensor(z.astype(np.float32)) for z in case[:2])
    labels = torch.tensor(case[2])
    ours = distill.kd_loss(s, t, labels, temperature=temperature, alpha=1.0)
    s, t = (z.double() - z.double().mean(1, keepdim=True) for z in (s, t))
    limit = (s - t).square().sum(1).mean().item() / 4
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(limit, rel=80 / temperature, abs=1e-3)


@pytest.mark.parametrize("gap", [120.0, 1e4, 1e6])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_finite_at_any_gap(gap, temperature):  # log(softmax) is NaN from a gap of about 120 T
    s = torch.tensor([[gap, -gap], [-gap, gap], [gap, -gap]], requires_grad=True)
    t, labels = torch.tensor([[-gap, gap], [-gap, gap], [0.0, 0.0]]), torch.tensor([0, 1, 1])
    loss = distill.kd_loss(s, t, labels, temperature=temperature)
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()
    if gap <= 200:
        exact = formula(s.detach().double().numpy(), t.numpy(), labels.numpy(), temperature, 0.9)
        assert loss.item() == pytest.approx(exact, rel=1e-4)


def test_the_teacher_stays_frozen_and_the_student_comes_nearer(toy):
    data, teacher, student = toy(200), small(0), small(1)
    train.fit(teacher, data, train.Recipe(epochs=4, batch=12, lr=5e-3), device=CPU)
    teacher.train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}

    def distance() -> float:
        return np.abs(train.predict(student, data.test) - train.predict(teacher, data.test)).mean()

    first = distance()
    loss = distill.Distillation(teacher, alpha=1.0)
    recipe = train.Recipe(epochs=8, batch=12, lr=5e-3)
    train.fit(student, data, recipe, loss=loss, device=CPU)
    after = teacher.state_dict()  # BatchNorm's statistics are in it, too
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert distance() < first / 5


def test_agreement_is_the_share_of_equal_decisions():
    a = torch.tensor([[1.0, 0], [0, 1], [3, 2], [2, 3]])
    b = torch.tensor([[5.0, 4], [9, 1], [0, 1], [0, 9]])
    assert distill.agreement(a, b) == 0.5
    assert distill.agreement(a, a * 7) == 1.0
