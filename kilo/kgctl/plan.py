"""``kgctl plan``: what documents would change on each node, before anybody writes them."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kilo.backends.base import Backend
from kilo.backends.objects import Found, join_objects
from kilo.dryrun import resolve_names
from kilo.errors import ConfigError
from kilo.flags import STRING, STRINGS, Flag, Parsed
from kilo.kgctl.agentoptions import AGENT_FLAGS, find_options
from kilo.kgctl.meshing import MESH_FLAGS, find_mesh_flags, tell_doubts
from kilo.kgctl.overlay import overlay
from kilo.kgctl.reading import FILENAMES, read_sources
from kilo.kgctl.storing import Usage, UsageError, run_command, tell, work_on_store
from kilo.mesh.foretell import Foretold, Hosts, foretell
from kilo.mesh.survey import Survey, make_survey

UNCHANGED, FAILED, CHANGED = 0, 1, 2
OUTPUT = Flag("output", STRING, "text", "how to print it", choices=("text", "json"), short="o")
NODES = Flag("node", STRINGS, (), "tell only of these nodes", placeholder="NAMES")

USAGE = Usage(
    command="kgctl plan",
    arguments="-f FILE|DIR|-",
    help="Prints what every node's agent would change if these documents were written: tunnels,"
    " routes,\naddresses, the firewall, and whose sessions would be cut. Writes nothing.\n\n"
    "Documents stand in for the objects of their kind and name; all others stay as they are.\n"
    "Ends with 2 if anything would change, with 0 if nothing would, with 1 if that cannot be told.",
    examples=(
        "kgctl plan -f peer.yaml",
        "kubectl get node a1 -o yaml | sed s/oregon/utah/ | kgctl plan -f -",
        "kgctl plan -f mesh/ -o json | jq .cutSessions",
    ),
    flags=(FILENAMES, NODES, OUTPUT, *MESH_FLAGS, *AGENT_FLAGS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """What would become of the whole mesh."""

    nodes: tuple[Foretold, ...]
    """Those that would change, and those of which it is worth saying why they would not."""
    refusals: tuple[str, ...]
    """Claims of the documents that would not be granted."""
    size: int
    """How many nodes take part."""

    @property
    def changing(self) -> int:
        """How many nodes change."""
        return sum(1 for one in self.nodes if one.changes)

    @property
    def cut(self) -> list[tuple[str, ...]]:
        """The two ends of each session that ends."""
        ends = {tuple(sorted((f"node {one.node}", end))) for one in self.nodes for end in one.cut}
        return sorted(ends)


def run(words: Sequence[str]) -> int:
    """Run the command; its exit status. Wrong usage is 1 here: 2 means that there is a change."""
    done: list[int] = []

    def work(parsed: Parsed) -> int:
        found = read_documents(parsed)
        done.append(work_on_store(parsed, lambda parsed, store: print_plan(parsed, store, found)))
        return done[0]

    status = run_command(USAGE, words, work)
    return FAILED if status and not done else status


def read_documents(parsed: Parsed) -> list[Found]:
    """The objects of ``-f``; ``ConfigError`` names what is wrong with them."""
    names = parsed.value(FILENAMES)
    if not names:
        raise UsageError("-f: is missing: the documents")
    reading = read_sources(names, topology_label=parsed.values["topology-label"])
    problems = join_objects(reading.found, reading.problems).problems
    if problems:
        for problem in problems:
            tell(str(problem))
        raise ConfigError(f"nothing is foretold: {len(problems)} problems with the documents")
    if not reading.found:
        raise ConfigError(f"no document in {', '.join(names)}")
    return reading.found


async def print_plan(parsed: Parsed, backend: Backend, found: Sequence[Found]) -> int:
    """Tell what would change; the exit status says whether anything would."""
    snapshot = await backend.snapshot()
    flags, options = find_mesh_flags(parsed, snapshot), find_options(parsed, snapshot)
    wall = time.time()
    before = make_survey(snapshot, flags, wall=wall)
    tell_doubts(before)
    laid_over = overlay(snapshot, found, now=int(wall))
    after = make_survey(laid_over, flags, wall=wall, evident=before.evident)
    hosts = Hosts(options=options, resolved=await resolve_names(laid_over))
    only: tuple[str, ...] = parsed.value(NODES)
    foretold = list(foretell(before, after, hosts, only=only))
    named = {*only, *(one.name for one in found if one.kind != "Peer")}
    sight = judge(before, after, foretold, named)
    if parsed.value(OUTPUT) == "json":
        print(json.dumps(describe(sight), indent=2))
    else:
        print("\n".join(list_lines(sight)))
    return CHANGED if sight.changing else UNCHANGED


def judge(
    before: Survey, after: Survey, foretold: Sequence[Foretold], named: set[str]
) -> Foresight:
    """All that is worth telling; ``named`` are the nodes that somebody asks about."""
    told = {node.name for node in before.topology.nodes} | named
    known = set(map(str, before.topology.refusals))
    return Foresight(
        nodes=tuple(one for one in foretold if one.changes or (one.note and one.node in told)),
        refusals=tuple(r for r in map(str, after.topology.refusals) if r not in known),
        size=sum(1 for _ in after.topology.nodes),
    )


def list_lines(sight: Foresight) -> Iterator[str]:
    """For people."""
    for one in sight.nodes:
        if one.note:
            yield f"node {one.node}: {one.note}"
            continue
        yield f"node {one.node}:"
        yield from (f"  {change}" for change in one.changes)
        yield from (f"  cuts the session with {end}" for end in one.cut)
    yield from sight.refusals
    if not sight.changing:
        yield "nothing changes"
        return
    sessions = "1 session is" if len(sight.cut) == 1 else f"{len(sight.cut)} sessions are"
    yield f"{sight.changing} of {sight.size} nodes would change, {sessions} cut"


def describe(sight: Foresight) -> dict[str, object]:
    """For programs."""
    return {
        "changed": bool(sight.changing),
        "nodes": [
            {
                "name": one.node,
                "changes": list(map(str, one.changes)),
                "cuts": list(one.cut),
                "note": one.note,
            }
            for one in sight.nodes
        ],
        "cutSessions": sight.cut,
        "refusals": list(sight.refusals),
    }
