"""The loop: what it writes, what it computes, and what it must not change."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regraft import data as datasets
from regraft.errors import RunError, ShapeError, StructureError, TrainingError, UsageError
from regraft.execution import execute
from regraft.models import tiny_vgg
from regraft.neurons import LIF
from regraft.training.build import assemble, optimizer_of
from regraft.training.load import load
from regraft.training.recipe import Recipe, load_recipe, override

fit_module = importlib.import_module("regraft.training.fit")
step_module = importlib.import_module("regraft.training.step")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_options(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a user's own model, which does not take what `tiny_vgg` takes."""
    return replace(recipe, model=replace(recipe.model, name=name, options={}))


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_a_run_folder_is_complete(trained):
    assert {path.name for path in trained.folder.iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "log.jsonl",
        "last.safetensors",
        "last.json",
        "best.safetensors",
        "best.json",
        "wiring.safetensors",
        "activity.safetensors",
        "result.json",
    }
    assert load_recipe(trained.folder / "recipe.yaml") == trained.recipe
    assert json.loads((trained.folder / "result.json").read_text()) == trained.result
    manifest = json.loads((trained.folder / "last.json").read_text())
    assert manifest["recipe_hash"] == trained.recipe.hash
    assert (manifest["epoch"], manifest["step"], manifest["steps"]) == (3, 9, 9)


def test_the_log_begins_with_the_birth_and_has_one_record_an_epoch(trained):
    birth, *later = trained.log
    assert birth["kind"] == "birth"
    assert birth["steps"] == trained.parts.steps
    assert sum(layer["connections"] for layer in birth["layers"].values()) == 194
    assert sum(layer["of"] for layer in birth["layers"].values()) == 388
    assert birth["density"] == 0.5
    assert [record["epoch"] for record in later if record["kind"] == "epoch"] == [1, 2, 3]
    for record in trained.records("epoch"):
        assert record["step"] == 3 * record["epoch"]
        assert math.isfinite(record["train"]["loss"])
        assert record["train"]["loss"] == record["train"]["label_loss"]
        assert record["train"]["distill_loss"] is None
        assert 0 <= record["valid"]["accuracy"] <= 1
        assert record["rates"].keys() == trained.result["rates"].keys()
    assert [{"run": "tiny", **record} for record in trained.log] == [
        record for record in trained.watched if record["kind"] != "paths"
    ]


def test_every_event_is_logged_as_it_was(trained):
    events = trained.parts.topology.events
    assert [event.step for event in events] == [2, 4, 6], "every 2 of 9 steps, none in the last quarter"
    logged = [{k: v for k, v in record.items() if k != "survival"} for record in trained.records("event")]
    assert logged == [{"kind": "event", **json.loads(json.dumps(vars(event)))} for event in events]
    explored = [record["exploration"] for record in trained.records("event")]
    assert explored == sorted(explored)
    assert trained.result["exploration"] == explored[-1]
    for record in trained.records("event"):
        assert record["density"] == 0.5
        assert sum(record["connections"].values()) == 194
        assert record["dropped"] == record["grown"]


def test_the_masks_on_disk_are_those_of_the_last_event(trained):
    assert load(trained.folder).topology.mask_hash == trained.records("event")[-1]["mask_hash"]
    assert trained.result["mask_hash"] == trained.records("event")[-1]["mask_hash"]


def test_result_and_log_agree(trained):
    valid = {record["epoch"]: record["valid"]["accuracy"] for record in trained.records("epoch")}
    assert valid[3] == trained.result["accuracy"]["valid_last"]
    assert trained.result["connections"] == {"existing": 194, "of": 388}
    assert trained.result["density"]["connections"] == 0.5
    assert trained.result["test_samples"] == 64


EARLIER_IS_BETTER = {
    "training.epochs": 12,
    "topology.rule": "gmp",
    "topology.density": 0.05,
    "topology.until": 0.9,
    "data.augment": False,
}


