"""The page: complete in itself, safe with any text, and holding the numbers that its charts draw."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from safetensors.numpy import load_file

from regraft.errors import UsageError
from regraft.report import find_runs, read_run, write_report
from regraft.report.figures import MAP_BUDGET, compact, frontier, pack_maps, page_data, thinned
from regraft.report.runs import read_wiring

LAYERS = ("stem.weight", "fc.weight")
TEACHER = {"kind": "sparse", "accuracy": 0.9, "density": 0.02, "seconds": 18.0}
EVIL = "</script><script>alert(1)</script><!--\u2028&"


class Tags(HTMLParser):
    """All tags with their attributes, and the text of the script with id `data`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script" and attributes.get("id") == "data":
            self.data += data
        elif tag not in ("script", "style"):
            self.words += " " + data


@pytest.fixture
def page(write, dense, tmp_path):
    def make(**settings) -> str:
        return write_report(find_runs(dense.parent), tmp_path / "out" / "report.html", **settings).read_text("utf-8")

    return make


def data_of(page: str) -> dict:
    return json.loads(Tags(page).data)


def test_the_page_needs_nothing_but_itself(write, page):
    write("reverse", teacher=TEACHER)
    text = page()
    for tag, attributes in Tags(text).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "onclick", "onload"} & set(attributes)
    assert set(re.findall(r"""https?://[^"'\s<>)]*""", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    assert "default-src 'none'" in text


def test_names_cannot_escape_into_the_page(write, page):
    write(EVIL, folder="odd", command=f"regraft train {EVIL}", teacher=TEACHER, recipe={"data.name": EVIL})
    text = page()
    parsed = Tags(text)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 6
    assert "<script>alert" not in text
    assert "<!--" not in text
    assert EVIL in {run["label"] for run in json.loads(parsed.data)["runs"]}


def test_half_a_character_does_not_stop_the_page(write, page):
    write("odd \ud800", folder="odd")
    assert "odd ?" in page()


def test_the_data_are_the_numbers_of_the_log(write, page):
    write("reverse", teacher=TEACHER)
    run = next(run for run in data_of(page())["runs"] if run["label"] == "reverse")
    assert run["epochs"]["epoch"] == [1, 2, 3, 4, 5]
    assert run["epochs"]["train_loss"] == [2.0, 1.0, 0.66667, 0.5, 0.4]
    assert run["structure"]["step"] == [0, 4, 8, 12]
    assert run["structure"]["connections"] == {"stem.weight": [17] * 4, "fc.weight": [30] * 4}
    assert run["structure"]["grown"]["fc.weight"] == [0, 5, 5, 5]
    assert run["structure"]["exploration"] == [0.0996, 0.1396, 0.1796, 0.2196]
    assert run["rates"] == {"conv": [0.2] * 5, "fc": [0.1] * 5}
    assert run["result"]["teacher"]["accuracy"] == 0.9
    assert run["dense"] == 0


def unpack(packed: dict) -> dict[str, list[np.ndarray]]:
    """The stream as its format is documented, read without the packing code."""
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed["stream"])), f"<u{packed['bits'] // 8}")
    maps, offset = {}, 0
    for entry in packed["index"]:
        size = entry["rows"] * entry["cols"]
        count = size * len(entry["steps"])
        differences = values[offset : offset + count].reshape(len(entry["steps"]), entry["rows"], entry["cols"])
        maps[entry["layer"]] = list(np.cumsum(differences.astype(np.int64), axis=0) % 2 ** packed["bits"])
        offset += count
    assert offset == len(values)
    return maps


@pytest.mark.parametrize(("most", "bits"), [(3, 8), (255, 8), (256, 16), (65_536, 32)])
def test_group_maps_survive_packing(most, bits):
    rng = np.random.default_rng(most)
    maps = {
        "a": {step: rng.integers(0, most + 1, (64, 5)) for step in (0, 7, 20)},
        "b": {step: rng.integers(0, 2, (10, 64)) for step in (0, 7)},
    }
    maps["a"][7][3, 3] = most
    packed = pack_maps(maps)
    assert packed is not None
    assert packed["bits"] == bits
    assert [entry["steps"] for entry in packed["index"]] == [[0, 7, 20], [0, 7]]
    found = unpack(packed)
    for layer, steps in maps.items():
        for index, step in enumerate(sorted(steps)):
            np.testing.assert_array_equal(found[layer][index], steps[step])


