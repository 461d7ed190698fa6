"""``kgctl status``: the mesh on one screen, as this host's agent sees it, or as the store does."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from kilo.backends.base import Backend
from kilo.errors import KiloError
from kilo.flags import BOOL, STRING, Flag, Kind, Parsed
from kilo.kgctl.asking import DEFAULT_AGENT, SilentAgentError, ask_agent, parse_agent
from kilo.kgctl.meshing import MESH_FLAGS, find_mesh_flags
from kilo.kgctl.statustext import choose_paint, list_lines
from kilo.kgctl.storing import Usage, run_command, tell, work_on_store
from kilo.mesh.overview import Overview, Told, describe_mesh
from kilo.mesh.survey import make_survey
from kilo.storeflags import STORE_FLAGS

WATCH_SECONDS = 2.0
CLEAR = "\x1b[H\x1b[J"
"""Back to the top of a terminal, and nothing below."""

AGENT = Flag(
    "agent", Kind(word="URL", parse=parse_agent), DEFAULT_AGENT, "the agent to ask over HTTP"
)
OUTPUT = Flag("output", STRING, "text", "how to print it", choices=("text", "json"), short="o")
WATCH = Flag("watch", BOOL, default=False, help="show it again every two seconds", short="w")

USAGE = Usage(
    command="kgctl status",
    help="Shows the mesh: a line a segment and a line a peer, who takes no part and why, what is"
    " refused.\n\n"
    "This host's agent is asked, who knows of handshakes and bytes. Without one, or where a flag"
    " names\na store, the store is, which knows of neither. Ends with 1 if the agent is not ready.",
    examples=(
        "kgctl status --watch",
        "kgctl status --agent=http://192.168.1.11:1107 -o json",
        "kgctl status --kubeconfig=cluster.conf",
    ),
    flags=(AGENT, OUTPUT, WATCH, *MESH_FLAGS),
)


def run(words: Sequence[str]) -> int:
    """Run the command; its exit status."""
    return run_command(USAGE, words, show)


def show(parsed: Parsed) -> int:
    """Show it, once or until somebody has seen enough."""
    if not parsed.value(WATCH):
        return show_once(parsed)
    while True:
        try:
            show_once(parsed)
        except KiloError as error:
            tell(str(error))  # it may be back in a moment
        time.sleep(WATCH_SECONDS)


def show_once(parsed: Parsed) -> int:
    """Print the screen; the exit status."""
    view = find_overview(parsed)
    if parsed.value(OUTPUT) == "json":
        text = json.dumps(view, indent=2)
    else:
        text = "\n".join(list_lines(view, choose_paint()))
    # In one piece, so that nothing flickers.
    print(f"{CLEAR if parsed.value(WATCH) and sys.stdout.isatty() else ''}{text}", flush=True)
    agent = view["agent"]
    return 0 if agent is None or agent["ready"] else 1


def find_overview(parsed: Parsed) -> Overview:
    """What the agent tells, or the store.

    Who names an agent wants that one, and who names a store wants to know what is in it.
    """
    names_store = any(parsed.given(flag.name) for flag in (*STORE_FLAGS, *MESH_FLAGS))
    if parsed.given(AGENT.name) or not names_store:
        try:
            return ask_agent(parsed.value(AGENT))
        except SilentAgentError as error:
            if parsed.given(AGENT.name):
                raise
            tell(f"{error}; asking the store")
    found: list[Overview] = []

    async def look(parsed: Parsed, backend: Backend) -> int:
        found.append(await survey_overview(parsed, backend))
        return 0

    work_on_store(parsed, look)
    return found[0]


async def survey_overview(parsed: Parsed, backend: Backend) -> Overview:
    """The mesh as the store describes it now."""
    wall, snapshot = time.time(), await backend.snapshot()
    survey = make_survey(snapshot, find_mesh_flags(parsed, snapshot), wall=wall)
    return describe_mesh(
        survey.snapshot,
        survey.topology,
        Told(at=wall),
        absent=survey.absent,
        doubts=survey.doubts,
    )
