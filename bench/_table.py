"""The figures as tables, in Markdown."""

# ruff: noqa: T201 - printing is what a benchmark does

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CHANGES = {
    "join": "a node joins",
    "leave": "a node leaves",
    "leader_changed": "a leader changes",
    "peer_added": "a peer is added",
}


def print_tables(figures: Sequence[Mapping[str, Any]]) -> None:
    """Start, changes, rest."""
    print("\n## From the start to a complete dataplane\n")
    print_table(
        "store | nodes | leader | CPU beyond imports | imports | its tools | wall"
        " | writes | kernel's own | times that | MiB after | MiB most",
        (list_start(one) for one in figures),
    )
    print("\n## Changes\n")
    print_table(
        "store | nodes | leader | what | p50 | p99 | CPU each | writes each | passes each"
        " | store calls each",
        (list_change(one, name) for one in figures for name in CHANGES if name in one),
    )
    print("\n## At rest, all other nodes checking in every 30 s\n")
    print_table(
        "store | nodes | leader | CPU of a core | passes a minute | store calls a minute"
        " | CPU of a pass without change | its writes | an hour of check-ins",
        (list_rest(one) for one in figures),
    )


def print_table(header: str, rows: Any) -> None:
    """A table of Markdown; ``header`` has a name a column."""
    print(f"| {header} |")
    print("|" + " --- |" * (header.count("|") + 1))
    for row in rows:
        print(f"| {' | '.join(row)} |")


def list_start(one: Mapping[str, Any]) -> list[str]:
    own = one["start_cpu_seconds"] - one["imports_cpu_seconds"]
    limit = one.get("limit", {}).get("cpu_seconds")
    return [
        *name(one),
        f"{own:.2f} s",
        f"{one['imports_cpu_seconds']:.2f} s",
        f"{one['start_tools_cpu_seconds']:.2f} s",
        f"{one['start_seconds']:.1f} s",
        f"{one['start_writes']:,.0f}",
        f"{limit:.3f} s" if limit else "",
        f"{(own + one['start_tools_cpu_seconds']) / limit:.0f}" if limit else "",
        f"{one['start_memory_mib']['now']:.0f}",
        f"{one['memory_mib']['peak']:.0f}",
    ]


def list_change(one: Mapping[str, Any], which: str) -> list[str]:
    change = one[which]
    return [
        *name(one),
        CHANGES[which],
        show_ms(change["p50_seconds"]),
        show_ms(change["p99_seconds"]),
        show_ms(change["cpu_seconds"]),
        f"{change['writes']:.1f}",
        f"{change['passes']:.1f}",
        list_calls(change, 1.0),
    ]


def list_rest(one: Mapping[str, Any]) -> list[str]:
    rest, idle, beats = one["rest"], one["no_change"], one.get("beats")
    minutes = 60.0 / rest["seconds"]
    return [
        *name(one),
        f"{100 * rest['cpu_share']:.1f} %",
        f"{rest['passes'] * minutes:.1f}",
        list_calls(rest, minutes),
        show_ms(idle["cpu_seconds"]),
        f"{idle['writes']:.0f}",
        f"{beats['cpu_seconds_an_hour']:.0f} s of CPU, {beats['passes']:.0f} passes"
        if beats
        else "",
    ]


def name(one: Mapping[str, Any]) -> list[str]:
    """The first columns of every row."""
    return [one["store"], f"{one['nodes']:,}", "yes" if one["leads"] else "no"]


def list_calls(counts: Mapping[str, float], times: float) -> str:
    """The calls among the counts."""
    calls = {key.removeprefix("calls "): n for key, n in counts.items() if key.startswith("calls ")}
    return ", ".join(f"{call} {n * times:.1f}" for call, n in sorted(calls.items()))


def show_ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
