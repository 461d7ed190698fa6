"""The kernel's settings: changed with a record of what they were, and given back by it."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kilo.dataplane.hostfacts import HostnameLookup, read_facts
from kilo.dataplane.sysctls import Sysctls, add_sysctls, locate
from kilo.mesh.diff import Change
from kilo.mesh.host import HostFacts
from kilo.mesh.state import Sysctl
from tests.kernel.wireguard_hosts import Host, connect_hosts, wait_for

FORWARD, FORWARD6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"
BEGINNING = {
    FORWARD: "0",
    FORWARD6: "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
}
ON = Sysctl(name=FORWARD, value="1")


@pytest.fixture
def host() -> Iterator[Host]:
    """A host that forwards nothing, whatever the machine's new namespaces begin with."""
    with Host("a") as host:
        for name, value in BEGINNING.items():
            host.call(set_value, name, value)
        yield host


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "kilo" / "sysctls.json"


@pytest.fixture
def sysctls(record: Path) -> Sysctls:
    return Sysctls(record)


def set_value(name: str, value: str) -> None:
    locate(name).write_text(value)


def read_value(host: Host, name: str) -> str:
    return host.call(lambda: locate(name).read_text().strip())


def put(host: Host, sysctls: Sysctls, *wanted: Sysctl) -> None:
    assert host.run(sysctls.apply([Change(new=sysctl) for sysctl in wanted])) == []


def take_back(host: Host, sysctls: Sysctls) -> None:
    """What uninstalling does: all that is ours goes."""
    ours = host.run(sysctls.read())
    ordered = sorted(ours, key=lambda sysctl: sysctl.name not in (FORWARD, FORWARD6))
    assert host.run(sysctls.apply([Change(old=sysctl) for sysctl in ordered])) == []
    assert host.run(sysctls.read()) == frozenset()


def find(host: Host, sysctls: Sysctls) -> HostFacts:
    async def read() -> HostFacts:
        lookup = HostnameLookup("a", on_change=lambda: None, resolve=lambda _: ())
        return await add_sysctls(await read_facts(lookup), sysctls, "kilo0", "tunl0")

    return host.run(read())


def test_a_setting_is_ours_only_once_we_have_changed_it(host: Host, sysctls: Sysctls) -> None:
    assert host.run(sysctls.read()) == frozenset()
    put(host, sysctls, ON)
    assert read_value(host, FORWARD) == "1"
    assert host.run(sysctls.read()) == {ON}
    assert find(host, sysctls).sysctls[FORWARD] == "0", "as others have it"


def test_it_is_given_back_by_whatever_agent_comes_next(
    host: Host, sysctls: Sysctls, record: Path
) -> None:
    put(host, sysctls, ON, Sysctl(name=FORWARD6, value="1"))
    take_back(host, Sysctls(record))
    assert {name: read_value(host, name) for name in (FORWARD, FORWARD6)} == {
        FORWARD: "0",
        FORWARD6: "0",
    }
    assert not record.exists()
    take_back(host, sysctls)


def test_somebody_elses_change_is_seen_put_right_and_outlives_us(
    host: Host, sysctls: Sysctls
) -> None:
    put(host, sysctls, ON)
    host.call(set_value, FORWARD, "0")
    assert host.run(sysctls.read()) == {Sysctl(name=FORWARD, value="0")}
    assert find(host, sysctls).sysctls[FORWARD] == "0"
    put(host, sysctls, ON)
    assert read_value(host, FORWARD) == "1"

    loose = Sysctl(name="net.ipv4.conf.lo.rp_filter", value="2")
    put(host, sysctls, loose)
    host.call(set_value, loose.name, "1")
    take_back(host, sysctls)
    assert read_value(host, loose.name) == "1", "theirs since"
    assert read_value(host, FORWARD) == "0"