def test_the_page_holds_the_wiring_of_each_run(write, page):
    path = write("sparse")
    run = next(run for run in data_of(page())["runs"] if run["label"] == "sparse")
    written = read_wiring(read_run(path))
    for layer, arrays in unpack(run["maps"]).items():
        np.testing.assert_array_equal(arrays[-1], written[layer][12])


def test_maps_are_pooled_until_they_fit(write, dense):
    rng = np.random.default_rng(0)
    maps = {f"{step:08d}/fc.weight": rng.integers(0, 200, (64, 63)).astype(np.int32) for step in range(6)}
    write("large", maps=maps)
    runs = find_runs(dense.parent)
    whole = page_data(runs)["runs"][-1]["maps"]
    small = page_data(runs, map_budget=14_000)["runs"][-1]["maps"]
    assert whole["pool"] == 1
    assert small["pool"] == 2
    assert sum(len(run["maps"]["stream"]) for run in page_data(runs, map_budget=14_000)["runs"]) <= 14_000
    assert unpack(small)["fc.weight"][0].shape == (32, 32)
    assert unpack(small)["fc.weight"][2][5, 31] == maps["00000002/fc.weight"][10:12, 62:].sum()


def test_five_runs_stay_well_below_the_limit(write, tmp_path):
    rng = np.random.default_rng(0)
    maps = {
        f"{step:08d}/layer {n}": rng.integers(0, 30, (64, 64)).astype(np.int32) for step in range(16) for n in range(6)
    }
    for name in "abcde":
        study = write(name, maps=maps).parent
    size = write_report(find_runs(study), tmp_path / "r.html").stat().st_size
    assert size < 1_500_000
    assert MAP_BUDGET < 1_000_000


def test_numbers_that_are_not_finite_become_null():
    assert compact({"a": [float("nan"), float("inf"), 1 / 3, 7, None, True]}) == {
        "a": [None, None, 0.33333, 7, None, True]
    }


def test_the_validation_split_names_the_best_arm_and_the_test_split_does_not(write, page):
    write("lucky on test", accuracy__last=0.999, accuracy__selected=0.999, accuracy__valid_selected=0.5)
    write("good", accuracy__last=0.94, accuracy__valid_selected=0.97)
    words = Tags(page()).words
    assert re.search(r"Best on the validation split is\s+dense", words)
    assert re.search(r"Among the sparse arms it is\s+good\s*:\s*94.0\s%", words)


def test_without_a_validation_split_nothing_is_called_best(write, page):
    write("blind", accuracy__valid_last=None, accuracy__valid_selected=None)
    words = Tags(page()).words
    assert "no arm is called best" in words
    assert "Reproduce" not in words


def test_several_seeds_are_told_by_their_mean(write, tmp_path):
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        study = write("a", folder=f"a{seed}", seed=seed, accuracy__last=accuracy).parent
    words = Tags(write_report(find_runs(study), tmp_path / "r.html").read_text("utf-8")).words
    assert re.search(r"a\s*:\s*93.0 ± 3.6\s%", words)
    assert "over 3 seeds" in words


def test_few_seeds_come_with_a_caution_and_no_verdict(write, page):
    write("sparse")
    words = Tags(page()).words
    assert "One seed an arm" in words
    assert "Does it hold?" not in words


def test_a_teacher_with_a_seed_of_its_own_makes_no_second_seed(write, page):
    write("teacher", seed=1)
    words = Tags(page()).words
    assert "one seed each" in words
    assert "One seed an arm" in words


def seeds(write, arm: str, values: list[float]):
    for seed, value in enumerate(values):
        study = write(arm, folder=f"{arm}-{seed}", seed=seed, accuracy__last=value).parent
    return study


def test_three_seeds_give_verdicts(write, tmp_path):
    seeds(write, "base", [0.90, 0.91, 0.92])
    seeds(write, "better", [0.92, 0.931, 0.939])
    study = seeds(write, "same", [0.90, 0.915, 0.915])
    text = write_report(find_runs(study), tmp_path / "r.html", baseline="base").read_text("utf-8")
    words = Tags(text).words
    assert re.search(r"better than that of\s+base", words)
    assert {row["arm"]: row["word"] for row in data_of(text)["forest"]} == {"better": "held", "same": "undecided"}
    assert "+2.00" in words
    assert "A claim needs" not in words


