"""No packet of a pod is seen in clear between the locations, whatever stops, fails or is missing.

One lab serves the tests of this module; each leaves it as whole as it found it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kilo.lab.lab import Lab
from tests.lab.locations import (
    START_SECONDS,
    find_pod,
    nothing_in_clear,
    open_locations,
    pods_talk,
    stop_and_start,
    wait_started,
)
from tests.lab.meshes import wait_until


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("clear") / "lab"
    with open_locations(directory, f"test-{os.getpid()}-clear", encapsulation="never") as lab:
        yield lab


@pytest.fixture
def mesh(lab: Lab) -> Lab:
    """The lab, everything reachable and every agent ready."""
    for host in lab.agent_hosts:
        wait_started(host)
    lab.wait_reachable(START_SECONDS)
    return lab


@pytest.mark.parametrize("way", ["SIGTERM", "SIGKILL", "clean-up", "uninstall"])
@pytest.mark.parametrize("name", ["a1", "b2"])
def test_while_an_agent_stops_and_starts(mesh: Lab, name: str, way: str) -> None:
    stop_and_start(mesh, name, way)


def test_when_the_interface_is_gone_and_there_is_no_agent_to_make_it_anew(mesh: Lab) -> None:
    host = mesh.host("a1")
    with nothing_in_clear(mesh):
        host.kill_agent()
        host.run(["ip", "link", "delete", "kilo0"])
        for version in (4, 6):
            address = find_pod(mesh, "b1").find_address(version)
            told = find_pod(mesh, "a2").call(["ping", "-c1", "-W5", address])
            assert "nreachable" in told.stdout
        with pods_talk(mesh):
            host.start_agent()
            wait_started(host)


@pytest.mark.parametrize(("version", "network"), [(4, "10.2.11.0/24"), (6, "fd00:a:0:11::/64")])
def test_a_packet_in_clear_would_have_been_seen(mesh: Lab, version: int, network: str) -> None:
    host, address = mesh.host("b1"), find_pod(mesh, "a1").find_address(version)
    host.kill_agent()
    try:
        host.run(["ip", f"-{version}", "route", "flush", "proto", "107", network])
        with pytest.raises(AssertionError), nothing_in_clear(mesh):
            find_pod(mesh, "b1").call(["ping", "-c1", "-W1", address])
    finally:
        host.start_agent()


def test_after_a_clean_up_a_host_has_no_barrier_left(mesh: Lab) -> None:
    host = mesh.host("a2")
    assert "unreachable" in host.run(["ip", "route", "show", "proto", "107"])
    host.kill_agent()
    host.run(host.agent_command("uninstall"))
    for family in ("-4", "-6"):
        assert host.run(["ip", family, "route", "show", "table", "all", "proto", "107"]) == ""
    host.start_agent()
    wait_until(lambda: mesh.check().complete, "everything is reachable again")
