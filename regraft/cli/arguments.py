"""Flags from dataclasses, the same way for every verb: parsed by tyro, help led by a command that runs."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any, TypeVar

import tyro

from regraft.errors import RegraftError, UsageError

T = TypeVar("T")


def parse(kind: type[T], arguments: list[str], *, verb: str, example: str, default: T | None = None) -> T:
    """The dataclass `kind` from flags. `--help` prints `example` first.

    Raises:
        UsageError: flags that cannot be meant.
        SystemExit: with 0, after `--help`.
    """
    if "-h" in arguments or "--help" in arguments:
        print(example + "\n")
    said = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=arguments, prog=f"regraft {verb}", config=config, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_plain(said.getvalue()) or f"run: regraft {verb} --help") from None
    except RegraftError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def _plain(box: str) -> str:
    """tyro's framed message as one line: without its title, its rule, its pointer to the help page and Python's words.

    >>> _plain("Error parsing --seed: invalid literal for int() with base 10: '1.5' Argument helptext: --seed INT Of")
    "--seed is '1.5': give INT"
    """
    lines = [line.strip("│╭╮╰╯─┌┐└┘| \t") for line in box.splitlines() if not line.startswith("╭")]
    text = " ".join(line for line in lines if line)
    text = re.sub(r"For full helptext, (see|run) .*", "", text)
    wrong = re.match(r"Error parsing (\S+): .*: ('.*') Argument helptext: \S+ (\S+)", text)
    if wrong:
        return f"{wrong[1]} is {wrong[2]}: give {wrong[3]}"
    return re.sub(r"Error parsing [\w.]+: ", "", text).strip()
