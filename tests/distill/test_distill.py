"""The criterion: its formula, plain training to the bit, and what it refuses at the door."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regraft
from regraft.distill import Distill, LabelSmoothing, VirtualTeacher, softened_kl, tet
from regraft.errors import ShapeError, UsageError


def logits_of(*shape, seed=0, dtype=torch.float32):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Fixed:
    """A teacher as a user would write it: the same logits whatever it is shown. Counts what is asked of it."""

    def __init__(self, taught, updates="never"):
        self.taught = taught
        self.updates = updates
        self.calls = 0
        self.updated = []

    def loss(self, logits, targets, *, inputs, temperature, over):
        self.calls += 1
        return softened_kl(logits, self.taught, temperature=temperature, over=over)

    def update(self, model, step):
        self.updated.append(step)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(0, 3),
    batch=st.integers(1, 4),
    classes=st.integers(2, 6),
    weight=st.floats(0.01, 1),
    temperature=st.floats(0.5, 8),
    over=st.sampled_from(["mean", "step"]),
)
def test_the_formula(steps, batch, classes, weight, temperature, over):
    shape = (steps, batch, classes) if steps else (batch, classes)
    z, taught = logits_of(*shape, dtype=torch.float64), logits_of(*shape, seed=1, dtype=torch.float64)
    y = torch.arange(batch) % classes
    criterion = Distill(Fixed(taught), weight=weight, temperature=temperature, over=over)
    got = criterion(z, y)
    rows, rows_taught, labels = z, taught, y
    if steps and over == "mean":
        rows, rows_taught = z.mean(0), taught.mean(0)
    elif steps:
        rows, rows_taught, labels = z.flatten(0, 1), taught.flatten(0, 1), y.repeat(steps)
    label = F.cross_entropy(rows, labels)
    target = F.softmax(rows_taught / temperature, -1)
    lesson = temperature**2 * F.kl_div(F.log_softmax(rows / temperature, -1), target, reduction="batchmean")
    torch.testing.assert_close(got, (1 - weight) * label + weight * lesson)
    torch.testing.assert_close(criterion.parts, {"label": label, "distill": lesson})


def plain(z, y, over):
    if z.dim() == 3 and over == "step":
        return F.cross_entropy(z.flatten(0, 1), y.repeat(len(z)))
    return F.cross_entropy(z.mean(0) if z.dim() == 3 else z, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("over", ["mean", "step"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 7, 5)])
@pytest.mark.parametrize("arguments", [{}, {"weight": 0.7}, {"teacher": True, "weight": 0}])
def test_no_teacher_or_no_weight_is_plain_training_to_the_bit(arguments, shape, over, dtype):
    z, y = logits_of(*shape, dtype=dtype).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    teacher = Fixed(None) if arguments.get("teacher") else None
    criterion = Distill(**{**arguments, "teacher": teacher}, over=over)
    ours, reference = criterion(z, y), plain(z, y, over)
    assert ours.dtype == reference.dtype
    assert torch.equal(ours, reference)
    assert torch.equal(torch.autograd.grad(ours, z)[0], torch.autograd.grad(reference, z)[0])
    assert teacher is None or teacher.calls == 0
    assert criterion.parts["distill"].item() == 0


def test_weight_0_trains_the_same_weights_to_the_bit():
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    learnt = []
    for criterion in (F.cross_entropy, Distill(Fixed(logits_of(8, 3, seed=5)), weight=0)):
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        learnt.append(model.weight.detach().clone())
    assert torch.equal(*learnt)


def test_the_parts_are_detached_and_of_the_last_call():
    criterion = Distill(Fixed(logits_of(3, 4)))
    assert criterion.parts == {}
    z = logits_of(3, 4, seed=2).requires_grad_()
    criterion(z, torch.tensor([0, 1, 2]))
    first = dict(criterion.parts)
    criterion(2 * z, torch.tensor([0, 1, 2]))
    assert not any(part.requires_grad for part in criterion.parts.values())
    assert criterion.parts["label"] != first["label"]
    assert criterion.parts["distill"] != first["distill"]


def test_the_label_loss_may_be_another():
    z, taught, y = logits_of(2, 3, 4), logits_of(3, 4, seed=1), torch.tensor([0, 1, 2])
    lesson = softened_kl(z, taught, temperature=4, over="step")
    got = Distill(Fixed(taught), weight=0.25, over="step", label_loss=tet)(z, y)
    torch.testing.assert_close(got, 0.75 * tet(z, y) + 0.25 * lesson)
    with pytest.raises(ShapeError, match="over='step'"):
        Distill(label_loss=tet)(z, y)


def test_label_weight_adds_the_lesson_to_a_whole_label_loss():
    z, taught, y = logits_of(3, 4), logits_of(3, 4, seed=1), torch.tensor([0, 1, 2])
    lesson = softened_kl(z, taught, temperature=4, over="mean")
    both = Distill(Fixed(taught), weight=1, label_weight=1)(z, y)
    torch.testing.assert_close(both, F.cross_entropy(z, y) + lesson)


def test_weight_1_is_deaf_to_the_labels():
    criterion = Distill(Fixed(logits_of(3, 4, seed=1)), weight=1, label_loss=lambda z, y: z.sum() * math.inf)
    loss = criterion(logits_of(3, 4), torch.tensor([0, 1, 2]))
    assert torch.equal(loss, criterion.parts["distill"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"weight": -0.1}, "weight"),
        ({"weight": 1.1}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"over": "steps"}, "did you mean 'step'"),
        ({"label_weight": -1}, "label_weight"),
        ({"label_weight": math.inf}, "label_weight"),
        ({"teacher": nn.Linear(2, 2)}, "NetworkTeacher"),
        ({"teacher": LabelSmoothing(0.1)}, "label_loss"),
        ({"teacher": Fixed(None, updates="always")}, "'always'"),
    ],
)
def test_settings_that_cannot_be_meant(arguments, word):
    with pytest.raises(UsageError, match=word):
        Distill(**arguments)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "words"),
    [
        ((3, 4), torch.tensor([0, 1]), ShapeError, [r"[3, 4]", r"[2]"]),
        ((2, 3, 4), torch.tensor([0, 1]), ShapeError, [r"[2, 3, 4]", r"[2]"]),
        ((2, 3, 4), torch.tensor([[0, 1, 2], [0, 1, 2]]), ShapeError, [r"[2, 3, 4]", r"[2, 3]"]),
        ((4,), torch.tensor([0, 1, 2, 3]), ShapeError, [r"[4]", "[N, K] or [T, N, K]"]),
        ((3, 4), torch.eye(4)[:3], UsageError, ["soft targets", "[3, 4]"]),
        ((3, 4), torch.tensor([0.0, 1.0, 2.0]), UsageError, ["soft targets"]),
        ((3, 4), torch.tensor([0, 1, 2], dtype=torch.int32), UsageError, ["int32", ".long()"]),
    ],
)
def test_targets_and_logits_that_do_not_fit(logits, targets, error, words):
    with pytest.raises(error) as caught:
        Distill()(logits_of(*logits), targets)
    assert all(word in str(caught.value) for word in words)


def test_integer_logits_are_refused():
    with pytest.raises(ShapeError, match=r"torch.int64"):
        Distill()(torch.zeros(3, 4, dtype=torch.int64), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(("updates", "expected"), [("never", []), ("step", [1]), ("event", [2])])
def test_a_loop_may_tell_everything_to_every_teacher(updates, expected):
    teacher = Fixed(logits_of(3, 4), updates)
    criterion = Distill(teacher)
    criterion.update(nn.Linear(2, 2), 1)
    criterion.before_event(nn.Linear(2, 2), 2)
    assert teacher.updated == expected


def test_a_criterion_without_memory_has_nothing_to_save():
    for criterion in (Distill(), Distill(VirtualTeacher()), Distill(Fixed(logits_of(3, 4)))):
        criterion.update(nn.Linear(2, 2), 1)
        criterion.before_event(nn.Linear(2, 2), 1)
        assert criterion.state_dict() == {}
        criterion.load_state_dict({})


def test_the_names_are_found_at_the_top():
    here = {name for name, home in regraft._HOME.items() if home == "regraft.distill"}
    assert len(here) == 8
    assert all(getattr(regraft, name) is getattr(regraft.distill, name) for name in here)


@pytest.mark.parametrize("label", [7, -100])
def test_targets_outside_the_classes_are_told(label):
    with pytest.raises(ShapeError, match="K = 4 classes, 0 to 3"):
        Distill()(torch.rand(8, 4), torch.full((8,), label))
