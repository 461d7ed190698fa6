"""The lab's networks, without any agent: who reaches whom because of cables, routers and NATs."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable

import pytest

from kilo.errors import ConfigError, LabError
from kilo.lab.lab import Lab

MakeLab = Callable[[str], Lab]


def reaches(lab: Lab, source: str, target: str, *, retries: int = 5) -> bool:
    """Where nobody answers that takes half a second, and longer with every try."""
    words = ["fping", "--timeout=500", f"--retry={retries}", target]
    return lab.host(source).succeeds(words)


def misses(lab: Lab, source: str, target: str) -> bool:
    return not reaches(lab, source, target, retries=1)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("oregon-1", "192.168.1.12", "one network"),
        ("oregon-1", "fd00:1::12", "one network, IPv6"),
        ("oregon-2", "203.0.113.50", "out through the NAT"),
        ("oregon-2", "2001:db8::50", "out through the NAT, IPv6"),
        ("oregon-2", "198.51.100.11", "out through the NAT to a neighbour's public address"),
        ("home-1", "198.51.100.11", "out through another NAT, to another subnet of the internet"),
        ("stranger", "198.51.100.11", "public to public, another subnet"),
        ("stranger", "2001:db8::11", "public to public, IPv6"),
    ],
)
def test_a_host_reaches_what_its_networks_lead_to(
    sites: Lab, source: str, target: str, reason: str
) -> None:
    assert reaches(sites, source, target), reason


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("stranger", "192.168.1.11", "a private address of a host that is public too"),
        ("stranger", "fd00:1::11", "the same, IPv6"),
        ("stranger", "192.168.50.11", "a private address behind a NAT"),
        ("oregon-1", "192.168.50.11", "another private network"),
        ("oregon-2", "192.168.50.11", "another private network, from behind a NAT"),
        ("home-1", "192.168.1.11", "another private network, its host public too"),
        ("home-1", "192.168.1.12", "another private network"),
    ],
)
def test_private_networks_do_not_reach_each_other(
    sites: Lab, source: str, target: str, reason: str
) -> None:
    assert misses(sites, source, target), reason


def test_a_nat_lends_its_address_and_keeps_the_source_port(sites: Lab) -> None:
    listen = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    serve = listen + (
        "s.bind(('0.0.0.0', 4000)); print('bound', flush=True)\n"
        "data, peer = s.recvfrom(99); s.sendto(repr(peer).encode(), peer)"
    )
    call = listen + (
        "s.bind(('0.0.0.0', 51820)); s.settimeout(30); s.sendto(b'x', ('203.0.113.50', 4000))\n"
        "print(s.recv(99).decode())"
    )
    server = sites.host("stranger").box.popen(["python3", "-c", serve])
    assert server.stdout is not None
    assert server.stdout.readline() == "bound\n"
    seen = sites.host("home-1").run(["python3", "-c", call])
    server.communicate(timeout=30)
    assert seen.strip() == "('203.0.113.9', 51820)"


def test_nothing_unasked_comes_in_through_a_nat(sites: Lab) -> None:
    assert reaches(sites, "stranger", "203.0.113.9"), "the router itself answers"
    stranger = sites.host("stranger")
    stranger.run(["ip", "route", "add", "192.168.50.0/24", "via", "203.0.113.9"])
    try:
        assert misses(sites, "stranger", "192.168.50.11")
    finally:
        stranger.run(["ip", "route", "del", "192.168.50.0/24"])


def test_hosts_know_each_other_by_name_and_ask_no_resolver(sites: Lab) -> None:
    assert reaches(sites, "home-1", "oregon-1")
    lookup = (
        "import socket, time; t = time.monotonic()\ntry: socket.getaddrinfo('nobody.example', 1)\n"
    )
    lookup += "except OSError: print(time.monotonic() - t)"
    seconds = float(sites.host("home-1").run(["python3", "-c", lookup]))
    assert seconds < 5, "the loopback refuses at once"


def test_a_host_is_like_a_debian_router(sites: Lab) -> None:
    host = sites.host("oregon-1")
    keys = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.eth0.rp_filter"]
    assert host.run(["sysctl", "-n", *keys]).split() == ["1", "1", "2"]
    assert host.run(["hostname"]).strip() == "oregon-1"
    routes = json.loads(host.run(["ip", "-j", "route", "show", "default"]))
    assert [(route["gateway"], route["dev"]) for route in routes] == [("198.51.100.1", "eth1")]


def test_a_host_has_directories_of_its_own_where_agents_write(sites: Lab) -> None:
    for path in ("/run/wireguard", "/var/lib/kilo", "/etc/cni/net.d"):
        sites.host("oregon-1").run(["touch", f"{path}/mark"])
        assert not sites.host("oregon-2").succeeds(["test", "-e", f"{path}/mark"])
        assert subprocess.run(["test", "-e", f"{path}/mark"], check=False).returncode


def test_a_node_bears_its_pod_addresses(sites: Lab) -> None:
    shown = sites.host("oregon-1").run(["ip", "-brief", "address", "show", "dev", "kube-bridge"])
    assert {"10.2.11.1/24", "fd00:a:0:11::1/64"} <= set(shown.split())


def test_a_cut_between_two_hosts_leaves_the_others_alone(sites: Lab) -> None:
    sites.cut("oregon-1", "home-1")
    try:
        assert misses(sites, "home-1", "198.51.100.11"), "home-1 is seen as its NAT's address"
        assert reaches(sites, "home-1", "203.0.113.50")
        assert reaches(sites, "oregon-1", "203.0.113.50")
    finally:
        sites.heal("oregon-1", "home-1")
    assert reaches(sites, "home-1", "198.51.100.11")


def test_a_host_that_is_cut_off_reaches_nobody(sites: Lab) -> None:
    sites.cut("oregon-1")
    try:
        assert misses(sites, "oregon-1", "203.0.113.50")
        assert misses(sites, "oregon-2", "192.168.1.11")
    finally:
        sites.heal()
    assert reaches(sites, "oregon-2", "192.168.1.11")


def test_a_cut_of_three_or_of_a_host_that_is_not_there_is_refused(sites: Lab) -> None:
    with pytest.raises(LabError, match="neither one host nor two"):
        sites.cut("oregon-1", "oregon-2", "home-1")
    with pytest.raises(LabError, match=r"host mars: lab '.*' has only oregon-1"):
        sites.cut("mars")


def test_a_killed_host_answers_again_after_its_start_and_keeps_its_disk(make_lab: MakeLab) -> None:
    lab = make_lab(
        "networks: {lan: {subnets: [192.168.1.0/24]}}\n"
        "hosts: {a: {agent: false, networks: {lan: 192.168.1.11}},"
        " b: {agent: false, networks: {lan: 192.168.1.12}}}"
    )
    lab.host("a").run(["touch", "/var/lib/kilo/kept", "/run/wireguard/lost"])
    assert reaches(lab, "b", "192.168.1.11")
    lab.kill("a")
    assert misses(lab, "b", "192.168.1.11")
    with pytest.raises(LabError, match="host a: is not running"):
        lab.host("a").run(["true"])
    lab.start("a")
    assert reaches(lab, "b", "192.168.1.11")
    assert lab.host("a").succeeds(["test", "-e", "/var/lib/kilo/kept"])
    assert not lab.host("a").succeeds(["test", "-e", "/run/wireguard/lost"])
    with pytest.raises(LabError, match="host a: is running"):
        lab.start("a")


LOSSY = """
networks: {{lan: {{subnets: [192.168.1.0/24], {fault}}}}}
hosts:
  a: {{agent: false, networks: {{lan: 192.168.1.11}}}}
  b: {{agent: false, networks: {{lan: 192.168.1.12}}}}
"""


def test_a_lossy_network_loses_about_what_it_is_told_to(make_lab: MakeLab) -> None:
    lab = make_lab(LOSSY.format(fault="loss: 30%"))
    with lab.probe([("a", "b")], addresses={"b": "192.168.1.12"}) as probe:
        threading.Event().wait(5)
        losses = probe.stop()
    assert 0.2 <= losses.lost / losses.sent <= 0.4, losses


def kernel_has_netem() -> bool:
    command = [
        "unshare",
        "--net",
        "tc",
        "qdisc",
        "add",
        "dev",
        "lo",
        "root",
        "netem",
        "delay",
        "1ms",
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_slow_network_is_slow_or_refused_where_the_kernel_cannot(make_lab: MakeLab) -> None:
    slow = LOSSY.format(fault="latency: 20ms")
    if not kernel_has_netem():
        with pytest.raises(ConfigError, match=r"networks\.lan\.latency: '20ms' needs .* netem"):
            make_lab(slow)
        return
    shown = make_lab(slow).host("a").box.call(["fping", "-q", "-c5", "192.168.1.12"]).stderr
    assert float(shown.rsplit("= ", 1)[1].split("/")[0]) >= 40, "20 ms each way"