def test_what_was_written_before_a_crash_counts_though_the_setting_was_not_changed(
    host: Host, sysctls: Sysctls
) -> None:
    put(host, sysctls, ON)
    host.call(set_value, FORWARD, "0")  # as if the agent had died between its two writes
    take_back(host, sysctls)
    assert read_value(host, FORWARD) == "0"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"network": 7}', '{"network": "other boot 9", "sysctls": {}}']
)
def test_a_record_that_is_none_or_of_another_network_is_void(
    host: Host, sysctls: Sysctls, record: Path, content: str
) -> None:
    record.parent.mkdir()
    record.write_text(content)
    host.call(set_value, FORWARD, "1")
    assert host.run(sysctls.read()) == frozenset()
    assert find(host, sysctls).sysctls[FORWARD] == "1"
    put(host, sysctls, Sysctl(name=FORWARD6, value="1"))
    take_back(host, sysctls)
    assert read_value(host, FORWARD) == "1"


def test_a_record_is_of_one_network_namespace(host: Host, sysctls: Sysctls, record: Path) -> None:
    put(host, sysctls, ON)
    with Host("b") as other:
        other.call(set_value, FORWARD, "1")
        again = Sysctls(record)
        assert other.run(again.read()) == frozenset()
        take_back(other, again)
        assert read_value(other, FORWARD) == "1"
    assert host.run(Sysctls(record).read()) == {ON}


def test_the_record_is_readable_and_says_what_was_before(
    host: Host, sysctls: Sysctls, record: Path
) -> None:
    put(host, sysctls, ON)
    entry = json.loads(record.read_text())["sysctls"][FORWARD]
    assert (entry["before"], entry["value"]) == ("0", "1")
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in record.parent.iterdir()] == [record.name]


def test_what_the_kernel_changes_besides_comes_back_too(host: Host, sysctls: Sysctls) -> None:
    """Switching forwarding makes all links alike and decides about redirects."""
    before = {
        "net.ipv4.conf.all.accept_redirects": "0",
        "net.ipv4.conf.lo.forwarding": "1",
        "net.ipv4.conf.default.forwarding": "0",
        "net.ipv6.conf.lo.forwarding": "1",
        "net.ipv6.conf.default.forwarding": "0",
    }
    for name, value in before.items():
        host.call(set_value, name, value)
    put(host, sysctls, ON, Sysctl(name=FORWARD6, value="1"))
    take_back(host, sysctls)
    assert {name: read_value(host, name) for name in before} == before


def test_a_link_with_a_dot_in_its_name_has_settings_too(host: Host, sysctls: Sysctls) -> None:
    host.sh("ip link add eth0.7 type veth peer name other")
    name = "net.ipv4.conf.eth0/7.rp_filter"
    assert read_value(host, name) == host.sh(f"sysctl -n {name}").strip()
    put(host, sysctls, Sysctl(name=name, value="2"))
    assert read_value(host, name) == "2"
    host.sh("ip link delete eth0.7")
    assert host.run(sysctls.read()) == frozenset(), "gone with its link"
    take_back(host, sysctls)


def test_a_setting_of_a_link_that_is_not_there_fails_by_its_step(
    host: Host, sysctls: Sysctls
) -> None:
    step = Change(new=Sysctl(name="net.ipv4.conf.kilo0.rp_filter", value="2"))
    (failure,) = host.run(sysctls.apply([step]))
    assert str(failure).startswith(f"{step}: /proc/sys/net/ipv4/conf/kilo0/rp_filter: No such file")


# What may not be changed.


def fix_settings(host: Host) -> None:
    """As in most containers."""
    host.sh("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys")


def test_where_proc_sys_is_read_only_nothing_is_ours_and_everything_is_fixed(
    host: Host, sysctls: Sysctls
) -> None:
    assert find(host, sysctls).fixed_sysctls == frozenset()
    put(host, sysctls, ON)
    fix_settings(host)
    assert host.run(sysctls.read()) == frozenset()
    facts = find(host, sysctls)
    assert set(facts.sysctls) == facts.fixed_sysctls >= {FORWARD, FORWARD6}
    assert facts.sysctls[FORWARD] == "1", "as it is"
    (failure,) = host.run(sysctls.apply([Change(new=Sysctl(name=FORWARD6, value="1"))]))
    assert str(failure).endswith("/proc/sys/net/ipv6/conf/all/forwarding: Read-only file system")


