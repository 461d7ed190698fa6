"""What one agent costs: a real one, in a namespace, for every store and size of mesh.

    sudo python bench/agent.py [--quick] [--store NAME ...] [--nodes N ...] [--json FILE]

A real WireGuard, firewall and routes, and a real store: a directory, an etcd, an API server. All
other nodes check in every 30 s meanwhile, as theirs do. What is charged is the agent's process and
the programs that it starts, neither the store nor wireguard-go. Runs in namespaces of its own, so
that nothing of the machine is touched.
"""

# ruff: noqa: T201 - printing is what a benchmark does

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from _fleet import Fleet
from _host import INSIDE, ROOT, enter_namespaces, make_network
from _phases import Figures, Plan, measure_fleet
from _stores import STORES
from _table import print_tables

from kilo.errors import LabError

SIZES = {100: 10, 300: 10, 1_000: 30, 5_000: 100}
"""Nodes -> locations."""
REFERENCE_NODES = 1_000
"""Of which the targets speak: measured longer than the others."""
LONG = Plan(changes=100, rest_seconds=35.0, pass_seconds=12.0, beat_seconds=12.0)
SHORT = Plan(changes=5, rest_seconds=5.0, pass_seconds=5.0, beat_seconds=0.0)
QUICK = Plan(changes=10, rest_seconds=8.0, pass_seconds=8.0, beat_seconds=5.0)


def main() -> None:
    """Measure and print."""
    if INSIDE not in os.environ:
        if os.geteuid() != 0:
            sys.exit("bench/agent.py needs root, for namespaces of its own")
        enter_namespaces()
    words = parse_words()
    make_network()
    figures: list[Figures] = []
    for store in words.store:
        for nodes in words.nodes:
            for fleet in choose_fleets(nodes):
                try:
                    figures.append(measure(store, fleet, words))
                except (LabError, OSError) as error:  # no API server on this machine, say
                    print(f"{store}, {fleet}: not measured: {error}", file=sys.stderr)
                if words.json:  # at once: all of them take the better part of an hour
                    words.json.write_text(json.dumps({"agent": figures}, indent=1) + "\n")
    print_tables(figures)


def parse_words() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100 nodes, and less of each")
    parser.add_argument("--store", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--nodes", nargs="+", type=int, choices=SIZES, default=None)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--code", type=Path, default=ROOT, help="the tree whose agent is measured")
    words = parser.parse_args()
    if words.nodes is None:
        words.nodes = [min(SIZES)] if words.quick else list(SIZES)
    return words


def choose_fleets(nodes: int) -> tuple[Fleet, Fleet]:
    """With the own host as a leader, and without."""
    leading = Fleet(nodes=nodes, locations=SIZES[nodes])
    return leading, Fleet(nodes=nodes, locations=SIZES[nodes], leads=False)


def measure(store: str, fleet: Fleet, words: argparse.Namespace) -> Figures:
    """One row of the tables."""
    print(f"{store}: {fleet}", file=sys.stderr, flush=True)
    plan = QUICK if words.quick else LONG if fleet.nodes == REFERENCE_NODES else SHORT
    if not fleet.leads and plan is LONG:
        plan = SHORT
    with tempfile.TemporaryDirectory() as directory, STORES[store](Path(directory)) as opened:
        opened.fill(fleet)
        return measure_fleet(opened, fleet, plan, directory=Path(directory), code=words.code)


if __name__ == "__main__":
    main()
