"""Neurons of other libraries as the regraft neuron that computes the same, and to and from NIR.

Each converter takes one neuron object, and either returns a `LIF`, `PLIF` or `IF` with the same spikes for the same
input, or raises a `UsageError` that says what cannot be expressed and what to do. The objects are recognised by class
name, so none of these libraries is imported here. The result is stateless, takes time-folded input (`[T*N, ...]`,
time-major) and starts at rest in each call; a state that the given object holds at the moment is not carried over.

Two conventions differ everywhere:

- *fires*: regraft, SpikingJelly and sinabs fire at `u >= threshold`, the others at `u > threshold`. Between two
  neighbouring float32 numbers there is none, so `u > threshold` *is* `u >= nextafter(threshold, inf)` for every
  float32 membrane: the threshold moves up by one unit in the last place and no spike differs. (In half precision that
  step rounds away, and a membrane exactly at the threshold fires.)
- *rest*: a membrane that leaks to, starts at and is reset to a value other than 0 is the same neuron with everything
  shifted by that value: only the threshold changes.

Rounding: the libraries write the charge in other orders (`v + (x - v)/tau`), so a membrane may differ in its last
bits; spikes differ only where it lies within these bits of the threshold.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import MissingExtraError, UsageError
from regraft.neurons.counterparts import (
    above_rest,
    chosen,
    just_above,
    neighbour,
    of_snntorch,
    of_spikingjelly,
    require_class,
    require_dt,
    require_gain,
    scalar,
)
from regraft.neurons.lif import IF, LIF, PLIF
from regraft.neurons.surrogate import Sigmoid, Surrogate, Triangle


def from_spikingjelly(
    node: nn.Module, *, surrogate: str | Surrogate | None = None, steps: int = 1, static: bool = False
) -> LIF:
    """SpikingJelly's `IFNode`, `LIFNode` or `ParametricLIFNode` (activation_based.neuron).

    `decay = 1 - 1/tau`; `decay_input`, `detach_reset`, the reset and, for a `PLIF`, a copy of `w` are carried over.
    The surrogates ATan, Sigmoid, Rect, PiecewiseQuadratic (our triangle) and PiecewiseLeakyReLU with c = 0 (our
    rectangle) too; `surrogate` replaces any other.

    Raises:
        UsageError: for another node, a surrogate without counterpart (unless `surrogate` is given), a node that emits
            the primitive instead of spikes, or a membrane that starts elsewhere than at its reset value.
    """
    require_class(node, "spikingjelly", "IFNode", "LIFNode", "ParametricLIFNode")
    function: Any = node.surrogate_function
    if not getattr(function, "spiking", True):
        raise UsageError("this SpikingJelly surrogate emits its primitive: call set_spiking_mode(True) on it first")
    rest = 0.0 if node.v_reset is None else scalar(node.v_reset, "v_reset")
    start = node._memories_rv.get("v", rest)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    if scalar(start, "the initial membrane") != rest:
        raise UsageError(
            f"this SpikingJelly node starts at {start} and rests at {rest}; regraft starts at rest: "
            f"undo set_reset_value('v', ...), or hand the state to LIF.stream yourself"
        )
    settings: dict[str, Any] = {
        "threshold": above_rest(scalar(node.v_threshold, "v_threshold"), rest),
        "surrogate": chosen(surrogate, of_spikingjelly(function), f"SpikingJelly's {type(function).__name__}"),
        "reset": "soft" if node.v_reset is None else "hard",
        "detach_reset": node.detach_reset,
        "steps": steps,
        "static": static,
    }
    kind = type(node).__name__
    if kind == "IFNode":
        return IF(**settings)
    if kind == "LIFNode":
        tau = scalar(node.tau, "tau")
        return LIF(1 - 1 / tau, decay_input=bool(node.decay_input), **settings)
    neuron = PLIF(decay_input=bool(node.decay_input), **settings)
    w: Any = node.w
    neuron.w = nn.Parameter(w.detach().clone(), requires_grad=w.requires_grad)
    return neuron


def from_snntorch(
    node: nn.Module, *, surrogate: str | Surrogate | None = None, steps: int = 1, static: bool = False
) -> LIF:
    """snnTorch's `Leaky`.

    Its membrane is reset one step later than it fires (`reset_delay=True`):

        u[t] = beta * u[t-1] + x[t] - threshold * s[t-1]                    subtract
             = beta * (u[t-1] - threshold/beta * s[t-1]) + x[t]             our soft reset of threshold/beta
        u[t] = beta * (1 - s[t-1]) * u[t-1] + x[t]                          zero: our hard reset, as it stands

    so all three mechanisms have a counterpart (`none` is a soft reset that subtracts 0). `zero` without delay is the
    hard reset too, there with a gradient through the reset. The surrogates atan and sigmoid are carried over.

    Raises:
        UsageError: for `subtract` without delay (snnTorch then skips the reset of a membrane that is still above the
            threshold after one, which no soft reset does), a learnt or per-unit beta or threshold, beta 0, inhibition,
            a quantised state, graded spikes, another class, or a surrogate without counterpart (unless given).
    """
    require_class(node, "snntorch", "Leaky")
    if node.inhibition:
        raise UsageError("inhibition couples the units of a layer: set inhibition=False")
    if node.state_quant:
        raise UsageError("a quantised membrane is not expressible: set state_quant=False")
    if scalar(node.graded_spikes_factor, "graded_spikes_factor") != 1:
        raise UsageError("spikes here are 0 or 1: set graded_spikes_factor to 1 and scale the weights after it")
    decay = min(scalar(node.beta, "beta"), 1.0)  # snnTorch clamps beta in each forward pass
    if decay <= 0:
        raise UsageError(f"beta is {decay}: a neuron without memory is a threshold; regraft needs a decay above 0")
    threshold = scalar(node.threshold, "threshold")
    delayed, mechanism = bool(node.reset_delay), node.reset_mechanism
    if mechanism == "subtract" and not delayed:
        raise UsageError(
            "reset_mechanism='subtract' with reset_delay=False skips the reset of a membrane that is still above the "
            "threshold after one: use reset_delay=True, or build regraft's LIF(reset='soft') and retrain"
        )
    own, name = of_snntorch(node.spike_grad)
    return _neuron(
        decay,
        threshold=just_above(threshold),
        surrogate=chosen(surrogate, own, f"snnTorch's {name}"),
        reset="hard" if mechanism == "zero" else "soft",
        subtract={"subtract": threshold / decay, "none": 0.0}.get(str(mechanism)),
        detach_reset=delayed or mechanism == "none",
        steps=steps,
        static=static,
    )


def from_norse(
    node: Any,
    *,
    dt: float | None = None,
    surrogate: str | Surrogate | None = None,
    steps: int = 1,
    static: bool = False,
) -> LIF:
    """norse's `LIFBoxCell`, or bare `LIFBoxParameters` with their time step `dt` in seconds (0.001 unless given).

        u[t] = v + dt * tau_mem_inv * (x[t] + v_leak - v)         decay = 1 - dt * tau_mem_inv, decay_input

    The membrane starts at `v_leak`. The methods `triangle` with alpha 1 and `tanh` with alpha 2 (our sigmoid with
    sharpness 4) are carried over; `surrogate` replaces any other, the default `super` among them.

    Raises:
        UsageError: for another class (the others have a synaptic current), a hard reset elsewhere than to `v_leak`, a
            reset method of one's own, parameters that differ from unit to unit or are learnt, `dt * tau_mem_inv`
            outside (0, 1), or a surrogate without counterpart (unless given).
    """
    require_class(node, "norse", "LIFBoxCell", "LIFBoxParameters")
    if type(node).__name__ == "LIFBoxCell":
        if dt is not None and dt != node.dt:
            raise UsageError(f"dt is {dt}, but this LIFBoxCell brings its own, {node.dt}: leave dt out")
        p, dt = node.p, scalar(node.dt, "dt")
    else:
        p, dt = node, 0.001 if dt is None else dt
    scalar(p.tau_mem_inv, "tau_mem_inv")
    rate = scalar(dt * p.tau_mem_inv, "dt * tau_mem_inv")  # in norse's own precision
    if not 0 < rate < 1:
        raise UsageError(f"dt * tau_mem_inv is {rate}: a decay between 0 and 1 needs dt below the time constant")
    leak, v_reset, v_th = (scalar(getattr(p, name), name) for name in ("v_leak", "v_reset", "v_th"))
    method = getattr(p.reset_method, "__name__", repr(p.reset_method))
    if method not in ("reset_value", "reset_subtract"):
        raise UsageError(f"norse's reset method {method!r} is unknown: use reset_value or reset_subtract")
    if method == "reset_value" and v_reset != leak:
        raise UsageError(
            f"v_reset is {v_reset} and v_leak {leak}: regraft resets to rest, so make the two equal "
            f"(its soft reset is norse's reset_subtract)"
        )
    alpha = scalar(p.alpha, "alpha")
    own = {("triangle", 1.0): Triangle(), ("tanh", 2.0): Sigmoid(4.0)}.get((p.method, alpha))
    return LIF(
        1 - rate,
        threshold=just_above(above_rest(v_th, leak)),
        surrogate=chosen(surrogate, own, f"norse's method {p.method!r} with alpha {alpha:g}"),
        reset="hard" if method == "reset_value" else "soft",
        # norse takes the unshifted threshold away, also where the membrane rests elsewhere than at 0
        subtract=v_th if method == "reset_subtract" else None,
        detach_reset=False,
        decay_input=True,
        steps=steps,
        static=static,
    )


def from_sinabs(
    node: nn.Module, *, surrogate: str | Surrogate | None = None, steps: int = 1, static: bool = False
) -> LIF:
    """sinabs' `LIF` or `IAF`, with one spike a step (`spike_fn=SingleSpike`); the `Squeeze` variants too.

    `decay = exp(-1/tau_mem)`, `decay_input` where `norm_input`. `MembraneSubtract` lets gradient through the reset,
    `MembraneReset` does not. sinabs registers `tau_mem` as a parameter whether it is to be learnt or not: its present
    value becomes a fixed decay. No surrogate of sinabs has a counterpart: give `surrogate`. Mind that sinabs folds
    `[N*T, ...]`, regraft `[T*N, ...]`.

    Raises:
        UsageError: for several spikes a step, a synaptic time constant, a floor of the membrane (`min_v_mem`), a reset
            to a value other than 0, learnt or per-unit values, another class, or no `surrogate`.
    """
    require_class(node, "sinabs", "LIF", "IAF", "LIFSqueeze", "IAFSqueeze")
    spike_fn = getattr(node.spike_fn, "__name__", type(node.spike_fn).__name__)
    if spike_fn != "SingleSpike":
        raise UsageError(f"sinabs' {spike_fn} may emit several spikes a step: use spike_fn=SingleSpike")
    if getattr(node, "tau_syn", None) is not None or getattr(node, "alpha_syn", None) is not None:
        raise UsageError("a synaptic current (tau_syn) is not expressible: use tau_syn=None")
    if node.min_v_mem is not None:
        raise UsageError("a floor of the membrane is not expressible: use min_v_mem=None")
    reset: Any = node.reset_fn
    kind = type(reset).__name__
    if kind not in ("MembraneSubtract", "MembraneReset"):
        raise UsageError(f"sinabs' reset {kind} is unknown: use MembraneSubtract or MembraneReset")
    if kind == "MembraneReset" and scalar(reset.reset_value, "reset_value") != 0:
        raise UsageError(f"reset_value is {reset.reset_value}: regraft resets to 0")
    amount = getattr(reset, "subtract_value", None)
    mem: Any = node.alpha_mem if node.train_alphas else node.alpha_mem_calculated.detach()  # pyright: ignore[reportCallIssue]
    return _neuron(
        scalar(mem, "alpha_mem"),
        decay_input=bool(node.norm_input),
        threshold=scalar(node.spike_threshold, "spike_threshold"),
        surrogate=chosen(surrogate, None, f"sinabs' {type(node.surrogate_grad_fn).__name__}"),
        reset="soft" if kind == "MembraneSubtract" else "hard",
        subtract=None if amount is None else scalar(amount, "subtract_value"),
        detach_reset=kind == "MembraneReset",
        steps=steps,
        static=static,
    )


def from_nir(
    node: Any, *, dt: float, surrogate: str | Surrogate = "triangle", steps: int = 1, static: bool = False
) -> LIF:
    """A NIR `LIF` or `IF` node, discretised by Euler's forward step of `dt` (in the unit of the node's `tau`).

        tau dv/dt = v_leak - v + R I        decay = 1 - dt/tau, gain = R * dt/tau       (IF: decay 1, gain = R * dt)

    The gain must be 1 or `1 - decay` (`decay_input`). NIR says nothing of where the membrane starts and of gradients:
    it starts at rest (`v_leak`; of an IF, `v_reset`), and `surrogate` is yours to choose. (Pedersen et al. 2024)

    Raises:
        UsageError: for another node (`CubaLIF` has a synaptic current), any other gain, `v_reset` other than `v_leak`,
            `dt` not below `tau`, or parameters that differ from unit to unit.
    """
    require_class(node, "nir", "LIF", "IF")
    require_dt(dt)
    r, v_reset, v_threshold = (scalar(getattr(node, name), name) for name in ("r", "v_reset", "v_threshold"))
    settings: dict[str, Any] = {
        "threshold": just_above(above_rest(v_threshold, v_reset)),
        "surrogate": surrogate,
        "steps": steps,
        "static": static,
    }
    if type(node).__name__ == "IF":
        require_gain(r * dt, (1.0,), "set R to 1/dt")
        return IF(**settings)
    tau, leak = scalar(node.tau, "tau"), scalar(node.v_leak, "v_leak")
    if not dt < tau:
        raise UsageError(f"dt is {dt} and tau {tau}: a decay above 0 needs dt below tau, in the same unit")
    if v_reset != leak:
        raise UsageError(f"v_reset is {v_reset} and v_leak {leak}: regraft resets to rest, so make the two equal")
    rate = dt / tau
    matched = require_gain(r * rate, (1.0, rate), "set R to tau/dt")
    return LIF(1 - rate, decay_input=matched != 1.0, **settings)


def to_nir(neuron: LIF, *, dt: float, shape: tuple[int, ...] = ()) -> Any:
    """`neuron` as `nir.LIF` (`nir.IF` where decay is 1): `tau = dt/(1 - decay)`, `R = gain/(1 - decay)` (`1/dt`).

    Args:
        dt: length of one time step; `tau` comes out in its unit.
        shape: of the population without time and batch, for example `(channels, height, width)`.

    NIR fires at `v > v_threshold`: `v_threshold` is the float32 number just below ours, so `from_nir` gives ours back.
    A learnt decay is written at its present value; surrogate, `detach_reset` and `steps` have no place in NIR.

    Raises:
        UsageError: for a soft reset, which NIR's neurons do not have, or a `dt` that is not positive.
        MissingExtraError: if `nir` is not installed.
    """
    if not isinstance(neuron, LIF):
        raise UsageError(f"to_nir takes regraft's LIF, PLIF or IF, not {type(neuron).__name__}")
    require_dt(dt)
    if neuron.reset == "soft":
        raise UsageError("NIR's neurons are reset to a value, never by subtraction: train with reset='hard' to export")
    try:
        import nir
    except ImportError:
        raise MissingExtraError("nir", "nir", "to_nir") from None
    decay = neuron.decay
    rate = 1 - (decay.detach().double().item() if isinstance(decay, Tensor) else decay)

    def full(value: float) -> Any:
        return torch.full(shape, value, dtype=torch.float64).numpy()

    below = neighbour(neuron.threshold, -math.inf)
    if rate == 0:
        return nir.IF(r=full(1 / dt), v_threshold=full(below), v_reset=full(0.0))
    gain = rate if neuron.decay_input else 1.0
    return nir.LIF(
        tau=full(dt / rate), r=full(gain / rate), v_leak=full(0.0), v_threshold=full(below), v_reset=full(0.0)
    )


def _neuron(decay: float, **settings: Any) -> LIF:
    return IF(**settings) if decay == 1 else LIF(decay, **settings)
