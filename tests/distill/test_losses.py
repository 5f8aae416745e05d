"""The losses against plain loops over Python numbers, and where their arithmetic could break."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.distill import LabelSmoothing, cross_entropy, kl, over_time, softened_kl, tet
from regraft.errors import ShapeError, UsageError


def logits_of(*shape, seed=0, scale=2.0, dtype=torch.float64):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax(row, temperature=1.0):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 6))  # T, N, K


@settings(max_examples=25, deadline=None)
@given(shape=shapes, temperature=st.floats(0.5, 8), seed=st.integers(0, 999))
def test_kl_is_the_sum_over_classes_and_the_mean_over_batch_and_steps(shape, temperature, seed):
    steps, batch, _ = shape
    z, teacher = logits_of(*shape, seed=seed), logits_of(*shape, seed=seed + 1)
    per_step = [
        divergence(softmax(teacher[t, n].tolist(), temperature), softmax(z[t, n].tolist(), temperature))
        for t in range(steps)
        for n in range(batch)
    ]
    of_mean = [
        divergence(softmax(teacher[:, n].mean(0).tolist(), temperature), softmax(z[:, n].mean(0).tolist(), temperature))
        for n in range(batch)
    ]
    got_step = softened_kl(z, teacher, temperature=temperature, over="step").item()
    got_mean = softened_kl(z, teacher, temperature=temperature, over="mean").item()
    assert got_step == pytest.approx(temperature**2 * sum(per_step) / len(per_step), rel=1e-9, abs=1e-12)
    assert got_mean == pytest.approx(temperature**2 * sum(of_mean) / len(of_mean), rel=1e-9, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, epsilon=st.floats(0, 0.9), seed=st.integers(0, 999))
def test_cross_entropy_and_label_smoothing_of_each_step(shape, epsilon, seed):
    steps, batch, classes = shape
    z = logits_of(*shape, seed=seed)
    y = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    expected = []
    for t in range(steps):
        for n in range(batch):
            log_q = [math.log(q) for q in softmax(z[t, n].tolist())]
            expected.append(-(1 - epsilon) * log_q[y[n]] - epsilon / classes * sum(log_q))
    assert LabelSmoothing(epsilon)(z, y).item() == pytest.approx(sum(expected) / len(expected), rel=1e-9)
    first = LabelSmoothing(epsilon)(z[0], y).item()
    assert first == pytest.approx(sum(expected[:batch]) / batch, rel=1e-9)


def test_tet_on_a_case_worked_by_hand():
    # T=2, N=1, K=2, y=0. Step 0: logits (ln 3, 0), so CE = ln(4/3). Step 1: (0, 0), so CE = ln 2.
    # MSE to 1: mean of (ln 3 - 1)^2, 1, 1, 1.
    z = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]], dtype=torch.float64)
    label = (math.log(4 / 3) + math.log(2)) / 2
    spread = ((math.log(3) - 1) ** 2 + 3) / 4
    assert tet(z, torch.tensor([0]), 0.25).item() == pytest.approx(0.75 * label + 0.25 * spread, rel=1e-12)
    assert tet(z, torch.tensor([0]), 0).item() == pytest.approx(label, rel=1e-12)


def test_tet_refuses_averaged_logits_and_a_share_that_is_none():
    with pytest.raises(ShapeError, match=r"\[3, 4\].*over='step'"):
        tet(logits_of(3, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(UsageError, match="regularisation"):
        tet(logits_of(2, 3, 4), torch.tensor([0, 1, 2]), 1.5)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, math.nan])
def test_label_smoothing_refuses(epsilon):
    with pytest.raises(UsageError, match="epsilon"):
        LabelSmoothing(epsilon)


@pytest.mark.parametrize(
    "loss",
    [
        partial(softened_kl, teacher_logits=logits_of(2, 3, 4, seed=9), temperature=3.0, over="mean"),
        partial(softened_kl, teacher_logits=logits_of(2, 3, 4, seed=9), temperature=3.0, over="step"),
        partial(softened_kl, teacher_logits=logits_of(3, 4, seed=9), temperature=0.7, over="step"),
        partial(cross_entropy, targets=torch.tensor([0, 3, 1])),
        partial(tet, targets=torch.tensor([0, 3, 1]), regularisation=0.1),
        lambda z: LabelSmoothing(0.2)(z, torch.tensor([0, 3, 1])),
    ],
)
def test_gradients_are_those_of_finite_differences(loss):
    assert torch.autograd.gradcheck(loss, logits_of(2, 3, 4, seed=1).requires_grad_())


def test_the_loss_of_the_mean_is_less_than_the_mean_of_the_losses():
    z, taught, y = logits_of(4, 5, 6), logits_of(5, 6, seed=3), torch.arange(5)
    assert cross_entropy(over_time(z, "mean"), y) < cross_entropy(over_time(z, "step"), y) - 1e-3
    of_mean = softened_kl(z, taught, temperature=4, over="mean")
    of_steps = softened_kl(z, taught, temperature=4, over="step")
    assert of_mean < of_steps - 1e-3
    same = z[:1].expand(4, -1, -1)  # no spread over T: nothing for Jensen to take
    torch.testing.assert_close(
        softened_kl(same, taught, temperature=4, over="mean"), softened_kl(same, taught, temperature=4, over="step")
    )


def test_a_teacher_with_another_number_of_steps_shows_its_mean_at_each():
    z, teacher = logits_of(3, 2, 5), logits_of(4, 2, 5, seed=1)
    mean = teacher.mean(0)
    step_by_step = sum(softened_kl(z[t], mean, temperature=2, over="step") for t in range(3)) / 3
    torch.testing.assert_close(softened_kl(z, teacher, temperature=2, over="step"), step_by_step)
    torch.testing.assert_close(softened_kl(z, mean, temperature=2, over="step"), step_by_step)
    torch.testing.assert_close(
        softened_kl(z, teacher, temperature=2, over="mean"), softened_kl(z.mean(0), mean, temperature=2, over="mean")
    )
    # A student without a time axis is taught by the teacher's mean as well.
    torch.testing.assert_close(
        softened_kl(z[0], teacher, temperature=2, over="step"), softened_kl(z[0], mean, temperature=2, over="mean")
    )


@pytest.mark.parametrize("teacher", [(2, 6), (3, 5), (4, 3, 5), (5,)])
def test_a_teacher_of_another_batch_or_class_count_is_refused_with_both_shapes(teacher):
    with pytest.raises(ShapeError) as caught:
        softened_kl(logits_of(4, 2, 5), logits_of(*teacher), temperature=2, over="mean")
    assert str(list(teacher)) in str(caught.value)
    assert "[4, 2, 5]" in str(caught.value)


@pytest.mark.parametrize("over", ["mean", "step"])
@pytest.mark.parametrize("size", [1e4, 1e30, torch.finfo(torch.bfloat16).max])
def test_kl_is_finite_for_saturated_logits_in_bfloat16(size, over):
    signs = torch.tensor([[1.0, -1, -1], [-1, 1, -1]])
    student = (size * signs).bfloat16().requires_grad_()
    for taught in ((-size * signs).bfloat16(), (size * signs).bfloat16(), torch.zeros(2, 3).bfloat16()):
        for temperature in (1.0, 4.0, 20.0):
            loss = softened_kl(student, taught, temperature=temperature, over=over)
            (gradient,) = torch.autograd.grad(loss, student)
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            assert gradient.isfinite().all()
    wrong = softened_kl(student, (-1e4 * signs).bfloat16(), temperature=1.0, over=over)
    assert wrong > 1e3  # finite, and not by hiding the disagreement


def test_kl_in_bfloat16_is_computed_in_float32():
    student, taught = logits_of(8, 4, 10, dtype=torch.float32).bfloat16(), logits_of(8, 4, 10, seed=1).bfloat16()
    exact = softened_kl(student.double(), taught.double(), temperature=4, over="mean").item()
    assert softened_kl(student, taught, temperature=4, over="mean").item() == pytest.approx(exact, rel=1e-5)


def test_impossible_classes_count_nothing():
    # Class 2 is masked out on both sides: KL is that of the first two classes.
    never = float("-inf")
    p, q = torch.tensor([[0.0, 1.0, never]]), torch.tensor([[1.0, 0.0, never]], requires_grad=True)
    loss = softened_kl(q, p, temperature=1, over="mean")
    assert loss.item() == pytest.approx(divergence(softmax([0, 1]), softmax([1, 0])), rel=1e-6)
    loss.backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_kl_of_equal_distributions_is_exactly_zero():
    log_p = F.log_softmax(logits_of(3, 7, 11, dtype=torch.float32), -1)
    assert kl(log_p, log_p.clone()).item() == 0
