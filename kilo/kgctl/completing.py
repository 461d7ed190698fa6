"""What may come next on a command line of ``kgctl``: for shells, which ask for it at each Tab.

The scripts of ``kgctl completion`` call ``kgctl __complete`` with the words so far, the one under
the cursor last, and get a line for each that may stand in its place: the word, and behind a tab
what it is. ``:files`` asks for names of files.

Whoever waits is a person before a shell that does nothing else meanwhile: what goes wrong is not
told, and a store that does not answer within ``PATIENCE_SECONDS`` has no names. Who has a store
far away sets ``KGCTL_COMPLETION_SECONDS``.
"""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any

from kilo.backends.opening import BackendConfig, open_store
from kilo.errors import KiloError
from kilo.flags import Flag, FlagSet
from kilo.kgctl.leading import GLOBAL_FLAGS
from kilo.kgctl.objects import PLURALS
from kilo.kgctl.storing import COMMON_FLAGS, Usage, find_store
from kilo.mesh.model import Snapshot

PATIENCE_SECONDS = 1.5
"""How long the names of the store are waited for."""
PATIENCE = "KGCTL_COMPLETION_SECONDS"
"""The environment's variable for another number of seconds."""
LAST_SECONDS = 0.5
"""What all else may take; then it ends, whatever it is doing."""
FILES = ":files"
FILE_WORDS = frozenset({"path", "FILE|DIR|-"})
FILE_FLAGS = frozenset({"kubeconfig", "to-kubeconfig"})

Words = Sequence[str]
Choice = tuple[str, str]
"""What may be written, and what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A command line up to the cursor, taken apart."""

    command: str
    """Empty while the command itself is being written."""
    arguments: tuple[str, ...]
    """The words of the command so far that are no flags."""
    texts: tuple[str, ...]
    """Its flags so far, as ``--name=text``."""
    pending: Flag[Any] | None
    """The flag whose value is being written."""
    current: str
    """The word, or the value, that is being written."""
    prefix: str
    """What stands before the value in the same word: ``--output=``."""


def run(words: Words) -> int:
    """Print the lines, and end in time, with 0 whatever was wrong."""
    guard = threading.Timer(find_patience() + LAST_SECONDS, os._exit, (0,))
    guard.daemon = True
    guard.start()
    for text in list_lines(words or [""]):
        print(text, flush=True)
    # Threads of a store that does not answer are not waited for.
    os._exit(0)


def find_patience() -> float:
    """Seconds."""
    try:
        return float(os.environ.get(PATIENCE, PATIENCE_SECONDS))
    except ValueError:
        return PATIENCE_SECONDS


def list_lines(words: Words) -> Iterator[str]:
    """All that begins as what is being written does; first what needs no store."""
    line = read_line(words)
    for text, meaning in chain(list_fixed(line), list_names(line)):
        if text == FILES:
            yield FILES
        elif text.startswith(line.current):
            yield f"{line.prefix}{text}\t{meaning}" if meaning else f"{line.prefix}{text}"


# Taking the line apart.


def read_line(words: Words) -> Line:
    """What has been said; never raises, for a line that is being written is rarely right."""
    *before, current = words
    command, rest = _split_command(before)
    flags = _find_flags(command, rest)
    arguments, texts, pending = _sort_words(rest, flags)
    prefix = ""
    if pending is None and current.startswith("--") and "=" in current:
        pending, _ = _read_flag(current, flags)
        name, _, current = current.partition("=")
        prefix = f"{name}="
    return Line(
        command=command,
        arguments=arguments,
        texts=texts,
        pending=pending,
        current=current,
        prefix=prefix,
    )


def _sort_words(
    words: Words, flags: Iterable[Flag[Any]]
) -> tuple[tuple[str, ...], tuple[str, ...], Flag[Any] | None]:
    """Arguments, flags with their texts, and the flag that the last word is, if it lacks one."""
    arguments: list[str] = []
    texts: list[str] = []
    pending: Flag[Any] | None = None
    for word in words:
        if pending is not None:
            texts.append(f"--{pending.name}={word}")
            pending = None
        elif word.startswith("-") and word != "-":
            flag, text = _read_flag(word, flags)
            if flag is not None and text is None and flag.kind.bare is None:
                pending = flag
            elif flag is not None:
                texts.append(f"--{flag.name}={flag.kind.bare if text is None else text}")
        else:
            arguments.append(word)
    return tuple(arguments), tuple(texts), pending


def _split_command(words: Words) -> tuple[str, Words]:
    """The command, and all other words; the flags that stand before it belong to it."""
    needs_value = False
    for number, word in enumerate(words):
        if needs_value:
            needs_value = False
        elif word.startswith("-"):
            flag, text = _read_flag(word, GLOBAL_FLAGS.flags)
            needs_value = flag is not None and text is None and flag.kind.bare is None
        else:
            return word, [*words[:number], *words[number + 1 :]]
    return "", words


