"""Converted neurons beside the originals: the same spikes, also exactly at the threshold, and the same gradients.

Two kinds of input: on a grid of eighths with decay 1/2 all arithmetic is exact in float32, so membranes meet the
threshold exactly and every bit must agree; random float64 input covers constants that are not exact in binary.
"""

from __future__ import annotations

import math
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from regraft.errors import UsageError
from regraft.neurons import IF, LIF, PLIF, Triangle
from regraft.neurons.convert import from_nir, from_norse, from_sinabs, from_snntorch, from_spikingjelly, to_nir

T, N, UNITS = 12, 4, 25


def grid(seed: int = 0) -> Tensor:
    return torch.randint(-4, 17, (T, N, UNITS), generator=torch.Generator().manual_seed(seed)) / 8


def noise(seed: int = 0) -> Tensor:
    return torch.randn(T, N, UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5


def assert_same_spikes(neuron: LIF, peer, x: Tensor) -> None:
    spikes, _ = neuron.stream(x)
    assert 0.05 < spikes.mean() < 0.95
    assert torch.equal(spikes.to(x.dtype), peer(x).detach().to(x.dtype))


def assert_same_at_the_threshold(neuron: LIF, peer) -> None:
    """Equal on the grid, where the other convention (`>` for `>=` or the reverse) would give other spikes."""
    assert_same_spikes(neuron, peer, grid())
    other = deepcopy(neuron)
    one = torch.tensor(neuron.threshold, dtype=torch.float32)
    exact = float(one) == round(float(one) * 8) / 8  # on the grid: fires at the threshold; else just above it
    other.threshold = float(torch.nextafter(one, torch.tensor(math.inf if exact else -math.inf)))
    assert not torch.equal(neuron.stream(grid())[0], other.stream(grid())[0])


def assert_same_gradients(neuron: LIF, peer, x: Tensor) -> None:
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(x.dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (neuron.stream(ours)[0] * weight).sum().backward()
    (peer(theirs) * weight).sum().backward()
    assert ours.grad is not None
    assert ours.grad.abs().sum() > 0
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


# SpikingJelly


def spikingjelly(node):
    from spikingjelly.activation_based import functional

    node.step_mode = "m"

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return run


SPIKINGJELLY = [
    ("LIFNode", {"tau": 2.0}),
    ("LIFNode", {"tau": 2.0, "decay_input": False}),
    ("LIFNode", {"tau": 2.0, "v_reset": None, "detach_reset": True}),
    ("LIFNode", {"tau": 2.0, "v_reset": None, "v_threshold": 0.75}),
    ("LIFNode", {"tau": 2.0, "v_reset": -0.25, "v_threshold": 0.5, "decay_input": False}),
    ("LIFNode", {"tau": 2.0, "v_reset": 0.25, "detach_reset": True}),
    ("ParametricLIFNode", {"init_tau": 2.0}),
    ("ParametricLIFNode", {"init_tau": 2.0, "decay_input": False, "v_reset": None}),
    ("IFNode", {}),
    ("IFNode", {"v_reset": None, "detach_reset": True}),
    ("IFNode", {"v_reset": -0.5}),
]


@pytest.mark.peers
@pytest.mark.parametrize(("kind", "settings"), SPIKINGJELLY)
def test_spikingjelly(kind, settings):
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    node = getattr(neurons, kind)(**settings)
    ours = from_spikingjelly(node)
    assert type(ours) is {"LIFNode": LIF, "ParametricLIFNode": PLIF, "IFNode": IF}[kind]
    assert ours.detach_reset is settings.get("detach_reset", False)
    assert_same_at_the_threshold(ours, spikingjelly(node))
    assert_same_gradients(ours, spikingjelly(node), noise())


@pytest.mark.peers
@pytest.mark.parametrize("tau", [1.3, 5.0])
def test_spikingjelly_with_inexact_tau(tau):
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    node = neurons.LIFNode(tau=tau, v_threshold=0.3)
    assert_same_spikes(from_spikingjelly(node), spikingjelly(node), noise())


@pytest.mark.peers
def test_spikingjelly_learnt_decay_is_copied_and_learns_alike():
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    node = neurons.ParametricLIFNode(init_tau=3.0)
    ours = from_spikingjelly(node)
    assert isinstance(ours, PLIF)
    x = noise()
    ours.stream(x)[0].sum().backward()
    spikingjelly(node)(x).sum().backward()
    torch.testing.assert_close(ours.w.grad, node.w.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        node.w.add_(1)  # a copy: training one does not move the other
    assert float(ours.w.detach()) == pytest.approx(-math.log(2))


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ATan", {"alpha": 3.0}),
        ("Sigmoid", {"alpha": 2.0}),
        ("PiecewiseQuadratic", {"alpha": 1.5}),
        ("Rect", {"alpha": 0.8}),
        ("PiecewiseLeakyReLU", {"w": 0.7, "c": 0.0}),
    ],
)
def test_spikingjelly_surrogates(name, settings):
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogates = pytest.importorskip("spikingjelly.activation_based.surrogate")
    node = neurons.LIFNode(tau=2.0, surrogate_function=getattr(surrogates, name)(**settings))
    assert_same_gradients(from_spikingjelly(node), spikingjelly(node), noise())


@pytest.mark.peers
def test_spikingjelly_refusals():
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogates = pytest.importorskip("spikingjelly.activation_based.surrogate")
    with pytest.raises(UsageError, match="takes spikingjelly's IFNode, LIFNode, ParametricLIFNode, not"):
        from_spikingjelly(neurons.IzhikevichNode())
    node = neurons.IFNode(surrogate_function=surrogates.Erf())
    with pytest.raises(UsageError, match="Erf has no counterpart"):
        from_spikingjelly(node)
    assert from_spikingjelly(node, surrogate="atan").surrogate.sharpness == 2.0
    with pytest.raises(UsageError, match="PiecewiseLeakyReLU has no counterpart"):
        from_spikingjelly(neurons.IFNode(surrogate_function=surrogates.PiecewiseLeakyReLU(w=1.0, c=0.1)))
    with pytest.raises(UsageError, match="set_spiking_mode"):
        from_spikingjelly(neurons.IFNode(surrogate_function=surrogates.ATan(spiking=False)))
    with pytest.raises(UsageError, match="always fires"):
        from_spikingjelly(neurons.IFNode(v_threshold=0.5, v_reset=0.5))
    primed = neurons.IFNode()
    primed.set_reset_value("v", 0.5)
    with pytest.raises(UsageError, match=r"starts at 0\.5 and rests at 0\.0"):
        from_spikingjelly(primed)


# snnTorch


def snntorch(node):
    def run(x: Tensor) -> Tensor:
        mem, spikes = torch.zeros_like(x[0]), []
        for step in x:
            spike, mem = node(step, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


SNNTORCH = [
    {},
    {"reset_mechanism": "zero"},
    {"reset_mechanism": "zero", "reset_delay": False},
    {"reset_mechanism": "none"},
    {"threshold": 0.75},
    {"beta": 1.0},
]


@pytest.mark.peers
@pytest.mark.parametrize("settings", SNNTORCH)
def test_snntorch(settings):
    snn = pytest.importorskip("snntorch")
    node = snn.Leaky(**{"beta": 0.5, **settings})
    assert_same_at_the_threshold(from_snntorch(node), snntorch(node))
    assert_same_gradients(from_snntorch(node), snntorch(node), noise())


@pytest.mark.peers
@pytest.mark.parametrize("beta", [0.3, 0.9])
@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
def test_snntorch_with_inexact_beta(beta, mechanism):
    snn = pytest.importorskip("snntorch")
    node = snn.Leaky(beta=beta, threshold=0.7, reset_mechanism=mechanism)
    assert_same_spikes(from_snntorch(node), snntorch(node), noise())


@pytest.mark.peers
def test_snntorch_surrogates():
    snn = pytest.importorskip("snntorch")
    for own in (snn.surrogate.atan(alpha=3.0), snn.surrogate.sigmoid(slope=5)):
        node = snn.Leaky(beta=0.5, spike_grad=own)
        assert_same_gradients(from_snntorch(node), snntorch(node), noise())


@pytest.mark.peers
def test_snntorch_immediate_subtraction_is_another_neuron():
    """Why it is refused: above two thresholds snnTorch does not subtract the second time."""
    snn = pytest.importorskip("snntorch")
    node = snn.Leaky(beta=0.5, reset_delay=False)
    x = torch.tensor([[4.0], [0.0], [0.0]])
    #   snnTorch: 4 fires, 3 | 1.5 - 1 = 0.5 does not fire, and the threshold taken in advance comes back: 1.5
    #   a soft reset: 4 fires, 3 | 1.5 fires
    assert snntorch(node)(x)[:2].flatten().tolist() == [1, 0]
    assert LIF(0.5, reset="soft").stream(x)[0][:2].flatten().tolist() == [1, 1]
    with pytest.raises(UsageError, match="reset_delay=True"):
        from_snntorch(node)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": torch.tensor([0.5, 0.9])}, "beta differs from unit to unit"),
        ({"threshold": torch.tensor([1.0, 2.0])}, "threshold differs from unit to unit"),
        ({"learn_beta": True}, "beta is learnt"),
        ({"learn_threshold": True}, "threshold is learnt"),
        ({"beta": 0.0}, "without memory"),
        ({"graded_spikes_factor": 2.0}, "graded_spikes_factor"),
        ({"state_quant": torch.round}, "quantised"),
        ({"surrogate_disable": True}, "no counterpart among our surrogates"),
    ],
)
def test_snntorch_refusals(settings, message):
    snn = pytest.importorskip("snntorch")
    with pytest.raises(UsageError, match=message):
        from_snntorch(snn.Leaky(**{"beta": 0.5, **settings}))


