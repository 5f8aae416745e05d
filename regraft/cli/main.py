"""`regraft VERB ...`: finds the verb, runs it, and turns every expected failure into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any

from regraft.errors import Interrupted, RegraftError, UsageError, nearest

VERBS = {
    "train": "train a recipe: a network, or a study of several",
    "eval": "evaluate a finished run on its test set",
    "report": "one table and one HTML page of finished runs",
    "sweep": "train every combination of arms, settings and seeds",
    "doctor": "what this machine has, what is missing, and a test of five seconds",
    "data": "which data sets are there; checks, describes and shows one",
    "list": "what recipes, models, data sets, rules and teachers there are",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    warnings.showwarning = _show_warning
    sys.path.insert(0, "")  # `package.module:function` may lie where the user stands
    try:
        return _run(arguments)
    except RegraftError as error:
        if not isinstance(error, UsageError) or os.environ.get("RANK", "0") == "0":  # all ranks would say the same
            _say(str(error))
        if isinstance(error, Interrupted):
            return 128 + error.signal
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        _say("interrupted at once; a training goes on from its last checkpoint with the same command and --resume")
        return 130
    except BrokenPipeError:  # the reader of our output left: nothing to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        print(usage())
        return 0
    if verb == "--version":
        import regraft

        print(f"regraft {regraft.__version__}")
        return 0
    if verb not in VERBS:
        raise UsageError(f"no verb is called {verb!r}: {nearest(verb, VERBS)}")
    return importlib.import_module(f"regraft.cli.{verb}").run(arguments[1:])


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    _say(f"warning: {message}")


def _say(message: str) -> None:
    """One line, whatever the message was made of (torch breaks its own)."""
    print("regraft:", " ".join(message.split()), file=sys.stderr)


def usage() -> str:
    """The help page. Its first line is a command that runs."""
    rows = [f"  regraft {verb:<8} {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "regraft train digits",
            "",
            "Spiking neural networks that learn their wiring. The line above trains five small networks in about two",
            "minutes and writes a report; `regraft VERB --help` says more.",
            "",
            *rows,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
