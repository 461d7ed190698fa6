"""``kgctl graph``: the mesh in DOT."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

from kilo.backends.base import Backend
from kilo.flags import Parsed
from kilo.kgctl.meshing import MESH_FLAGS, survey_store
from kilo.kgctl.storing import Usage, run_on_store
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
    """The whole graph on standard output."""
    survey = await survey_store(parsed, backend)
    print(draw_graph(survey.topology), end="")
    return 0