@pytest.mark.peers
def test_snntorch_more_refusals():
    snn = pytest.importorskip("snntorch")
    with pytest.raises(UsageError, match="takes snntorch's Leaky, not"):
        from_snntorch(snn.Synaptic(alpha=0.5, beta=0.5))
    with pytest.raises(UsageError, match="fast_sigmoid has no counterpart"):
        from_snntorch(snn.Leaky(beta=0.5, spike_grad=snn.surrogate.fast_sigmoid()))
    with pytest.warns(UserWarning, match="Inhibition"):
        rivals = snn.Leaky(beta=0.5, inhibition=True)
    with pytest.raises(UsageError, match="inhibition=False"):
        from_snntorch(rivals)
    alike = snn.Leaky(beta=torch.full((3,), 0.5))
    assert from_snntorch(alike).decay == 0.5


# norse


def norse(cell):
    def run(x: Tensor) -> Tensor:
        state, spikes = None, []
        for step in x:
            spike, state = cell(step, state)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def norse_cell(dt: float = 2**-10, tau_mem_inv: float = 512.0, reset: str = "reset_value", **settings):
    torch_norse = pytest.importorskip("norse.torch")
    resets = pytest.importorskip("norse.torch.functional.reset")
    tensors = {k: torch.as_tensor(v) if isinstance(v, float) else v for k, v in settings.items()}
    p = torch_norse.LIFBoxParameters(
        tau_mem_inv=torch.as_tensor(tau_mem_inv), reset_method=getattr(resets, reset), **tensors
    )
    return torch_norse.LIFBoxCell(p, dt=dt)


