"""What an agent tells over HTTP, asked through real sockets."""

import contextlib
import fcntl
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kilo.errors import ConfigError
from kilo.graphviz import MAX_WAITING, choose_layout
from kilo.http import GraphText, StatusServer, answer_graph
from kilo.listening import open_listener, parse_listen
from kilo.mesh.model import Node, NodeSpec, Settings, Snapshot
from kilo.mesh.state import DataplaneState, PeerStats, WireGuardPeer
from kilo.mesh.topology import Segment, Topology
from kilo.portowner import Protocol, describe_owner
from kilo.serving import Limits
from kilo.status import Status
from tests.builders import (
    interfaces,
    make_key,
    make_peer,
    make_preshared_key,
    make_report,
    networks,
)

ANSWER_SECONDS = 60.0
MAX_CONNECTIONS = Limits().connections


def make_node(name: str) -> Node:
    return Node(name=name, spec=NodeSpec(), report=make_report(name))


def make_topology(*names: str) -> Topology:
    """A segment for each of the nodes."""
    segments = tuple(
        Segment(
            name=f"node:{name}",
            neighbourhood=name,
            nodes=(make_node(name),),
            leader=make_node(name),
            wireguard_ips=interfaces(f"10.4.0.{number}/16"),
            allowed_ips=networks(f"10.2.{number}.0/24"),
            allowed_location_ips=(),
        )
        for number, name in enumerate(names, start=1)
    )
    return Topology(settings=Settings(), segments=segments, peers=(), refusals=())


@pytest.fixture
def status() -> Status:
    return Status(name="berlin", interface="kilo0")


@pytest.fixture
def server(status: Status) -> Iterator[StatusServer]:
    with StatusServer("127.0.0.1:0", status) as running:
        yield running


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(server: StatusServer, path: str, method: str = "GET") -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path)
        return Reply(connection.getresponse())


# Health and readiness


def test_a_process_that_answers_is_healthy(server: StatusServer) -> None:
    reply = ask(server, "/health")
    assert (reply.status, reply.text) == (200, "ok\n")


def test_before_the_first_pass_it_is_not_ready(server: StatusServer) -> None:
    reply = ask(server, "/ready")
    assert (reply.status, reply.text) == (503, "no pass yet\n")


def test_after_a_good_pass_it_is_ready(server: StatusServer, status: Status) -> None:
    status.not_ready = ""
    assert ask(server, "/ready").status == 200


def test_a_store_that_cannot_be_heard_is_not_ready_and_says_so(
    server: StatusServer, status: Status
) -> None:
    status.not_ready, status.store_error = "", "/etc/kilo/mesh: No such file or directory"
    reply = ask(server, "/ready")
    assert reply.status == 503
    assert reply.text == "store: /etc/kilo/mesh: No such file or directory\n"
    assert ask(server, "/health").status == 200


def test_every_reason_is_told(server: StatusServer, status: Status) -> None:
    status.not_ready, status.store_error = "+ route refused", "away"
    assert ask(server, "/ready").text == "+ route refused\nstore: away\n"


# Metrics


