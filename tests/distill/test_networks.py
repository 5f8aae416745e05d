"""The teachers with a network: what they may change (nothing), see (the batch) and build (no graph)."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regraft.distill import AverageTeacher, Distill, NestedTeacher, NetworkTeacher, PreviousTeacher
from regraft.distill.networks import strongest
from regraft.errors import RunError, ShapeError, UsageError

STEPS, BATCH, FEATURES, CLASSES = 3, 6, 5, 4


class Student(nn.Module):
    """[N, 5] -> [T, N, 4], with normalisation and dropout, so that eval and training mode differ."""

    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Linear(FEATURES, 8)
            self.norm = nn.BatchNorm1d(8)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(8, CLASSES)
        self.to(dtype)

    def forward(self, x):
        hidden = self.drop(F.relu(self.norm(self.body(x))))
        return torch.stack([self.head(hidden) * (t + 1) for t in range(STEPS)])


X = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 3, 0, 1])


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train(student, criterion, steps=3, hook=None):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        loss = criterion(student(X), Y, inputs=X)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hook is not None:
            hook(student, step)


def ready(teacher):
    teacher.update(Student(7), 0)
    return teacher


TEACHERS = {
    "network": lambda: NetworkTeacher(Student(7)),
    "average": lambda: AverageTeacher(Student(7)),
    "previous": lambda: ready(PreviousTeacher(Student(3))),
}


@pytest.fixture(params=TEACHERS)
def teacher(request):
    return TEACHERS[request.param]()


def test_a_teacher_does_not_change_while_the_student_learns(teacher):
    before = snapshot(teacher.model)
    student = Student(0)
    learnt = snapshot(student)
    teacher.model.train()  # as an outer `module.train()` would
    train(student, Distill(teacher))
    assert same_bits(snapshot(teacher.model), before)
    assert not same_bits(snapshot(student), learnt)


def test_a_trained_network_that_goes_on_training_elsewhere_teaches_what_it_taught():
    original = Student(7).train()
    teacher = NetworkTeacher(original)
    before = snapshot(teacher.model)
    assert original.training
    assert all(p.requires_grad for p in original.parameters())
    train(original, Distill())
    assert same_bits(snapshot(teacher.model), before)
    assert not same_bits(snapshot(original), before)
    teacher.update(original, 3)
    assert same_bits(snapshot(teacher.model), before)


def test_no_teacher_gets_a_gradient_or_builds_a_graph(teacher):
    for parameter in teacher.model.parameters():  # even if somebody switches them on
        parameter.requires_grad_(True)
    seen = []

    def watch(module, args, output):
        seen.append((args[0] is X, output.requires_grad, torch.is_grad_enabled(), module.training))

    teacher.model.register_forward_hook(watch)
    student = Student()
    Distill(teacher)(student(X), Y, inputs=X).backward()
    assert seen == [(True, False, False, False)]  # once, the very same batch, no graph, eval mode
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_copy_carries_no_gradients_along():
    model = Student()
    model(X).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in NetworkTeacher(model).model.parameters())
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("over", ["mean", "step"])
def test_a_student_that_equals_its_teacher_is_taught_nothing(over):
    student = Student(7, torch.float64).eval()
    criterion = Distill(NetworkTeacher(student), weight=1, over=over)
    x = X.double()
    loss = criterion(student(x), Y, inputs=x)
    loss.backward()
    assert loss.item() == 0
    for parameter in student.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-14


def test_a_teacher_is_none_of_the_students_parameters(teacher):
    class Lesson(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = Student()
            self.criterion = Distill(teacher)

    inside = Lesson()
    assert len(list(inside.parameters())) == len(list(Student().parameters()))
    assert inside.state_dict().keys() == {f"student.{name}" for name in Student().state_dict()}


def test_a_network_must_see_what_the_student_saw(teacher):
    with pytest.raises(UsageError, match="inputs=x"):
        Distill(teacher)(Student()(X), Y)


def test_forward_runs_models_that_need_more_than_a_call():
    class Stateful(nn.Module):  # as other libraries' neurons: each call adds to what the last one left
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(FEATURES, CLASSES)
            self.v = 0.0

        def forward(self, x):
            self.v = self.v + self.linear(x)
            return self.v

    def afresh(model, x):
        model.v = 0.0
        return model(x)

    teacher = NetworkTeacher(Stateful(), forward=afresh)
    criterion, z = Distill(teacher), torch.zeros(BATCH, CLASSES)
    assert criterion(z, Y, inputs=X).item() == criterion(z, Y, inputs=X).item()
    used = Stateful()
    used(X)
    with pytest.raises(UsageError, match="reset its state"):
        NetworkTeacher(used)


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ShapeError, match=r"\[6, 7\].*\[3, 6, 4\]"):
        Distill(NetworkTeacher(nn.Linear(FEATURES, 7)))(Student()(X), Y, inputs=X)


# ---------------------------------------------------------------- average


def test_the_average_after_three_updates():
    # a3 = d^3 w0 + (1 - d)(d^2 w1 + d w2 + w3)
    d = 0.9
    students = [Student(seed, torch.float64) for seed in range(4)]
    for seed, student in enumerate(students):
        student.norm.running_mean.fill_(seed)
        student.norm.num_batches_tracked.fill_(10 * seed)
    teacher = AverageTeacher(students[0], decay=d)
    for step, student in enumerate(students[1:]):
        teacher.update(student, step)
    w0, w1, w2, w3 = (dict(student.named_parameters()) for student in students)
    for name, average in teacher.model.named_parameters():
        expected = d**3 * w0[name] + (1 - d) * (d**2 * w1[name] + d * w2[name] + w3[name])
        torch.testing.assert_close(average, expected.detach(), rtol=0, atol=1e-12)
    expected = torch.full((8,), (1 - d) * (d**2 * 1 + d * 2 + 3), dtype=torch.float64)
    torch.testing.assert_close(teacher.model.norm.running_mean, expected)
    assert teacher.model.norm.num_batches_tracked.item() == 30


def test_the_average_counts_a_shared_tensor_once():
    class Tied(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.one = nn.Linear(2, 2, bias=False)
            self.two = nn.Linear(2, 2, bias=False)
            self.two.weight = self.one.weight
            nn.init.constant_(self.one.weight, value)

    teacher = AverageTeacher(Tied(0.0), decay=0.5)
    teacher.update(Tied(1.0), 0)
    assert teacher.model.one.weight is teacher.model.two.weight
    assert (teacher.model.one.weight == 0.5).all()


def test_a_connection_that_never_existed_is_not_averaged_into_being():
    student = Student()
    absent = torch.rand(8, FEATURES, generator=torch.Generator().manual_seed(0)) < 0.7
    teacher = None
    for step in range(4):
        with torch.no_grad():
            student.body.weight.copy_(torch.randn(8, FEATURES).masked_fill(absent, 0))
        teacher = teacher or AverageTeacher(student, decay=0.9)
        teacher.update(student, step)
    assert teacher is not None
    assert teacher.model.body.weight[absent].count_nonzero() == 0
    assert teacher.model.body.weight[~absent].count_nonzero() == (~absent).sum()


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_decay_that_cannot_be_meant(decay):
    with pytest.raises(UsageError, match="decay"):
        AverageTeacher(Student(), decay)


@pytest.mark.parametrize("kind", [AverageTeacher, PreviousTeacher])
def test_an_update_with_another_model_is_refused(kind):
    with pytest.raises(UsageError, match=r"'body.bias'|'0.body.bias'"):
        kind(Student()).update(nn.Sequential(Student()), 0)


@pytest.mark.parametrize("kind", [AverageTeacher, PreviousTeacher])
def test_a_moving_teacher_is_saved_and_restored_to_the_bit(kind):
    criterion = Distill(kind(Student(0)))
    criterion.teacher.update(Student(1), 0)
    saved = {name: tensor.clone() for name, tensor in criterion.state_dict().items()}
    z = Student(2)(X)
    restored = Distill(kind(Student(5)))
    restored.load_state_dict(saved)
    assert torch.equal(restored(z, Y, inputs=X), criterion(z, Y, inputs=X))
    with pytest.raises(RunError, match="another model"):
        restored.load_state_dict({"body.weight": torch.zeros(1)})


# ---------------------------------------------------------------- previous


def test_before_the_first_event_there_is_no_teacher():
    z = Student()(X).detach().requires_grad_()
    plain, silent = Distill(), Distill(PreviousTeacher(Student(7)), label_weight=0.3)
    a, b = plain(z, Y), silent(z, Y, inputs=X)
    assert torch.equal(a, b)
    assert torch.equal(*(torch.autograd.grad(loss, z)[0] for loss in (a, b)))
    assert silent.state_dict() == {}
    restored = Distill(ready(PreviousTeacher(Student())))
    restored.load_state_dict({})
    assert torch.equal(restored(z, Y, inputs=X), a)


def test_the_snapshot_is_the_student_before_the_event():
    student = Student()
    criterion = Distill(PreviousTeacher(student))
    kept = {}

    def loop(model, step):
        criterion.update(model, step)  # after each step, blindly: moves nothing
        if step == 1:  # an event: first the callable, then connections die
            criterion.before_event(model, step)
            kept.update(snapshot(model))
            with torch.no_grad():
                model.body.weight[:, :2] = 0

    train(student, criterion, steps=4, hook=loop)
    assert same_bits(snapshot(criterion.teacher.model), kept)
    assert criterion.teacher.model.body.weight[:, :2].count_nonzero() == 16


def test_the_average_follows_each_step_and_no_event():
    criterion = Distill(AverageTeacher(Student(0), decay=0.5))
    before = snapshot(criterion.teacher.model)
    criterion.before_event(Student(1), 0)
    assert same_bits(snapshot(criterion.teacher.model), before)
    criterion.update(Student(1), 0)
    assert not same_bits(snapshot(criterion.teacher.model), before)


# ---------------------------------------------------------------- nested


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=24),
    seed=st.integers(0, 99),
    keep=st.floats(0.05, 0.95),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_half_is_what_a_plain_sort_picks(values, seed, keep, dtype):
    existing = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) < 0.6
    where = [i for i in range(len(values)) if existing[i]]
    count = math.floor(keep * len(where) + 0.5)
    expected = sorted(sorted(where, key=lambda i: (-abs(values[i]), i))[:count])
    got = strongest(torch.tensor(values, dtype=dtype), existing, keep)
    assert got.nonzero().flatten().tolist() == expected


def sparse_student(dtype=torch.float64):
    """A student of which about half the connections of `body` exist, and a mask that says which."""
    student = Student(0, dtype).train()
    student.drop.p = 0.0
    mask = torch.rand(8, FEATURES, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        student.body.weight.mul_(mask)
    return student, {"body.weight": mask}


@pytest.mark.parametrize("over", ["mean", "step"])
def test_whole_and_half_teach_each_other(over):
    student, masks = sparse_student()
    x, temperature, weight = X.double(), 3.0, 0.3
    half = copy.deepcopy(student)
    with torch.no_grad():
        half.body.weight.mul_(strongest(half.body.weight, masks["body.weight"], 0.5))
    z, h = student(x), half(x)
    z, h = (z.mean(0), h.mean(0)) if over == "mean" else (z.flatten(0, 1), h.flatten(0, 1))
    y = Y if over == "mean" else Y.repeat(STEPS)

    def divergence(p, q):
        target = F.softmax(p.detach() / temperature, -1)
        return temperature**2 * F.kl_div(F.log_softmax(q / temperature, -1), target, reduction="batchmean")

    expected = (1 - weight) * F.cross_entropy(z, y)
    expected = expected + weight * (F.cross_entropy(h, y) + divergence(h, z) + divergence(z, h))
    twin = copy.deepcopy(student)
    criterion = Distill(NestedTeacher(twin, masks=masks), weight=weight, temperature=temperature, over=over)
    loss = criterion(twin(x), Y, inputs=x)
    torch.testing.assert_close(loss, expected)
    # The gradient is that of the whole's terms through all weights and of the half's through those kept.
    expected.backward()
    loss.backward()
    kept = strongest(student.body.weight, masks["body.weight"], 0.5)
    for (name, ours), whole, part in zip(twin.named_parameters(), student.parameters(), half.parameters(), strict=True):
        through_half = part.grad * kept if name == "body.weight" else part.grad
        torch.testing.assert_close(ours.grad, whole.grad + through_half, rtol=0, atol=1e-12)


def test_the_half_sends_gradients_only_to_what_it_keeps():
    student, masks = sparse_student()
    teacher = NestedTeacher(student, keep=0.4, masks=lambda: masks)
    kept = teacher.kept()["body.weight"]
    assert int(kept.sum()) == math.floor(0.4 * int(masks["body.weight"].sum()) + 0.5)
    assert not (kept & ~masks["body.weight"]).any()
    teacher.logits(X.double()).square().sum().backward()
    assert student.body.weight.grad[~kept].count_nonzero() == 0
    assert student.body.weight.grad[kept].count_nonzero() == kept.sum()


def test_the_half_leaves_the_student_as_it_was():
    student, masks = sparse_student()
    before, parameters = snapshot(student), list(student.parameters())
    teacher = NestedTeacher(student, masks=masks)
    first = teacher.logits(X.double())
    assert same_bits(snapshot(student), before)
    assert all(a is b for a, b in zip(student.parameters(), parameters, strict=True))
    assert student.training
    assert torch.equal(teacher.logits(X.double()), first)


def test_without_masks_the_half_is_taken_of_what_is_not_zero_in_each_layer():
    student, masks = sparse_student()
    counts = {name: int(mask.sum()) for name, mask in NestedTeacher(student).kept().items()}
    existing = int(masks["body.weight"].sum())
    assert counts == {"body.weight": math.floor(existing / 2 + 0.5), "head.weight": 16}


def test_the_half_of_a_model_that_is_run_by_a_function():
    student, masks = sparse_student()
    plain = NestedTeacher(student, masks=masks).logits(X.double())
    doubled = NestedTeacher(student, masks=masks, forward=lambda model, x: 2 * model(x)).logits(X.double())
    assert torch.equal(doubled, 2 * plain)


def test_a_nested_teacher_that_cannot_be_meant():
    student, masks = sparse_student()
    for keep in (0, 1, math.nan):
        with pytest.raises(UsageError, match="keep"):
            NestedTeacher(student, keep)
    with pytest.raises(UsageError, match=r"'body.weigth'"):
        NestedTeacher(student, masks={"body.weigth": masks["body.weight"]}).kept()
    with pytest.raises(ShapeError, match=r"\[5, 8\].*\[8, 5\]"):
        NestedTeacher(student, masks={"body.weight": masks["body.weight"].T}).kept()
    with pytest.raises(UsageError, match="inputs=x"):
        Distill(NestedTeacher(student))(student(X.double()), Y)
