"""Endpoints, hosts and problems as text."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from kilo.mesh.model import Endpoint, Problem, Snapshot, parse_host


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("203.0.113.7:51820", "203.0.113.7", 51820),
        ("[2001:db8::7]:51820", "2001:db8::7", 51820),
        ("[2001:DB8:0:0::7]:1", "2001:db8::7", 1),
        ("host.example.com:65535", "host.example.com", 65535),
        ("host.example.com.:1", "host.example.com.", 1),
        ("_wg.my-host_1:1", "_wg.my-host_1", 1),
        ("localhost:1", "localhost", 1),
        ("1host:1", "1host", 1),
    ],
)
def test_an_endpoint_is_read(text: str, host: str, port: int) -> None:
    assert Endpoint.parse(text) == Endpoint(host=host, port=port)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("203.0.113.7", "is not host:port"),
        (":51820", "is not host:port"),
        ("", "is not host:port"),
        ("203.0.113.7:", "has a port outside 1-65535"),
        ("203.0.113.7:0", "has a port outside 1-65535"),
        ("203.0.113.7:65536", "has a port outside 1-65535"),
        ("203.0.113.7:-1", "has a port outside 1-65535"),
        ("203.0.113.7:+1", "has a port outside 1-65535"),
        ("203.0.113.7: 1", "has a port outside 1-65535"),
        ("203.0.113.7:\u0661", "has a port outside 1-65535"),
        ("2001:db8::7:51820", "has an IPv6 address without brackets"),
        ("[203.0.113.7]:51820", "At least 3 parts"),
        ("[host]:51820", "At least 3 parts"),
        ("203.0.113:51820", "Expected 4 octets"),
        ("203.0.113.256:51820", "not permitted"),
        ("203.0.113.07:51820", "Leading zeros"),
        ("1234:51820", "Expected 4 octets"),
        ("[fe80::1%eth0]:51820", "has an address with a zone"),
        ("[fe80::1%\nPrivateKey = x]:51820", "has an address with a zone"),
        ("ho st:1", "neither an address nor a DNS name"),
        ("host\n:1", "neither an address nor a DNS name"),
        ("-host:1", "neither an address nor a DNS name"),
        ("host-.example:1", "neither an address nor a DNS name"),
        ("a..b:1", "neither an address nor a DNS name"),
        (".:1", "neither an address nor a DNS name"),
        ("größe:1", "neither an address nor a DNS name"),
        (f"{'a' * 64}:1", "neither an address nor a DNS name"),
        (f"{'a.' * 127}:1", "neither an address nor a DNS name"),
    ],
)
def test_an_endpoint_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Endpoint.parse(text)


@pytest.mark.parametrize("text", ["203.0.113.7:51820", "[2001:db8::7]:51820", "a.example:1"])
def test_an_endpoint_reads_what_it_writes(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


def test_an_endpoint_knows_an_address_from_a_name() -> None:
    assert Endpoint.parse("203.0.113.7:1").ip == ip_address("203.0.113.7")
    assert Endpoint.parse("[2001:db8::7]:1").ip == ip_address("2001:db8::7")
    assert Endpoint.parse("host.example.com:1").ip is None


def test_without_brackets_a_host_alone_may_be_an_ipv6_address() -> None:
    assert parse_host("2001:DB8::7", bracketed=False) == "2001:db8::7"
    with pytest.raises(ValueError, match="zone"):
        parse_host("fe80::1%eth0", bracketed=False)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            Problem(
                source="peers.yaml, document 2",
                object="Peer squat",
                field="spec.allowedIPs[0]",
                value="10.5.0.1/33",
                reason="is not a CIDR",
            ),
            "peers.yaml, document 2: Peer squat: spec.allowedIPs[0]: '10.5.0.1/33' is not a CIDR",
        ),
        (Problem(source="x.yaml", object="", reason="is not YAML"), "x.yaml: is not YAML"),
        (
            Problem(source="x", object="", value="a\nb", reason="is odd"),
            "x: 'a\\nb' is odd",
        ),
    ],
)
def test_a_problem_is_one_line(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_heartbeat_changes_no_snapshot() -> None:
    assert Snapshot(last_seen={"a": 1}) == Snapshot(last_seen={"a": 2})
