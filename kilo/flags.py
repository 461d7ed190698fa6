"""Command lines in the syntax of Go's pflag, which Kilo's manifests and scripts are written in.

``--flag=value`` and ``--flag value``; a boolean is ``--cni`` or ``--cni=false``, and never takes
the next word; ``-a x``, ``-ax`` and ``-a=x``; lists are repeated or separated by commas; ``--``
ends the flags. Every flag can also come from the environment, ``--log-level`` from
``KG_LOG_LEVEL``; the command line wins.
"""

from __future__ import annotations

import shutil
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from textwrap import wrap
from types import MappingProxyType
from typing import Any, Generic, NoReturn, TypeVar

from kilo.errors import ConfigError
from kilo.mesh.durations import format_duration, parse_duration

T = TypeVar("T")

# Kinds of values


def _take_last(values: Sequence[T]) -> T:
    return values[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """How the values of a flag are written."""

    word: str
    """What ``--help`` calls it."""
    parse: Callable[[str], T]
    """Raises ``ValueError`` that says what is wrong with the text without quoting it."""
    show: Callable[[T], str] = str
    """The default as ``--help`` shows it."""
    bare: str | None = None
    """What the flag means without a value; None: it needs one."""
    gather: Callable[[Sequence[T]], T] = _take_last
    """What several occurrences come to."""
    is_list: bool = False
    """Whether a text is several values, separated by commas."""


def parse_bool(text: str) -> bool:
    """Go's ``strconv.ParseBool``, whose spellings these are."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError("is neither true nor false")


def parse_int(text: str) -> int:
    """A decimal number."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ValueError("is not a whole number")
    return int(text)


def list_of(kind: Kind[T], word: str) -> Kind[tuple[T, ...]]:
    """Values separated by commas; what is given first replaces the default, more is appended."""
    return Kind(
        word=word,
        parse=lambda text: tuple(kind.parse(part.strip()) for part in text.split(",") if text),
        show=lambda values: f"[{','.join(map(str, values))}]",
        gather=lambda values: tuple(item for value in values for item in value),
        is_list=True,
    )


STRING = Kind(word="string", parse=str, show='"{}"'.format)
BOOL = Kind(word="", parse=parse_bool, show=lambda value: str(value).lower(), bare="true")
INT = Kind(word="int", parse=parse_int)
DURATION = Kind(word="duration", parse=parse_duration, show=format_duration)
STRINGS = list_of(STRING, "strings")


# Flags


@dataclass(frozen=True, slots=True)
class Flag(Generic[T]):
    """One flag, without its dashes."""

    name: str
    kind: Kind[T]
    default: T
    help: str
    choices: tuple[str, ...] = field(default=(), kw_only=True)
    """The only texts there are; () if any will do."""
    short: str = field(default="", kw_only=True)
    """One letter."""
    placeholder: str = field(default="", kw_only=True)
    """In place of the kind's word in ``--help``."""
    default_text: str | None = field(default=None, kw_only=True)
    """In place of the default in ``--help``; "" shows none."""

    def parse(self, name: str, texts: Sequence[str]) -> T:
        """From its occurrences; raises ``ConfigError`` that calls the flag, or variable, so."""
        return self.kind.gather([self._parse_one(name, text) for text in texts])

    def _parse_one(self, name: str, text: str) -> T:
        parts = text.split(",") if self.kind.is_list else [text]
        if self.choices and not set(parts) <= set(self.choices):
            raise ConfigError(f"{name} {text!r}: possible values are {', '.join(self.choices)}")
        try:
            return self.kind.parse(text)
        except ValueError as error:
            raise ConfigError(f"{name} {text!r}: {error}") from error


class Source(StrEnum):
    """Where a value comes from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a command line said."""

    values: Mapping[str, Any]
    """The value of every flag, by name."""
    sources: Mapping[str, Source]
    """Where each comes from."""
    arguments: tuple[str, ...]
    """The words that are no flags, in order."""
    dash_at: int | None = None
    """How many of the arguments stood before ``--``; None if there was none."""

    def value(self, flag: Flag[T]) -> T:
        """The flag's value, typed."""
        found: T = self.values[flag.name]
        return found

    def given(self, name: str) -> bool:
        """Whether somebody asked for the value, and it is not the default."""
        return self.sources[name] is not Source.DEFAULT


@dataclass(frozen=True, slots=True)
class FlagSet:
    """The flags of one program or command."""

    program: str
    flags: tuple[Flag[Any], ...]
    usage: str
    """What the program does, above the flags in ``--help``."""
    commands: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), kw_only=True)
    """Commands and what they do; if there are any, the first argument must be one of them."""
    max_arguments: int | None = field(default=None, kw_only=True)
    """None: as many as one likes."""
    interspersed: bool = field(default=True, kw_only=True)
    """Whether flags may follow arguments; if not, the first argument ends them."""

    def parse(
        self, argv: Sequence[str], environ: Mapping[str, str], env_prefix: str = "KG"
    ) -> Parsed:
        """The values of all flags, from ``argv`` (without the program), ``environ`` or defaults.

        A variable that is set but empty counts as not set. Raises ``ConfigError``; with ``-h``
        or ``--help``, prints the help and raises ``SystemExit(0)``.
        """
        reader = _Reader(self)
        reader.read(argv)
        found = {
            flag.name: _settle(flag, reader.texts.get(flag.name), environ, env_prefix)
            for flag in self.flags
        }
        return Parsed(
            values=MappingProxyType({name: value for name, (value, _) in found.items()}),
            sources=MappingProxyType({name: source for name, (_, source) in found.items()}),
            arguments=tuple(reader.arguments),
            dash_at=reader.dash_at,
        )

    def find(self, name: str) -> Flag[Any] | None:
        """The flag of that name."""
        return next((flag for flag in self.flags if flag.name == name), None)

    def format_help(self, width: int) -> str:
        """The text of ``--help``, wrapped to so many columns."""
        blocks = [self.usage.strip()]
        if self.commands:
            rows = [(f"  {name}", text) for name, text in self.commands.items()]
            blocks.append("Commands:\n" + format_rows(rows, width))
        rows = [(describe_name(flag), describe_flag(flag)) for flag in self.flags]
        rows.append(("  -h, --help", "print this and exit"))
        blocks.append("Flags:\n" + format_rows(rows, width))
        return "\n\n".join(blocks) + "\n"


