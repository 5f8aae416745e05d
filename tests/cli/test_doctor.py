"""`regraft doctor`: says what is there, notices what is broken, and costs a few seconds."""

from __future__ import annotations

import json
import re
from importlib import metadata

import pytest
import torch

from regraft.kernels.library import instruction_set, library
from regraft.structure import Topology
from regraft.training import diagnosis, selftest
from regraft.training.selftest import Speed, bf16_gain, self_test


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """One thread, and a moment for each speed."""
    monkeypatch.setattr(selftest, "usable_cores", lambda: 1)
    monkeypatch.setattr(selftest, "LONG_ENOUGH", 0.01)


def test_a_sound_installation_is_told_so(regraft, files):
    before = files()
    said = regraft("doctor")
    assert said.code == 0, said.out
    lines = said.out.splitlines()
    for words in (
        f"torch                              {torch.__version__}",
        "AVX" if "x86" in said.out else "NEON",
        "torch uses",
        "GiB free",
        f"{instruction_set() if library() else 'none'}",
        f"scikit-learn {metadata.version('scikit-learn')}",
        "standin",
        "ok: 60 steps, 0 exceptions",
        "GFLOP/s, bf16",
        "The self-test passed",
    ):
        assert any(words in line for line in lines), words
    assert sum(line.startswith("self-test ") and " ok: " in line for line in lines) == 5
    assert files() == before, "it leaves nothing behind"


def test_json_holds_the_same_for_machines(regraft):
    said = regraft("doctor --json")
    tree = json.loads(said.out)
    assert (said.code, tree["healthy"]) == (0, True)
    assert {finding["topic"] for finding in tree["findings"]} >= {"versions", "processor", "GPU", "kernels", "extras"}
    assert all(check["passed"] for check in tree["checks"])
    assert len({(s["operation"], s["precision"], s["threads"]) for s in tree["speeds"]}) == len(tree["speeds"]) == 4
    assert all(speed["gflops"] > 0 for speed in tree["speeds"])
    for finding in tree["findings"]:
        assert bool(finding["costs"]) == bool(finding["fix"]), "what is missing has a price and a way to get it"


def test_bad_flags_end_in_one_line(regraft):
    said = regraft("doctor --jsn")
    assert said.code == 2
    assert "--json" in said.message


# Each breaks one promise of the package; the self-test must notice exactly that.


def leaky(monkeypatch):
    """A step leaves weights that should be absent."""
    before = selftest.training_steps

    def steps(recipe, parts):
        for step in before(recipe, parts):
            with torch.no_grad():
                for name, mask in parts.topology.masks.items():
                    parts.model.get_parameter(name)[~mask] = 1e-30
            yield step

    monkeypatch.setattr(selftest, "training_steps", steps)


def shrinking(monkeypatch):
    """Events drop without growing as many."""
    before = Topology._event

    def event(self, step):
        before(self, step)
        mask = next(iter(self._masks.values()))
        index = mask.nonzero()[0]
        mask[tuple(index)] = False
        with torch.no_grad():
            next(iter(self._parameters.values()))[tuple(index)] = 0

    monkeypatch.setattr(Topology, "_event", event)


def stuck(monkeypatch):
    """The optimiser does nothing."""
    monkeypatch.setattr(
        selftest, "RECIPE", selftest.override(selftest.RECIPE, {"training.lr": 1e-9, "training.weight_decay": 0.0})
    )


def unseeded(monkeypatch):
    """Each run draws its weights differently."""
    monkeypatch.setattr("regraft.training.build.torch.manual_seed", lambda seed: torch.seed())


def lossy(monkeypatch):
    """What is read is not what was written."""
    before = selftest.read_tensors

    def read(path):
        tensors, manifest = before(path)
        return {name: t + 1 if t.is_floating_point() else t for name, t in tensors.items()}, manifest

    monkeypatch.setattr(selftest, "read_tensors", read)


