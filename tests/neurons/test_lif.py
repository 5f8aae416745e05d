"""The neurons as modules: what their constructors refuse, how they print, and how time is folded."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regraft.errors import ShapeError, UsageError
from regraft.neurons import IF, LIF, PLIF, fold, repeat, set_steps, unfold

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 0.0}, "decay is 0.0"),
        ({"decay": 1.1}, "decay is 1.1"),
        ({"decay": NAN}, "decay is nan"),
        ({"decay": 1.0, "decay_input": True}, "silence"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": INF}, "threshold is inf"),
        ({"reset": "zero"}, "give 'hard' or 'soft'"),
        ({"subtract": 1.0}, "reset='soft'"),
        ({"reset": "soft", "subtract": NAN}, "subtract is nan"),
        ({"reset": "soft", "subtract": -0.1}, "subtract is -0.1"),
        ({"steps": 0}, "at least 1"),
        ({"surrogate": "arctan"}, "did you mean 'atan'"),
    ],
)
def test_lif_refuses(settings, message):
    with pytest.raises(UsageError, match=message):
        LIF(**settings)


def test_if_refuses_decay_input_and_has_decay_1():
    with pytest.raises(UsageError, match="silence"):
        IF(decay_input=True)
    assert IF().decay == 1


@pytest.mark.parametrize("tau", [1.0, 0.5, NAN, INF])
def test_plif_refuses_tau(tau):
    with pytest.raises(UsageError, match="tau is"):
        PLIF(tau)


@pytest.mark.parametrize("tau", [1.5, 2.0, 10.0])
def test_plif_starts_at_its_tau_with_one_parameter_without_axes(tau):
    neuron = PLIF(tau)
    assert float(neuron.decay.detach()) == pytest.approx(1 - 1 / tau, rel=1e-6)
    assert [(name, p.shape) for name, p in neuron.named_parameters()] == [("w", torch.Size([]))]
    assert float(neuron.w.detach()) == pytest.approx(-math.log(tau - 1), abs=1e-6)


def test_fixed_neurons_have_no_parameters_and_no_state():
    assert not LIF().state_dict()
    assert not IF().state_dict()


@pytest.mark.parametrize("neuron", [LIF(0.25), LIF(reset="soft", static=True), IF(), PLIF(4.0)], ids=type)
def test_repr_names_the_numbers_without_warning(neuron):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = repr(neuron)
    assert f"decay={float(torch.as_tensor(neuron.decay).detach()):g}" in text
    assert "threshold=1" in text
    assert "steps=1" in text
    assert ("soft" in text) == (neuron.reset == "soft")
    assert ("decay_input" in text) == neuron.decay_input
    assert ("static" in text) == neuron.static


def test_set_steps_reaches_every_neuron_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 3), LIF(), nn.Sequential(PLIF(), nn.BatchNorm1d(3)), IF())
    set_steps(model, 7)
    assert [m.steps for m in model.modules() if isinstance(m, LIF)] == [7, 7, 7]
    assert not hasattr(model[0], "steps")
    with pytest.raises(ShapeError, match="at least 1"):
        set_steps(model, 0)


@given(steps=st.integers(1, 6), batch=st.integers(0, 5), units=st.integers(1, 3))
def test_unfold_undoes_fold_and_time_comes_first(steps, batch, units):
    x = torch.arange(steps * batch * units).reshape(steps, batch, units)
    folded = fold(x)
    assert folded.shape == (steps * batch, units)
    assert torch.equal(unfold(folded, steps), x)
    for t in range(steps):  # time-major: the first `batch` rows are the first time step
        assert torch.equal(folded[t * batch : (t + 1) * batch], x[t])


@given(steps=st.integers(1, 6), rows=st.integers(1, 20))
def test_unfold_refuses_what_steps_do_not_divide(steps, rows):
    x = torch.zeros(rows, 2)
    if rows % steps:
        with pytest.raises(ShapeError, match=f"{rows} cannot hold {steps}"):
            unfold(x, steps)
    else:
        assert unfold(x, steps).shape == (steps, rows // steps, 2)


@given(steps=st.integers(1, 5), batch=st.integers(1, 4))
def test_repeat_shows_the_same_batch_at_each_step(steps, batch):
    x = torch.arange(batch * 2.0).reshape(batch, 2)
    assert torch.equal(repeat(x, steps), torch.cat([x] * steps))
