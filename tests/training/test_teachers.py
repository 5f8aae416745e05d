"""Every teacher that a recipe can name: trained where it must be, never changed, and shown beside its student."""

from __future__ import annotations

import hashlib
import importlib
import json

import pytest
import torch

from regraft.data import plain_batches
from regraft.errors import RunError, ShapeError, UsageError
from regraft.training.build import TEACHER_SEED, assemble, teacher_recipe
from regraft.training.evaluate import evaluate
from regraft.training.load import load

fit_module = importlib.import_module("regraft.training.fit")
SPARSE = {"distill.teacher": "sparse", "distill.density": 0.2}


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def reverse(train, tiny):
    return train(tiny(SPARSE))


@pytest.mark.parametrize("teacher", ["none", "label-smoothing"])
def test_who_has_no_teacher_shows_none(train, tiny, trained, teacher):
    run = train(tiny({"distill.teacher": teacher}))
    assert run.result["teacher"] is None
    assert all(record["train"]["distill_loss"] is None for record in run.records("epoch"))
    smoothed = {n: torch.equal(p, trained.weights[n]) for n, p in run.weights.items()}
    assert all(smoothed.values()) == (teacher == "none")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"distill.teacher": "virtual"}, False),
        ({"distill.teacher": "virtual", "distill.convention": "paper"}, False),
        ({"distill.teacher": "virtual", "distill.convention": "released", "distill.multiplier": 3}, False),
        ({"distill.teacher": "previous"}, True),
        ({"distill.teacher": "average"}, True),
        ({"distill.teacher": "weakest-step"}, True),
        ({"distill.teacher": "strongest-step"}, True),
        ({"distill.teacher": "nested"}, True),
        ({"distill.teacher": "undertrained", "distill.epochs": 1}, True),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_every_teacher_teaches(train, tiny, trained, change, shown):
    run = train(tiny(change))
    told = run.result["teacher"]
    assert told["kind"] == change["distill.teacher"]
    assert (told["accuracy"] is not None) == shown
    if shown:
        assert 0 <= told["accuracy"] <= 1
    lessons = [record["train"]["distill_loss"] for record in run.records("epoch")]
    assert all(lesson > 0 for lesson in lessons)
    assert not torch.equal(run.weights["classifier.2.weight"], trained.weights["classifier.2.weight"])
    assert run.result["connections"]["existing"] == 194
    json.dumps(run.result, allow_nan=False)


def test_figures_of_a_teacher_are_its_own(train, tiny):
    run = train(tiny({"distill.teacher": "weakest-step"}))
    test = run.parts.data.test
    with torch.no_grad():
        logits = run.parts.model.eval()(test.x)
    confidence = [float(z.softmax(1).gather(1, test.y[:, None]).mean()) for z in logits]
    weakest = logits[confidence.index(min(confidence))]
    assert run.result["teacher"]["accuracy"] == pytest.approx(float((weakest.argmax(1) == test.y).float().mean()))

    run = train(tiny({"distill.teacher": "nested", "distill.keep": 0.25}))
    half = load(run.folder).model
    for name, mask in run.parts.topology.masks.items():
        p = half.get_parameter(name).data
        kept = p[mask].abs().sort(descending=True).values[: int(0.25 * int(mask.sum()) + 0.5)]
        p[p.abs() < kept[-1]] = 0
    assert run.result["teacher"]["accuracy"] == evaluate(half, plain_batches(run.parts.data.test, 256)).accuracy
    assert run.result["teacher"]["density"] == 0.5 * 0.25


def test_a_previous_teacher_that_saw_no_event_has_no_accuracy(train, tiny):
    """An epoch of one event at its last step: what stood before it never taught."""
    run = train(tiny({"distill.teacher": "previous", "training.stop": 1, "topology.every": 6}))
    assert run.records("event") == []
    assert run.result["teacher"] == {"kind": "previous", "accuracy": None, "density": None, "seconds": 0.0}


# --- the sparse teacher -----------------------------------------------------------------------------------------------


def test_one_call_trains_the_sparse_teacher_and_then_its_student(reverse):
    kinds = [(record["run"], record["kind"]) for record in reverse.watched]
    births = [run for run, kind in kinds if kind == "birth"]
    assert births == ["teacher", "tiny"]
    assert [run for run, _ in kinds] == sorted((run for run, _ in kinds), key=births.index), "one after the other"

    teacher = load(reverse.folder / "teacher")
    assert teacher.recipe.topology.density == 0.2
    assert teacher.topology.connections == 78 == round(0.2 * 388)
    assert teacher.recipe.seed == TEACHER_SEED
    assert teacher.recipe.data == reverse.recipe.data, (
        "the same split: it has not seen the student's validation samples"
    )

    own = json.loads((reverse.folder / "teacher" / "result.json").read_text())
    assert reverse.result["teacher"] == {
        "kind": "sparse",
        "name": "teacher",
        "accuracy": own["accuracy"]["last"],
        "density": own["density"]["connections"],
        "seconds": own["seconds"]["train"],
    }


def test_a_teacher_is_the_same_to_the_bit_before_and_after(train, tiny, reverse, tmp_path):
    before = digests(reverse.folder / "teacher")
    again = train(tiny(SPARSE), tmp_path / "student", teacher_run=reverse.folder / "teacher")
    assert digests(reverse.folder / "teacher") == before
    assert not (tmp_path / "student" / "teacher").exists()

    saved = load(reverse.folder / "teacher").model.state_dict()
    for run in (reverse, again):
        held = run.parts.criterion.teacher.model
        assert all(torch.equal(tensor, saved[name]) for name, tensor in held.state_dict().items())
        assert all(p.grad is None for p in held.parameters())
    assert all(torch.equal(p, again.weights[name]) for name, p in reverse.weights.items())


