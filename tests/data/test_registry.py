"""Data sets by name or by path; a validation split that is fair and fixed; anything odd is refused."""

from __future__ import annotations

import hashlib
import importlib
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft import data
from regraft.data import Form
from regraft.data.registry import _held_out
from regraft.errors import UsageError


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The path of a user's own function, whose body is given."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(body: str) -> str:
        source = "import numpy as np, torch\ndef make(split, seed):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        (tmp_path / "own_data.py").write_text(source, encoding="utf-8")
        sys.modules.pop("own_data", None)
        importlib.invalidate_caches()
        return "own_data:make"

    yield write
    sys.modules.pop("own_data", None)


def rows(x):
    return [tuple(sample.flatten().tolist()) for sample in x]


@pytest.mark.parametrize("name", ["standin", "digits"])
def test_splits_share_no_sample_and_validation_comes_from_training(name):
    pytest.importorskip("sklearn")
    whole = data.load(name, validation=0.0)
    parts = data.load(name, validation=0.2, seed=0)
    train, valid, test = (rows(split.x) for split in (parts.train, parts.valid, parts.test))
    assert sorted(train + valid) == sorted(rows(whole.train.x)) if name == "digits" else len(train + valid) == 64
    assert not set(train) & set(valid)
    assert not set(train + valid) & set(test)
    assert parts.classes == 10


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.floats(0, 0.9), st.integers(0, 2**63 - 1))
def test_every_class_gives_the_same_share(labels, share, seed):
    y = torch.tensor(labels)
    held = _held_out(y, share, seed)
    for label in set(labels):
        assert int(held[y == label].sum()) == round(share * labels.count(label))
    assert torch.equal(held, _held_out(y, share, seed))


def test_the_split_is_fixed_by_its_seed_alone():
    torch.manual_seed(1)
    one = data.load("digits", seed=3).valid
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = data.load("digits", seed=3).valid
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, data.load("digits", seed=4).valid.x)