@pytest.mark.parametrize("change", [{}, {"topology.every": 1}, {"topology.rule": "static"}, EARLIER_IS_BETTER], ids=str)
def test_the_chosen_epoch_is_the_best_of_those_on_the_final_wiring(train, tiny, change):
    """A denser network of an earlier epoch must not lend its accuracy to the price of the final one."""
    run = train(tiny({"training.epochs": 8, "training.lr": 0.2, **change}))
    last_event = max((record["step"] for record in run.records("event")), default=0)
    valid = {r["epoch"]: r["valid"]["accuracy"] for r in run.records("epoch") if r["step"] >= last_event}
    if change is EARLIER_IS_BETTER:
        assert max(valid.values()) < max(record["valid"]["accuracy"] for record in run.records("epoch"))
    chosen = run.result["accuracy"]["selected_epoch"]
    assert valid[chosen] == max(valid.values()) == run.result["accuracy"]["valid_selected"]
    assert chosen == max(epoch for epoch, accuracy in valid.items() if accuracy == max(valid.values())), (
        "the last of ties"
    )
    assert load(run.folder, "best").topology.mask_hash == run.result["mask_hash"]


def test_a_run_that_stops_before_its_wiring_is_final_chooses_its_last_epoch(train, tiny):
    run = train(tiny({"training.stop": 1}))
    assert run.result["accuracy"]["selected_epoch"] == 1
    assert run.result["accuracy"]["selected"] == run.result["accuracy"]["last"]


def test_accuracy_is_of_the_test_set_and_the_test_set_chooses_nothing(trained):
    test = trained.parts.data.test
    for which, key in (("last", "last"), ("best", "selected")):
        with torch.no_grad():
            right = load(trained.folder, which).model(test.x).mean(0).argmax(1) == test.y
        assert trained.result["accuracy"][key] == float(right.double().mean())


def test_without_a_validation_split_the_last_epoch_is_chosen(train, tiny):
    run = train(tiny({"data.validation": 0, "training.epochs": 2}))
    assert run.result["accuracy"]["selected_epoch"] == 2
    assert run.result["accuracy"]["selected"] == run.result["accuracy"]["last"]
    assert run.result["accuracy"]["valid_last"] is None
    assert all(record["valid"] is None for record in run.records("epoch"))


