"""What the pure core costs alone: topology and rendering, and the comparison with the kernel.

    python bench/core.py [--json FILE] [--quick]

No store, no kernel: values in, values out. What is printed is CPU time, the best of three.
"""

# ruff: noqa: T201 - printing is what a benchmark does

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from _fleet import Fleet, make_snapshot, name_node

from kilo.mesh.diff import diff
from kilo.mesh.host import HostAddress, HostFacts
from kilo.mesh.model import Settings
from kilo.mesh.render import render
from kilo.mesh.state import DataplaneState
from kilo.mesh.topology import build_topology
from kilo.mesh.view import Observations, RenderOptions

FLEETS = tuple(
    Fleet(nodes=nodes, locations=locations, leads=leads)
    for nodes, locations in ((1_000, 30), (10_000, 1_000))
    for leads in (True, False)
)
TIMES = 3

Result = TypeVar("Result")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="1,000 nodes only")
    words = parser.parse_args()
    print(f"{'':52} topology  render  compare: nothing, all, one node   objects")
    figures = [measure(fleet) for fleet in FLEETS if not words.quick or fleet.nodes <= 1_000]
    if words.json:
        words.json.write_text(json.dumps({"core": figures}, indent=1) + "\n")


def measure(fleet: Fleet) -> dict[str, float | str]:
    """Print one line of figures, and return them."""
    snapshot = make_snapshot(fleet)
    nodes, peers, settings = snapshot.nodes, snapshot.peers, Settings()
    topology, topology_seconds = clock(lambda: build_topology(nodes, peers, settings))
    state, render_seconds = clock(
        lambda: render(
            topology,
            name=name_node(0),
            host=make_facts(),
            options=RenderOptions(),
            observations=Observations(),
        )
    )
    again = copy_state(state)
    _, same_seconds = clock(lambda: diff(again, state))
    changes, all_seconds = clock(lambda: diff(DataplaneState(), state))
    less = replace(state, routes=frozenset(list(state.routes)[2:]))
    _, one_seconds = clock(lambda: diff(less, state))
    print(
        f"{fleet!s:52} {topology_seconds:6.2f} s {render_seconds:5.2f} s"
        f" {same_seconds:11.2f} s {all_seconds:5.2f} s {one_seconds:5.2f} s {len(changes):15,}"
    )
    return {
        "fleet": str(fleet),
        "topology_seconds": topology_seconds,
        "render_seconds": render_seconds,
        "diff_nothing_seconds": same_seconds,
        "diff_all_seconds": all_seconds,
        "diff_one_node_seconds": one_seconds,
        "objects": len(changes),
    }


def make_facts() -> HostFacts:
    """Of node 0."""
    return HostFacts(
        addresses=(HostAddress(link="eth0", interface=INTERFACE),),
        mtus={"eth0": 1500},
        default_links=("eth0",),
    )


INTERFACE = next(iter(make_snapshot(Fleet(nodes=1, locations=1)).nodes)).internal_ips[0]


def copy_state(state: DataplaneState) -> DataplaneState:
    """An equal state none of whose parts is the same object, as what is read from a kernel."""
    return replace(
        state,
        routes=frozenset(
            replace(route, destination=type(route.destination)(str(route.destination)))
            for route in state.routes
        ),
        peers=frozenset(
            replace(peer, allowed_ips=frozenset(type(net)(str(net)) for net in peer.allowed_ips))
            for peer in state.peers
        ),
    )


def clock(work: Callable[[], Result]) -> tuple[Result, float]:
    """What it returns, and the seconds of CPU that it took at best."""
    best, result = float("inf"), work()
    for _ in range(TIMES):
        gc.collect()
        started_at = time.process_time()
        result = work()
        best = min(best, time.process_time() - started_at)
    return result, best


if __name__ == "__main__":
    main()