def name_variable(name: str, prefix: str = "KG") -> str:
    """The environment variable of a flag."""
    return f"{prefix}_{name.upper().replace('-', '_')}"


def _settle(
    flag: Flag[T], texts: Sequence[str] | None, environ: Mapping[str, str], prefix: str
) -> tuple[T, Source]:
    variable = name_variable(flag.name, prefix)
    if texts:
        return flag.parse(f"--{flag.name}", texts), Source.FLAG
    if text := environ.get(variable):
        return flag.parse(variable, (text,)), Source.ENVIRONMENT
    return flag.default, Source.DEFAULT


# Reading a command line


class _Reader:
    """Sorts the words of one command line into flags' texts and arguments."""

    def __init__(self, flag_set: FlagSet) -> None:
        self._set = flag_set
        self._words: deque[str] = deque()
        self._switch: Flag[Any] | None = None
        """The boolean that the word before was, without a value."""
        self.texts: dict[str, list[str]] = {}
        self.arguments: list[str] = []
        self.dash_at: int | None = None

    def read(self, argv: Sequence[str]) -> None:
        self._words.extend(argv)
        while self._words:
            word = self._words.popleft()
            if word == "--":
                self.dash_at = len(self.arguments)
                self._take_the_rest()
            elif word.startswith("--"):
                self._read_long(word)
            elif word.startswith("-") and word != "-":
                self._read_short(word)
            else:
                self._read_argument(word)

    def _read_long(self, word: str) -> None:
        name, equals, text = word.removeprefix("--").partition("=")
        flag = self._set.find(name)
        if flag is None:
            self._refuse_long(name)
        elif equals:
            self._note(flag, text)
        else:
            self._note_bare(flag, f"--{name}")

    def _read_short(self, word: str) -> None:
        letters = word.removeprefix("-")
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = next((flag for flag in self._set.flags if flag.short == letter), None)
            if flag is None:
                self._refuse_short(letter, word)
            elif letters.startswith("=") or (letters and flag.kind.bare is None):
                self._note(flag, letters.removeprefix("="))
                return
            else:
                self._note_bare(flag, f"-{letter}")

    def _read_argument(self, word: str) -> None:
        switch, self._switch = self._switch, None
        known = not self._set.commands or self.arguments or word in self._set.commands
        if not known or len(self.arguments) == self._set.max_arguments:
            raise ConfigError(f"unexpected argument {word!r}{self._hint_at(word, switch)}")
        self.arguments.append(word)
        if not self._set.interspersed:
            self._take_the_rest()

    def _take_the_rest(self) -> None:
        self._switch = None
        rest, self._words = self._words, deque()
        while rest:
            self._read_argument(rest.popleft())

    def _note(self, flag: Flag[Any], text: str) -> None:
        self._switch = None
        self.texts.setdefault(flag.name, []).append(text)

    def _note_bare(self, flag: Flag[Any], name: str) -> None:
        if flag.kind.bare is not None:
            self._note(flag, flag.kind.bare)
            self._switch = flag
        elif self._words:
            self._note(flag, self._words.popleft())
        else:
            raise ConfigError(f"{name}: needs a value")

    def _refuse_long(self, name: str) -> NoReturn:
        if name == "help":
            self._help()
        negated = self._set.find(name.removeprefix("no-"))
        if negated is not None and negated.kind.bare is not None:
            raise ConfigError(f"unknown flag --{name}; did you mean --{negated.name}=false?")
        shown = f"--{name}" if name.isprintable() else repr(f"--{name}")
        raise ConfigError(f"unknown flag {shown}{self._suggest(name)}")

    def _refuse_short(self, letter: str, word: str) -> NoReturn:
        if letter == "h":
            self._help()
        name = word.removeprefix("-").partition("=")[0]
        raise ConfigError(f"unknown flag {letter!r} in {word!r}{self._suggest(name)}")

    def _suggest(self, name: str) -> str:
        near = get_close_matches(name, [flag.name for flag in self._set.flags], n=1)
        return f"; did you mean --{near[0]}?" if near else ""

    def _hint_at(self, word: str, switch: Flag[Any] | None) -> str:
        if switch is not None and word.lower() in ("true", "false"):
            return f"; write --{switch.name}={word}"
        if self.arguments or not self._set.commands:
            return ""
        near = get_close_matches(word, self._set.commands, n=1)
        known = f"commands are {', '.join(self._set.commands)}"
        return f"; did you mean {near[0]}?" if near else f"; {known}"

    def _help(self) -> NoReturn:
        sys.stdout.write(self._set.format_help(shutil.get_terminal_size((100, 24)).columns))
        raise SystemExit(0)


