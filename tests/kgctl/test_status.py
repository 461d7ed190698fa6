"""``kgctl status``: the agent of this host is asked, or the store, and people can read it."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kilo.http import StatusServer
from kilo.kgctl.statustext import show_bytes
from kilo.mesh.model import Endpoint, Granularity, PartialSettings, Settings, Snapshot
from kilo.mesh.state import DataplaneState, Link, PeerStats
from kilo.mesh.survey import Flags, make_survey
from kilo.serving import Answer, Server
from kilo.status import Repair, Status
from kilo.statuspage import describe_status
from tests.builders import make_key, make_report, networks
from tests.kgctl.site import PHONE, Site
from tests.kgctl.terminal import KGCTL, Terminal
from tests.mesh.fleets import make_node, make_peer


def make_status(*, handshake_seconds_ago: float | None = 12.0) -> Status:
    """The agent of ``a``, leader of ``east``, with a tunnel to ``b`` of ``west``."""
    now = int(time.time())
    nodes = (
        make_node("a", location="east", internal="192.168.1.11/24"),
        make_node("b", location="west", internal="192.168.2.11/24", endpoint="203.0.113.2:51820"),
    )
    peers = (make_peer("phone", "10.5.0.1/32"), make_peer("thief", "10.4.0.2/32"))
    snapshot = Snapshot(nodes=nodes, peers=peers, last_seen={"a": now, "b": now - 5})
    untold = Flags(settings=PartialSettings(), defaults=Settings())
    status = Status(name="a", interface="kilo0")
    status.snapshot, status.not_ready = snapshot, ""
    status.topology = make_survey(snapshot, untold, wall=now).topology
    latest = 0.0 if handshake_seconds_ago is None else time.time() - handshake_seconds_ago
    status.state = DataplaneState(links=frozenset({Link(name="kilo0", mtu=1420, up=True)}))
    status.stats = {
        make_key("b"): PeerStats(
            endpoint=Endpoint.parse("203.0.113.2:4500"),
            latest_handshake=latest,
            received_bytes=1536,
            sent_bytes=3 * 2**20,
        )
    }
    return status


@pytest.fixture
def status() -> Status:
    return make_status()


@pytest.fixture
def agent(status: Status) -> Iterator[str]:
    """Where the agent is asked."""
    with StatusServer("127.0.0.1:0", status) as server:
        yield f"--agent=http://127.0.0.1:{server.port}"


def test_an_agent_tells_of_its_tunnels(empty_site: Site, agent: str) -> None:
    said = empty_site.run("status", agent)
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert re.fullmatch(r"agent of node a: ready for \d+s; kilo0 mtu 1420", lines[0])
    assert lines[1] == "mesh: location, 10.4.0.0/16; 2 segments, 2 nodes, 1 peer"
    east, west = (line.split() for line in lines[4:6])
    assert (east[:4], east[4]) == (
        ["location:east", "a", "10.4.0.1", "198.51.100.1:51820"],
        "-",
    )
    assert west[:4] == ["location:west", "b", "10.4.0.2", "203.0.113.2:4500"]
    assert west[4].endswith("s")
    assert west[5:10] == ["ago", "1.5", "KiB", "3.0", "MiB"]
    assert re.fullmatch(r"\d+s ago \d+s b", " ".join(west[10:]))
    assert "\x1b" not in said.out


def test_what_is_refused_and_who_is_left_out_is_on_the_screen(empty_site: Site, agent: str) -> None:
    out = empty_site.run("status", agent).out
    assert "thief   left out" in out
    assert "refused: Peer thief: spec.allowedIPs 10.4.0.2/32 refused" in out


def test_an_agent_that_is_not_ready_ends_it_with_1(
    empty_site: Site, agent: str, status: Status
) -> None:
    status.not_ready = "+ route 10.2.1.0/24: File exists"
    said = empty_site.run("status", agent)
    assert said.status == 1
    first = said.out.splitlines()[0]
    assert re.fullmatch(
        r"agent of node a: not ready for \d+s: \+ route 10.2.1.0/24: File exists", first
    )


def test_all_that_failed_and_what_had_to_be_put_back_is_on_the_screen(
    empty_site: Site, agent: str, status: Status
) -> None:
    status.not_ready = "+ route 10.2.1.0/24: File exists"
    status.failures = (status.not_ready, "+ route 10.2.2.0/24: File exists")
    status.repairs = (Repair(at=time.time() - 7200, change="+ barrier 10.2.9.0/24"),)
    lines = empty_site.run("status", agent).out.splitlines()
    assert "failed: + route 10.2.2.0/24: File exists" in lines
    assert "put back 2h ago, for somebody had undone it: + barrier 10.2.9.0/24" in lines
    assert not any(line.startswith("failed: + route 10.2.1.0/24") for line in lines)


def test_a_node_that_was_silent_for_days_is_called_left_over(
    empty_site: Site, agent: str, status: Status
) -> None:
    gone = make_node("gone", location="away")
    seen = {**status.snapshot.last_seen, "gone": int(time.time()) - 5 * 86400}
    nodes = (*status.snapshot.nodes, gone)
    status.snapshot = replace(status.snapshot, nodes=nodes, last_seen=seen)
    assert empty_site.run("status", agent).out.splitlines()[-2] == (
        "left over: node gone: last seen 5d ago; if it is gone for good: kgctl delete node gone"
    )


def test_an_agent_of_an_older_release_is_shown_all_the_same(
    empty_site: Site, status: Status
) -> None:
    told = json.loads(json.dumps(describe_status(status, wall=time.time())))
    for key in ("since", "failures", "repairs", "mtu"):
        del told["agent"][key]
    for segment in told["segments"]:
        del segment["leaderSince"]
    with Server("127.0.0.1:0", lambda _: Answer(body=json.dumps(told).encode())) as server:
        said = empty_site.run("status", f"--agent=127.0.0.1:{server.port}")
    assert (said.status, said.out.splitlines()[0]) == (0, "agent of node a: ready")


def test_programs_get_what_the_agent_answers(empty_site: Site, agent: str) -> None:
    told = json.loads(empty_site.run("status", agent, "-o", "json").out)
    assert told["agent"]["node"] == "a"
    assert told["segments"][1]["tunnel"]["sentBytes"] == 3 * 2**20


def test_a_store_that_is_named_is_asked(site: Site) -> None:
    site.put_report(make_report("b1"), age_seconds=400)
    site.put_peer(replace(PHONE, name="thief", allowed_ips=networks("10.2.1.0/25")))
    said = site.ask("status")
    assert said.status == 0
    lines = said.out.splitlines()
    assert lines[:2] == [
        "as the store tells; no agent was asked",
        "mesh: location, 10.4.0.0/16; 1 segment, 2 nodes, 2 peers",
    ]
    assert lines[4].split()[:4] == ["location:north", "a1", "10.4.0.1", "198.51.100.11:51820"]
    assert "not in the mesh: node b1: silent for 400s" in lines
    assert any(line.startswith("refused: Peer thief: publicKey") for line in lines)


def find_free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_an_agent_that_is_named_and_does_not_answer_is_an_error(empty_site: Site) -> None:
    url = f"http://127.0.0.1:{find_free_port()}"
    said = empty_site.run("status", f"--agent={url}")
    assert (said.status, said.out) == (1, "")
    assert said.err == f"kgctl: agent {url}: Connection refused\n"


def test_somebody_else_at_the_address_is_an_error(empty_site: Site) -> None:
    with Server("127.0.0.1:0", lambda _: Answer(body=b'{"hello": 1}')) as server:
        url = f"http://127.0.0.1:{server.port}"
        said = empty_site.run("status", f"--agent={url}")
    assert said.err == f"kgctl: agent {url}: answers with something else than its status\n"


@pytest.mark.parametrize("url", ["ftp://host:1", "http://host", "http://:80", "host", "http://h:x"])
def test_what_is_no_address_of_an_agent_is_refused(empty_site: Site, url: str) -> None:
    said = empty_site.run("status", f"--agent={url}")
    assert (said.status, said.out) == (2, "")
    assert f"--agent {url!r}" in said.err


@pytest.mark.parametrize(
    ("seconds_ago", "colour"), [(12.0, "\x1b[32m"), (900.0, "\x1b[33m"), (None, "\x1b[31m")]
)
def test_on_a_terminal_the_age_of_handshakes_shows_by_colour(
    seconds_ago: float | None, colour: str
) -> None:
    status = make_status(handshake_seconds_ago=seconds_ago)
    with (
        StatusServer("127.0.0.1:0", status) as server,
        start_kgctl("status", f"--agent=127.0.0.1:{server.port}") as terminal,
    ):
        text = terminal.read_until("10.5.0.1/32")
    assert f"{colour}location:west" in text


def test_no_colour_is_shown_to_who_wants_none() -> None:
    with StatusServer("127.0.0.1:0", make_status()) as server:
        words = ("status", f"--agent=127.0.0.1:{server.port}")
        with start_kgctl(*words, environ={"NO_COLOR": "1"}) as terminal:
            assert "\x1b" not in terminal.read_until("10.5.0.1/32")


def test_it_can_be_watched_though_the_agent_restarts(status: Status) -> None:
    port = find_free_port()
    listen = f"127.0.0.1:{port}"
    with (
        StatusServer(listen, status) as server,
        start_kgctl("status", "--watch", f"--agent={listen}") as terminal,
    ):
        terminal.read_until("agent of node a: ready")
        server.stop()
        terminal.read_until("Connection refused")
        status.not_ready = "as good as new"
        with StatusServer(listen, status):
            terminal.read_until("s: as good as new")
        terminal.interrupt()
        assert terminal.wait() == 130


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**60, "1024.0 PiB"),
    ],
)
def test_bytes_are_shown_as_people_read_them(number: int, text: str) -> None:
    assert show_bytes(number) == text


def test_granularity_of_the_flag_counts_for_a_store(site: Site) -> None:
    told = json.loads(site.ask("status", "-o", "json", "--mesh-granularity=cross").out)
    assert told["mesh"]["granularity"] == Granularity.CROSS
    assert told["agent"] is None


def start_kgctl(*words: str, environ: dict[str, str] | None = None) -> Terminal:
    """Colours are not refused, unless ``environ`` does."""
    clean = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    return Terminal([*KGCTL, *words], clean | (environ or {}))
