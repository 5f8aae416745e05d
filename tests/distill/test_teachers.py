"""The teachers without a network."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regraft.distill import Distill, LabelSmoothing, StepTeacher, VirtualTeacher
from regraft.errors import ShapeError, UsageError


def logits_of(*shape, seed=0, dtype=torch.float64):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lesson(teacher, z, y, temperature, over="mean"):
    return teacher.loss(z, y, inputs=None, temperature=temperature, over=over)


@pytest.mark.parametrize(
    ("convention", "right", "others"),
    [("softened", 0.0157, 0.00994), ("paper", 0.0157, 0.00994), ("released", 0.0105, 0.00999)],
)
def test_what_100_classes_at_temperature_20_are_really_asked_to_match(convention, right, others):
    got_right, got_other = VirtualTeacher(0.99, convention).probabilities(100, 20)
    assert got_right == pytest.approx(right, rel=5e-3)
    assert got_other == pytest.approx(others, rel=1e-3)
    assert got_right + 99 * got_other == pytest.approx(1, rel=1e-12)


def hard_target(y, classes, confidence):
    p = torch.full((len(y), classes), (1 - confidence) / (classes - 1), dtype=torch.float64)
    p[range(len(y)), y] = confidence
    return p


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    classes=st.integers(2, 7),
    confidence=st.floats(0.55, 0.999),
    temperature=st.floats(0.5, 20),
    seed=st.integers(0, 999),
)
def test_the_three_conventions(batch, classes, confidence, temperature, seed):
    z = logits_of(batch, classes, seed=seed)
    y = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    p = hard_target(y, classes, confidence)
    softened = p ** (1 / temperature)
    softened = softened / softened.sum(1, keepdim=True)

    def reference(target, student):
        return F.kl_div(F.log_softmax(student, 1), target, reduction="batchmean").item()

    # The released mean over batch and classes, times K, is the mean over the batch.
    expected = {
        "softened": temperature**2 * reference(softened, z / temperature),
        "paper": reference(softened, z),
        "released": reference(F.softmax(p / temperature, 1), z),
    }
    for convention, value in expected.items():
        got = lesson(VirtualTeacher(confidence, convention), z, y, temperature).item()
        assert got == pytest.approx(value, rel=1e-9, abs=1e-12), convention


def test_the_multiplier_of_the_released_code_is_k_unless_given():
    z, y = logits_of(3, 5), torch.tensor([0, 4, 2])
    default = lesson(VirtualTeacher(convention="released"), z, y, 20)
    torch.testing.assert_close(lesson(VirtualTeacher(convention="released", multiplier=1), z, y, 20), default / 5)


@settings(max_examples=25, deadline=None)
@given(
    classes=st.integers(2, 12),
    weight=st.floats(0.05, 0.95),
    confidence=st.floats(0.55, 0.999),
    over=st.sampled_from(["mean", "step"]),
)
def test_virtual_teacher_at_temperature_1_is_label_smoothing(classes, weight, confidence, over):
    y = torch.randint(classes, (4,), generator=torch.Generator().manual_seed(classes))
    epsilon = weight * (1 - confidence) * classes / (classes - 1)
    z = logits_of(2, 4, classes).requires_grad_()
    virtual = Distill(VirtualTeacher(confidence), weight=weight, temperature=1, over=over)
    control = Distill(label_loss=LabelSmoothing(epsilon), over=over)
    (taught,) = torch.autograd.grad(virtual(z, y), z)
    (smoothed,) = torch.autograd.grad(control(z, y), z)
    torch.testing.assert_close(taught, smoothed, rtol=0, atol=1e-12)
    assert smoothed.abs().max() > 1e-3


def test_certainty_is_the_cross_entropy():
    # KL(onehot || q) = -log q[y]; the wrong classes count 0, not 0 * log 0.
    z, y = logits_of(3, 5, dtype=torch.float32), torch.tensor([0, 4, 2])
    torch.testing.assert_close(lesson(VirtualTeacher(1.0), z, y, 1), F.cross_entropy(z, y))
    assert VirtualTeacher(1.0).probabilities(5, 4) == (1.0, 0.0)


@pytest.mark.parametrize("convention", ["softened", "paper", "released"])
@pytest.mark.parametrize("confidence", [0.99, 1.0])
@pytest.mark.parametrize("size", [1e4, torch.finfo(torch.bfloat16).max])
def test_virtual_teacher_is_finite_for_saturated_logits_in_bfloat16(convention, confidence, size):
    z = (size * torch.tensor([[1.0, -1, -1], [-1, 1, -1]])).bfloat16().requires_grad_()
    for y in (torch.tensor([0, 1]), torch.tensor([2, 0])):
        loss = lesson(VirtualTeacher(confidence, convention), z, y, 4.0)
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_gradients_of_the_virtual_teacher_are_those_of_finite_differences():
    y = torch.tensor([0, 3, 1])
    z = logits_of(2, 3, 4).requires_grad_()
    for convention in ("softened", "paper", "released"):
        assert torch.autograd.gradcheck(Distill(VirtualTeacher(0.9, convention), temperature=3, over="step"), (z, y))


@pytest.mark.parametrize(
    "arguments",
    [
        {"confidence": 0.0},
        {"confidence": 1.01},
        {"confidence": math.nan},
        {"convention": "relased"},
        {"multiplier": 50},
        {"convention": "released", "multiplier": 0},
        {"convention": "released", "multiplier": math.inf},
    ],
)
def test_a_virtual_teacher_that_cannot_be_meant(arguments):
    with pytest.raises(UsageError, match=next(reversed(arguments))):
        VirtualTeacher(**arguments)


def test_a_virtual_teacher_that_prefers_wrong_classes_is_refused_when_k_is_known():
    y = torch.tensor([0, 1])
    for convention in ("softened", "paper", "released"):
        with pytest.raises(UsageError, match="K = 10 classes"):
            lesson(VirtualTeacher(0.1, convention), logits_of(2, 10), y, 4)
        assert lesson(VirtualTeacher(0.1, convention), logits_of(2, 11), y, 4).isfinite()


def by_confidence(*probabilities):
    """Logits of two classes, [T, N, 2], in which class 0 has the given probability."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], -1)


