"""Flags that stand before the command, ``kgctl --kubeconfig=C graph``, as scripts made for Kilo
have them.
"""

from __future__ import annotations

from collections.abc import Sequence

from kilo.errors import ConfigError
from kilo.flags import FlagSet
from kilo.kgctl.meshing import MESH_FLAGS
from kilo.kgctl.storing import COMMON_FLAGS, UsageError

GLOBAL_FLAGS = FlagSet("kgctl", (*COMMON_FLAGS, *MESH_FLAGS), "", interspersed=False)


def move_flags(words: Sequence[str]) -> list[str]:
    """The words with the command first; ``UsageError`` where there is none, or for flags that
    belong behind it.
    """
    try:
        rest = GLOBAL_FLAGS.parse(words, {}).arguments
    except ConfigError as error:
        raise UsageError(f"before the command: {error}") from error
    if not rest:
        raise UsageError("flags, and no command; kgctl --help lists the commands")
    flags = words[: len(words) - len(rest)]
    return [rest[0], *flags, *rest[1:]]