def test_seeds_that_do_not_pair_say_so(write, tmp_path):
    seeds(write, "base", [0.90, 0.91, 0.92])
    study = seeds(write, "other", [0.92, 0.93])
    words = Tags(write_report(find_runs(study), tmp_path / "r.html", baseline="base").read_text("utf-8")).words
    assert "No verdicts" in words
    assert "do not have the same seeds" in words


def test_an_unknown_baseline_and_no_runs_are_refused(page, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'dense'"):
        page(baseline="dens")
    with pytest.raises(UsageError, match="at least one run"):
        write_report([], tmp_path / "r.html")


def test_unfinished_runs_alone_still_make_a_page(write, tmp_path):
    study = write("half", finished=False).parent
    text = write_report(find_runs(study), tmp_path / "r.html").read_text("utf-8")
    assert "half (unfinished)" in text
    assert "No run has finished yet" in text
    assert data_of(text)["runs"][0]["result"] is None


def test_recipes_that_differ_are_laid_side_by_side(write, page):
    write("sparse", recipe={"topology.density": 0.25})
    words = Tags(page()).words
    assert re.search(r"topology\.density\s+1\.0\s+0\.25", words)
    assert "training.epochs" not in words


def test_an_old_report_is_replaced_whole(write, tmp_path):
    runs = find_runs(write("sparse"))
    target = tmp_path / "r.html"
    target.write_text("old")
    write_report(runs, target)
    assert target.read_text("utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["r.html"]


def test_the_room_needs_no_torch():
    code = "import sys, regraft.report; print(sorted({'torch', 'scipy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SECTIONS = ("results", "learning", "wiring", "structure", "activity", "cost", "distillation", "calibration", "recipe")
FIGURES = {
    "frontier", "connections-frontier", "accuracy", "loss", "maps", "fields", "degrees", "densities", "exchange",
    "survival", "exploration", "rates", "raster", "neurons", "cascade", "teachers", "parts", "calibration",
}  # fmt: skip


def test_every_section_and_figure_has_its_place(write, page):
    write("reverse", teacher=TEACHER)
    tags = Tags(page()).tags
    found = [attributes["id"] for tag, attributes in tags if tag == "section"]
    assert found == list(SECTIONS)
    assert {attributes["data-figure"] for _, attributes in tags if "data-figure" in attributes} == FIGURES


def test_controls_can_be_named_and_reached(page):
    tags = Tags(page()).tags
    for tag, attributes in tags:
        if tag == "input" and attributes["type"] == "range":
            assert attributes["aria-label"]
        if tag == "div" and attributes.get("role") == "group":
            assert attributes["aria-label"]
        assert attributes.get("tabindex", "0") == "0"


def test_the_data_of_layers_are_those_of_the_files(write, page):
    path = write("sparse")
    run = next(run for run in data_of(page())["runs"] if run["label"] == "sparse")
    masks = {name: load_file(path / "last.safetensors")[f"masks/{name}"] for name in LAYERS}
    assert tuple(entry["layer"] for entry in run["degrees"]) == LAYERS
    assert run["degrees"][1]["in"]["mean"] == pytest.approx(masks["fc.weight"].sum() / 10, rel=1e-4)
    born = load_file(path / "wiring.safetensors")["birth/stem.weight"] != 0
    assert (run["fields"]["born"], run["fields"]["kept"]) == (born.sum(), (born & masks["stem.weight"]).sum())
    assert [layer["layer"] for layer in run["raster"]["layers"]] == ["conv", "fc"]
    assert run["structure"]["survival"] == [1.0, 0.9, 0.8, 0.7]
    assert run["structure"]["number"] == [0, 1, 2, 3]
    assert run["result"]["calibration"]["student"]["ece"] == 0.05


def test_what_a_folder_lacks_is_said(write, page):
    path = write("old", maps={f"00000000/{name}": np.ones((2, 2), np.int32) for name in LAYERS})
    for name in ("activity", "last"):
        (path / f"{name}.safetensors").unlink()
    result = json.loads((path / "result.json").read_text())
    for key in ("calibration", "agreement", "bytes"):
        del result[key]
    del result["synops"]["dense"], result["neurons"]["layers"]
    (path / "result.json").write_text(json.dumps(result))
    records = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("survival", None)
    (path / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = " ".join(Tags(page()).words.split())
    for what in ("spikes", "receptive fields", "degrees", "calibration", "size", "way from dense"):
        assert f"No {what} of old: " in words
    assert "No survival of the first connections of old: " in words
    assert "No wiring maps" not in words


def test_nothing_is_said_to_be_missing_where_all_is_there(write, page):
    write("reverse", teacher=TEACHER)
    assert "No " not in Tags(page()).words.replace("No connection", "")


def test_agreement_and_size_are_written_out(write, page):
    write("reverse", teacher=TEACHER)
    words = " ".join(Tags(page()).words.split())
    assert "reverse sparse 80.0 75.0 20.0 4.0 1.0" in words
    assert "reverse 2,000 400 (20.0 %) 300 (15.0 %)" in words


def test_the_frontier_is_of_arms_not_of_seeds(write):
    def arm(name, values, acs, existing):
        for seed, value in enumerate(values):
            write(
                name, folder=f"{name}{seed}", seed=seed, accuracy__last=value, synops__acs=acs, synops__macs=0.0,
                connections__existing=existing,
            )  # fmt: skip

    arm("dense", [0.97, 0.99], 1000.0, 472)
    arm("good", [0.94, 0.96], 100.0, 47)
    arm("dominated", [0.99, 0.90], 200.0, 47)
    study = write("cheap", accuracy__last=0.5, synops__acs=10.0, synops__macs=0.0, connections__existing=47).parent
    runs = find_runs(study)
    named = {runs[point["run"]].name: point for point in frontier(runs)}
    assert {name: point["best_operations"] for name, point in named.items()} == {
        "dense": True, "good": True, "dominated": False, "cheap": True,
    }  # fmt: skip
    assert {name for name, point in named.items() if point["best_connections"]} == {"dense", "good"}
    good = named["good"]
    assert (good["accuracy"], good["low"], good["high"], good["n"]) == (0.95, 0.94, 0.96, 2)
    assert good["seeds"] == [[100.0, 47, 0.94], [100.0, 47, 0.96]]
    assert good["operations"] == 100.0


def test_thinning_keeps_ends_and_what_is_asked_for():
    assert thinned(range(5), 10) == [0, 1, 2, 3, 4]
    few = thinned(range(1000), 20, [77, 500])
    assert {0, 999, 77, 500} <= set(few)
    assert 20 <= len(few) <= 22
    assert few == sorted(few)


def test_many_long_runs_stay_below_the_limit(write, tmp_path):
    """24 arms of 19 layers, 400 epochs and 300 events: coarser, but one file that opens."""
    names = [f"blocks.{n}.conv.weight" for n in range(19)]
    layers = {name: {"connections": 9_000, "of": 90_000, "shape": [64, 64, 3, 3]} for name in names}
    records = [{"kind": "birth", "step": 0, "layers": layers, "density": 0.1, "mask_hash": "a"}]
    moved, kept = dict.fromkeys(names, 1234), dict.fromkeys(names, 9_000)
    for epoch in range(1, 401):
        if epoch <= 300:
            records.append(
                {"kind": "event", "step": 10 * epoch, "dropped": moved, "grown": moved, "connections": kept,
                 "density": 0.1, "exploration": 0.3, "survival": 0.4}
            )  # fmt: skip
        records.append(
            {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "train": {"loss": 1 / epoch, "accuracy": 0.123456},
             "valid": {"loss": 1.23456, "accuracy": 0.654321}, "rates": dict.fromkeys(names, 0.123456)}
        )  # fmt: skip
    rng = np.random.default_rng(0)
    maps = {f"{step:08d}/{n}": rng.integers(0, 9, (64, 64)).astype(np.int32) for step in (0, 10, 50) for n in names}
    for k in range(24):
        study = write(f"arm {k}", records=records, maps=maps).parent
    page = write_report(find_runs(study), tmp_path / "r.html")
    assert page.stat().st_size < 1_500_000
    runs = data_of(page.read_text("utf-8"))["runs"]
    assert len(runs) == 24
    assert runs[0]["structure"]["number"][-1] == 300
    assert runs[0]["epochs"]["epoch"][-1] == 400


@pytest.mark.slow
def test_a_browser_draws_the_page_without_an_error(write, page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    write("reverse", teacher=TEACHER)
    page()
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
        (tmp_path / "out" / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    drawn = Tags(done.stdout).tags
    hidden = {attributes.get("id") for tag, attributes in drawn if tag == "section" and "hidden" in attributes}
    assert hidden == set()
    assert not {attributes["data-figure"] for _, attributes in drawn if {"data-figure", "hidden"} <= set(attributes)}
    assert sum(tag == "svg" for tag, _ in drawn) >= 20
    assert sum(tag == "canvas" for tag, _ in drawn) >= len(LAYERS) + 2