def scrape(server: StatusServer) -> dict[str, list[tuple[dict[str, str], float]]]:
    reply = ask(server, "/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_metrics_bear_the_names_that_dashboards_use(server: StatusServer, status: Status) -> None:
    status.errors.labels("store").inc()
    status.reconciles.inc(2)
    status.nodes.set(3)
    found = scrape(server)
    assert found["kilo_errors_total"] == [({"event": "store"}, 1.0)]
    assert found["kilo_reconciles_total"] == [({}, 2.0)]
    assert found["kilo_nodes"] == [({}, 3.0)]
    assert {"kilo_peers", "kilo_leader", "kilo_build_info"} <= found.keys()


def test_no_series_says_when_a_counter_was_made(server: StatusServer, status: Status) -> None:
    status.errors.labels("store").inc()
    assert not [name for name in scrape(server) if name.endswith("_created")]


PRESHARED = make_preshared_key("laptop")


def measure(status: Status) -> None:
    """Two devices, of which one has been measured, behind names that the snapshot knows."""
    paris, laptop = make_key("paris"), make_key("laptop")
    allowed = frozenset(networks("10.5.0.1/32", "fd00::/64", "10.2.0.0/24"))
    devices = (
        WireGuardPeer(
            link="kilo0", public_key=laptop, allowed_ips=allowed, preshared_key=PRESHARED
        ),
        WireGuardPeer(link="kilo0", public_key=paris, allowed_ips=frozenset()),
    )
    status.state = DataplaneState(peers=frozenset(devices))
    status.snapshot = Snapshot(
        nodes=(make_node("paris"),),
        peers=(replace(make_peer("squat", "10.5.0.1/32"), public_key=laptop),),
    )
    status.stats = {
        laptop: PeerStats(
            endpoint=None, latest_handshake=1700000000.0, received_bytes=7, sent_bytes=2**40
        )
    }


def test_wireguard_series_name_the_device_behind_a_key(
    server: StatusServer, status: Status
) -> None:
    measure(status)
    found = scrape(server)
    labels = {
        "interface": "kilo0",
        "public_key": str(make_key("laptop")),
        "allowed_ips": "10.2.0.0/24,10.5.0.1/32,fd00::/64",
        "friendly_name": "squat",
    }
    assert found["wireguard_sent_bytes_total"] == [(labels, float(2**40))]
    assert found["wireguard_received_bytes_total"] == [(labels, 7.0)]
    assert found["wireguard_latest_handshake_seconds"] == [(labels, 1700000000.0)]


def test_a_nodes_series_bear_its_name(server: StatusServer, status: Status) -> None:
    measure(status)
    status.stats = {
        make_key("paris"): PeerStats(
            endpoint=None, latest_handshake=0.0, received_bytes=0, sent_bytes=0
        )
    }
    ((labels, seconds),) = scrape(server)["wireguard_latest_handshake_seconds"]
    assert (labels["friendly_name"], seconds) == ("paris", 0.0)


def test_no_page_shows_a_key_that_is_secret(server: StatusServer, status: Status) -> None:
    measure(status)
    status.topology = replace(
        make_topology("berlin"), peers=(make_peer("squat", "10.5.0.1/32", preshared=True),)
    )
    secrets = [PRESHARED, make_preshared_key("squat")]
    for page in ("/metrics", "/graph?format=dot", "/ready", "/health", "/nowhere"):
        text = ask(server, page).text
        assert not [s for s in secrets if s.reveal() in text or s.raw.hex() in text.lower()]


# The graph


def test_without_a_mesh_there_is_no_graph_yet(server: StatusServer) -> None:
    assert ask(server, "/graph").status == 503


@pytest.mark.parametrize(
    ("query", "content_type", "beginning"),
    [
        ("", "image/svg+xml", b"<?xml"),
        ("?format=svg&layout=dot", "image/svg+xml", b"<?xml"),
        ("?format=png", "image/png", b"\x89PNG"),
        ("?format=json&layout=neato", "application/json", b"{"),
        ("?format=dot", "text/vnd.graphviz", b"digraph kilo"),
        ("?format=gv&layout=fdp", "text/vnd.graphviz", b"digraph kilo"),
    ],
)
def test_the_graph_comes_in_every_format(
    server: StatusServer, status: Status, query: str, content_type: str, beginning: bytes
) -> None:
    status.topology = make_topology("berlin", "paris")
    reply = ask(server, f"/graph{query}")
    assert reply.status == 200, reply.text
    assert reply.headers["Content-Type"].startswith(content_type)
    assert reply.body.startswith(beginning)
    assert (b"berlin" in reply.body) == (content_type != "image/png")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("format=exe", "format 'exe': possible values are dot, gv, jpg, json, pdf, png, svg"),
        ("layout=-Kx", "layout '-Kx': possible values are circo, dot, neato, twopi, fdp"),
        ("format=", "format '': possible values are dot, gv, jpg, json, pdf, png, svg"),
    ],
)
def test_what_graphviz_is_not_asked_is_refused(server: StatusServer, query: str, text: str) -> None:
    reply = ask(server, f"/graph?{query}")
    assert (reply.status, reply.text) == (400, f"{text}\n")