def test_the_teachers_settings_are_settings(tiny):
    first = teacher_recipe(tiny({**SPARSE, "distill.model": "resnet_small", "distill.epochs": 7, "training.stop": 2}))
    assert first is not None
    assert (first.topology.density, first.model.name) == (0.2, "resnet_small")
    assert (first.training.epochs, first.training.stop) == (7, None)
    assert first.distill.teacher == "none"
    early = teacher_recipe(tiny({"distill.teacher": "undertrained", "training.epochs": 30, "topology.every": 2}))
    assert early is not None
    assert (early.training.epochs, early.training.stop, early.topology.density) == (30, 3, 0.5)
    assert teacher_recipe(tiny({"distill.teacher": "virtual"})) is None


def test_an_interrupted_student_goes_on_with_its_teacher(tiny, reverse, train, tmp_path):
    def stop(record):
        if record["run"] == "tiny" and record["kind"] == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_module.fit(tiny(SPARSE), tmp_path / "run", watch=stop)
    before = digests(tmp_path / "run" / "teacher")
    again = train(tiny(SPARSE), tmp_path / "run", resume=True)
    assert digests(tmp_path / "run" / "teacher") == before, "trained once"
    assert all(torch.equal(p, again.weights[name]) for name, p in reverse.weights.items())
    assert again.result["teacher"]["accuracy"] == reverse.result["teacher"]["accuracy"]


def test_a_teacher_of_another_recipe_is_not_taken_for_it(tiny, reverse, tmp_path):
    fit_module.fit(tiny({"topology.density": 0.3}), tmp_path / "run" / "teacher")
    with pytest.raises(RunError, match="another recipe"):
        fit_module.fit(tiny(SPARSE), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_student_that_cannot_be_meant_is_refused_before_its_teacher_is_trained(tiny, tmp_path):
    recipe = tiny({**SPARSE, "topology.every": 8, "distill.epochs": 9})  # the teacher has 27 steps, the student 9
    with pytest.raises(UsageError, match="no event fits"):
        fit_module.fit(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- a user's own -----------------------------------------------------------------------------------------------------


def test_a_teacher_may_be_the_users_own(theirs, train, tiny):
    theirs(
        "teaching",
        """
        import torch

        class Contrarian:
            updates = "step"
            def __init__(self, model):
                self.model, self.steps = model, []
            def loss(self, logits, targets, *, inputs, temperature, over):
                return -logits.square().mean() / temperature
            def update(self, model, step):
                assert model is self.model
                self.steps.append(step)

        def no_teacher(model):
            return model
        """,
    )
    run = train(tiny({"distill.teacher": "teaching:Contrarian", "distill.temperature": 2}))
    assert run.result["teacher"] == {"kind": "teaching:Contrarian", "accuracy": None, "density": None, "seconds": 0.0}
    assert run.parts.criterion.teacher.steps == list(range(1, 10))
    assert all(record["train"]["distill_loss"] <= 0 for record in run.records("epoch"))
    for name, message in (
        ("no_teacher", "is no teacher"),
        ("Contrarien", "did you mean 'Contrarian'"),
        ("torch", "function"),
    ):
        with pytest.raises(UsageError, match=message):
            assemble(tiny({"distill.teacher": f"teaching:{name}"}))


# --- any finished run -------------------------------------------------------------------------------------------------


def test_any_finished_run_can_teach(train, tiny, trained):
    twin = train(tiny({"model.neuron": "relu"}))
    for other in (trained, twin):
        run = train(tiny({"seed": 3, "distill.teacher": "network", "distill.run": str(other.folder)}))
        told = run.result["teacher"]
        assert (told["kind"], told["name"]) == ("network", "tiny")
        assert told["accuracy"] == other.result["accuracy"]["last"]
        assert told["seconds"] == other.result["seconds"]["train"]


def test_a_student_pays_for_its_teachers_teacher(train, tiny, reverse):
    run = train(tiny({"seed": 3, "distill.teacher": "network", "distill.run": str(reverse.folder)}))
    paid = reverse.result["seconds"]["train"] + reverse.result["teacher"]["seconds"]
    assert run.result["teacher"]["seconds"] == pytest.approx(paid)


def test_a_run_of_other_classes_cannot_teach(tiny, theirs, train, tmp_path):
    theirs("fewer", "from regraft.data.standin import standin\ndef fewer(s, seed): return standin(s, seed, classes=4)")
    other = train(tiny({"data.name": "fewer:fewer"}))
    with pytest.raises(ShapeError, match="do not fit the student's"):
        fit_module.fit(tiny({"distill.teacher": "network", "distill.run": str(other.folder)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_cannot_teach(tiny, copied, tmp_path):
    (copied / "last.json").unlink()
    with pytest.raises(RunError, match="cannot read"):
        fit_module.fit(tiny({"distill.teacher": "network", "distill.run": str(copied)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_result_cannot_teach(tiny, copied, tmp_path):
    """Its accuracy has to stand beside the student's; that it is not there shows before the training, not after."""
    recipe = tiny({"distill.teacher": "network", "distill.run": str(copied)})
    for damage, message in (
        ("{", "damaged"),
        ("{}", "damaged"),
        ('{"format": 2}', "format 2"),
        (None, "no finished run"),
    ):
        (copied / "result.json").write_text(damage) if damage else (copied / "result.json").unlink()
        with pytest.raises(RunError, match=message):
            fit_module.fit(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_checking_leaves_no_trace(tiny):
    recipe = tiny({"distill.teacher": "average"})
    one, two = assemble(recipe), assemble(recipe)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert all(m.training for m in one.model.modules())
    assert one.criterion.parts == {}
    assert int(one.model.features[1].num_batches_tracked) == 0