def test_what_could_not_be_given_back_is_not_changed(host: Host, tmp_path: Path) -> None:
    host.sh(f"mount -t tmpfs -o ro tmpfs {tmp_path}")
    assert find(host, Sysctls(tmp_path / "kilo" / "sysctls.json")).fixed_sysctls >= {FORWARD}


# IPv6.


def test_a_host_without_ipv6_has_one_family(host: Host, sysctls: Sysctls) -> None:
    assert find(host, sysctls).families == {4, 6}
    set_default = ("net.ipv6.conf.default.disable_ipv6", "1")
    host.call(set_value, *set_default)
    assert find(host, sysctls).families == {4}, "a new link will have none"
    host.sh("ip link add kilo0 type veth peer name other")
    host.sh("sysctl -qw net.ipv6.conf.kilo0.disable_ipv6=0")
    assert find(host, sysctls).families == {4, 6}, "ours has"
    host.sh("mount -t tmpfs tmpfs /proc/sys/net/ipv6")
    facts = find(host, sysctls)
    assert facts.families == {4}
    assert not any("ipv6" in name for name in facts.sysctls)


def advertise_router(host: Host, link: str) -> None:
    """What a router says every few minutes: I am one, for half an hour (RFC 4861 section 4.2)."""
    message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    with host.call(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.sendto(message, ("ff02::1", 0, 0, host.call(socket.if_nametoindex, link)))


def has_default_route(host: Host) -> bool:
    return "default via fe80:" in host.sh("ip -6 route show default")


def await_route(host: Host, router: Host) -> None:
    def heard() -> bool:
        advertise_router(router, "eth0")
        return has_default_route(host)

    wait_for(heard)


def listen(host: Host, sysctls: Sysctls) -> Mapping[str, str]:
    facts = find(host, sysctls)
    return {name: value for name, value in facts.sysctls.items() if name.endswith("accept_ra")}


def test_a_default_route_that_a_router_advertised_outlives_the_hosts_becoming_one(
    host: Host, sysctls: Sysctls
) -> None:
    with Host("router") as router:
        connect_hosts(host, router)
        host.sh("ip link add docker0 type bridge")
        wait_for(lambda: "tentative" not in router.sh("ip -6 address show dev eth0"))
        await_route(host, router)
        before = listen(host, sysctls)
        assert before == {"net.ipv6.conf.eth0.accept_ra": "1"}

        listening = [Sysctl(name=name, value="2") for name in before]
        put(host, sysctls, *listening, Sysctl(name=FORWARD6, value="1"))

        assert has_default_route(host)
        host.sh("ip -6 route flush default")
        await_route(host, router)
        take_back(host, sysctls)
        assert has_default_route(host)
        assert listen(host, sysctls) == before
        assert read_value(host, "net.ipv6.conf.eth0.accept_ra") == "1"


def test_without_that_it_would_be_lost(host: Host, sysctls: Sysctls) -> None:
    """If this fails the kernel has become kinder, and links need not be made to listen."""
    with Host("router") as router:
        connect_hosts(host, router)
        wait_for(lambda: "tentative" not in router.sh("ip -6 address show dev eth0"))
        await_route(host, router)
        put(host, sysctls, Sysctl(name=FORWARD6, value="1"))
        assert not has_default_route(host)


def test_looking_changes_nothing(host: Host, sysctls: Sysctls, record: Path) -> None:
    look = "sysctl -a --pattern 'net.ipv[46].*(forward|rp_filter|accept_ra)'"
    before = host.sh(look)
    find(host, sysctls)
    host.run(sysctls.read())
    assert host.sh(look) == before
    assert not record.parent.exists()
