"""``/status``: what an agent has made of the mesh, over HTTP, and never a secret."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from kilo.http import StatusServer
from kilo.mesh.model import Endpoint
from kilo.mesh.state import PeerStats
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
    world.backend.put_report(make_report("d"), last_seen=int(time.time()) - 500)
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
