"""Two locations with several hosts each, a pod on every host, and who watches the way between.

Three hosts of one location, one of them in another subnet, and two of the other. The pods are
joined by the real plugins, and speak both families.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from types import MappingProxyType

from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.lab.pods import Pod
from kilo.lab.probing import Probe
from tests.lab.conftest import write_directory
from tests.lab.meshes import is_ready, never_seen, wait_until

TEMPLATE = Path(__file__).parents[2] / "examples/cni/10-kilo.conflist"
NETWORKS = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24, "2001:db8::/64"]}
  east: {subnets: [192.168.1.0/24, 192.168.9.0/24, "fd00:1::/64"]}
  west: {subnets: [192.168.2.0/24, "fd00:2::/64"]}
"""
PLACES = {
    "a1": ("east", "192.168.1.11", "fd00:1::11"),
    "a2": ("east", "192.168.1.12", "fd00:1::12"),
    "a3": ("east", "192.168.9.13", "fd00:1::13"),
    "b1": ("west", "192.168.2.21", "fd00:2::21"),
    "b2": ("west", "192.168.2.22", "fd00:2::22"),
}
NAMES = tuple(PLACES)
NUMBERS = {name: int(address.rpartition(".")[2]) for name, (_, address, _) in PLACES.items()}
"""Of a host's public addresses and of its pods'."""
HOST = """
  {name}:
    networks:
      {network}: [{ipv4}, "{ipv6}"]
      internet: [198.51.100.{number}, "2001:db8::{number}"]
    flags: [{flags}]
"""
SETTINGS = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Settings
metadata: {{name: mesh}}
spec: {{subnets: [10.4.0.0/16, "fd00:4::/64"], encapsulation: {encapsulation}}}
"""
NODE = """
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {{name: {name}}}
spec: {{location: {network}, podSubnets: [10.2.{number}.0/24, "fd00:a:0:{number}::/64"]}}
"""
START_SECONDS = 300.0
"""How long an emulated machine may take to start programs, several at a time."""
IPIP = "ip protocol 4"
PROBE_SECONDS = 0.1


def render_lab(flags: Mapping[str, str]) -> str:
    """The ``lab.yaml``."""
    hosts = "".join(
        HOST.format(
            name=name,
            network=network,
            ipv4=ipv4,
            ipv6=ipv6,
            number=NUMBERS[name],
            flags=flags.get(name, ""),
        )
        for name, (network, ipv4, ipv6) in PLACES.items()
    )
    common = f"flags: [--cni, --cni-template={TEMPLATE}, --clean-up=false]\n"
    return f"{NETWORKS}hosts:\n{hosts}{common}"


def render_mesh(encapsulation: str) -> str:
    """The mesh's documents."""
    nodes = (
        NODE.format(name=name, network=network, number=NUMBERS[name])
        for name, (network, _, _) in PLACES.items()
    )
    return SETTINGS.format(encapsulation=encapsulation) + "".join(nodes)


@contextmanager
def open_locations(
    directory: Path,
    name: str,
    *,
    encapsulation: str,
    flags: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Lab]:
    """The lab of that name, everything reachable; ``flags`` are more ones for single agents."""
    write_directory(directory, render_lab(flags), render_mesh(encapsulation))
    with Lab.up(directory, name=name, agents=False) as lab:
        lab.for_each(lab.agent_hosts, Host.start_agent)
        for host in lab.agent_hosts:
            wait_started(host)
        lab.for_each(lab.agent_hosts, lambda host: host.add_pod("web"))
        lab.wait_reachable(START_SECONDS)
        yield lab


def wait_long(holds: Callable[[], object], what: str) -> None:
    """Until it holds; in emulation everything takes its time."""
    wait_until(holds, what, seconds=START_SECONDS)


def wait_started(host: Host) -> None:
    """Until its agent is ready; fails with what it has logged."""
    try:
        wait_long(lambda: is_ready(host), "is ready")
    except AssertionError as error:
        raise AssertionError(f"{host.name}: {error}: {host.log.read_text()[-3000:]}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Of IPv4, of a host."""

    internal: str
    public: str


def find_addresses(lab: Lab, name: str) -> Addresses:
    """Where a host is found in its location, and on the way between the locations."""
    internal, public = (
        address for address in lab.host(name).spec.addresses if address.version == 4
    )
    return Addresses(internal=str(internal), public=str(public))


def find_pod(lab: Lab, host: str) -> Pod:
    """The host's only pod."""
    return next(iter(lab.host(host).pods.list()))


@contextmanager
def nothing_in_clear(lab: Lab, *, but_from: str = "") -> Iterator[None]:
    """Fails if a packet from or to a pod, as it is or in IPIP, is seen between the locations.

    ``but_from`` is a host whose own pods do not count.
    """
    ipv4, ipv6 = "10.2.0.0/16", "fd00:a::/48"
    matches = [f"{way} {ipv4}" for way in ("ip saddr", "ip daddr")]
    matches += [f"{way} {ipv6}" for way in ("ip6 saddr", "ip6 daddr")]
    if but_from:
        number = NUMBERS[but_from]
        matches = [
            f"ip saddr != 10.2.{number}.0/24 {match}"
            if match.startswith("ip ")
            else f"ip6 saddr != fd00:a:0:{number}::/64 {match}"
            for match in matches
        ]
    with ExitStack() as stack:
        for match in (*matches, IPIP):
            stack.enter_context(never_seen(lab, "internet", match))
        yield


@contextmanager
def pods_talk(lab: Lab) -> Iterator[None]:
    """Every pod sends to every other all the time, one way in IPv4 and the other in IPv6."""
    pods = {pod.name: pod for pod in (find_pod(lab, name) for name in NAMES)}
    addresses = {
        (source, target): pods[target].find_address(4 if source < target else 6)
        for source, target in permutations(pods, 2)
    }
    with Probe(pods.values(), addresses, interval_seconds=PROBE_SECONDS):
        yield


def stop_and_start(lab: Lab, name: str, way: str) -> None:
    """Stop an agent in one of the ways there are, see that the others get along, and start it."""
    host = lab.host(name)
    leaves = way in ("clean-up", "uninstall")
    if way == "clean-up":
        host.kill_agent()
        host.start_agent("--clean-up=true")
        wait_started(host)
    with pods_talk(lab), nothing_in_clear(lab, but_from=name if leaves else ""):
        stop(host, way)
        if leaves:
            wait_long(lambda: lab.check().complete, f"all but {name} get along")
        host.start_agent()
        wait_started(host)
    lab.wait_reachable(START_SECONDS)


def stop(host: Host, way: str) -> None:
    """``clean-up`` and ``uninstall`` take the network away, ``SIGTERM`` and ``SIGKILL`` do not."""
    host.kill_agent(signal.SIGKILL if way in ("SIGKILL", "uninstall") else signal.SIGTERM)
    if way == "uninstall":
        host.run(host.agent_command("uninstall"), timeout=START_SECONDS)
