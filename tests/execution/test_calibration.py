"""Which layers go over their connections: a table, and a pure function of it."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import regraft
from regraft.errors import RunError
from regraft.execution import Calibration, described, execute, restored, shipped
from regraft.execution.calibration import boundary
from regraft.execution.engines import engine
from regraft.neurons import LIF

TABLE = Calibration("a table", {"linear fp32": ((16, 0.2), (64, 0.4)), "linear bf16": ((16, 0.1),)})


def test_between_two_sizes_it_is_between_their_densities():
    assert boundary(TABLE, "linear", "fp32", 16) == pytest.approx(0.2)
    assert boundary(TABLE, "linear", "fp32", 32) == pytest.approx(0.3)  # halfway, on logarithms
    assert boundary(TABLE, "linear", "fp32", 64) == pytest.approx(0.4)


def test_beyond_the_ends_it_is_as_there():
    assert boundary(TABLE, "linear", "fp32", 1) == pytest.approx(0.2)
    assert boundary(TABLE, "linear", "fp32", 10**6) == pytest.approx(0.4)
    assert boundary(TABLE, "linear", "bf16", 10**6) == pytest.approx(0.1)


def test_empty_lanes_take_time_too():
    assert boundary(TABLE, "linear", "fp32", 64, 0.75) == pytest.approx(0.3)


def test_an_arithmetic_without_a_boundary_stays():
    assert boundary(TABLE.without("bf16"), "linear", "bf16", 64) == 0
    assert boundary(TABLE.without("bf16"), "linear", "fp32", 64) == boundary(TABLE, "linear", "fp32", 64)


points = st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 1)), max_size=5, unique_by=lambda p: p[0]).map(sorted)


@given(st.text(), st.dictionaries(st.sampled_from(["linear fp32", "convolution bf16"]), points))
def test_a_table_comes_back_from_json(processor, boundaries):
    table = Calibration(processor, {key: tuple(value) for key, value in boundaries.items()})
    assert restored(json.loads(json.dumps(described(table)))) == table


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [],
        {},
        {"processor": "x", "boundaries": []},
        {"processor": "x", "boundaries": {"fp32": 3}},
        {"processor": "x", "boundaries": {"fp32": [[9, 0.1, 3]]}},
        {"processor": "x", "boundaries": {"fp32": [[9, 0.1], [9, 0.2]]}},
        {"processor": "x", "boundaries": {"fp32": [[0, 0.1]]}},
        {"processor": "x", "boundaries": {"fp32": [[9, 1.5]]}},
        {"processor": "x", "boundaries": {"fp32": [["a", 0.5]]}},
        {"processor": "x", "boundaries": {"fp32": [[9, float("nan")]]}},
    ],
)
def test_a_damaged_table_is_refused(saved):
    with pytest.raises(RunError, match="calibration"):
        restored(saved)


def test_the_shipped_tables_are_tables(monkeypatch):
    from regraft.execution import calibration

    tables = []
    for kind, flag in ("avx512", ""), ("avx512", "amx_bf16"), ("avx2", ""), ("portable", "sse2"), ("portable", "asimd"):
        shipped.cache_clear()
        monkeypatch.setattr(calibration, "instruction_set", lambda kind=kind: kind)
        monkeypatch.setattr(calibration, "processor_flags", lambda flag=flag: {flag})
        tables.append(shipped())
        assert restored(described(tables[-1])) == tables[-1]
    *measured, elsewhere = (boundary(table, "convolution", "fp32", 576) for table in tables)
    assert all(0 < density <= 1 for density in measured)
    assert elsewhere == 0
    assert len({table.processor for table in tables}) == 5
    shipped.cache_clear()


@pytest.mark.skipif(engine("cpu") is None, reason="the kernels were not built: a C compiler is missing")
def test_the_choice_follows_the_table_and_the_arithmetic():
    net = nn.Sequential(LIF(steps=2), nn.Conv2d(8, 8, 3, padding=1, bias=False), LIF(steps=2))
    topology = regraft.Topology(net, 0.3, "static")
    execution = execute(
        net,
        topology,
        Calibration("fp32 at a third", {"convolution fp32": ((9, 0.35),), "convolution bf16": ((9, 0.25),)}),
    )

    def why(bf16: bool = False, images: int = 16) -> str:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            net(torch.randn(2 * images, 8, 6, 6))
        return execution.choices["1.weight"]

    assert why() == ""
    assert why(bf16=True) == "density 0.3 is above 0.25, where bf16 products are faster"
    assert "above 0.219" in why(images=10)  # of 16 lanes
    assert why(images=8) == ""  # two steps share a block
    execution.use(Calibration("never", {}))
    assert why() == "fp32 products of its size are faster at any density"