TRIANGLE = {"method": "triangle", "alpha": 1.0}
NORSE = [
    TRIANGLE,
    {"method": "tanh", "alpha": 2.0},
    {"reset": "reset_subtract", **TRIANGLE},
    {"v_th": 0.75, **TRIANGLE},
    {"v_leak": 0.25, "v_reset": 0.25, **TRIANGLE},
    {"v_leak": -0.5, "v_th": 0.5, "reset": "reset_subtract", **TRIANGLE},
]


@pytest.mark.peers
@pytest.mark.parametrize("settings", NORSE)
def test_norse(settings):
    cell = norse_cell(**settings)
    assert_same_at_the_threshold(from_norse(cell), norse(cell))
    assert_same_gradients(from_norse(cell), norse(cell), noise())


@pytest.mark.peers
def test_norse_defaults_and_bare_parameters():
    torch_norse = pytest.importorskip("norse.torch")
    cell = torch_norse.LIFBoxCell()  # dt 1 ms, time constant 10 ms
    with pytest.raises(UsageError, match="method 'super' with alpha 100 has no counterpart"):
        from_norse(cell)
    ours = from_norse(cell, surrogate="atan")
    assert ours.decay == pytest.approx(0.9)
    assert_same_spikes(ours, norse(cell), noise() * 8)
    bare = from_norse(torch_norse.LIFBoxParameters(), surrogate="atan")
    assert bare.decay == ours.decay
    assert from_norse(torch_norse.LIFBoxParameters(), dt=0.002, surrogate="atan").decay == pytest.approx(0.8)


