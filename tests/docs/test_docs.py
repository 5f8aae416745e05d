"""The pages say what is so: their Python runs, their figures and tables are those of the code, their links lead."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from regraft.structure import PRESETS

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.exists()
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def blocks(page: Path) -> list[tuple[str, int, str | None]]:
    """`(code, line, output)` of each python block; `output` is a text block that follows it at once."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    chosen = []
    for block, after in itertools.zip_longest(found, found[1:]):
        if block[1] != "python":
            continue
        follows = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
        line = text.count("\n", 0, block.start()) + 1
        chosen.append((block[2], line, after[2] if follows and after else None))
    return chosen


def with_python() -> list:
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", with_python())
def test_the_python_of_a_page_runs_in_order_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for code, line, output in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # newlines in front, so that a traceback names the line of the page
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        if output is not None:
            assert printed.getvalue() == output, f"{page.name}, line {line}"


def test_the_pages_of_code_are_found():
    assert {"own_loop.md", "distillation.md", "run_folder.md"} <= {param.id for param in with_python()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_to_names_in_them(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for label, target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            assert heading in headings(file), f"{page.name}: {target}"
        if file.suffix == ".py" and label.startswith("`") and label.strip("`") != file.name:
            name = re.escape(label.strip("`").split("(")[0].split(".")[-1])
            code = file.read_text(encoding="utf-8")
            assert re.search(rf"(def|class) {name}\b|^\s*{name}\b.*[:=]", code, re.MULTILINE), f"no {label} in {target}"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def preset_rows() -> list[str]:
    """One Markdown row for each preset, from the code."""
    rows = []
    for name, rule in PRESETS.items():
        schedule = rule.schedule
        zeta = f"{schedule.zeta:g}" + (f", {schedule.decay}" if schedule.zeta else "")
        density = "held" if schedule.start_density is None else f"falls from {schedule.start_density:g}"
        moves = schedule.zeta > 0
        drop = rule.drops.name if moves or schedule.start_density else "–"
        grow = rule.grows.name if moves else "–"
        scope = rule.scope.name + (f", after a drop within the {rule.prune.name}" if rule.prune else "")
        rows.append(
            f"| `{name}` | {drop} | {grow} | {zeta} | {scope} | {density} | {rule.allocation} | {rule.source} |"
        )
    return rows


def test_the_table_of_presets_is_that_of_the_code():
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    for row in preset_rows():
        assert row in page
    for name, rule in PRESETS.items():
        for departure in rule.departures:
            assert f"- `{name}`: {departure}" in page


def test_the_readme_has_at_most_200_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_picture_is_one_svg_without_script_that_a_page_can_carry():
    path = ROOT / "docs" / "wiring.svg"
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 150_000
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "script" not in names
    assert "image" not in names
    assert all("href" not in key for element in root.iter() for key in element.attrib)


def test_the_picture_shows_each_dot_from_its_birth_to_its_death():
    spec = importlib.util.spec_from_file_location("wiring", ROOT / "docs" / "wiring.py")
    wiring = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wiring)
    maps = np.array([[[1, 0]], [[2, 0]], [[0, 1]], [[1, 1]]])  # four states of one row and two columns
    assert dict(wiring.lifetimes(maps)) == {
        (0, 0, 2): [(0, 0)],  # level 0: at least one connection
        (0, 3, 4): [(0, 0)],
        (0, 2, 4): [(0, 1)],
        (1, 1, 2): [(0, 0)],
    }
    assert wiring.dots([(0, 3), (0, 5), (2, 1)]) == "M3 0h0m2 0h0m-4 2h0"
