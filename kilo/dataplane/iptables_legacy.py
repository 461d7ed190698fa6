"""A program that writes rules to the kernel's legacy tables, through ``python-iptables``.

``python -m kilo.dataplane.iptables_legacy 4 < SCRIPT``, or 6: the script is what
``iptables-restore --noflush`` reads, as far as ``iptables_rules.py`` writes it. Each table is read
by libiptc, changed and committed once, others' rules and counters with it as they were.

It is a process of its own because the C library behind it prints, exits and remembers as it
pleases; and it has to be one for each family, for the library finds no MASQUERADE for the second.
"""

# ruff: noqa: T201 - printing is how a program of two words answers

from __future__ import annotations

import ctypes
import ctypes.util
import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kilo.dataplane.forwarding import LEGACY_SAVE
from kilo.dataplane.iptables_rules import Line, Place, normalise, split_tables

LOCK = Path("/run/xtables.lock")
"""What every legacy iptables holds while it writes; that of the variable comes first."""
SONAMES = {
    "c": "libc.so.6",
    "xtables": "libxtables.so.12",
    "ip4tc": "libip4tc.so.2",
    "ip6tc": "libip6tc.so.2",
}
"""The libraries that python-iptables looks for, and their names since iptables 1.8."""
WRAPPER = "xtwrapper"
"""That of its own: no program knows where it is, so then it looks beside itself."""
LIBDIR = "XTABLES_LIBDIR"
"""The variable that tells both where iptables' extensions are."""
HEADER = {"-o": "out_interface", "-d": "dst", "-p": "protocol"}
"""The options that are no module's, and what the library calls them."""


class Tables:
    """The tables of one family, each changed in memory until its ``COMMIT``."""

    def __init__(self, library: Any, family: int) -> None:
        self._family = family
        self._make_table = library.Table if family == 4 else library.Table6
        self._make_rule = library.Rule if family == 4 else library.Rule6
        self._make_chain = library.Chain
        self._table: Any = None
        self._found: dict[Place, list[Line]] = {}
        """The rules of the kernel's own chains, without those deleted so far."""

    def carry_out(self, line: str) -> None:
        """One line of the script."""
        words = shlex.split(line)
        match words:
            case ["COMMIT"]:
                self._table.commit()
            case ["-A", chain, *rule]:
                self._find_chain(chain).append_rule(self._build(rule))
            case ["-I", chain, *rule]:
                self._find_chain(chain).insert_rule(self._build(rule))
            case ["-D", chain, *rule]:
                self._delete(chain, tuple(rule))
            case ["-X", chain]:
                self._table.delete_chain(chain)
            case [word, *_] if word.startswith("*"):
                self._open(word[1:])
            case [word, *_] if word.startswith(":"):
                self._empty(word[1:])
            case _:
                raise ValueError(f"not a line of a script: {line}")

    def _open(self, name: str) -> None:
        # Where the library looks for a chain to jump to; it would make the tables that are not
        # there, and every packet pass through them from then on.
        self._make_table.ALL = [name]
        self._table = self._make_table(name, autocommit=False)
        self._table.refresh()

    def _find_chain(self, name: str) -> Any:
        return self._make_chain(self._table, name)

    def _empty(self, name: str) -> None:
        if self._table.is_chain(name):
            self._table.flush_entries(name)
        else:
            self._table.create_chain(name)

    def _build(self, words: list[str]) -> Any:
        """A rule from its words: fields of the header, then modules with their options."""
        rule = self._make_rule()
        module: Any = None
        for word, values in _group(words):
            if word in HEADER:
                setattr(rule, HEADER[word], values[0])
            elif word == "-m":
                module = rule.create_match(values[0])
            elif word == "-j":
                module = rule.create_target(values[0])
            else:
                module.set_parameter(word.removeprefix("--"), values)
        return rule

    def _delete(self, chain: str, rule: Line) -> None:
        """By number, for the library compares only rules that it can build; nobody else's rule
        has got that number meanwhile, because we hold the lock.
        """
        place = (self._table.name, chain)
        rules = self._found.setdefault(place, self._list_rules(place))
        number = rules.index(rule)
        del rules[number]
        table = self._table
        # The library itself never deletes by number.
        removed = table._iptc.iptc_delete_num_entry(  # noqa: SLF001
            chain.encode(),
            number,
            table._handle,  # noqa: SLF001
        )
        if removed != 1:
            raise ValueError(f"can't delete a rule of {chain}: {table.strerror()}")

    def _list_rules(self, place: Place) -> list[Line]:
        table, chain = place
        save = LEGACY_SAVE[self._family].program
        saved = subprocess.run(  # noqa: S603 - one of two programs of fixed name
            [save, "-t", table], capture_output=True, text=True, check=True
        ).stdout
        rules = (shlex.split(line) for _, line in split_tables(saved) if line.startswith("-A"))
        return [normalise(words[2:]) for words in rules if words[1] == chain]


def _group(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with its values."""
    group: list[str] = []
    for word in words:
        if word.startswith("-") and group:
            yield group[0], group[1:]
            group = []
        group.append(word)
    if group:
        yield group[0], group[1:]


@contextmanager
def hold_lock() -> Iterator[None]:
    """Wait for other writers, as they wait for us; whoever started us sets the limit."""
    path = os.environ.get("XTABLES_LOCKFILE") or LOCK
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def import_library() -> Any:
    """python-iptables, which loads libraries as well, of the package iptables.

    To find them it would run a dozen programs, a compiler among them, for each write: half a
    minute on a slow machine. So we find them for it, where they are what they are everywhere now.
    """
    search = ctypes.util.find_library
    ctypes.util.find_library = partial(find_library, search)
    try:
        if LIBDIR not in os.environ and (extensions := find_extensions()):
            os.environ[LIBDIR] = extensions
        # It would do for it, but where setuptools is installed that comes in its place.
        modules: dict[str, Any] = sys.modules
        modules.setdefault("distutils", None)
        import iptc  # noqa: PLC0415 - so that its failure is a line like others
    finally:
        ctypes.util.find_library = search
    return iptc


def find_library(search: Callable[[str], str | None], name: str) -> str | None:
    """What the loader calls a library, by ``search`` if it is none of those we know."""
    if WRAPPER in name:
        return None
    known = SONAMES.get(name)
    return known if known and load_library(known) else search(name)


def load_library(name: str) -> bool:
    """Whether there is one of that name; it is loaded then."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def find_extensions() -> str | None:
    """The directory of iptables' extensions, beside its library."""
    if not load_library(SONAMES["xtables"]):
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        _, slash, rest = line.partition("/")
        path = Path(slash + rest)
        if path.name.startswith(SONAMES["xtables"]):
            directory = path.with_name("xtables")
            return str(directory) if directory.is_dir() else None
    return None


def main() -> int:
    """Carry out standard input; 1 with a line on standard error if that fails."""
    try:
        iptc = import_library()
    except ImportError:
        print("python-iptables: not installed (pip: kilo-mesh[legacy-iptables])", file=sys.stderr)
        return 1
    try:
        with hold_lock():
            tables = Tables(iptc, int(sys.argv[1]))
            for line in sys.stdin.read().splitlines():
                tables.carry_out(line)
    except Exception as error:  # noqa: BLE001 - the library's are many; the agent gets the line
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