@pytest.mark.peers
def test_norse_refusals():
    torch_norse = pytest.importorskip("norse.torch")
    with pytest.raises(UsageError, match="takes norse's LIFBoxCell"):
        from_norse(torch_norse.LIFCell())
    for settings, message in (
        ({"v_reset": -0.5}, "v_reset is -0.5 and v_leak 0.0"),
        ({"dt": 2**-9}, "dt below the time constant"),
        ({"v_leak": 1.0, "v_reset": 1.0}, "always fires"),
        ({"v_th": torch.tensor([1.0, 2.0])}, "v_th differs"),
        ({"v_th": torch.nn.Parameter(torch.tensor(1.0))}, "v_th is learnt"),
    ):
        with pytest.raises(UsageError, match=message):
            from_norse(norse_cell(**TRIANGLE, **settings))
    with pytest.raises(UsageError, match="leave dt out"):
        from_norse(norse_cell(**TRIANGLE), dt=0.5)
    own = torch_norse.LIFBoxParameters(reset_method=lambda z, v, r, th: v)
    with pytest.raises(UsageError, match="'<lambda>' is unknown"):
        from_norse(own, surrogate="atan")


# sinabs


def sinabs(layer):
    def run(x: Tensor) -> Tensor:
        layer.reset_states()
        return layer(x.transpose(0, 1)).transpose(0, 1)

    return run


def triangle_of_sinabs(v_mem, threshold):
    return Triangle().derivative(v_mem - threshold)


def sinabs_layer(kind: str, subtract: bool = True, decay: float | None = None, **settings):
    layers, activation = pytest.importorskip("sinabs.layers"), pytest.importorskip("sinabs.activation")
    settings = {
        "spike_fn": activation.SingleSpike,
        "reset_fn": activation.MembraneSubtract() if subtract else activation.MembraneReset(),
        "surrogate_grad_fn": triangle_of_sinabs,
        **settings,
    }
    if decay is None:
        return getattr(layers, kind)(**settings)
    layer = getattr(layers, kind)(tau_mem=1.0, train_alphas=True, **settings)
    layer.alpha_mem.requires_grad_(False).fill_(decay)
    return layer


SINABS = [
    {"kind": "IAF"},
    {"kind": "IAF", "subtract": False},
    {"kind": "LIF", "decay": 0.5},
    {"kind": "LIF", "decay": 0.5, "norm_input": False},
    {"kind": "LIF", "decay": 0.5, "norm_input": False, "subtract": False},
]


@pytest.mark.peers
@pytest.mark.parametrize("settings", SINABS)
def test_sinabs(settings):
    layer = sinabs_layer(**settings)
    ours = from_sinabs(layer, surrogate=Triangle())
    assert isinstance(ours, IF) == (settings["kind"] == "IAF")
    assert_same_at_the_threshold(ours, sinabs(layer))
    assert_same_gradients(ours, sinabs(layer), noise())


