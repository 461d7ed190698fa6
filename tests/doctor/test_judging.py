"""What is found in what was seen, where the line between well and not well runs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface
from types import MappingProxyType

import pytest

from kilo.doctor.findings import Code, Outcome
from kilo.doctor.judging_agent import KeyFile, Leftovers, judge_key, judge_leftovers
from kilo.doctor.judging_kernel import (
    Kernel,
    Programs,
    Settings,
    judge_kernel,
    judge_programs,
    judge_settings,
)
from kilo.doctor.judging_mesh import Clock, judge_clock
from kilo.doctor.judging_network import (
    Filters,
    Ports,
    Sizes,
    judge_filters,
    judge_ports,
    judge_sizes,
)
from kilo.mesh.host import ForwardDrop, HostAddress, HostFacts

KERNEL = Kernel(release="6.1", wireguard=True, ipip=True, wireguard_go=False, encapsulates=True)
SETTINGS = Settings(
    interface="kilo0",
    tunnel="tunl0",
    values={
        "net.ipv4.ip_forward": "1",
        "net.ipv6.conf.all.forwarding": "0",
        "net.ipv4.conf.all.rp_filter": "2",
        "net.ipv4.conf.default.rp_filter": "1",
        "net.ipv6.conf.default.disable_ipv6": "0",
    },
    fixed=frozenset({"net.ipv6.conf.all.forwarding", "net.ipv4.conf.default.rp_filter"}),
)
STRICT = {**SETTINGS.values, "net.ipv4.conf.all.rp_filter": "0"}
IN_FORWARD = ForwardDrop(
    chain="chain FORWARD of table ip filter", families=frozenset({4}), overruled=True
)
PORTS = Ports(interface="kilo0", udp_port=51820, http_port=1107)
CLOCK = Clock(synchronised=True, teller="timedatectl show", wall=10_000.0)


def make_sizes(cni: int | str | None = "none", **mtus: int) -> Sizes:
    """Links' MTUs; those of the default route are of ``eth0``."""
    facts = HostFacts(
        addresses=(HostAddress(link="eth0", interface=ip_interface("192.168.0.1/24")),),
        default_links=("eth0",),
        mtus=MappingProxyType({name.replace("_", "-"): mtu for name, mtu in mtus.items()}),
    )
    given = {} if isinstance(cni, str) else {"bridge": cni}
    return Sizes(interface="kilo0", facts=facts, cni_mtus=given)


def list_codes(outcome: Outcome) -> list[Code]:
    return [finding.code for finding in outcome.findings]


