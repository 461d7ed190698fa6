"""``kgctl``, the command line for people: subcommand -> its own module -> exit status.

A command's module offers ``run(words) -> int``: the words after its name, and the exit status.
0: done; 1: an error, told in one line on standard error, or a check that failed; 2: wrong usage,
or, of a command that compares, a difference.
"""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from kilo import __version__
from kilo.errors import KiloError
from kilo.flags import format_rows


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: its module, loaded only when it is asked for, and what it does."""

    module: str
    help: str


COMMANDS: Mapping[str, Command] = {
    "apply": Command("kilo.kgctl.apply", "write nodes, peers and settings from documents"),
    "cluster": Command("kilo.kgctl.cluster", "link two meshes, and mirror Services between them"),
    "completion": Command("kilo.kgctl.completion", "what makes a shell complete kgctl's lines"),
    "connect": Command("kilo.kgctl.connect", "make this host a peer of the mesh, until Ctrl-C"),
    "delete": Command("kilo.kgctl.delete", "take nodes, peers and settings out of the store"),
    "doctor": Command("kilo.kgctl.doctor", "what is wrong with this host, and what helps"),
    "get": Command("kilo.kgctl.get", "what the store holds, as a table or as documents"),
    "graph": Command("kilo.kgctl.graph", "the mesh in DOT, to be drawn by circo"),
    "plan": Command("kilo.kgctl.plan", "what documents would change on each node"),
    "showconf": Command(
        "kilo.kgctl.showconf", "the WireGuard configuration of a node or a peer, or of a link to it"
    ),
    "status": Command("kilo.kgctl.status", "the mesh on one screen, and what is wrong in it"),
    "why": Command("kilo.kgctl.why", "the way of a packet between two, and what would stop it"),
    "lab": Command(
        "kilo.lab.cli", "build a whole mesh on this machine and try it: kgctl lab --help"
    ),
}

MORE = """\
Examples:
  kgctl status
  kgctl --kubeconfig=cluster.conf get nodes
  kgctl --backend=file --directory=mesh graph | circo -Tsvg > mesh.svg

kgctl COMMAND --help shows a command's flags, with examples. Exit status: 0, done; 1, an error, or
what was asked about is not well; 2, words that make no command, or, of plan, a difference."""
HIDDEN: Mapping[str, Command] = {
    "__complete": Command("kilo.kgctl.completing", "what shells ask at each Tab"),
}


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
    if words[:1] == ["help"] and words[1:] and words[1] in COMMANDS:
        words = [words[1], "--help"]
    name = words[0] if words else "--help"
    if name in {"--help", "-h", "help"}:
        print(_format_usage(), end="")
        return 0 if words else 2
    if name in {"version", "--version"}:
        print(f"kgctl {__version__}")
        return 0
    if name.startswith("-"):
        # Imported here: who asks for the help or the version need not wait for it.
        from kilo.kgctl.leading import move_flags  # noqa: PLC0415 - see above
        from kilo.kgctl.storing import UsageError  # noqa: PLC0415 - see above

        try:
            return _dispatch(move_flags(words))
        except UsageError as error:
            print(f"kgctl: {error}", file=sys.stderr)
            return 2
    command = COMMANDS.get(name) or HIDDEN.get(name)
    if command:
        run: Callable[[list[str]], int] = import_module(command.module).run
        return run(words[1:])
    print(f"kgctl: {name!r} is not a command; kgctl --help lists them", file=sys.stderr)
    return 2


def _format_usage() -> str:
    rows = [(f"  {name}", command.help) for name, command in COMMANDS.items()]
    rows.append(("  version", "print the version"))
    return f"usage: kgctl COMMAND [flags]\n\n{format_rows(rows, 100)}\n\n{MORE}\n"