def test_without_graphviz_a_picture_is_not_to_be_had_but_dot_is(
    server: StatusServer, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status.topology = make_topology("berlin")
    reply = ask(server, "/graph")
    assert reply.status == 501
    assert "graphviz" in reply.text
    assert ask(server, "/graph?format=dot").status == 200


def test_a_graphviz_that_fails_is_passed_on(
    server: StatusServer, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\necho 'Error: out of ink' >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    status.topology = make_topology("berlin")
    reply = ask(server, "/graph")
    assert (reply.status, reply.text) == (503, "/graph: Error: out of ink\n")


def test_the_graph_as_text_is_drawn_once_for_all_who_read_it(status: Status) -> None:
    status.topology = make_topology("berlin", "paris")
    text = GraphText()

    def read(_number: int = 0) -> bytes:
        return answer_graph(status, text, {"format": "dot"}).body

    with ThreadPoolExecutor(8) as readers:
        first, *others = readers.map(read, range(32))
    assert all(other is first for other in others)
    status.topology = make_topology("berlin", "rome")
    assert (b"rome" in first, b"rome" in read()) == (False, True)


def test_who_comes_when_many_wait_for_a_picture_is_told_so_at_once(
    server: StatusServer, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, program = tmp_path / "gate", tmp_path / "dot"
    program.write_text(f"#!/bin/sh\nexec flock --shared {gate} echo drawn\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    status.topology = make_topology("berlin")
    with ThreadPoolExecutor(MAX_WAITING + 2) as clients:
        with gate.open("w") as closed:
            fcntl.flock(closed, fcntl.LOCK_EX)
            replies = [clients.submit(ask, server, "/graph") for _ in range(MAX_WAITING + 2)]
            done, _ = wait(replies, timeout=ANSWER_SECONDS, return_when=FIRST_COMPLETED)
            refused = {(one.result().status, one.result().text) for one in done}
        assert refused == {(503, "/graph: too many wait for a picture; try again later\n")}
        assert "drawn\n" in {one.result().text for one in replies}


# Connections


def test_an_unknown_page_is_not_found_and_the_known_ones_are_named(server: StatusServer) -> None:
    reply = ask(server, "/debug/pprof")
    assert reply.status == 404
    assert "/health, /ready, /metrics, /graph" in reply.text


def test_head_is_get_without_the_body(server: StatusServer) -> None:
    reply = ask(server, "/health", "HEAD")
    assert (reply.status, reply.headers["Content-Length"], reply.body) == (200, "3", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(server: StatusServer, method: str) -> None:
    assert ask(server, "/health", method).status == 501


def converse(server: StatusServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_SECONDS) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            return answer.read()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET //[ HTTP/1.0\r\n\r\n",
        b"GET http://[/health HTTP/1.0\r\n\r\n",
        b"GET /graph?" + b"a=1&" * 100 + b" HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    ],
)
def test_a_request_that_is_too_large_or_senseless_is_refused(
    server: StatusServer, request_bytes: bytes
) -> None:
    # Beyond its limits the server hangs up on what it has not read: a reset is an answer, too.
    with contextlib.suppress(ConnectionError):
        assert b" 200 " not in converse(server, request_bytes)[:20]
    assert ask(server, "/health").status == 200


def test_clients_that_say_nothing_hold_up_no_other(server: StatusServer) -> None:
    address = ("127.0.0.1", server.port)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS // 2):
            stack.enter_context(socket.create_connection(address, timeout=ANSWER_SECONDS))
        assert ask(server, "/health").status == 200


def test_clients_that_say_nothing_silence_no_probe_however_many_they_are(
    server: StatusServer,
) -> None:
    address = ("127.0.0.1", server.port)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=ANSWER_SECONDS))
            for _ in range(MAX_CONNECTIONS + 1)
        ]
        assert ask(server, "/health").status == 200
        for hung_up in clients[:2]:
            assert hung_up.recv(1) == b""


def test_a_client_that_trickles_in_its_request_is_cut_off(status: Status) -> None:
    with StatusServer("127.0.0.1:0", status, request_seconds=0.2) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, timeout=ANSWER_SECONDS) as client:
            client.sendall(b"GET /health HT")
            assert client.recv(1) == b""


