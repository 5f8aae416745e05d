"""The page: complete in itself, safe with any text, and holding the numbers that its charts draw."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from regraft.errors import UsageError
from regraft.report import find_runs, read_run, write_report
from regraft.report.figures import MAP_BUDGET, compact, pack_maps, page_data
from regraft.report.runs import read_wiring

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