@pytest.mark.parametrize(
    ("broken", "noticed"),
    [
        (leaky, "absent weights are exactly 0"),
        (shrinking, "the number of connections holds"),
        (stuck, "the loss falls"),
        (unseeded, "the same seed gives the same bits"),
        (lossy, "a checkpoint comes back as it was"),
    ],
)
def test_the_self_test_notices_what_is_broken(monkeypatch, broken, noticed):
    broken(monkeypatch)
    assert noticed in [check.name for check in self_test() if not check.passed]


def test_a_failed_self_test_is_exit_code_1(regraft, monkeypatch):
    stuck(monkeypatch)
    said = regraft("doctor")
    assert said.code == 1
    assert "FAILED" in said.out
    assert "The self-test failed (the loss falls)" in said.out


def test_torch_that_cannot_compute_is_told_and_no_traceback(regraft, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("could not create\na primitive")

    monkeypatch.setattr(selftest, "training_steps", broken)
    said = regraft("doctor")
    assert said.code == 1
    assert "FAILED: could not create a primitive" in said.out
    assert "Traceback" not in said.err


def test_extras_are_read_from_the_packages_own_metadata(monkeypatch):
    class Told:
        def get_all(self, _key):
            return ["stats", "future"]

    needs = ["torch>=2.6", 'scipy>=1.11; extra == "stats"', "no.such-thing[x]>=1 ; extra == 'future'"]
    monkeypatch.setattr(diagnosis.metadata, "metadata", lambda name: Told())
    monkeypatch.setattr(diagnosis.metadata, "requires", lambda name: needs)
    stats, future = diagnosis._extras()
    assert (stats.value, stats.costs, stats.fix) == (f"scipy {metadata.version('scipy')}", "", "")
    assert (future.value, future.fix) == ("no.such-thing not installed", "pip install 'regraft[future]'")
    assert future.costs


def test_idle_cores_and_missing_data_have_a_price(monkeypatch, here):
    monkeypatch.setattr(diagnosis, "usable_cores", lambda: 8)
    monkeypatch.setattr(diagnosis, "physical_cores", lambda: 4)
    monkeypatch.setenv("REGRAFT_DATA", str(here / "nothing"))
    found = {(one.topic, one.name): one for one in diagnosis.findings()}
    assert found["processor", "threads"].costs == "one training leaves 7 of 8 cores idle"
    assert "OMP_NUM_THREADS" in found["processor", "threads"].fix
    missing = found["data", "cifar10"]
    assert missing.value == "missing"
    assert "https://" in missing.fix
    assert not found["data", "standin"].costs


def test_whether_bf16_is_worth_it_compares_the_best_of_each():
    found = [
        Speed("convolution", "fp32", 1, 10.0),
        Speed("convolution", "bf16", 1, 30.0),
        Speed("convolution", "fp32", 2, 20.0),
        Speed("convolution", "bf16", 2, 5.0),
        Speed("matmul", "fp32", 1, 99.0),
    ]
    assert bf16_gain(found) == 1.5


STUDY = """\
name: layers
data: {name: standin, batch: 16}
model: {steps: 2, options: {widths: [[16], [16]], hidden: 8}}
topology: {density: 0.2, rule: static}
training: {precision: fp32}
arms:
  dense: {topology: {density: 1.0}}
  sparse: {}
"""


@pytest.mark.skipif(not library(), reason="the kernels were not built: a C compiler is missing")
def test_with_a_recipe_it_says_how_each_layer_is_computed(regraft, here, files):
    (here / "layers.yaml").write_text(STUDY)
    before = files()
    said = regraft("doctor layers.yaml")
    assert said.code == 0, said.out
    rows = dict(re.split(r"\s{2,}", line)[1:] for line in said.out.splitlines() if line.startswith("layers "))
    assert rows.pop("dense") == "all connections exist: dense products"
    assert rows["sparse: features.4.weight"] == "over connections, in fp32"
    assert rows["sparse: classifier.2.weight"] == "dense: fp32 products of its size are faster at any density"
    assert len(rows) == 4
    assert files() == before


def test_an_unknown_recipe_is_told(regraft):
    said = regraft("doctor digts")
    assert said.code == 2
    assert "digits" in said.message
