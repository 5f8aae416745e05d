"""Surrogate gradients: each derivative is that of its primitive, and the spike's backward pass uses it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from regraft.errors import UsageError
from regraft.neurons.surrogate import SURROGATES, Atan, Rectangle, Sigmoid, Triangle, spike, surrogate

KINDS = [Triangle, Rectangle, Atan, Sigmoid]


def value(function, z: float) -> float:
    return float(function(torch.tensor(z, dtype=torch.float64)))


@pytest.mark.parametrize("kind", KINDS)
@given(z=st.floats(-4, 4), shape=st.floats(0.2, 4))
def test_derivative_is_the_slope_of_the_primitive(kind, z, shape):
    h = 1e-5
    if kind is Rectangle:  # it jumps at the ends of its window
        assume(abs(abs(z) - shape / 2) > 2 * h)
    s = kind(shape)
    slope = (value(s.primitive, z + h) - value(s.primitive, z - h)) / (2 * h)
    # the triangle's slope itself has kinks, where a central difference errs by h / width^2
    assert value(s.derivative, z) == pytest.approx(slope, abs=5e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_primitive_goes_from_0_to_1_through_a_half(kind):
    s = kind()
    z = torch.linspace(-3, 3, 101, dtype=torch.float64)
    assert value(s.primitive, -1e7) == pytest.approx(0, abs=1e-7)
    assert value(s.primitive, 0) == 0.5
    assert value(s.primitive, 1e7) == pytest.approx(1, abs=1e-7)
    assert (s.primitive(z).diff() >= 0).all()


@pytest.mark.parametrize(
    ("s", "z", "expected"),
    [
        (Triangle(2.0), 0.5, 0.375),  # (1 - 0.5/2)/2
        (Triangle(2.0), -2.5, 0.0),
        (Rectangle(2.0), -0.9, 0.5),  # 1/2 within |z| < 1
        (Rectangle(2.0), 1.0, 0.0),  # the end of the window is outside
        (Atan(2.0), 0.0, 1.0),  # a/2
        (Atan(2.0), 1 / torch.pi, 0.5),  # 1/(1 + (pi/2 * 2 / pi)^2) = 1/2
        (Sigmoid(4.0), 0.0, 1.0),  # 4 * 1/2 * 1/2
    ],
)
def test_derivative_worked_by_hand(s, z, expected):
    assert value(s.derivative, z) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_spike_steps_forward_and_uses_the_derivative_backward(kind):
    s = kind(0.8)
    z = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0], dtype=torch.float64, requires_grad=True)
    out = spike(z, s)
    assert out.tolist() == [0, 0, 1, 1, 1]  # exactly at the threshold it fires
    upstream = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0], dtype=torch.float64)
    out.backward(upstream)
    assert torch.equal(z.grad, upstream * s.derivative(z.detach()))


@pytest.mark.parametrize("name", list(SURROGATES))
def test_names_give_their_surrogate(name):
    assert type(surrogate(name)).__name__.lower() == name


def test_an_object_serves_as_it_is():
    own = Triangle(0.3)
    assert surrogate(own) is own


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'triangle'"):
        surrogate("trangle")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [0.0, -1.0, float("nan"), float("inf")])
def test_shapes_that_cannot_be_meant_are_refused(kind, shape):
    with pytest.raises(UsageError, match="above 0"):
        kind(shape)
