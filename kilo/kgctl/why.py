"""``kgctl why``: the way of a packet from one to another and back, and what would stop it."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kilo.backends.base import Backend
from kilo.daemonthread import run_in_daemon_thread
from kilo.dryrun import resolve_names
from kilo.flags import BOOL, Flag, Parsed
from kilo.flagvalues import PORT
from kilo.kgctl.agentoptions import AGENT_FLAGS, find_options
from kilo.kgctl.asking import SilentAgentError, ask_agent
from kilo.kgctl.meshing import MESH_FLAGS, check_node, check_peer, survey_store
from kilo.kgctl.printing import describe_age
from kilo.kgctl.storing import Usage, run_on_store
from kilo.mesh.foretell import Hosts
from kilo.mesh.model import Node
from kilo.mesh.overview import Overview, TunnelView
from kilo.mesh.path import Hop, Place, Tracer, Way, find_places, name_device
from kilo.mesh.roaming import SESSION_SECONDS
from kilo.mesh.survey import Survey

ASK = Flag(
    "ask", BOOL, default=False, help="ask the agents on the way how they fare, over the mesh itself"
)
ASK_PORT = Flag("ask-port", PORT, 1107, "with --ask: where agents listen (their --listen)")

USAGE = Usage(
    command="kgctl why",
    arguments="FROM TO",
    help="Shows the way of a packet from one node, peer or address to another and of the answer"
    " back:\nroutes, tunnels, allowed IPs, hop by hop, and the first thing that would stop it.\n\n"
    "Ends with 1 if either is stopped. node/NAME and peer/NAME tell two of one name apart.",
    examples=(
        "kgctl why a1 b2",
        "kgctl why peer/laptop 10.2.3.7",
        "kgctl why a1 b2 --ask",
    ),
    flags=(ASK, ASK_PORT, *MESH_FLAGS, *AGENT_FLAGS),
    least=2,
    most=2,
)


def run(words: Sequence[str]) -> int:
    """Run the command; its exit status."""
    return run_on_store(USAGE, words, explain)


async def explain(parsed: Parsed, backend: Backend) -> int:
    """Print both ways; 1 if either is stopped."""
    survey = await survey_store(parsed, backend)
    hosts = Hosts(
        options=find_options(parsed, survey.snapshot),
        resolved=await resolve_names(survey.snapshot),
    )
    tracer = Tracer(survey, hosts)
    for text in parsed.arguments:
        check_end(survey, text)
    source, destination = find_places(survey.topology, *parsed.arguments)
    there, back = trace_both(tracer, source, destination)
    told = await ask_agents(parsed, survey, (there, back)) if parsed.value(ASK) else {}
    for title, way, to in (("there", there, destination), ("back", back, source)):
        print(f"{title}: from {way.source} to {name_device(to.device)}")
        print("\n".join(f"  {line}" for line in list_lines(way, told)))
    return 1 if there.stop or back.stop else 0


def check_end(survey: Survey, text: str) -> None:
    """``MeshError`` that says why what is named takes no part, if it does not."""
    kind, _, name = text.rpartition("/")
    if kind != "peer" and any(node.name == name for node in survey.snapshot.nodes):
        check_node(survey, name)
    elif kind != "node" and any(peer.name == name for peer in survey.snapshot.peers):
        check_peer(survey, name)


def trace_both(tracer: Tracer, source: Place, destination: Place) -> tuple[Way, Way]:
    """The answer goes to the address that the packet came from."""
    there = tracer.trace(source, destination)
    asked = Place(device=destination.device, address=destination.address, is_host=False)
    asker = Place(device=source.device, address=there.source, is_host=False)
    return there, tracer.trace(asked, asker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an agent on the way says, or why it does not."""

    overview: Overview | None = None
    silence: str = ""


async def ask_agents(parsed: Parsed, survey: Survey, ways: Iterable[Way]) -> Mapping[str, Answer]:
    """Device -> what its agent says; all are asked at the same time."""
    names = {hop.at for way in ways for hop in way.hops}
    nodes = [node for node in survey.topology.nodes if name_device(node) in names]
    port = parsed.value(ASK_PORT)
    answers = await asyncio.gather(*(_ask(node, port) for node in nodes))
    return {name_device(node): answer for node, answer in zip(nodes, answers, strict=True)}


async def _ask(node: Node, port: int) -> Answer:
    address = next((one.ip for one in node.internal_ips), node.endpoint and node.endpoint.ip)
    if not address:
        return Answer(silence="its agent's address is not known")
    host = f"[{address}]" if address.version == 6 else str(address)
    try:
        url = f"http://{host}:{port}"
        return Answer(overview=await run_in_daemon_thread("asking", lambda: ask_agent(url)))
    except SilentAgentError as error:
        return Answer(silence=str(error))


def list_lines(way: Way, told: Mapping[str, Answer]) -> Iterator[str]:
    """A line a hop, with what may be wrong there below it."""
    for hop in way.hops:
        yield f"{hop.at}: {hop.line}"
        yield from (f"  ? {doubt}" for doubt in list_doubts(hop, told.get(hop.at)))
    yield f"stopped: {way.stop}" if way.stop else "arrives"


def list_doubts(hop: Hop, answer: Answer | None) -> Iterator[str]:
    """What the store gives to think about the hop, and what its agent says."""
    if hop.doubt:
        yield hop.doubt
    if answer is None:
        return
    if answer.overview is None or answer.overview["agent"] is None:
        yield answer.silence
        return
    agent = answer.overview["agent"]
    yield from (f"its agent is not ready: {reason}" for reason in agent["reasons"])
    yield from agent["warnings"]
    if hop.key is not None:
        yield from _judge_tunnel(find_tunnel(answer.overview, str(hop.key)), answer.overview["at"])


def _judge_tunnel(tunnel: TunnelView | None, at: float) -> Iterator[str]:
    if tunnel is None:
        yield "its device has no such tunnel"
    elif not tunnel["latestHandshake"]:
        yield "there was no handshake in this tunnel yet"
    elif at - tunnel["latestHandshake"] >= SESSION_SECONDS:
        age = describe_age(at - tunnel["latestHandshake"])
        yield f"the last handshake in this tunnel was {age} ago: idle, or cut since"


def find_tunnel(view: Overview, key: str) -> TunnelView | None:
    """What the agent's device has measured of the device with that key."""
    for segment in view["segments"]:
        leader = next(node for node in segment["nodes"] if node["name"] == segment["leader"])
        if leader["publicKey"] == key:
            return segment["tunnel"]
    return next((peer["tunnel"] for peer in view["peers"] if peer["publicKey"] == key), None)
