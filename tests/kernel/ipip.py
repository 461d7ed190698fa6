"""What the IPIP link must do; ``test_kernel_drivers`` runs this where a kernel has one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from kilo.dataplane.firewall import Choice
from kilo.dataplane.hostfacts import HostnameLookup, read_facts
from kilo.dataplane.nftables import NFTables
from kilo.dataplane.tunnel import put_tunnel, read_tunnel, remove_tunnel
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import Firewall, Tunnel
from tests.kernel.crashing import TUNNEL, Nursery
from tests.kernel.wireguard_hosts import Flow, Host, connect_hosts, echo

LINK = "tunl0"
WANTED = TUNNEL


@dataclass
class Location:
    """Two hosts of a location, and one of elsewhere that is joined to the first."""

    near: Host
    other: Host
    stranger: Host


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("a") as host:
        yield host


@pytest.fixture
def location() -> Iterator[Location]:
    with Host("a") as near, Host("b") as other, Host("c") as stranger:
        connect_hosts(near, other)
        connect_hosts(near, stranger, link="eth1", subnet=9)
        for number, one in ((1, near), (2, other), (3, stranger)):
            one.sh(f"ip link add pods type bridge; ip address add 10.2.{number}.1/24 dev pods")
            one.sh("ip link set pods up; sysctl -qw net.ipv4.conf.all.rp_filter=0")
            address = ip_interface(f"10.2.{number}.1/32")
            one.run(put_tunnel(Tunnel(name=LINK, mtu=1480, addresses=frozenset({address}))))
        near.sh(f"ip route add 10.2.2.0/24 via 192.168.0.2 dev {LINK} onlink")
        other.sh(f"ip route add 10.2.1.0/24 via 192.168.0.1 dev {LINK} onlink")
        near.sh(f"ip route add 10.2.3.0/24 via 192.168.9.2 dev {LINK} onlink")
        stranger.sh(f"ip route add 10.2.1.0/24 via 192.168.9.1 dev {LINK} onlink")
        yield Location(near=near, other=other, stranger=stranger)


def describe(host: Host) -> str:
    return host.sh(f"ip -details address show dev {LINK}")


def read_busy(host: Host) -> frozenset[str]:
    async def read() -> frozenset[str]:
        lookup = HostnameLookup("localhost", on_change=lambda: None)
        return (await read_facts(lookup)).busy_tunnels

    return host.run(read())


def test_a_tunnel_is_made_as_wanted_and_read_as_it_is(host: Host) -> None:
    assert host.run(read_tunnel(LINK)) is None
    host.run(put_tunnel(WANTED))
    assert host.run(read_tunnel(LINK)) == WANTED
    shown = describe(host)
    assert "ipip" in shown
    assert "alias kilo" in shown
    assert "inet 10.2.1.1/32" in shown
    assert read_busy(host) == frozenset()


def test_only_what_differs_in_a_tunnel_is_changed(host: Host) -> None:
    host.run(put_tunnel(WANTED))
    host.sh(f"ip address add 10.2.9.9/32 dev {LINK}; ip link set {LINK} mtu 1400 down")
    assert host.run(read_tunnel(LINK)) != WANTED
    moved = replace(WANTED, mtu=1380, addresses=frozenset({ip_interface("10.2.7.1/32")}))
    host.run(put_tunnel(moved))
    assert host.run(read_tunnel(LINK)) == moved


def test_a_tunnel_removed_leaves_the_kernels_own_as_it_was(host: Host) -> None:
    host.run(put_tunnel(WANTED))
    host.run(remove_tunnel(WANTED))
    assert host.run(read_tunnel(LINK)) is None
    left = host.sh(f"ip -details address show dev {LINK} 2>&1 || true")
    assert "inet " not in left
    assert "alias" not in left
    assert "UP" not in left
    host.run(remove_tunnel(WANTED))


def test_a_crash_at_any_write_leaves_the_kernels_own_as_it_was(host: Host, tmp_path: Path) -> None:
    """Of a start and of an uninstall; whoever starts once more in between makes it whole.

    Each start takes long in emulation, so that is seen every other time.
    """
    before = look(host)
    with closing(host.call(partial(Nursery, tmp_path, "kilo0", wanted="tunnel"))) as nursery:
        made, removed = (nursery.work(what, Choice.NFTABLES) for what in ("start", "uninstall"))
        assert made
        assert removed
        assert look(host) == before
        for at in range(max(made, removed)):
            nursery.work("start", Choice.NFTABLES, writes=at)
            if at % 2:
                assert nursery.work("start", Choice.NFTABLES) is not None
                assert host.run(read_tunnel(LINK)) == WANTED
            nursery.work("uninstall", Choice.NFTABLES, writes=at)
            assert nursery.work("uninstall", Choice.NFTABLES) is not None
            assert look(host) == before, f"killed at write {at}"


def look(host: Host) -> str:
    """All there is to see of it, but for the queue that it has had since it was up."""
    return re.sub(r"qdisc \w+", "", host.sh(f"ip -details address show dev {LINK} 2>&1 || true"))


def test_a_tunnel_that_others_have_set_up_is_theirs(host: Host) -> None:
    use_and_leave_alone(host, f"ip link set {LINK} up")


def test_a_tunnel_that_others_gave_an_address_is_theirs(host: Host) -> None:
    use_and_leave_alone(host, f"ip address add 10.9.9.9/32 dev {LINK}")


def use_and_leave_alone(host: Host, use: str) -> None:
    host.sh(f"ip link show {LINK} || ip link add {LINK} type ipip; {use}")
    before = describe(host)
    assert read_busy(host) == {LINK}
    assert host.run(read_tunnel(LINK)) is None
    with pytest.raises(DataplaneError, match="somebody else uses it"):
        host.run(put_tunnel(WANTED))
    host.run(remove_tunnel(WANTED))
    assert describe(host) == before


def test_another_link_of_that_name_is_left_alone(host: Host) -> None:
    host.sh("ip link add taken type bridge")
    with pytest.raises(DataplaneError, match="a link of kind bridge bears its name"):
        host.run(put_tunnel(replace(WANTED, name="taken")))
    assert host.run(read_tunnel("taken")) is None
    host.run(remove_tunnel(replace(WANTED, name="taken")))
    assert "bridge" in host.sh("ip -details link show dev taken")


def test_ipip_passes_within_the_location_and_from_elsewhere_is_dropped(location: Location) -> None:
    near, other, stranger = location.near, location.other, location.stranger
    with echo(near, "10.2.1.1"):
        for sender in (other, stranger):
            with Flow(sender, "10.2.1.1") as flow:
                flow.await_answers(5)
        guard = Firewall(
            tunnel_sources=frozenset({ip_network("192.168.0.1/32"), ip_network("192.168.0.2/32")})
        )
        near.run(NFTables().apply(Change(new=guard)))
        assert near.run(NFTables().read()) == guard
        with Flow(other, "10.2.1.1") as flow, Flow(stranger, "10.2.1.1") as intruder:
            flow.await_answers(25)
            assert intruder.sent > 0
            assert not intruder.answered
        near.run(NFTables().apply(Change(old=guard)))
        with Flow(stranger, "10.2.1.1") as flow:
            flow.await_answers(5)
