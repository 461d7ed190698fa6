"""``/status``: what an agent has made of the mesh, over HTTP, and never a secret."""

from __future__ import annotations

import json
import re
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from kilo.http import StatusServer
from kilo.mesh.diff import Change
from kilo.mesh.model import Endpoint
from kilo.mesh.state import Barrier, DataplaneState, PeerStats
from kilo.status import Status
from tests.builders import make_key, make_peer, make_preshared_key, make_report, make_spec
from tests.engine.world import World, running

SEEN = Endpoint(host="203.0.113.9", port=4500)


def read_status(world: World) -> dict[str, Any]:
    """What a client gets; the agent need not do anything for it."""
    with (
        StatusServer("127.0.0.1:0", world.status) as server,
        urlopen(f"http://127.0.0.1:{server.port}/status", timeout=30) as reply,
    ):
        assert reply.headers["Content-Type"] == "application/json"
        document: dict[str, Any] = json.loads(reply.read())
        return document


def find(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


async def test_a_leader_tells_of_its_tunnels(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    async with running(world):
        await world.settled()
        handshake = time.time() - 12.0
        stats = PeerStats(
            endpoint=SEEN, latest_handshake=handshake, received_bytes=4096, sent_bytes=8192
        )
        world.dataplane.set_stats(make_key("c"), stats)
        await world.next_pass()
        told = read_status(world)
    agent = told["agent"]
    assert (agent["node"], agent["ready"], agent["reasons"]) == ("a", True, [])
    assert [segment["leader"] for segment in told["segments"]] == ["a", "c"]
    assert find(told["segments"], "location:north")["tunnel"] is None
    assert find(told["segments"], "location:south")["tunnel"] == {
        "endpoint": "203.0.113.9:4500",
        "latestHandshake": handshake,
        "receivedBytes": 4096,
        "sentBytes": 8192,
    }
    assert [node["name"] for node in told["segments"][0]["nodes"]] == ["a", "b"]
    assert find(told["peers"], "phone")["ready"] is True
    assert find(told["peers"], "phone")["tunnel"]["latestHandshake"] == 0


async def test_who_leads_nothing_tells_of_no_tunnel_from_another_time(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    world.backend.put_node("b", make_spec(location="north", leader=True))
    async with running(world):
        await world.settled()
        left = PeerStats(endpoint=SEEN, latest_handshake=1.0, received_bytes=1, sent_bytes=1)
        world.status.stats = {make_key("c"): left}
        assert all(segment["tunnel"] is None for segment in read_status(world)["segments"])


async def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    world.backend.put_report(make_report("d"), last_seen=int(time.time()) - 505)
    world.backend.put_report(make_report("e"), last_seen=int(time.time()) + 500)
    world.backend._store_peer(make_peer("thief", "10.2.1.0/25", "10.5.0.9/32"))
    world.backend.put_document("rubbish", {"kind": "Peer"})
    async with running(world):
        await world.settled()
        told = read_status(world)
    assert find(told["absent"], "d")["reason"].startswith("silent for 50")
    (refusal,) = find(told["peers"], "thief")["remarks"]
    assert refusal.startswith("spec.allowedIPs 10.2.1.0/25 refused: it lies inside")
    assert find(told["peers"], "thief")["allowedIPs"] == ["10.5.0.9/32"]
    assert told["refusals"] == [f"Peer thief: {refusal}"]
    assert len(told["problems"]) == 1
    assert any("Node e: its clock is" in doubt for doubt in told["doubts"])


async def test_an_agent_that_is_not_ready_says_why(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    world.dataplane.become_unreadable("no such device")
    async with running(world):
        await world.eventually(lambda: world.status.not_ready == "no such device")
        told = read_status(world)
        assert (told["agent"]["ready"], told["agent"]["reasons"]) == (False, ["no such device"])
        assert told["segments"] == []
        world.dataplane.relent()


async def test_warnings_of_the_last_pass_are_told(tmp_path: Path) -> None:
    world = World(path=tmp_path, flags={"mtu": 9000})
    async with running(world):
        await world.settled()
        (warning,) = read_status(world)["agent"]["warnings"]
        assert warning.startswith("mtu 9000: packets of this size do not fit through eth0")


async def test_all_that_failed_is_told_and_since_when(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    refused = ("+ route 10.2.2.0/24", "+ route 10.2.3.0/24")
    for route in refused:
        world.dataplane.refuse(route, reason="File exists")
    began_at = time.time()
    async with running(world):
        await world.eventually(lambda: len(world.status.failures) == 2)
        agent = read_status(world)["agent"]
        assert agent["failures"][0] == agent["reasons"][0]
        assert [text.partition(" via")[0] for text in agent["failures"]] == list(refused)
        assert began_at <= agent["since"] <= time.time()
        world.dataplane.relent()
        await world.settled()
        healed = read_status(world)["agent"]
    assert healed["failures"] == []
    assert healed["since"] > agent["since"]
    assert healed["mtu"] == 1420


async def test_what_had_to_be_put_back_is_told(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    async with running(world):
        state = await world.settled()
        assert read_status(world)["agent"]["repairs"] == []
        route = next(r for r in state.routes if str(r.destination) == "10.2.3.0/24")
        world.dataplane.remove(route)
        await world.eventually(lambda: world.status.repairs)
        (repair,) = read_status(world)["agent"]["repairs"]
    assert repair["change"] == f"+ {route}"
    assert 0 <= time.time() - repair["at"] < 600


async def test_what_the_mesh_wants_anew_is_no_repair(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    async with running(world):
        await world.settled()
        await world.backend.put_peer(make_peer("tablet", "10.5.0.2/32"))
        await world.settled()
        await world.backend.delete_peer("tablet")
        await world.settled()
        await world.backend.put_peer(make_peer("tablet", "10.5.0.2/32"))
        await world.settled()
        assert read_status(world)["agent"]["repairs"] == []


def test_what_a_pass_that_failed_may_have_left_out_is_no_repair() -> None:
    status = Status(name="a", interface="kilo0")
    barrier = Barrier(destination=ip_network("10.2.9.0/24"))
    state, again = DataplaneState(barriers=frozenset({barrier})), [Change(new=barrier)]
    status.not_ready = ""
    status.note_applied((), state)
    status.not_ready = "+ route 10.2.1.0/24: File exists"
    status.note_applied(again, state)
    assert [repair.change for repair in status.repairs] == []
    status.not_ready = ""
    status.note_applied(again, state)
    assert [repair.change for repair in status.repairs] == ["+ barrier 10.2.9.0/24"]


async def test_since_when_a_leader_leads_is_told(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    async with running(world):
        await world.settled()
        north, south = (one["leaderSince"] for one in read_status(world)["segments"])
        assert 0 < time.time() - north < 600
        world.backend.put_node("b", make_spec(location="north", leader=True))
        await world.eventually(lambda: world.status.leader_since["location:north"] > north)
        changed = read_status(world)["segments"]
    assert (changed[0]["leader"], changed[1]["leaderSince"]) == ("b", south)


async def test_a_clock_that_is_behind_is_told_while_its_node_lives(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    async with running(world):
        await world.settled()
        for seconds_ago in (500, 490):  # the stamp changes, so the node lives
            late = int(time.time()) - seconds_ago
            world.backend.put_report(make_report("c"), last_seen=late)
            await world.next_pass()
        (doubt,) = read_status(world)["doubts"]
        assert re.fullmatch(r"Node c: its clock is \d+s behind this one", doubt)
        world.status.store_error = "away"
        assert read_status(world)["doubts"] == []


async def test_no_secret_is_told(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    world.backend._store_peer(make_peer("safe", "10.5.0.7/32", preshared=True))
    world.backend._store_peer(make_peer("refused", "10.5.0.7/32", preshared=True))
    async with running(world):
        await world.settled()
        text = json.dumps(read_status(world))
    assert "safe" in text
    assert "refused" in text
    for name in ("safe", "refused"):
        assert make_preshared_key(name).reveal() not in text