def test_a_finished_run_is_never_overwritten(trained, copied, tiny):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    for recipe in (trained.recipe, tiny({"seed": 5}), tiny({"distill.teacher": "sparse"})):
        with pytest.raises(RunError, match="holds a finished run"):
            fit_module.fit(recipe, copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_what_cannot_be_meant_is_refused_before_a_folder_is_made(tiny, theirs, tmp_path):
    theirs(
        "refused",
        """
        import torch
        from torch import nn

        def nothing_prunable(**_):
            return nn.Flatten()

        def too_few_classes(*, classes, **_):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, classes - 1))

        def another_size(*, classes, **_):
            return nn.Sequential(nn.Flatten(), nn.Linear(65, classes))

        class Pair(nn.Linear):
            def forward(self, x):
                return super().forward(x.flatten(1)), None

        def a_pair(*, classes, **_):
            return Pair(64, classes)

        def one_axis(*, classes, **_):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, classes), nn.Flatten(0))
        """,
    )
    cases = [
        ({"model.name": "refused:nothing_prunable"}, StructureError, "no prunable weight"),
        ({"model.name": "refused:too_few_classes"}, ShapeError, "K = 10 classes"),
        ({"model.name": "refused:another_size"}, ShapeError, r"cannot take samples \[2, 1, 8, 8\]"),
        ({"model.name": "refused:a_pair"}, ShapeError, "gave tuple"),
        ({"model.name": "refused:one_axis"}, ShapeError, "logits"),
        ({"model.options.widths": [[4]] * 4}, UsageError, "size is 8"),
        ({"topology.density": 0.001}, UsageError, "one connection for each"),
        ({"topology.every": 100}, UsageError, "no event fits"),
        ({"topology.rule": "rgil"}, UsageError, "did you mean 'rigl'"),
        ({"data.batch": 1000}, UsageError, "training samples"),
        ({"distill.teacher": "virtual", "distill.confidence": 0.05}, UsageError, "1/K"),
        ({"distill.teacher": "virtual", "distill.multiplier": 2}, UsageError, "released"),
        ({"distill.teacher": "nested", "distill.keep": 1}, UsageError, "keep"),
        ({"distill.teacher": "previous", "topology.rule": "static"}, UsageError, "never rewires"),
        ({"distill.teacher": "weakest-step", "model.neuron": "relu"}, ShapeError, "StepTeacher"),
        ({"distill.teacher": "sparse", "distill.model": "tiny_vgg2"}, UsageError, "did you mean 'tiny_vgg'"),
        ({"distill.teacher": "sparse", "distill.density": 0.001}, UsageError, "one connection for each"),
        ({"distill.teacher": "network", "distill.run": str(tmp_path / "no")}, RunError, "no finished run"),
    ]
    for change, error, message in cases:
        recipe = tiny(change)
        if "model.name" in change:
            recipe = without_options(recipe, change["model.name"])
        with pytest.raises(error, match=message):
            fit_module.fit(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists(), change


# --- what is computed -------------------------------------------------------------------------------------------------


def plain_training(recipe) -> nn.Module:
    """The same network on the same batches, executed, in a loop of nothing but torch."""
    torch.manual_seed(recipe.seed)
    data = datasets.load("standin", validation=recipe.data.validation, seed=recipe.data.split_seed)
    net = tiny_vgg(classes=10, channels=1, size=8, steps=2, neuron=partial(LIF, 0.5), widths=[[4], [4]], hidden=8)
    execute(net)
    weights = [p for p in net.parameters() if p.ndim >= 2]
    others = [p for p in net.parameters() if p.ndim < 2]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 5e-4}, {"params": others}], lr=0.05, momentum=0.9, nesterov=True
    )
    epochs, batch = recipe.training.epochs, recipe.data.batch
    steps = epochs * (len(data.train) // batch)
    warm = math.floor(0.2 * steps)
    step = 0
    for epoch in range(1, epochs + 1):
        for x, y in datasets.training_batches(
            data.train, batch, seed=recipe.seed, epoch=epoch, augment=data.augmentation
        ):
            rise = (step + 1) / warm if step < warm else 1
            fall = 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) if step >= warm else 1
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (rise * fall)
            optimizer.zero_grad()
            F.cross_entropy(net(x).mean(0), y).backward()
            optimizer.step()
            step += 1
    return net


def test_density_one_without_events_is_plain_training_to_the_bit(train, tiny):
    recipe = tiny({"topology.density": 1, "topology.rule": "static", "training.warmup": 0.2})
    run = train(recipe)
    plain = {name: p.detach() for name, p in plain_training(recipe).named_parameters()}
    assert same(run.weights, plain)
    assert run.records("event") == []


@pytest.mark.parametrize("teacher", ["virtual", "average", "previous", "nested"])
def test_a_teacher_of_weight_zero_is_no_teacher_to_the_bit(train, tiny, trained, teacher):
    run = train(tiny({"distill.teacher": teacher, "distill.weight": 0, "distill.label_weight": 0.5}))
    assert same(run.weights, trained.weights)
    assert run.result["mask_hash"] == trained.result["mask_hash"]