ROWS: dict[str, tuple[Outcome, list[Code]]] = {
    "a kernel with both": (judge_kernel(KERNEL), []),
    "WireGuard as a program": (
        judge_kernel(replace(KERNEL, wireguard=False, wireguard_go=True)),
        [Code.USERSPACE_WIREGUARD],
    ),
    "no WireGuard at all": (judge_kernel(replace(KERNEL, wireguard=False)), [Code.NO_WIREGUARD]),
    "nobody may try": (judge_kernel(replace(KERNEL, wireguard=None)), [Code.UNSEEN]),
    "no IPIP in a mesh that encapsulates": (
        judge_kernel(replace(KERNEL, ipip=False)),
        [Code.NO_IPIP],
    ),
    "no IPIP in a mesh that does not": (
        judge_kernel(replace(KERNEL, ipip=False, encapsulates=False)),
        [],
    ),
    "no nft, and no need of it": (judge_programs(Programs(kind="nft", nft_is_missing=True)), []),
    "no nft, and iptables is not whole": (
        judge_programs(Programs(kind="nft", nft_is_missing=True, missing=("ipset",))),
        [Code.NO_NFT, Code.IPTABLES_INCOMPLETE],
    ),
    "settings as they should be": (judge_settings(SETTINGS), []),
    "no forwarding of IPv6 on a host that has IPv6": (
        judge_settings(replace(SETTINGS, has_ipv6=True)),
        [Code.FORWARDING_FIXED_OFF],
    ),
    "no forwarding, and nobody tried to change it": (
        judge_settings(replace(SETTINGS, has_ipv6=True, fixed=None)),
        [Code.FORWARDING_OFF],
    ),
    "strict links that cannot be made loose": (
        judge_settings(replace(SETTINGS, values=STRICT)),
        [Code.REVERSE_PATH_STRICT, Code.REVERSE_PATH_STRICT],
    ),
    "strict links that the agent makes loose": (
        judge_settings(replace(SETTINGS, values=STRICT, fixed=frozenset())),
        [],
    ),
    "FORWARD drops, and we accept in it": (
        judge_filters(Filters(port=51820, forward_drops=(IN_FORWARD,), accepts_forwarded=True)),
        [],
    ),
    "FORWARD drops, and nobody accepts": (
        judge_filters(Filters(port=51820, forward_drops=(IN_FORWARD,))),
        [Code.FORWARD_DROPPED],
    ),
    "a chain drops in which we cannot accept": (
        judge_filters(
            Filters(
                port=51820,
                forward_drops=(replace(IN_FORWARD, overruled=False),),
                accepts_forwarded=True,
            )
        ),
        [Code.FORWARD_DROPPED],
    ),
    "a tunnel that fits over IPv4": (judge_sizes(make_sizes(eth0=1500, kilo0=1440)), []),
    "a tunnel a byte too large": (
        judge_sizes(make_sizes(eth0=1500, kilo0=1441)),
        [Code.TUNNEL_MTU],
    ),
    "no tunnel yet": (judge_sizes(make_sizes(eth0=1500)), []),
    "the least for IPv6": (judge_sizes(make_sizes(eth0=1360)), []),
    "less than that": (judge_sizes(make_sizes(eth0=1359)), [Code.SMALL_MTU]),
    "pods' bridge as the tunnel": (judge_sizes(make_sizes(eth0=1500, kube_bridge=1420)), []),
    "pods' bridge larger": (
        judge_sizes(make_sizes(eth0=1500, kube_bridge=1421)),
        [Code.POD_MTU],
    ),
    "CNI gives the right MTU": (judge_sizes(make_sizes(eth0=1500, cni=1420)), []),
    "CNI gives no MTU": (judge_sizes(make_sizes(eth0=1500, cni=None)), [Code.POD_MTU]),
    "free ports": (judge_ports(PORTS), []),
    "our own device has the port": (
        judge_ports(replace(PORTS, udp_in_use=True, udp_is_ours=True)),
        [],
    ),
    "somebody else has": (
        judge_ports(replace(PORTS, udp_in_use=True, http_in_use=True)),
        [Code.UDP_PORT_TAKEN, Code.HTTP_PORT_TAKEN],
    ),
    "the agent has": (judge_ports(replace(PORTS, http_in_use=True, agent_is_there=True)), []),
    "fresh stamps": (judge_clock(replace(CLOCK, last_seen={"a1": 9_941, "b1": 10_060})), []),
    "a clock that nobody sets": (
        judge_clock(replace(CLOCK, synchronised=False)),
        [Code.CLOCK_FREE],
    ),
    "a stamp of the future": (
        judge_clock(replace(CLOCK, last_seen={"a1": 10_061, "b1": 10_000})),
        [Code.STAMPS_AHEAD],
    ),
    "old stamps only": (
        judge_clock(replace(CLOCK, last_seen={"a1": 9_939, "b1": 1_000})),
        [Code.STAMPS_OLD],
    ),
    "a key for its owner": (judge_key(KeyFile(path="/key", exists=True)), []),
    "a key for a group": (
        judge_key(KeyFile(path="/key", exists=True, mode=0o640)),
        [Code.KEY_EXPOSED],
    ),
    "what an agent minds": (judge_leftovers(Leftovers(own=("a",), agent="process 7")), []),
    "what none minds": (judge_leftovers(Leftovers(own=("a",))), [Code.OWN_LEFTOVERS]),
    "Kilo's beside ours": (
        judge_leftovers(Leftovers(own=("a",), others=("b",), agent="process 7")),
        [Code.OTHERS_LEFTOVERS],
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_what_is_found(case: str) -> None:
    outcome, expected = ROWS[case]
    assert list_codes(outcome) == expected


def test_the_clock_that_is_wrong_is_the_one_that_most_differ_from() -> None:
    ahead = {"a1": 20_000, "b1": 30_000, "c1": 20_000}
    most = judge_clock(replace(CLOCK, last_seen=ahead))
    half = judge_clock(replace(CLOCK, last_seen=ahead | dict.fromkeys(("x", "y", "z"), 10_000)))
    assert most.findings[0].remedy.startswith("set this host's clock")
    assert "Node b1 first" in most.findings[0].sentence
    assert half.findings[0].remedy.startswith("set its clock")


def test_of_many_leftovers_the_first_are_named_and_the_others_counted() -> None:
    outcome = judge_leftovers(Leftovers(own=tuple("abcde")))
    assert "a, b, c and 2 more" in outcome.findings[0].sentence


def test_remedies_for_forward_say_who_can_accept() -> None:
    for overruled, words in ((True, "--iptables-forward-rules"), (False, "accept the mesh's")):
        drop = replace(IN_FORWARD, overruled=overruled)
        outcome = judge_filters(Filters(port=51820, forward_drops=(drop,)))
        assert words in outcome.findings[0].remedy
