"""The flags that say how the mesh is to be computed, and the mesh computed so."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from kilo.agentflags import collect_settings, find_defaults
from kilo.backends.base import Backend
from kilo.errors import ConfigError, MeshError
from kilo.flags import Flag, Kind, Parsed
from kilo.flagvalues import NETWORKS, PORT
from kilo.kgctl.storing import UsageError, tell, tell_problems
from kilo.mesh.model import Encapsulation, Granularity, Settings, Snapshot
from kilo.mesh.survey import Flags, Survey, make_survey

AUTO = "auto"


def parse_granularity(text: str) -> Granularity | None:
    """None for ``auto``."""
    return None if text == AUTO else Granularity(text)


MESH_FLAGS: tuple[Flag[Any], ...] = (
    Flag(
        "mesh-granularity",
        Kind(word="string", parse=parse_granularity),
        None,
        "how the mesh is cut into segments; auto: as the agents report it",
        choices=(AUTO, *Granularity),
        default_text=AUTO,
    ),
    Flag("port", PORT, Settings().port, "WireGuard's UDP port where a node says none"),
    Flag(
        "service-cidr", NETWORKS, (), "of services: peers may claim nothing inside; as agents have"
    ),
    Flag(
        "subnet",
        NETWORKS,
        Settings().subnets,
        "where WireGuard addresses come from; without it, as the agents report it",
    ),
)


def find_mesh_flags(parsed: Parsed, snapshot: Snapshot) -> Flags:
    """What the flags say of the mesh; ``UsageError`` where they contradict each other.

    Agents of a cluster encapsulate unless told otherwise, and they are so even where the cluster
    was dumped into files.
    """
    try:
        settings = collect_settings(parsed)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    if settings.get("granularity", AUTO) is None:  # auto was asked for in so many words
        del settings["granularity"]
    defaults = find_defaults(parsed)
    if is_cluster(snapshot):
        defaults = replace(defaults, encapsulation=Encapsulation.ALWAYS)
    return Flags(settings=settings, defaults=defaults)


def is_cluster(snapshot: Snapshot) -> bool:
    """Whether nodes of a Kubernetes cluster are in it."""
    return any(node.in_cluster for node in snapshot.nodes)


async def survey_store(parsed: Parsed, backend: Backend) -> Survey:
    """The mesh as the store describes it now; what is wrong or in doubt goes to standard error."""
    snapshot = await backend.snapshot()
    survey = make_survey(snapshot, find_mesh_flags(parsed, snapshot), wall=time.time())
    tell_doubts(survey)
    return survey


def tell_doubts(survey: Survey) -> None:
    """What was left out of the store and what agents do not agree on, one line each."""
    tell_problems(survey.snapshot)
    for doubt in survey.doubts:
        tell(doubt)


def check_node(survey: Survey, name: str) -> None:
    """``MeshError`` that says why the node takes no part, if it does not."""
    if name in survey.absent:
        raise MeshError(f"node {name} takes no part in the mesh: {survey.absent[name]}")
    if not any(node.name == name for node in survey.topology.nodes):
        raise MeshError(f"node {name}: there is no such node in the store")


def check_peer(survey: Survey, name: str) -> None:
    """``MeshError`` that says why the peer takes no part, if it does not."""
    if any(peer.name == name for peer in survey.topology.peers):
        return
    claimant = f"Peer {name}"
    refusals = [str(one) for one in survey.topology.refusals if one.claimant == claimant]
    problems = [str(one) for one in survey.snapshot.problems if one.object == claimant]
    if refusals or problems:
        raise MeshError("; ".join(refusals + problems))
    raise MeshError(f"peer {name}: there is no such peer in the store")
