"""Scripts that teach a shell a program's commands, flags and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from kilo.errors import ConfigError
from kilo.flags import Flag, FlagSet


def write_completion(flag_set: FlagSet, shell: str) -> str:
    """The script for one of ``SHELLS``; raises ``ConfigError`` for any other."""
    if shell not in SHELLS:
        raise ConfigError(f"shell {shell!r}: possible values are {', '.join(SHELLS)}")
    return "\n".join(SHELLS[shell](flag_set)) + "\n"


def _write_bash(flag_set: FlagSet) -> Iterator[str]:
    # Bash breaks words at "=", so the value of --flag=value comes one or two words after it.
    function = f"_{flag_set.program.replace('-', '_')}"
    words = [*(f"--{flag.name}" for flag in flag_set.flags), "--help", *flag_set.commands]
    yield f"{function}() {{"
    yield '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"'
    yield '  if [[ $current == "=" ]]; then current=""'
    yield '  elif [[ $previous == "=" ]]; then previous="${COMP_WORDS[COMP_CWORD-2]}"; fi'
    yield "  case $previous in"
    for flag in flag_set.flags:
        if flag.choices:
            yield f"    {_bash_names(flag)}) {_bash_reply(' '.join(flag.choices))}; return ;;"
    yield "  esac"
    yield f"  {_bash_reply(' '.join(words))}"
    yield "}"
    yield f"complete -o default -F {function} {flag_set.program}"


def _bash_names(flag: Flag[Any]) -> str:
    return f"--{flag.name}|-{flag.short}" if flag.short else f"--{flag.name}"


def _bash_reply(words: str) -> str:
    return f'COMPREPLY=($(compgen -W "{words}" -- "$current"))'


def _write_zsh(flag_set: FlagSet) -> Iterator[str]:
    yield f"#compdef {flag_set.program}"
    yield "_arguments \\"
    for flag in flag_set.flags:
        values = f"({' '.join(flag.choices)})" if flag.choices else "_files"
        value = "" if flag.kind.bare is not None else f":{flag.name}:{values}"
        equals = "" if flag.kind.bare is not None else "="
        yield f"  {_quote(f'*--{flag.name}{equals}[{_escape(flag.help)}]{value}')} \\"
    if flag_set.commands:
        commands = " ".join(flag_set.commands)
        yield f"  {_quote(f'1:command:({commands})')} \\"
    yield "  '(- *)--help[print this and exit]'"


def _escape(text: str) -> str:
    """For the inside of zsh's brackets."""
    return text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def _write_fish(flag_set: FlagSet) -> Iterator[str]:
    complete = f"complete -c {flag_set.program}"
    for name, text in flag_set.commands.items():
        yield f"{complete} -n __fish_use_subcommand -a {name} -d {_quote(text)}"
    for flag in flag_set.flags:
        short = f" -s {flag.short}" if flag.short else ""
        values = f" -x -a {_quote(' '.join(flag.choices))}" if flag.choices else ""
        needs = " -r" if flag.kind.bare is None and not flag.choices else ""
        yield f"{complete} -l {flag.name}{short} -d {_quote(flag.help)}{values}{needs}"
    yield f"{complete} -l help -s h -d 'print this and exit'"


def _quote(text: str) -> str:
    """In single quotes, for every shell here."""
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS: Mapping[str, Callable[[FlagSet], Iterator[str]]] = MappingProxyType(
    {"bash": _write_bash, "zsh": _write_zsh, "fish": _write_fish}
)
