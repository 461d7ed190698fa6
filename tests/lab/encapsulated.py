"""Locations that are encapsulated, with pods; ``test_encapsulated`` runs this where there is IPIP.

Everything is asked from everywhere, in every combination of granularity and encapsulation, while
nothing of a pod's may be seen in clear on the way between the locations. Each of the firewalls is
on one of the hosts at some time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from kilo.lab import meshdir
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.lab.forging import forge, listening
from tests.lab.locations import (
    IPIP,
    NAMES,
    NUMBERS,
    START_SECONDS,
    find_addresses,
    find_pod,
    nothing_in_clear,
    open_locations,
    stop_and_start,
    wait_long,
)
from tests.lab.meshes import read_report, watching

GRANULARITIES = ("location", "full", "cross")
ENCAPSULATIONS = ("never", "crosssubnet", "always")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("encapsulated") / "lab"
    flags = {"a3": "--firewall=iptables"}
    with open_locations(directory, "encapsulated", encapsulation="always", flags=flags) as lab:
        yield lab


# Every pair, in every way.


def uses_tunnel(lab: Lab, source: str, target: str) -> bool:
    pods = [find_pod(lab, name).find_address(4) for name in (target, source)]
    words = ["ip", "route", "get", pods[0], "from", pods[1], "iif", "kube-bridge"]
    return "dev tunl0" in lab.host(source).run(words)


def set_way(lab: Lab, granularity: str, encapsulation: str) -> None:
    """Change the settings, and wait until every host goes by them."""
    meshdir.set_settings(lab.mesh, granularity=granularity, encapsulation=encapsulation)
    near, far = encapsulation == "always", encapsulation != "never"
    if granularity == "full":
        near = far = False
    for name in NAMES:
        wait_long(lambda: f"granularity: {granularity}" in read_report(lab, name), f"{name} knows")  # noqa: B023 - called at once
    for pair, expected in ((("a1", "a2"), near), (("b2", "b1"), near), (("a3", "a1"), far)):
        wait_long(lambda: uses_tunnel(lab, *pair) is expected, f"{encapsulation}: {pair}")  # noqa: B023 - called at once


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("encapsulation", ENCAPSULATIONS)
def test_everything_reaches_everything_in_every_way_and_no_packet_is_in_clear(
    lab: Lab, granularity: str, encapsulation: str
) -> None:
    with nothing_in_clear(lab):
        set_way(lab, granularity, encapsulation)
        result = lab.wait_reachable(START_SECONDS)
    places = {*NAMES, *(f"{name}/web" for name in NAMES)}
    assert set(result.sources) == set(result.destinations) == places
    for source in places:
        asked = {(target.host, target.address.version) for target in result.answered[source]}
        assert asked >= set(product(places - {source}, (4, 6)))


def test_a_packet_in_clear_would_have_been_seen(lab: Lab) -> None:
    """A route of somebody else's leads past the tunnel."""
    host, pod = lab.host("b1"), find_pod(lab, "a1").find_address(4)
    past = [pod, "via", find_addresses(lab, "a1").public]
    host.run(["ip", "route", "add", *past])
    try:
        with pytest.raises(AssertionError, match="on internet"), nothing_in_clear(lab):
            host.call(["ping", "-c1", "-W1", pod])
    finally:
        host.run(["ip", "route", "del", *past])


# Agents that stop.


@pytest.mark.parametrize("way", ["SIGTERM", "SIGKILL", "clean-up"])
def test_while_a_leader_stops_and_starts_no_packet_is_in_clear(lab: Lab, way: str) -> None:
    set_way(lab, "location", "always")
    lab.wait_reachable(START_SECONDS)
    stop_and_start(lab, "a1", way)


# Whose IPIP comes in.

CANARY = ["iptables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"]
"""By which a kubelet tells others which iptables the host goes by."""
LISTINGS = {
    "a1": "nft list table inet kilo",
    "a3": "iptables-nft-save",
    "b2": "iptables-legacy-save",
}
"""What shows the guard of a host."""


def is_guarded(host: Host) -> bool:
    shown = host.call(LISTINGS[host.name].split()).stdout
    return "Kilo: IPIP from this location" in shown


def go_by_legacy_tables(host: Host) -> None:
    """In emulation the library behind them takes its time, so only for a while."""
    host.run(CANARY)
    host.restart_agent()
    wait_long(lambda: is_guarded(host), "legacy tables guard")


@pytest.mark.parametrize(("name", "friend"), [("a1", "a2"), ("a3", "a2"), ("b2", "b1")])
def test_ipip_from_a_host_of_another_location_is_dropped_and_from_the_own_taken(
    lab: Lab, name: str, friend: str
) -> None:
    set_way(lab, "location", "always")
    host, stranger = lab.host(name), lab.host("a2" if name == "b2" else "b1")
    if name == "b2":
        go_by_legacy_tables(host)
    assert is_guarded(host)
    inside, ours, theirs = (find_addresses(lab, one) for one in (name, friend, stranger.name))
    pod = f"10.2.{NUMBERS[name]}.1"
    with listening(host, pod) as heard:
        with watching(lab, "internet", IPIP) as count_seen:
            forge(stranger, theirs.public, inside.public, pod, "from elsewhere")
            assert count_seen() == 1
        forge(lab.host(friend), ours.internal, inside.internal, pod, "from here")
        assert heard() == "from here"


def test_a_stopped_agent_leaves_no_tunnel_and_no_rule_behind(lab: Lab) -> None:
    set_way(lab, "location", "always")
    host = lab.host("a3")
    assert "kilo" in host.run(["ip", "-d", "link", "show", "dev", "tunl0"])
    host.kill_agent()
    host.run(host.agent_command("uninstall"), timeout=START_SECONDS)
    left = host.run(["ip", "-d", "address", "show", "dev", "tunl0"])
    assert "alias" not in left
    assert "10.2.13.1" not in left
    assert "1107" not in host.run(["ip", "rule"])
    assert host.run(["ip", "route", "show", "table", "all", "proto", "107"]) == ""