def test_after_stop_the_port_is_free_and_it_can_start_again(status: Status) -> None:
    server = StatusServer("127.0.0.1:0", status)
    server.start()
    port = server.port
    server.stop()
    server.stop()
    again = StatusServer(f"127.0.0.1:{port}", status)
    with again:
        assert ask(again, "/health").status == 200
    assert server.port == 0
    assert "http" not in {thread.name for thread in threading.enumerate()}


# Where it listens


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (":1107", ("", 1107)),
        ("127.0.0.1:1107", ("127.0.0.1", 1107)),
        ("[::1]:1107", ("::1", 1107)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_the_flag_has_gos_syntax(text: str, parsed: tuple[str, int]) -> None:
    assert parse_listen(text) == parsed


@pytest.mark.parametrize(
    "text", ["", "1107", "127.0.0.1", "::1:1107", "[::1]", ":", ":http", ":65536", ":-1", ":\u0661"]
)
def test_what_is_no_address_and_port_is_refused_with_the_value(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_listen(text)
    assert str(error.value).startswith(f"--listen {text!r}: ")


def test_a_port_alone_is_every_address_of_both_families() -> None:
    with open_listener(":0") as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=ANSWER_SECONDS) as client:
                assert client.getpeername()[1] == port


def test_a_port_in_use_is_told_with_the_process_that_holds_it() -> None:
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        comm = Path(f"/proc/{holder.pid}/comm").read_text().strip()
        listen = f"127.0.0.1:{port}"
        with pytest.raises(ConfigError) as error:
            StatusServer(listen, Status(name="berlin", interface="kilo0")).start()
        holder.communicate("\n", timeout=ANSWER_SECONDS)
    expected = f"--listen '{listen}': port {port} is in use by {comm} (pid {holder.pid})"
    assert str(error.value) == expected


def test_a_port_that_nobody_listens_on_has_no_owner() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert describe_owner(Protocol.TCP, bound.getsockname()[1]) == ""


@pytest.mark.parametrize("address", ["198.51.100.1:0", "[2001:db8::1]:0"])
def test_an_address_that_is_not_the_hosts_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"Cannot assign requested address|not supported"):
        open_listener(address)


def test_a_mesh_that_is_too_large_for_circo_has_a_picture_all_the_same(
    server: StatusServer, status: Status
) -> None:
    status.topology = make_topology(*(f"node{number}" for number in range(60)))
    reply = ask(server, "/graph")
    assert reply.status == 200, reply.text
    assert b"node59" in reply.body


@pytest.mark.parametrize(
    ("leaders", "peers", "layout"),
    [(0, 0, "circo"), (10, 10, "circo"), (10, 11, "twopi"), (18, 0, "twopi"), (1, 150, "circo")],
)
def test_the_layout_suits_the_number_of_tunnels(leaders: int, peers: int, layout: str) -> None:
    assert choose_layout(leaders, peers) == layout


def test_json_of_the_graph_is_json(server: StatusServer, status: Status) -> None:
    status.topology = make_topology("berlin", "paris")
    assert json.loads(ask(server, "/graph?format=json&layout=dot").body)["name"] == "kilo"