@pytest.mark.peers
def test_sinabs_time_constant_and_other_amount():
    activation = pytest.importorskip("sinabs.activation")
    layer = sinabs_layer("LIF", tau_mem=3.0, reset_fn=activation.MembraneSubtract(0.5))
    ours = from_sinabs(layer, surrogate="triangle")
    assert ours.decay == pytest.approx(math.exp(-1 / 3))
    assert ours.subtract == 0.5
    assert_same_spikes(ours, sinabs(layer), noise() * 2)


@pytest.mark.peers
def test_sinabs_refusals():
    layers, activation = pytest.importorskip("sinabs.layers"), pytest.importorskip("sinabs.activation")
    with pytest.raises(UsageError, match="takes sinabs's LIF, IAF"):
        from_sinabs(layers.ExpLeak(tau_mem=2.0))
    for settings, message in (
        ({"spike_fn": activation.MultiSpike}, "several spikes a step"),
        ({"spike_fn": activation.MaxSpike(2)}, "several spikes a step"),
        ({"tau_syn": 2.0}, "tau_syn=None"),
        ({"min_v_mem": -1.0}, "min_v_mem=None"),
        ({"reset_fn": activation.MembraneReset(0.5)}, "regraft resets to 0"),
        ({"tau_mem": torch.tensor([2.0, 3.0])}, "differs from unit to unit"),
        ({"train_alphas": True}, "alpha_mem is learnt"),
    ):
        with pytest.raises(UsageError, match=message):
            from_sinabs(sinabs_layer("LIF", **{"tau_mem": 2.0, **settings}), surrogate="triangle")
    with pytest.raises(UsageError, match="no counterpart among our surrogates"):
        from_sinabs(sinabs_layer("IAF"))


# NIR


def euler(x: Tensor, *, tau: float, r: float, v_leak: float, v_threshold: float, dt: float) -> Tensor:
    """NIR's equations, one forward step of Euler each, reset to `v_leak`."""
    v, spikes = torch.full_like(x[0], v_leak), []
    for current in x:
        v = v + dt / tau * ((v_leak - v) + r * current)
        z = (v > v_threshold).to(x.dtype)
        v = torch.where(z > 0, v_leak, v)
        spikes.append(z)
    return torch.stack(spikes)


def nir_lif(**settings):
    nir, np = pytest.importorskip("nir"), pytest.importorskip("numpy")
    return nir.LIF(**{k: np.full((UNITS,), v) for k, v in settings.items()})


@pytest.mark.peers
@pytest.mark.parametrize("settings", [{"r": 1.0}, {"r": 2.0}, {"r": 2.0, "v_leak": 0.25}])
def test_nir_lif(settings):
    settings = {"tau": 0.02, "v_leak": 0.0, "v_threshold": 1.0, **settings}
    ours = from_nir(nir_lif(**settings, v_reset=settings["v_leak"]), dt=0.01)
    assert ours.decay == 0.5
    assert ours.decay_input == (settings["r"] == 1.0)
    assert_same_at_the_threshold(ours, lambda x: euler(x, dt=0.01, **settings))


@pytest.mark.peers
def test_nir_as_norse_reads_it():
    pytest.importorskip("nir")
    reader = pytest.importorskip("norse.torch.utils.import_nir")
    node = nir_lif(tau=0.02, r=1.0, v_leak=0.0, v_threshold=0.4, v_reset=0.0)
    cell = reader._import_norse_module(node, dt=0.003)
    assert_same_spikes(from_nir(node, dt=0.003), norse(cell), noise())