def _read_flag(word: str, flags: Iterable[Flag[Any]]) -> tuple[Flag[Any] | None, str | None]:
    """The flag of a word, and the text in the same word if there is one."""
    name, equals, text = word.lstrip("-").partition("=")
    if word.startswith("--"):
        return next((f for f in flags if f.name == name), None), text if equals else None
    flag = next((f for f in flags if f.short and f.short == word[1:2]), None)
    return flag, word[2:].removeprefix("=") or None


def _find_flags(command: str, words: Words) -> tuple[Flag[Any], ...]:
    if not command:
        return GLOBAL_FLAGS.flags
    if command == "lab":
        return _find_lab_flags(words)
    usage = find_usage(command)
    return (*usage.flags, *COMMON_FLAGS) if usage else ()


def _find_lab_flags(words: Words) -> tuple[Flag[Any], ...]:
    from kilo.lab import cli  # noqa: PLC0415 - large, and only of use to who wants a lab

    return next((cli.COMMANDS[word].flags for word in words if word in cli.COMMANDS), ())


def find_usage(command: str) -> Usage | None:
    """What the command tells of itself; None for one that there is not, or that tells nothing."""
    from kilo.kgctl import COMMANDS  # noqa: PLC0415 - which imports this

    if command not in COMMANDS:
        return None
    usage = getattr(import_module(COMMANDS[command].module), "USAGE", None)
    return usage if isinstance(usage, Usage) else None


# What may come next.


def list_fixed(line: Line) -> Iterator[Choice]:
    """What can be told without the store."""
    if line.pending is not None:
        yield from _list_values(line.pending)
    elif line.current.startswith("-"):
        yield from ((f"--{flag.name}", flag.help) for flag in _find_flags_of(line))
        yield "--help", "print this and exit"
    elif not line.command:
        yield from _list_commands()
    else:
        yield from _list_arguments(line)


def _find_flags_of(line: Line) -> tuple[Flag[Any], ...]:
    return _find_flags(line.command, line.arguments)


def _list_values(flag: Flag[Any]) -> Iterator[Choice]:
    if flag.choices:
        yield from ((str(choice), "") for choice in flag.choices)
    elif flag.kind.bare is not None:
        yield from (("true", ""), ("false", ""))
    elif flag.name in FILE_FLAGS or not FILE_WORDS.isdisjoint((flag.kind.word, flag.placeholder)):
        yield FILES, ""


def _list_commands() -> Iterator[Choice]:
    from kilo.kgctl import COMMANDS  # noqa: PLC0415 - which imports this

    yield from ((name, command.help) for name, command in COMMANDS.items())
    yield "version", "print the version"


def _list_arguments(line: Line) -> Iterator[Choice]:
    if line.arguments:
        return
    if line.command == "lab":
        yield from _list_lab_commands()
    elif usage := find_usage(line.command):
        yield from usage.first


def _list_lab_commands() -> Iterator[Choice]:
    from kilo.lab import cli  # noqa: PLC0415 - large, and only of use to who wants a lab

    yield from ((name, command.help) for name, command in cli.COMMANDS.items())


# Names from the store.


def list_names(line: Line) -> Iterator[Choice]:
    """Of the objects that may stand there; nothing if the store does not tell."""
    wanted = list(_list_kinds(line))
    snapshot = read_store(line) if wanted else None
    if snapshot is None:
        return
    for kind, prefix in wanted:
        names = (prefix + name for name in _find_names(snapshot, kind))
        yield from ((name, kind) for name in names if name not in line.arguments)


def _list_kinds(line: Line) -> Iterator[Choice]:
    """The kinds of objects whose names may stand there, and what stands before the names."""
    if line.pending is not None:
        if line.command == "plan" and line.pending.name == "node":
            yield "node", ""
        return
    number, slashed = len(line.arguments), "/" in line.current
    match line.command:
        case "connect" if number == 0:
            yield "peer", ""
        case "why" if number < 2:
            yield from ((kind, f"{kind}/" if slashed else "") for kind in ("node", "peer"))
        case "get" | "delete" if slashed:
            word = line.current.partition("/")[0]
            yield PLURALS.get(word, word), f"{word}/"
        case "get" | "delete" if number:
            yield PLURALS.get(line.arguments[0], line.arguments[0]), ""
        case "showconf" if number == 1:
            yield line.arguments[0], ""


def _find_names(snapshot: Snapshot, kind: str) -> Iterator[str]:
    match kind:
        case "node":
            yield from (node.name for node in snapshot.nodes)
        case "report":
            yield from (node.name for node in snapshot.nodes if node.report)
        case "peer":
            yield from (peer.name for peer in snapshot.peers)


def read_store(line: Line) -> Snapshot | None:
    """What the store that the line, or the environment, names holds; None if it does not tell."""
    flags = FlagSet("kgctl", COMMON_FLAGS, "")
    texts = [text for text in line.texts if flags.find(text[2:].partition("=")[0])]
    try:
        return asyncio.run(_read_in_time(find_store(flags.parse(texts, os.environ), os.environ)))
    except (KiloError, OSError, TimeoutError):
        return None


async def _read_in_time(config: BackendConfig) -> Snapshot:
    async with asyncio.timeout(find_patience()), open_store(config) as backend:
        return await backend.snapshot()