def test_the_same_seed_gives_the_same_bits_and_another_other_ones(train, tiny, trained):
    torch.manual_seed(12345)  # what was drawn before does not matter
    again = train(tiny())
    assert same(again.weights, trained.weights)
    assert again.result["mask_hash"] == trained.result["mask_hash"]
    assert [r["train"] for r in again.records("epoch")] == [r["train"] for r in trained.records("epoch")]
    for name in ("last.safetensors", "best.safetensors", "wiring.safetensors", "recipe.yaml"):
        assert (again.folder / name).read_bytes() == (trained.folder / name).read_bytes()

    other = train(tiny({"seed": 1}))
    assert not any(torch.equal(p, trained.weights[name]) for name, p in other.weights.items() if p.ndim >= 2)
    assert other.records("birth")[0]["mask_hash"] != trained.records("birth")[0]["mask_hash"]
    assert torch.equal(other.parts.data.train.x, trained.parts.data.train.x), "the split is that of split_seed"


def test_absent_connections_are_exactly_zero_at_the_end(trained):
    weights = dict(trained.parts.model.named_parameters())
    for name, mask in trained.parts.topology.masks.items():
        assert not weights[name][~mask].any()
        assert weights[name][mask].count_nonzero() > 0


def test_normalisation_is_reestimated_and_no_weight_changes(train, tiny, monkeypatch):
    seen = []
    real = fit_module.reestimate

    def watched(model, batches):
        batches = list(batches)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        real(model, iter(batches))
        seen.append((before, {name: t.clone() for name, t in model.state_dict().items()}, batches))

    monkeypatch.setattr(fit_module, "reestimate", watched)
    run = train(tiny())
    [(before, after, batches)] = seen
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if "running" in name or "batches" in name}
    assert same(run.weights, {name: after[name] for name in run.weights}), "nothing is learnt afterwards"

    conv = run.parts.model.features[0]
    means = [F.conv2d(x, conv.weight, padding=1).mean((0, 2, 3)) for x, _ in batches]
    assert torch.allclose(after["features.1.running_mean"], torch.stack(means).mean(0), atol=1e-6)
    plain = {tuple(x.flatten().tolist()) for x in run.parts.data.train.x}
    assert all(tuple(x.flatten().tolist()) in plain for batch, _ in batches for x in batch), "not augmented"


def test_clipping_counts_only_connections_that_exist(train, tiny, monkeypatch):
    """By the dense gradient's norm, a sparse network would be clipped far below the limit."""
    seen = []
    real = step_module.clip_grad_norm_

    def watched(parameters, limit):
        parameters = list(parameters)
        before = {id(p): p.grad.clone() for p in parameters}
        norm = real(parameters, limit)
        after = {id(p): p.grad.clone() for p in parameters}
        seen.append((limit, float(norm), before, after))
        return norm

    monkeypatch.setattr(step_module, "clip_grad_norm_", watched)
    run = train(tiny({"training.clip": 0.01, "topology.rule": "static", "topology.density": 0.1}))
    parameters = dict(run.parts.model.named_parameters())
    assert len(seen) == 9
    for limit, norm, before, after in seen:
        existing = [before[id(p)].flatten() for name, p in parameters.items() if name not in run.parts.topology.masks]
        for name, mask in run.parts.topology.masks.items():
            assert not before[id(parameters[name])][~mask].any()
            existing.append(before[id(parameters[name])][mask])
        assert limit == 0.01
        assert norm == pytest.approx(float(torch.cat(existing).norm()), rel=1e-5)
        assert float(torch.cat([g.flatten() for g in after.values()]).norm()) == pytest.approx(
            min(norm, 0.01), rel=1e-3
        )


def test_masks_do_not_depend_on_clipping_at_a_huge_norm(train, tiny, trained):
    assert train(tiny({"training.clip": 1e9})).result["mask_hash"] == trained.result["mask_hash"]


