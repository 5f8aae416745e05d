"""`regraft data`: which data sets are there; one of them checked, described and shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from regraft.cli.arguments import parse
from regraft.errors import DataError, UsageError

if TYPE_CHECKING:
    from regraft.data.survey import Description


@dataclass(frozen=True)
class Data:
    """Which data sets are there and, for those that are not, where to get them; or all about one of them.

    With a name, all of its files are checked, its classes counted, and a picture of a few samples is written.
    """

    name: tyro.conf.Positional[str | None] = None
    """A data set (`regraft list data`) or `package.module:function`."""
    folder: Path | None = None
    """Where data sets lie; the environment variable REGRAFT_DATA, or `data`, if not given."""
    picture: Path | None = None
    """The picture to write, .svg or .png (data-NAME.svg here)."""
    steps: int = 10
    """Frames that events are integrated into."""


def run(arguments: list[str]) -> int:
    """Parse and print; with a name, write the picture."""
    given = parse(Data, arguments, verb="data", example="regraft data digits", default=Data())
    if given.name is None:
        return _survey(given.folder)
    picture = given.picture or Path(f"data-{given.name.rpartition(':')[2]}.svg")
    if picture.suffix not in (".svg", ".png"):
        raise UsageError(f"picture is {str(picture)!r}: give a file that ends in .svg or .png")

    from regraft.data.picture import canvas, png, sheet, svg
    from regraft.data.survey import describe

    found = describe(given.name, given.folder, steps=given.steps)
    _print(found, given.folder)
    page = sheet(found.data)
    content = svg(page).encode() if picture.suffix == ".svg" else png(canvas(page))
    try:
        picture.write_bytes(content)
    except OSError as error:
        raise DataError(f"cannot write {picture}: {error.strerror}; name another file with --picture") from None
    print(f"  picture    {picture}")
    return 0


def _survey(folder: Path | None) -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from regraft.data.survey import survey

    rows = survey(folder)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    for head in ("data set", "train + test", "sample", "classes", "status"):
        table.add_column(head, justify="right" if head == "classes" else "left", no_wrap=head != "train + test")
    for row in rows:
        table.add_row(row.name, row.samples, row.shape, row.classes, row.state)
    Console(highlight=False, markup=False).print(table)
    for row in rows:
        where = (row.advice or row.where).encode(errors="backslashreplace").decode()  # a folder may be called anything
        print(f"{row.name:<19}{row.what}\n{'':<19}{where}\n")
    return 0


def _print(found: Description, folder: Path | None) -> None:
    from regraft.data.archive import root_of
    from regraft.data.registry import FACTS, Facts

    data = found.data
    archive = FACTS.get(data.name, Facts()).archive
    print(f"{data.name}: {'images' if data.form.static else 'events'}, {data.classes} classes")
    if archive is not None:
        how = "sizes and md5 are right" if archive.members else "each file is a whole recording"
        print(f"  files      {root_of(folder) / archive.folder}: {how}")
    for name, split in (("train", data.train), ("test", data.test)):
        shape = " x ".join(str(n) for n in split.x.shape[1:])
        print(f"  {name:<10} {len(split):,} samples, {shape}, {str(split.x.dtype).removeprefix('torch.')}")
        print(f"             {_counts(found.counts[name], data.names)}")
    for name, values in (("mean", found.mean), ("std", found.std)):
        print(f"  {name:<10} {'  '.join(f'{value:.3f}' for value in values)}")
    print(f"  values     {found.low:g} to {found.high:g}")
    print(f"  memory     {found.bytes / 2**20:,.1f} MiB, read in {found.seconds:.1f} s")


def _counts(counts: list[int], names: tuple[str, ...]) -> str:
    """How many samples each class has; of many classes, how they differ."""
    if len(set(counts)) == 1:
        return f"{counts[0]:,} of each class"
    if len(counts) > 12:
        return f"{min(counts):,} to {max(counts):,} of each class"
    return ", ".join(f"{names[k] if names else k}: {count:,}" for k, count in enumerate(counts))
