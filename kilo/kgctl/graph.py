"""``kgctl graph``: the mesh in DOT."""

from __future__ import annotations

import sys

from kilo.backends.base import Backend
from kilo.flags import Parsed
from kilo.graphviz import CIRCO_EDGES, MAX_EDGES, count_edges
from kilo.kgctl.meshing import MESH_FLAGS, survey_store
from kilo.kgctl.storing import Usage, run_on_store, tell
from kilo.mesh.graph import draw_graph

USAGE = Usage(
    command="kgctl graph",
    help="Prints the mesh in DOT, the language of Graphviz: a cluster a segment, its nodes around"
    " the\nleader, the leaders joined with each other, the peers dashed.",
    examples=(
        "kgctl graph | circo -Tsvg > mesh.svg",
        "kgctl --backend=file --directory=mesh graph | twopi -Tpng > mesh.png",
    ),
    flags=MESH_FLAGS,
)


def run(words: list[str]) -> int:
    """Print it."""
    return run_on_store(USAGE, words, print_graph)


async def print_graph(parsed: Parsed, backend: Backend) -> int:
    """The whole graph on standard output; on standard error, what will be hard to draw."""
    survey = await survey_store(parsed, backend)
    topology = survey.topology
    edges = count_edges(len(topology.segments), len(topology.peers))
    if edges > MAX_EDGES:
        tell(f"{edges} lines are too many for a picture; an agent shows the mesh at /")
    elif edges > CIRCO_EDGES:
        tell(f"circo takes very long for {edges} lines; twopi does not")
    # In one piece: of a large mesh it has many megabytes.
    sys.stdout.write(draw_graph(topology))
    return 0
