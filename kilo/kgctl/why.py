"""``kgctl why``: the way of a packet from one to another and back, and what would stop it."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kilo.backends.base import Backend
from kilo.daemonthread import run_in_daemon_thread
from kilo.dryrun import resolve_names
from kilo.flags import BOOL, Flag, Parsed
from kilo.flagvalues import PORT
from kilo.kgctl.agentoptions import AGENT_FLAGS, find_options
from kilo.kgctl.asking import SilentAgentError, ask_agent
from kilo.kgctl.meshing import MESH_FLAGS, check_node, check_peer, survey_store
from kilo.kgctl.printing import describe_age
from kilo.kgctl.storing import Usage, run_on_store, tell
from kilo.kgctl.thishost import ThisHost, find_this_host
from kilo.mesh.foretell import Hosts
from kilo.mesh.model import Node
from kilo.mesh.overview import Overview, TunnelView
from kilo.mesh.path import Hop, Tracer, Way
from kilo.mesh.places import Place, find_absent_owner, find_places, name_device
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
    "On a node of the mesh, as root, its kernel is read; others' are taken to be what their agents"
    " make.\nEnds with 1 if either way is stopped. node/NAME and peer/NAME tell two of one name"
    " apart.",
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
    for text in parsed.arguments:
        check_end(survey, text)
    source, destination = find_places(survey.topology, *parsed.arguments)
    here = await find_this_host(survey.topology, hosts.options)
    kernels = {here.node.name: here.kernel} if here else {}
    ways = trace_both(Tracer(survey, hosts, kernels=kernels), source, destination)
    told = await ask_agents(parsed, survey, ways) if parsed.value(ASK) else {}
    told = add_own(told, here) if here else told
    there, back = (stop_at_refusal(way, told) for way in ways)
    for title, way, to in (("there", there, destination), ("back", back, source)):
        print(f"{title}: from {way.source} to {name_device(to.device)}")
        print("\n".join(f"  {line}" for line in list_lines(way, told)))
    return 1 if there.stop or back.stop else 0


def check_end(survey: Survey, text: str) -> None:
    """``MeshError`` that says why what is named takes no part, if it does not."""
    kind, _, name = text.rpartition("/")
    if absent := find_absent_owner(survey, text):
        check_node(survey, absent)
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
    seen: tuple[str, ...] = ()
    """What we have seen ourselves, on this host."""


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


def add_own(told: Mapping[str, Answer], here: ThisHost) -> dict[str, Answer]:
    """The answers, with what we see on this host, which its agent says in the same words."""
    name = name_device(here.node)
    tell(f"{name} is this host: its kernel was read")
    answer = told.get(name, Answer())
    agent = answer.overview["agent"] if answer.overview else None
    said = agent["warnings"] if agent else ()
    seen = tuple(warning for warning in here.warnings if warning not in said)
    return {**told, name: replace(answer, seen=seen)}


def stop_at_refusal(way: Way, told: Mapping[str, Answer]) -> Way:
    """The way as far as the first hop whose kernel, by its agent's account, has refused the route
    or the tunnel that it takes.
    """
    for number, hop in enumerate(way.hops):
        for failure in list_failures(told.get(hop.at)):
            if is_about(failure, hop):
                stop = f"{hop.at}: its kernel has refused {failure}"
                return replace(way, hops=way.hops[:number], stop=stop)
    return way


def list_failures(answer: Answer | None) -> Sequence[str]:
    """What failed in the agent's last pass, a line each."""
    agent = answer.overview["agent"] if answer and answer.overview else None
    # Those of older releases tell of the first one only.
    return agent.get("failures", agent["reasons"]) if agent else ()


def is_about(failure: str, hop: Hop) -> bool:
    """Whether the step that failed is the hop's route or its tunnel."""
    verb, _, step = failure.partition(" ")
    route = f"route {hop.route.destination} " if hop.route else None
    tunnel = f"peer {hop.key} " if hop.key else None
    return verb in ("+", "~") and any(step.startswith(one) for one in (route, tunnel) if one)


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
    yield from answer.seen
    if answer.overview is None or answer.overview["agent"] is None:
        yield from (answer.silence,) if answer.silence else ()
        return
    agent = answer.overview["agent"]
    yield from (f"its agent is not ready: {reason}" for reason in agent["reasons"])
    yield from agent["warnings"]
    for repair in agent.get("repairs", ()):
        if is_about(repair["change"], hop):
            age = describe_age(answer.overview["at"] - repair["at"])
            yield f"its agent had to put this back {age} ago: {repair['change']}"
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
