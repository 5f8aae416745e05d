"""What the page shows of single layers, against numbers worked out by hand."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from regraft.errors import RunError
from regraft.report import read_run
from regraft.report.arrays import Activity, FirstLayer, Raster, read_activity, read_first_layer, read_masks
from regraft.report.layers import ABSENT, degree_histograms, degrees, histogram, rasters, receptive_fields, tiles

NAN = float("nan")


def test_degrees_of_a_linear_layer_and_of_a_convolution():
    linear = np.array([[1, 0, 1], [0, 0, 0]], bool)
    entering, leaving = degrees(linear)
    assert entering.tolist() == [2, 0]
    assert leaving.tolist() == [1, 0, 1]
    kernel = np.zeros((2, 1, 2, 2), bool)
    kernel[0, 0] = [[1, 1], [0, 1]]
    entering, leaving = degrees(kernel)
    assert entering.tolist() == [3, 0]
    assert leaving.tolist() == [3]


def test_a_histogram_counts_every_unit_once():
    assert histogram(np.array([3, 3, 5, 0])) == {
        "low": 0, "width": 1, "counts": [1, 0, 0, 2, 0, 1], "mean": 2.75, "zero": 1,
    }  # fmt: skip
    wide = histogram(np.arange(100), bars=10)
    assert (wide["low"], wide["width"], wide["counts"]) == (0, 10, [10] * 10)
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(0, rng.integers(1, 5000), size=rng.integers(1, 300))
        found = histogram(values)
        assert sum(found["counts"]) == len(values)
        assert len(found["counts"]) <= 24


def test_degree_histograms_keep_the_order_of_the_layers():
    masks = {"b": np.ones((2, 3), bool), "a": np.eye(4, dtype=bool)}
    found = degree_histograms(masks)
    assert [entry["layer"] for entry in found] == ["b", "a"]
    assert found[0]["in"]["counts"] == [2]
    assert found[0]["in"]["low"] == 3
    assert found[0]["out"]["counts"] == [3]


@pytest.mark.parametrize(
    ("shape", "pictures"),
    [
        ((8, 3, 5, 5), (8, 3, 5, 5)),
        ((8, 3, 7), (8, 1, 3, 7)),
        ((8, 2, 3, 5, 5), (8, 6, 5, 5)),
        ((8, 784), (8, 1, 28, 28)),
        ((8, 3 * 32 * 32), (8, 3, 32, 32)),
        ((8, 2 * 34 * 34), (8, 2, 34, 34)),
        ((8, 100 * 3 + 1), (8, 1, 1, 301)),
        ((8, 1), (8, 1, 1, 1)),
    ],
)
def test_first_layers_become_pictures(shape, pictures):
    weights = np.arange(np.prod(shape)).reshape(shape)
    assert tiles(weights).shape == pictures
    np.testing.assert_array_equal(tiles(weights).reshape(-1), weights.reshape(-1))


def unpacked(fields: dict) -> np.ndarray:
    values = np.frombuffer(zlib.decompress(base64.b64decode(fields["stream"])), np.int8)
    return values.reshape(2, len(fields["units"]), *fields["shape"])


def test_receptive_fields_show_absent_connections_and_one_scale():
    birth = np.array([[1.0, NAN, -2.0, 0.5]])
    end = np.array([[NAN, 4.0, -2.0, 0.0]])
    fields = receptive_fields(FirstLayer("fc.weight", birth, end), 1000)
    assert (fields["born"], fields["kept"], fields["of"]) == (3, 2, 1)
    assert fields["shape"] == [1, 2, 2]
    limit = fields["limit"]
    assert limit == pytest.approx(np.percentile([1, 2, 0.5, 4, 2, 0], 95))
    first, last = unpacked(fields)[:, 0, 0].reshape(2, -1)
    assert first.tolist() == [round(127 / limit), ABSENT, round(-254 / limit), round(63.5 / limit)]
    assert last.tolist() == [ABSENT, 127, round(-254 / limit), 0]


def test_receptive_fields_are_cut_to_a_few_even_units():
    weights = np.random.default_rng(0).normal(size=(100, 784))
    fields = receptive_fields(FirstLayer("fc", weights, weights), 5 * 784)
    assert fields["units"] == [0, 20, 40, 60, 80]
    assert receptive_fields(FirstLayer("fc", weights, weights), 1)["units"] == [0]
    many = receptive_fields(FirstLayer("c", np.zeros((200, 6, 3, 3)), np.zeros((200, 6, 3, 3))), 10**9)
    assert (len(many["units"]), many["shape"], many["channels"], many["limit"]) == (48, [4, 3, 3], 6, 1.0)


def test_a_raster_is_one_row_of_bits():
    spikes = np.zeros((3, 5), bool)
    spikes[0, 1] = spikes[2, 4] = True
    found = rasters(Activity(3, 8, (Raster("lif", spikes, np.arange(5), 40),)))
    assert (found["label"], found["answer"]) == (3, 8)
    (layer,) = found["layers"]
    assert (layer["steps"], layer["of"], layer["neurons"]) == (3, 40, [0, 1, 2, 3, 4])
    assert list(base64.b64decode(layer["bits"])) == [0b01000000, 0b00000010]


def test_the_first_layer_is_read_as_training_wrote_it(write):
    path = write("sparse")
    layer = read_first_layer(read_run(path))
    assert layer is not None
    written, last = load_file(path / "wiring.safetensors"), load_file(path / "last.safetensors")
    born = written["birth/stem.weight"]
    np.testing.assert_array_equal(np.isnan(layer.birth), born == 0)
    np.testing.assert_array_equal(np.nan_to_num(layer.birth), born)
    np.testing.assert_array_equal(np.isnan(layer.end), ~last["masks/stem.weight"])
    np.testing.assert_array_equal(np.nan_to_num(layer.end), last["model/stem.weight"])


def test_masks_come_in_the_order_of_the_network(write):
    masks = read_masks(read_run(write("sparse")))
    assert list(masks) == ["stem.weight", "fc.weight"]
    assert masks["fc.weight"].shape == (10, 40)


def test_a_raster_is_read_with_its_layers_in_order(write):
    path = write("sparse")
    content = load_file(path / "activity.safetensors")
    found = read_activity(read_run(path))
    assert found is not None
    assert (found.label, found.answer) == (7, 7)
    assert [raster.layer for raster in found.rasters] == ["conv", "fc"]
    np.testing.assert_array_equal(found.rasters[0].spikes, content["spikes/conv"] == 1)
    assert found.rasters[0].of == 512


def test_what_is_not_there_is_nothing(write):
    path = write("sparse", maps={"00000000/fc.weight": np.ones((2, 2), np.int32)})
    assert read_first_layer(read_run(path)) is None
    for name in ("last", "activity", "wiring"):
        (path / f"{name}.safetensors").unlink()
    run = read_run(path)
    assert (read_first_layer(run), read_activity(run), read_masks(run)) == (None, None, {})


def _spoil(name: str, change):
    def spoil(path):
        content = load_file(path / name)
        change(content)
        save_file(content, path / name)

    return name, spoil


def _put(key: str, value: np.ndarray):
    return lambda content: content.update({key: value})


DAMAGE = [
    ("last.safetensors", lambda path: (path / "last.safetensors").write_bytes(b"\x00" * 40)),
    ("activity.safetensors", lambda path: (path / "activity.safetensors").write_bytes(b"no")),
    _spoil("last.safetensors", _put("masks/stem.weight", np.ones((8, 1, 3, 3), np.uint8))),
    _spoil("last.safetensors", _put("masks/stem.weight", np.ones((8, 1, 3, 2), bool))),
    _spoil("last.safetensors", lambda content: content.pop("model/stem.weight")),
    _spoil("last.safetensors", _put("masks/fc.weight", np.ones(8, bool))),
    _spoil("wiring.safetensors", _put("birth/stem.weight", np.ones((8, 1, 3, 3), np.int32))),
    _spoil("wiring.safetensors", _put("00000000/stem.weight", np.full((8, 1), -1, np.int32))),
    _spoil("wiring.safetensors", _put("00000000/stem.weight", np.ones((65, 1), np.int32))),
    _spoil("activity.safetensors", lambda content: content.pop("sample")),
    _spoil("activity.safetensors", lambda content: content.pop("of/fc")),
    _spoil("activity.safetensors", _put("spikes/fc", np.ones((4, 9), np.uint8))),
    _spoil("activity.safetensors", _put("spikes/fc", np.ones((4, 10), np.float32))),
    _spoil("activity.safetensors", _put("neurons/fc", np.ones(9, np.int32))),
]


@pytest.mark.parametrize(("name", "spoil"), DAMAGE)
def test_damaged_arrays_give_one_message_that_names_the_file(write, tmp_path, name, spoil):
    from regraft.report import write_report

    path = write("sparse")
    spoil(path)
    with pytest.raises(RunError) as caught:
        write_report([read_run(path)], tmp_path / "r.html")
    assert f"{path / name} is damaged" in str(caught.value)
    assert "\n" not in str(caught.value)