@pytest.mark.parametrize(
    "change",
    [
        {"training.precision": "bf16"},
        {"training.optimizer": "adamw", "training.lr": 0.01},
        {"training.loss": "tet"},
        {"training.loss": "step"},
        {"model.neuron": "plif"},
        {"model.neuron": "if", "model.reset": "soft"},
        {"model.neuron": "relu"},
        {"topology.rule": "gmp"},
        {"topology.rule": "granet"},
        {"topology.rule": "set", "topology.scope": "row"},
        {"model.steps": 1, "data.augment": False},
    ],
    ids=str,
)
def test_settings_train_stay_finite_and_hold_the_budget(train, tiny, trained, change):
    run = train(tiny(change))
    assert all(p.isfinite().all() for p in run.parts.model.parameters())
    assert all(p.dtype == torch.float32 for p in run.parts.model.parameters()), "weights are fp32 whatever computes"
    assert run.result["connections"] == {"existing": 194, "of": 388}
    assert not same(run.weights, trained.weights)


def test_tet_is_the_published_mix(train, tiny):
    """With `stop` after one epoch of one batch, the logged loss is that of the newborn network."""
    changes = {"training.loss": "tet", "training.tet": 0.3, "training.epochs": 1, "data.batch": 40, "topology.every": 1}
    recipe = tiny({**changes, "topology.rule": "static"})
    run = train(recipe)
    parts = assemble(recipe)
    [(x, y)] = datasets.training_batches(parts.data.train, 40, seed=0, epoch=1, augment=parts.data.augmentation)
    z = parts.model.train()(x)
    each = torch.stack([F.cross_entropy(step, y) for step in z]).mean()
    expected = 0.7 * each + 0.3 * F.mse_loss(z, torch.ones_like(z))
    assert run.records("epoch")[0]["train"]["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize(("warmup", "warm"), [(0, 0), (0.05, 5), (0.5, 50), (1, 100)])
def test_the_learning_rate_is_a_ramp_and_a_cosine(tiny, warmup, warm):
    optimizer, schedule = optimizer_of(tiny({"training.warmup": warmup, "training.lr": 0.4}), nn.Linear(2, 2), 100)
    found = []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ramp = [0.4 * k / warm for k in range(1, warm + 1)]
    cosine = [0.2 * (1 + math.cos(math.pi * k / (100 - warm))) for k in range(100 - warm)]
    assert found == pytest.approx(ramp + cosine)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 if warm == 100 else 0, abs=1e-12)


def test_weight_decay_leaves_biases_normalisation_and_time_constants_alone(tiny):
    parts = assemble(tiny({"model.neuron": "plif", "training.weight_decay": 0.3}))
    decayed, others = parts.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in parts.model.parameters() if p.ndim > 1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(parts.model.parameters()))


def test_a_stopped_run_is_the_beginning_of_the_whole_one(train, tiny, trained):
    run = train(tiny({"training.stop": 2}))
    assert run.records("event") != []
    whole = [r for r in trained.log if r["step"] <= 6]

    def facts(records):
        kept = [{k: v for k, v in r.items() if k not in ("seconds", "valid", "rates")} for r in records]
        return kept

    assert facts(run.log) == facts(whole), "the last epoch's validation follows re-estimation, so it may differ"
    assert run.log[-1]["lr"] > 0


# --- what goes wrong --------------------------------------------------------------------------------------------------