# The help


NARROWEST_TEXT = 30
"""Columns; where fewer remain beside the names, the text goes below them."""


def describe_name(flag: Flag[Any]) -> str:
    """The left column of ``--help``, as pflag writes it."""
    short = f"-{flag.short}, " if flag.short else "    "
    word = flag.placeholder or flag.kind.word
    return f"  {short}--{flag.name}{' ' + word if word else ''}"


def describe_flag(flag: Flag[Any]) -> str:
    """The right column of ``--help``: text, possible values, default."""
    choices = f": {', '.join(flag.choices)}" if flag.choices else ""
    shown = flag.default_text
    if shown is None and flag.default not in (None, "", 0, ()):
        shown = flag.kind.show(flag.default)
    return f"{flag.help}{choices}{f' (default {shown})' if shown else ''}"


def format_rows(rows: Sequence[tuple[str, str]], width: int) -> str:
    """Two columns, three spaces apart, the second wrapped."""
    indent = max(len(name) for name, _ in rows) + 3
    if width - indent < NARROWEST_TEXT:
        return "\n".join(_format_narrow(name, text, width) for name, text in rows)
    return "\n".join(_format_wide(name, text, width, indent) for name, text in rows)


def _format_wide(name: str, text: str, width: int, indent: int) -> str:
    first, *more = wrap(text, width - indent) or [""]
    lines = [name.ljust(indent) + first, *(" " * indent + line for line in more)]
    return "\n".join(line.rstrip() for line in lines)


def _format_narrow(name: str, text: str, width: int) -> str:
    lines = wrap(text, max(width - 10, NARROWEST_TEXT))
    return "\n".join([name, *(" " * 10 + line for line in lines)])
