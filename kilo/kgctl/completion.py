"""``kgctl completion``: the script that teaches a shell to complete ``kgctl``'s command lines."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

from collections.abc import Sequence

from kilo.flags import Parsed
from kilo.kgctl.shells import SHELLS
from kilo.kgctl.storing import Usage, UsageError, run_command

USAGE = Usage(
    command="kgctl completion",
    arguments="bash|zsh|fish",
    help="Prints the script that teaches a shell to complete kgctl's commands, flags and their"
    " values, and the\nnames of nodes and peers, which are asked of the store that the line or the"
    " environment names.\nA store that does not answer in 1.5 s has none.",
    examples=(
        "kgctl completion bash > /etc/bash_completion.d/kgctl",
        'kgctl completion zsh > "${fpath[1]}/_kgctl"',
        "kgctl completion fish > ~/.config/fish/completions/kgctl.fish",
    ),
    first=tuple((shell, "") for shell in SHELLS),
    least=1,
    most=1,
)


def run(words: Sequence[str]) -> int:
    """Print it; the exit status."""
    return run_command(USAGE, words, print_script)


def print_script(parsed: Parsed) -> int:
    """For the shell that is named."""
    (shell,) = parsed.arguments
    if shell not in SHELLS:
        raise UsageError(f"{shell!r}: is not one of {', '.join(SHELLS)}")
    print(SHELLS[shell], end="")
    return 0