def test_the_test_split_of_digits_is_fixed_whatever_the_seed():
    tests = [data.load("digits", seed=seed, validation=share).test for seed, share in ((0, 0.2), (1, 0.2), (5, 0.5))]
    assert all(torch.equal(split.x, tests[0].x) and torch.equal(split.y, tests[0].y) for split in tests)
    assert len(tests[0]) == 359
    assert torch.bincount(tests[0].y).tolist() == [
        round(0.2 * n) for n in (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]
    pixels = (tests[0].x * 6.017 + 4.884).round().byte()
    digest = hashlib.sha256(pixels.numpy().tobytes() + tests[0].y.byte().numpy().tobytes()).hexdigest()
    assert digest.startswith("91dc6e8f9a2ee171"), "results are compared on this very split, whatever numpy is installed"


def test_digits_are_all_there_and_standardised():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    found = data.load("digits")
    x = torch.cat([found.train.x, found.valid.x, found.test.x])
    y = torch.cat([found.train.y, found.valid.y, found.test.y])
    assert x.shape == (1797, 1, 8, 8)
    assert torch.bincount(y).tolist() == np.bincount(labels).tolist()
    assert abs(float(x.mean())) < 1e-3
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    assert (found.form.static, found.form.channels, found.form.size) == (True, 1, 8)
    back = (found.test.x[0, 0] * 6.017 + 4.884).round().numpy()
    assert any(np.array_equal(back, image.reshape(8, 8)) for image in pixels)


def test_the_stand_in_can_be_learnt_and_has_any_shape():
    found = data.load("standin", validation=0)
    centres = torch.stack([found.train.x[found.train.y == k].mean(0) for k in range(10)]).flatten(1)
    nearest = torch.cdist(found.test.x.flatten(1), centres).argmin(1)
    assert (nearest == found.test.y).float().mean() > 0.95
    x, y = data.DATA["standin"]("train", 0, shape=(5, 2, 4, 4), classes=3, samples=7)
    assert (x.shape, y.tolist()) == ((7, 5, 2, 4, 4), [0, 1, 2, 0, 1, 2, 0])
    assert x.dtype == np.float32


# --- a user's own -----------------------------------------------------------------------------------------------------


def test_arrays_tensors_lists_and_datasets_are_taken(theirs):
    bodies = [
        "return np.ones((6, 1, 4, 4)), np.arange(6) % 2",
        "return torch.ones(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 2",
        "return np.ones((6, 1, 4, 4), dtype=np.float16), [0, 1, 0, 1, 0, 1]",
        "return torch.utils.data.TensorDataset(torch.ones(6, 1, 4, 4), torch.arange(6) % 2)",
        "return [(np.ones((1, 4, 4)), i % 2) for i in range(6)]",
        "return torch.utils.data.Subset([(torch.ones(1, 4, 4), np.int32(i % 2)) for i in range(9)], range(6))",
        "return torch.ones(6, 1, 4, 4), (torch.arange(6) % 2).double()",
    ]
    for body in bodies:
        found = data.load(theirs(body), validation=0)
        assert found.train.x.dtype == (torch.uint8 if "uint8" in body else torch.float32), body
        assert found.train.x.shape == (6, 1, 4, 4)
        assert (found.train.y.dtype, found.train.y.tolist(), found.classes) == (torch.int64, [0, 1, 0, 1, 0, 1], 2)


def test_events_are_known_by_their_axes(theirs):
    found = data.load(theirs("return np.ones((6, 5, 2, 4, 4)), np.arange(6)"), validation=0)
    assert found.form == Form(classes=6, channels=2, size=4, static=False)


def test_classes_are_those_of_both_splits(theirs):
    found = data.load(
        theirs("return np.ones((4, 1, 4, 4)), np.array([0, 1, 2, 3 if split == 'test' else 1])"), validation=0
    )
    assert found.classes == 4


def test_the_source_is_told_split_and_seed(theirs):
    body = "return np.full((4, 1, 4, 4), seed), np.array([0, 0, 0, split == 'test'])"
    found = data.load(theirs(body), validation=0, seed=17)
    assert (float(found.train.x.max()), found.train.y.tolist(), found.test.y.tolist()) == (
        17,
        [0, 0, 0, 0],
        [0, 0, 0, 1],
    )


def test_a_source_gets_what_it_has_a_name_for(theirs, tmp_path):
    make = theirs("return None").replace("make", "{}")
    (tmp_path / "own_data.py").write_text(
        "import numpy as np\n"
        "def both(split, seed, folder='here', *, steps=3, blank=0):\n"
        "    return np.full((4, steps, 2, 4, 4), blank), np.arange(4) % (2 if folder == 'here' else 4)\n"
        "def neither(split, seed, **rest):\n"
        "    return np.full((4, 1, 4, 4), len(rest)), np.arange(4)\n"
    )
    both, neither = make.format("both"), make.format("neither")
    found = data.load(both, validation=0)
    assert (found.train.x.shape[1], found.classes, float(found.train.x.max())) == (3, 2, 0)
    found = data.load(both, validation=0, folder="there", steps=5, options={"blank": 7})
    assert (found.train.x.shape[1], found.classes, float(found.train.x.max())) == (5, 4, 7)
    assert data.load(both, validation=0, steps=5, options={"steps": 2}).train.x.shape[1] == 2, "what is asked for wins"
    assert float(data.load(neither, validation=0, folder="there", steps=5).train.x.max()) == 0
    with pytest.raises(UsageError, match="unexpected keyword argument 'blnk'; it takes split, seed, folder, steps"):
        data.load(both, options={"blnk": 7})
    with pytest.raises(UsageError, match="data set 'digits': got an unexpected keyword argument 'size'"):
        data.load("digits", options={"size": 7})


def test_how_samples_are_varied_is_the_data_sets_own_affair(theirs):
    assert data.load("digits").augmentation == data.Augmentation(crop=1, fill="edge")
    big = data.load(theirs("return np.ones((4, 1, 32, 32)), np.arange(4)"), validation=0)
    assert big.augmentation == data.Augmentation(crop=4, fill="edge")
    for name, facts in data.FACTS.items():
        mirrored = facts.augmentation is not None and facts.augmentation.flip
        assert mirrored == (name in ("cifar10", "cifar100")), "a mirrored digit or gesture is another one"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return np.ones((4, 8, 8)), np.zeros(4)", r"samples \(4, 8, 8\) and labels \(4,\) do not fit"),
        ("return np.ones((4, 1, 8, 8)), np.zeros(5)", "do not fit"),
        ("return np.ones((4, 1, 8, 8)), np.zeros((4, 2))", "do not fit"),
        ("return np.ones((0, 1, 8, 8)), np.zeros(0)", "no samples"),
        ("return []", "no samples"),
        ("return [(np.ones((1, 8, 8)), 0), (np.ones((1, 9, 9)), 0)]", "of one shape"),
        ("return [np.ones((1, 8, 8))]", "pairs"),
        ("return 3", "gave int"),
        ("return (None, None)", "arrays or tensors"),
        ("return np.array(['a']), np.array([0])", "arrays or tensors"),
        ("return np.ones((2, 1, 8, 8)), np.array([0, -1])", "there is -1"),
        ("return np.ones((2, 1, 8, 8)), np.array([0, 0.5])", r"there is 0\.5"),
        ("return np.ones((2, 1, 8, 8)), np.array([0, np.nan])", "there is nan"),
        ("return np.full((2, 1, 8, 8), np.nan), np.array([0, 1])", "not finite"),
        ("return np.ones((2, 1, 8, 8 if split == 'train' else 9)), np.array([0, 1])", "the same shape"),
    ],
)
def test_data_that_cannot_be_meant_is_refused(theirs, body, message):
    with pytest.raises(UsageError, match=message):
        data.load(theirs(body))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("math:squirt", "did you mean 'sqrt'"),
        ("math:pi", "must be a function"),
        ("math:sqrt", "it takes x"),
        (".math:pi", "cannot import"),
        (":f", "cannot import"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        data.load(name)


def test_scikit_learn_is_an_extra_with_its_command(monkeypatch):
    from regraft.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'regraft\[digits\]'"):
        data.load("digits")


def test_a_source_that_fails_is_told_in_one_line():
    with pytest.raises(UsageError, match=r"data set 'os.path:join', 'train': its function failed: TypeError"):
        data.load("os.path:join")