BREAKS = """
    import torch
    from torch import nn

    class Breaks(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.layer, self.left = nn.Linear(64, classes), 5

        def forward(self, x):
            out = self.layer(x.flatten(1))
            self.left -= self.training
            return out if self.left >= 0 else out * float("inf")

    def breaks(*, classes, **_):
        return Breaks(classes)

    class Late(Breaks):
        def forward(self, x):
            self.seen = getattr(self, "seen", False) or self.training
            out = self.layer(x.flatten(1))
            return out * float("nan") if self.seen and not self.training else out

    def breaks_late(*, classes, **_):
        return Late(classes)
"""


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_epoch(theirs, tiny, tmp_path):
    theirs("breaking", BREAKS)
    recipe = without_options(tiny({"topology.every": 1}), "breaking:breaks")
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf|-inf) at step 6 \(epoch 2\).*Epoch 1 is saved"):
        fit_module.fit(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    assert all(p.isfinite().all() for p in load(tmp_path / "run").model.parameters())
    assert json.loads((tmp_path / "run" / "last.json").read_text())["epoch"] == 1


def test_a_network_that_diverges_in_its_last_step_is_no_result(theirs, tiny, tmp_path):
    """The loss of that step was finite, the network after it is not."""
    theirs("breaking", BREAKS)
    for validation, where in ((0.2, "at the validation after epoch 1"), (0, "on the test set")):
        changes = {"training.epochs": 1, "topology.rule": "static", "data.validation": validation}
        recipe = without_options(tiny(changes), "breaking:breaks_late")
        with pytest.raises(TrainingError, match=rf"the loss .*{where}"):
            fit_module.fit(recipe, tmp_path / f"run{validation}")
        assert not (tmp_path / f"run{validation}" / "result.json").exists()


# --- what a user brings -----------------------------------------------------------------------------------------------


def test_data_model_and_rule_may_be_the_users_own(theirs, tiny, train):
    theirs(
        "owned",
        """
        import numpy as np
        import regraft
        import torch
        from torch import nn

        class Pairs:
            def __init__(self, split):
                self.x = np.random.default_rng(0).normal(size=(40, 3, 1, 6, 6)) # float64 events
            def __len__(self):
                return 40
            def __getitem__(self, i):
                return self.x[i], i % 4

        def pairs(split, seed):
            return Pairs(split)

        class Net(nn.Module):
            def __init__(self, classes, features):
                super().__init__()
                self.first = nn.Linear(features, 12)
                self.second = nn.Linear(12, classes)
                self.second.weight = nn.Parameter(torch.randn(classes, 12))

            def forward(self, x):  # [T, N, C, H, W] -> [N, K]
                return self.second(torch.relu(self.first(x.mean(0).flatten(1))))

        def net(*, classes, channels, size, steps, neuron, static, extra):
            assert not static and extra == [1, 2]
            return Net(classes, channels * size * size)

        def rule():
            return regraft.Rule("mine", drop="magnitude", grow="random", schedule=regraft.preset("set").schedule)
        """,
    )
    changes = {"data.name": "owned:pairs", "topology.rule": "owned:rule", "data.batch": 8, "data.augment": False}
    recipe = without_options(tiny(changes), "owned:net")
    recipe = override(recipe, {"model": {"steps": 3, "options": {"extra": (1, 2)}}})
    run = train(recipe)
    assert run.result["connections"] == {"existing": (36 * 12 + 12 * 4) // 2, "of": 36 * 12 + 12 * 4}
    assert len(run.records("event")) > 0
    assert run.parts.data.train.x.dtype == torch.float32
    x = run.parts.data.test.x.transpose(0, 1)
    with torch.no_grad():
        assert torch.equal(load(run.folder).model(x), run.parts.model.eval()(x))


def test_a_weight_under_two_names_is_trained_saved_and_loaded(theirs, tiny, train):
    theirs(
        "tied",
        """
        from torch import nn

        class Tied(nn.Module):
            def __init__(self, classes):
                super().__init__()
                self.enter = nn.Linear(64, 16)
                self.once = nn.Linear(16, 16)
                self.twice = nn.Linear(16, 16)
                self.twice.weight = self.once.weight
                self.leave = nn.Linear(16, classes)

            def forward(self, x):
                x = self.enter(x.flatten(1)).relu()
                return self.leave(self.twice(self.once(x).relu()).relu())

        def tied(*, classes, **_):
            return Tied(classes)
        """,
    )
    run = train(without_options(tiny(), "tied:tied"))
    loaded = load(run.folder)
    assert loaded.model.once.weight is loaded.model.twice.weight
    assert same({n: p.detach() for n, p in loaded.model.named_parameters()}, run.weights)
