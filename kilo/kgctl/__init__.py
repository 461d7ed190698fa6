"""``kgctl``, the command line for people: subcommand -> its own module -> exit status.

0: done; 1: an error, told in one line on standard error, or a check that failed; 2: wrong usage.
"""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import sys
from collections.abc import Sequence

from kilo import __version__
from kilo.errors import KiloError

USAGE = """\
usage: kgctl COMMAND [flags]

  lab       build a whole mesh on this machine and try it: kgctl lab --help
  version   print the version
"""
LATER = ("graph", "showconf", "connect", "completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status, for ``sys.exit``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except KiloError as error:
        print(f"kgctl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough of it.
        sys.stderr.close()
        return 1


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in {"--help", "-h", "help"}:
        print(USAGE, end="")
        return 0 if words else 2
    if name in {"version", "--version"}:
        print(f"kgctl {__version__}")
        return 0
    if name == "lab":
        # Loaded only now: nothing else needs the lab.
        from kilo.lab.cli import run_lab  # noqa: PLC0415

        return run_lab(words[1:])
    if name in LATER:
        print(f"kgctl: {name} comes with a later release", file=sys.stderr)
        return 2
    print(f"kgctl: {name!r} is not a command; kgctl --help lists them", file=sys.stderr)
    return 2
