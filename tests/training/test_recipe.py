"""A recipe is the same in Python, in YAML and as flags; what it cannot mean is refused with what it could."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import UsageError
from regraft.training.recipe import (
    DistillSettings,
    ModelSettings,
    Recipe,
    TopologySettings,
    TrainingSettings,
    load_recipe,
    override,
    to_mapping,
    write_yaml,
)

RANGES = {
    "seed": ([0, 2**63 - 1], [-1, 2**63, 10**400]),
    "data.batch": ([1, 10**6], [0, -1]),
    "data.validation": ([0, 0.9], [-0.01, 0.91, math.nan, math.inf]),
    "data.split_seed": ([0], [-1, 2**63]),
    "data.cutout": ([0, 2**15], [-1, 2**15 + 1]),
    "model.steps": ([1, 1024], [0, 1025]),
    "model.decay": ([1e-6, 1], [0, 1.01, -0.5, math.nan]),
    "model.threshold": ([1e-6, 50.0], [0, -1, math.inf, math.nan]),
    "model.surrogate_shape": ([0.5, 4, None], [0, -1, math.inf]),
    "topology.density": ([1e-6, 1], [0, 1.01, -0.1, math.nan]),
    "topology.every": ([1], [0, -5]),
    "topology.until": ([0.01, 1], [0, 1.5, math.nan]),
    "topology.zeta": ([0, 1, None], [-0.1, 1.1]),
    "topology.start_density": ([0.01, 1, None], [0, 1.1]),
    "distill.weight": ([0, 1], [-0.1, 1.1, math.nan]),
    "distill.label_weight": ([0, 5, None], [-1, math.inf]),
    "distill.temperature": ([0.1, 100], [0, -1, math.inf]),
    "distill.density": ([0.001, 1], [0, 1.1]),
    "distill.epochs": ([1, None], [0]),
    "distill.confidence": ([0.01, 1], [0, 1.1]),
    "distill.multiplier": ([0.5, None], [0, -2]),
    "distill.decay": ([0, 1], [-0.1, 1.1]),
    "distill.keep": ([0.1], [0, 1.1]),
    "distill.epsilon": ([0, 0.5], [-0.1, 1.1]),
    "training.epochs": ([1, 1000], [0, -1]),
    "training.stop": ([1, 30, None], [0, 31]),
    "training.lr": ([1e-9, 1e30], [0, -0.1, math.nan, math.inf, 10**400]),
    "training.momentum": ([0, 1], [-0.1, 1.1]),
    "training.weight_decay": ([0, 1], [-1e-4, math.inf]),
    "training.warmup": ([0, 1], [-0.1, 1.1]),
    "training.tet": ([0, 1], [-0.1, 1.1]),
    "training.clip": ([0.1, None], [0, -1, math.nan]),
}


def value_of(recipe: Recipe, name: str):
    for part in name.split("."):
        recipe = getattr(recipe, part)
    return recipe


def test_every_number_of_a_recipe_has_a_range_here():
    numbers = set()
    for section in dataclasses.fields(Recipe):
        inner = getattr(Recipe(), section.name)
        for f in dataclasses.fields(inner) if dataclasses.is_dataclass(inner) else [section]:
            if re.search(r"\b(int|float)\b", str(f.type)):
                numbers.add(f.name if f is section else f"{section.name}.{f.name}")
    assert numbers == set(RANGES)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, (good, _) in RANGES.items() for v in good])
def test_values_within_the_range_are_kept(name, value):
    assert value_of(override(Recipe(), {name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, (_, bad) in RANGES.items() for v in bad])
def test_values_out_of_range_are_refused_with_the_name_and_the_range(name, value):
    with pytest.raises(UsageError, match=rf"{re.escape(name)} is .*: give a number (from|above) "):
        override(Recipe(), {name: value})


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"training.epoch": 3}, "did you mean 'epochs'"),
        ({"trainig": {"epochs": 3}}, "did you mean 'training'"),
        ({"topology.allocation": "erkk"}, "did you mean 'erk'"),
        ({"topology.scope": "rows"}, "did you mean 'row'"),
        ({"model.neuron": "liv"}, "did you mean 'lif'"),
        ({"distill.teacher": "weakest"}, "did you mean 'weakest-step'"),
        ({"training.optimizer": "adam"}, "did you mean 'adamw'"),
        ({"training.precision": "fp16"}, "Known: auto, bf16, fp32"),
        ({"model": {"options": 3}}, "model.options is 3"),
        ({"model": 3}, "model is a section"),
        ({"model.steps.more": 3}, "model.steps is"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(change, hint):
    with pytest.raises(UsageError, match=hint):
        override(Recipe(), change)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", True),
        ("training.lr", True),
        ("training.epochs", 2.0),
        ("training.epochs", "3"),
        ("training.lr", "0.1"),
        ("training.epochs", None),
        ("data.augment", 1),
        ("data.name", 5),
        ("topology.exclude", "features"),
        ("topology.exclude", [1]),
        ("distill.run", 3),
        ("name", None),
        ("training.optimizer", ["sgd"]),
    ],
)
def test_nothing_is_converted_that_is_of_another_type(name, value):
    with pytest.raises(UsageError, match=rf"{re.escape(name)} is "):
        override(Recipe(), {name: value})


def test_whole_numbers_serve_as_floats_and_lists_as_tuples():
    recipe = override(Recipe(), {"training.lr": 1, "topology.exclude": ["a", "b*"]})
    assert type(recipe.training.lr) is float
    assert recipe.topology.exclude == ("a", "b*")


def test_python_yaml_and_overrides_give_one_recipe_and_one_hash(tmp_path):
    """A hash that depended on `1` or `1.0` would make `load` refuse its own run."""
    by_hand = Recipe(
        topology=TopologySettings(density=1, exclude=["a"]),  # type: ignore[arg-type]
        model=ModelSettings(options={"widths": ((4,), (4,))}),
        training=TrainingSettings(lr=1, warmup=0),
    )
    write_yaml(by_hand, tmp_path / "run.yaml")
    assert load_recipe(tmp_path / "run.yaml") == by_hand
    assert load_recipe(tmp_path / "run.yaml").hash == by_hand.hash


def test_a_dataclass_made_by_hand_is_checked_too():
    with pytest.raises(UsageError, match=r"training\.epochs is 'many'"):
        TrainingSettings(epochs="many")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"data\.batch is 1\.5"):
        Recipe(data=dataclasses.replace(Recipe().data, batch=1.5))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="data is"):
        Recipe(data={"batch": 3})  # type: ignore[arg-type]


changes = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "data.batch": st.integers(1, 10**9),
        "data.augment": st.booleans(),
        "model.options": st.dictionaries(
            st.text("abc_", min_size=1),
            st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner)),
            max_size=3,
        ),
        "topology.density": st.floats(1e-9, 1, exclude_min=True),
        "topology.include": st.lists(st.text(), max_size=3),
        "topology.scope": st.sampled_from(["layer", "row", "network", None]),
        "training.lr": st.floats(1e-300, 1e300),
        "training.clip": st.none() | st.floats(1e-3, 10),
    },
)


@settings(deadline=None, max_examples=60)  # a busy machine is slow, not wrong
@given(changes)
def test_yaml_gives_back_what_it_was_given(tmp_path_factory, tree):
    recipe = override(Recipe(), tree)
    path = tmp_path_factory.getbasetemp() / "given.yaml"
    write_yaml(recipe, path)
    again = load_recipe(path)
    assert again == recipe
    assert again.hash == recipe.hash


@settings(deadline=None, max_examples=60)  # a busy machine is slow, not wrong
@given(changes)
def test_dotted_and_nested_overrides_are_the_same(tree):
    nested: dict = {}
    for name, value in tree.items():
        section, _, setting = name.partition(".")
        nested = (
            {**nested, section: {**nested.get(section, {}), setting: value}} if setting else {**nested, name: value}
        )
    assert override(Recipe(), nested) == override(Recipe(), tree)


def test_an_override_leaves_what_it_does_not_name():
    first = override(Recipe(), {"training": {"epochs": 3, "lr": 0.2}, "model.options": {"hidden": 8, "widths": [[4]]}})
    second = override(first, {"training.epochs": 5, "training": {"momentum": 0.5}, "model.options.hidden": 9})
    assert (second.training.epochs, second.training.lr, second.training.momentum) == (5, 0.2, 0.5)
    assert second.model.options == {"hidden": 9, "widths": [[4]]}
    assert first.training.epochs == 3, "the old recipe is as it was"


OTHERS = {
    "seed": 1,
    "data": {"name": "standin", "batch": 65, "validation": 0.1, "split_seed": 1, "augment": False, "options": {"a": 1}},
    "model": {
        "name": "vgg16", "steps": 5, "neuron": "if", "decay": 0.25, "threshold": 0.5, "surrogate": "atan",
        "reset": "soft", "detach_reset": False, "decay_input": True, "surrogate_shape": 2, "options": {"a": 1},
    },
    "topology": {
        "density": 0.2, "rule": "set", "every": 10, "until": 0.5, "zeta": 0.1, "start_density": 0.5, "drop": "taylor",
        "grow": "momentum", "allocation": "er", "scope": "row", "strict": True, "birth": "keep", "include": ["a"],
        "exclude": ["a"], "dense": ["a"],
    },
    "distill": {
        "teacher": "virtual", "weight": 0.1, "temperature": 2, "label_weight": 1, "density": 0.01, "model": "a",
        "epochs": 2, "run": "a", "confidence": 0.8, "convention": "paper", "multiplier": 2, "decay": 0.5, "keep": 0.25,
        "epsilon": 0.2,
    },
    "training": {
        "epochs": 31, "stop": 2, "optimizer": "adamw", "lr": 0.2, "momentum": 0.5, "weight_decay": 0, "warmup": 0,
        "loss": "tet", "tet": 0.1, "clip": 1, "precision": "bf16", "device": "cpu",
    },
}  # fmt: skip


def test_the_hash_ignores_the_name_and_the_place_of_the_data_and_nothing_else():
    recipe = Recipe()
    assert dataclasses.replace(recipe, name="other").hash == recipe.hash
    assert override(recipe, {"data.folder": "elsewhere"}).hash == recipe.hash
    known = {k: set(v) if isinstance(v, dict) else None for k, v in to_mapping(recipe).items()}
    known["data"] -= {"folder", "cutout"}
    assert {k: set(v) if isinstance(v, dict) else None for k, v in OTHERS.items()} | {"name": None} == known, (
        "every setting of a recipe has another value here"
    )
    assert override(recipe, {"data.cutout": 4}).hash != recipe.hash
    hashes = [
        override(recipe, {key: {name: value} if name else value}).hash
        for key, inner in OTHERS.items()
        for name, value in (inner.items() if isinstance(inner, dict) else [("", inner)])
    ]
    assert len({recipe.hash, *hashes}) == 1 + len(hashes)


@pytest.mark.parametrize("density", [0.1, 0.2])
def test_the_sparse_teacher_must_be_sparser(density):
    with pytest.raises(UsageError, match="must be sparser than the student"):
        override(Recipe(), {"distill.teacher": "sparse", "distill.density": density, "topology.density": 0.1})
    override(Recipe(), {"distill.teacher": "virtual", "distill.density": density, "topology.density": 0.1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill.teacher": "network"}, "distill.run"),
        ({"distill.teacher": "weakest-step", "model.steps": 1}, "model.steps >= 2"),
        ({"distill.teacher": "undertrained", "distill.epochs": 31}, "at most training.epochs, 30"),
        ({"distill.teacher": "label-smoothing", "training.loss": "tet"}, "TET"),
        ({"model.neuron": "plif", "model.decay": 1}, "PLIF"),
        ({"name": "a/b"}, "names a folder"),
        ({"name": ".."}, "names a folder"),
        ({"name": ""}, "names a folder"),
        ({"model.options": {"f": math.sqrt}}, "model.options"),
    ],
)
def test_impossible_combinations_are_refused(change, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        override(Recipe(), change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epochs: 3", "not YAML (line"),
        ("training:\n\tepochs: 3\n", "not YAML (line 2)"),
        ("- a\n- b\n", "is not a recipe"),
        ("", "is not a recipe"),
        ("just words", "is not a recipe"),
        ("training: {lr: 0.1}\ndata: {batch: 3}\ntraining: {epochs: 3}\n", "'training' is there twice"),
        ("training: {lr: 0.1, lr: 0.2}\n", "'lr' is there twice"),
        ("training: 3\n", "training is a section"),
        ("training: {epochs: 2020-01-01}\n", "training.epochs is"),
        ("model: {options: {a: 2020-01-01}}\n", "model.options"),
        ("name: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("[a]: 3\n", "not YAML (line 1)"),
        ("{a: 1}: 3\n", "not YAML"),
        ("training: {lr: .nan}\n", "training.lr is nan"),
        ("model: {neuron: off}\n", "model.neuron is False"),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(message)):
        load_recipe(tmp_path / "bad.yaml")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for source in (tmp_path / "binary.yaml", tmp_path, tmp_path / "missing.yaml", "x" * 300):
        with pytest.raises(UsageError):
            load_recipe(source)
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        load_recipe("digit")


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.1e-2", "+.1e-2"])
def test_numbers_are_written_as_people_write_them(tmp_path, text):
    """YAML 1.1 reads `1e-3` as a text; nobody else does."""
    (tmp_path / "r.yaml").write_text(f"training: {{lr: {text}}}\n", encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml").training.lr == pytest.approx(1e-3)


def test_the_file_names_the_recipe_unless_it_says_otherwise(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 3\n", encoding="utf-8")
    assert load_recipe(tmp_path / "mine.yaml") == Recipe(name="mine", seed=3)


def test_a_mapping_holds_plain_values_only():
    tree = to_mapping(override(Recipe(), {"topology.dense": ("a",), "distill.teacher": "virtual"}))
    assert tree["topology"]["dense"] == ["a"]
    assert tree["distill"]["teacher"] == DistillSettings(teacher="virtual").teacher