@pytest.mark.peers
@pytest.mark.parametrize("neuron", [LIF(0.7), LIF(0.9, decay_input=True, threshold=0.3), PLIF(3.0), IF(threshold=2.0)])
def test_nir_round_trip_keeps_the_neuron(neuron):
    pytest.importorskip("nir")
    node = to_nir(neuron, dt=1e-3, shape=(2, 3))
    assert node.v_threshold.shape == (2, 3)
    back = from_nir(node, dt=1e-3, surrogate=neuron.surrogate)
    assert float(torch.as_tensor(back.decay).detach()) == pytest.approx(
        float(torch.as_tensor(neuron.decay).detach()), rel=1e-12
    )
    assert back.decay_input == neuron.decay_input
    assert torch.tensor(back.threshold, dtype=torch.float32) == torch.tensor(neuron.threshold, dtype=torch.float32)
    assert torch.equal(back.stream(grid())[0], neuron.stream(grid())[0])


@pytest.mark.peers
def test_nir_numbers_worked_by_hand():
    pytest.importorskip("nir")
    # decay 0.75 in steps of 1 ms: tau = 1/(1 - 0.75) = 4 ms; gain 1: R = 1/0.25 = 4; gain 0.25: R = 1
    node = to_nir(LIF(0.75), dt=1e-3)
    assert (float(node.tau), float(node.r)) == (0.004, 4.0)
    assert float(to_nir(LIF(0.75, decay_input=True), dt=1e-3).r) == 1.0
    assert float(node.v_threshold) == 1 - 2**-24  # the float32 below 1: v > it exactly where u >= 1
    # decay 1: dv/dt = R I, and R * dt must be 1
    assert float(to_nir(IF(), dt=1e-3).r) == 1000.0


@pytest.mark.peers
def test_nir_refusals():
    nir, np = pytest.importorskip("nir"), pytest.importorskip("numpy")
    fine = {"tau": 0.02, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
    for settings, message in (
        ({"r": 3.0}, "input gain is 1.5.*multiply weights and bias of the layer before by 1.5 and set R to tau/dt"),
        ({"v_reset": -1.0}, "v_reset is -1.0 and v_leak 0.0"),
        ({"tau": 0.01}, "dt below tau"),
    ):
        with pytest.raises(UsageError, match=message):
            from_nir(nir_lif(**{**fine, **settings}), dt=0.01)
    with pytest.raises(UsageError, match=r"multiply weights and bias of the layer before by 0\.01 and set R to 1/dt"):
        from_nir(nir.IF(r=np.ones(2), v_threshold=np.ones(2)), dt=0.01)
    two = nir.IF(r=np.full(2, 100.0), v_threshold=np.array([1.0, 2.0]))
    with pytest.raises(UsageError, match="v_threshold differs"):
        from_nir(two, dt=0.01)
    ones = np.ones(2)
    with pytest.raises(UsageError, match="takes nir's LIF, IF, not"):
        from_nir(nir.CubaLIF(tau_syn=ones, tau_mem=ones, r=ones, v_leak=ones, v_threshold=ones), dt=0.01)
    with pytest.raises(UsageError, match="dt is 0"):
        from_nir(nir_lif(**fine), dt=0)
    with pytest.raises(UsageError, match="reset='hard'"):
        to_nir(LIF(reset="soft"), dt=0.01)
    with pytest.raises(UsageError, match="not Linear"):
        to_nir(torch.nn.Linear(1, 1), dt=0.01)


# all


@pytest.mark.parametrize("convert", [from_spikingjelly, from_snntorch, from_norse, from_sinabs])
def test_a_stranger_is_refused_by_name(convert):
    with pytest.raises(UsageError, match=r"not torch\.nn\.modules\.activation\.ReLU"):
        convert(torch.nn.ReLU())


def test_converters_import_no_other_library():
    code = (
        "import sys, regraft.neurons.convert;"
        "print([m for m in ('spikingjelly', 'snntorch', 'norse', 'sinabs', 'nir') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.peers
def test_steps_and_static_are_set():
    snn = pytest.importorskip("snntorch")
    ours = from_snntorch(snn.Leaky(beta=0.5), steps=3, static=True)
    assert ours(torch.zeros(2, 4)).shape == (6, 4)