# T=3, N=3, all of class 0. Confidence of each sample:
#   step 0: .50 .50 .50   mean .500
#   step 1: .05 .60 .60   mean .417   the weakest over the batch, though samples 1 and 2 are least sure at step 0
#   step 2: .90 .40 .30   mean .533   the strongest over the batch, though samples 1 and 2 are surest at step 1
STEPS = by_confidence([0.5, 0.5, 0.5], [0.05, 0.6, 0.6], [0.9, 0.4, 0.3])
RIGHT = torch.tensor([0, 0, 0])


def test_the_teaching_step_is_chosen_by_the_mean_over_the_batch():
    assert StepTeacher("weakest").choose(STEPS, RIGHT).item() == 1
    assert StepTeacher("strongest").choose(STEPS, RIGHT).item() == 2
    # With class 1 as the truth, sure is unsure.
    assert StepTeacher("weakest").choose(STEPS, 1 - RIGHT).item() == 2


@pytest.mark.parametrize(("which", "chosen", "others"), [("weakest", 1, [0, 2]), ("strongest", 2, [0, 1])])
def test_the_chosen_step_teaches_the_mean_of_the_others(which, chosen, others):
    target = F.softmax(STEPS[chosen] / 2, -1)
    mean = F.kl_div(F.log_softmax(STEPS[others].mean(0) / 2, -1), target, reduction="batchmean")
    each = [F.kl_div(F.log_softmax(STEPS[t] / 2, -1), target, reduction="batchmean") for t in others]
    torch.testing.assert_close(lesson(StepTeacher(which), STEPS, RIGHT, 2.0), mean)
    torch.testing.assert_close(lesson(StepTeacher(which), STEPS, RIGHT, 2.0, "step"), sum(each) / 2)
    torch.testing.assert_close(lesson(StepTeacher(which, square=True), STEPS, RIGHT, 2.0), 4 * mean)


def test_the_published_setting_is_a_whole_cross_entropy_plus_a_whole_kl():
    criterion = Distill(StepTeacher(), weight=1, label_weight=1, temperature=2)
    target = F.softmax(STEPS[1] / 2, -1)
    taught = F.kl_div(F.log_softmax((STEPS[0] + STEPS[2]) / 4, -1), target, reduction="batchmean")
    torch.testing.assert_close(criterion(STEPS, RIGHT), F.cross_entropy(STEPS.mean(0), RIGHT) + taught)


@pytest.mark.parametrize("over", ["mean", "step"])
def test_the_teaching_step_gets_no_gradient_from_its_lesson(over):
    z = STEPS.clone().requires_grad_()
    lesson(StepTeacher(), z, RIGHT, 2.0, over).backward()
    assert z.grad is not None
    assert z.grad[1].count_nonzero() == 0
    assert z.grad[0].abs().max() > 1e-3
    assert z.grad[2].abs().max() > 1e-3


def test_ties_go_to_the_earliest_step():
    same = STEPS[:1].expand(3, -1, -1)
    assert StepTeacher("weakest").choose(same, RIGHT).item() == 0
    assert StepTeacher("strongest").choose(same, RIGHT).item() == 0


@pytest.mark.parametrize("shape", [(3, 2), (1, 3, 2)])
def test_one_step_has_nobody_to_teach(shape):
    with pytest.raises(ShapeError, match="T of at least 2"):
        Distill(StepTeacher())(torch.zeros(shape), RIGHT)


def test_a_step_that_is_neither():
    with pytest.raises(UsageError, match="did you mean 'weakest'"):
        StepTeacher("weak")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("teacher", [VirtualTeacher(), StepTeacher()])
def test_fixed_teachers_may_be_updated_blindly(teacher):
    z, y = logits_of(2, 3, 4), torch.tensor([0, 1, 2])
    before = lesson(teacher, z, y, 4)
    teacher.update(nn.Linear(2, 2), 7)
    assert torch.equal(lesson(teacher, z, y, 4), before)
