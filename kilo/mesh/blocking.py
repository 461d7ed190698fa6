"""Forwarded packets of the mesh that other programs' chains drop, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from kilo.mesh.host import ForwardDrop
from kilo.mesh.sysctls import find_behind
from kilo.mesh.view import View


def list_blocked(view: View) -> Iterator[str]:
    """The chains that may keep this node from forwarding, a line each."""
    for drop in view.host.forward_drops:
        behind = next(filter(None, (find_behind(view, f) for f in sorted(drop.families))), None)
        if behind and not (view.options.forward_rules and drop.overruled):
            yield (
                f"{drop.chain} drops forwarded packets unless one of its rules accepts them:"
                f" {behind} may not be reached through this node; {_advise(drop)}"
            )


def _advise(drop: ForwardDrop) -> str:
    if drop.overruled:
        return "give --iptables-forward-rules"
    return "accept them there, for rules of other tables cannot"
