"""What commands have in common: words -> flags, the store that they name, errors in one line.

A command describes itself by a ``Usage`` and hands its work to ``run_command`` or, if all it does
needs the store, to ``run_on_store``.
"""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kilo.backends.base import Backend
from kilo.backends.opening import BackendConfig, open_store
from kilo.errors import ConfigError
from kilo.flags import STRING, Flag, FlagSet, Parsed
from kilo.log import LEVELS, configure
from kilo.mesh.model import Snapshot
from kilo.storeflags import STORE_FLAGS, find_backend

LOG_LEVEL = Flag(
    "log-level", STRING, "warn", "what to log on standard error, as JSON lines", choices=LEVELS
)
COMMON_FLAGS: tuple[Flag[Any], ...] = (LOG_LEVEL, *STORE_FLAGS)
HOME_KUBECONFIG = Path(".kube/config")
"""Below the home directory: where kubectl looks last."""


class UsageError(ConfigError):
    """The words make no command: told in one line, exit status 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A command as its ``--help`` tells of it."""

    command: str
    """All words that call it, ``kgctl apply``."""
    arguments: str = ""
    """What follows them."""
    help: str
    """What it does, in whole sentences."""
    examples: tuple[str, ...] = ()
    """Command lines, without the prompt."""
    flags: tuple[Flag[Any], ...] = ()
    """Its own; the common ones are added."""
    first: tuple[tuple[str, str], ...] = ()
    """What its first argument may be, where that is no name, and what it means: for shells."""
    least: int = 0
    most: int | None = 0
    """How many arguments it takes; None: any number."""

    def parse(self, words: Sequence[str], environ: Mapping[str, str]) -> Parsed:
        """The flags and arguments; ``UsageError``, or ``SystemExit`` once help was printed."""
        try:
            parsed = self._make_flag_set().parse(words, environ)
        except ConfigError as error:
            raise UsageError(str(error)) from error
        if len(parsed.arguments) < self.least:
            raise UsageError(f"an argument is missing; usage: {self._line}")
        return parsed

    @property
    def _line(self) -> str:
        return " ".join(filter(None, (self.command, self.arguments, "[flags]")))

    def _make_flag_set(self) -> FlagSet:
        text = f"{self.help}\n\nUsage:\n  {self._line}"
        if self.examples:
            text += "\n\nExamples:\n" + "\n".join(f"  {example}" for example in self.examples)
        flags = (*self.flags, *COMMON_FLAGS)
        return FlagSet(self.command, flags, text, max_arguments=self.most)


def run_command(usage: Usage, words: Sequence[str], work: Callable[[Parsed], int]) -> int:
    """Do the work; its exit status, or 2 with one line for words that make no command.

    Any other ``KiloError`` is the caller's: ``kgctl`` prints it and ends with 1.
    """
    try:
        parsed = usage.parse(words, os.environ)
        configure(parsed.value(LOG_LEVEL), stream=sys.stderr)
        return work(parsed)
    except UsageError as error:
        print(f"{usage.command}: {error}", file=sys.stderr)
        return 2
    except SystemExit:  # help was asked for, and printed
        return 0


def run_on_store(
    usage: Usage, words: Sequence[str], work: Callable[[Parsed, Backend], Awaitable[int]]
) -> int:
    """Do the work with the store open; see ``run_command``."""
    return run_command(usage, words, lambda parsed: work_on_store(parsed, work))


def work_on_store(parsed: Parsed, work: Callable[[Parsed, Backend], Awaitable[int]]) -> int:
    """Open the store that the flags name, do the work and close it."""
    config = find_store(parsed, os.environ)

    async def work_there() -> int:
        async with open_store(config) as backend:
            return await work(parsed, backend)

    return asyncio.run(work_there())


def find_store(parsed: Parsed, environ: Mapping[str, str]) -> BackendConfig:
    """The store that the flags name; for a cluster, the kubeconfig that kubectl would use."""
    try:
        config = find_backend(parsed)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    if "kubernetes" not in (config.kind, *config.others) or config.kubeconfig or config.master:
        return config
    return replace(config, kubeconfig=find_kubeconfig(environ))


def find_kubeconfig(environ: Mapping[str, str]) -> str:
    """``KUBECONFIG``; else, outside a pod, the one in the home directory; empty if there is none.

    kubectl merges several files. We do not, and say so.
    """
    named = environ.get("KUBECONFIG", "")
    if os.pathsep in named.strip(os.pathsep):
        raise UsageError(f"KUBECONFIG {named!r}: names several files; choose one by --kubeconfig")
    if named or "KUBERNETES_SERVICE_HOST" in environ:
        return named.strip(os.pathsep)
    default = Path(environ.get("HOME", "/root")) / HOME_KUBECONFIG
    return str(default) if default.is_file() else ""


def tell(line: str) -> None:
    """Say it on standard error, beside what is printed for pipes."""
    print(f"kgctl: {line}", file=sys.stderr)


def tell_problems(snapshot: Snapshot) -> None:
    """What the store holds that was left out, one line each."""
    for problem in snapshot.problems:
        tell(str(problem))
