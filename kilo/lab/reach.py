"""Who reaches whom over the overlay: what there is to reach, the pings, the table.

What is expected is read off the mesh directory, not off what agents did: every internal IP, pod
address and WireGuard IP of hosts whose agents run, every peer, every plain host that a location
allows. Whether it answers is asked with ``fping``, from every such host at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kilo.lab import meshdir
from kilo.lab.host import Host
from kilo.lab.pods import Pod
from kilo.lab.spec import LabSpec
from kilo.mesh.model import IPAddress, Snapshot
from kilo.mesh.topology import Topology

PING_TIMEOUT_MS = 500
PING_RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Target:
    """An address that somebody may want to reach, and the host that must answer."""

    host: str
    kind: str
    """``internal``, ``pod``, ``wireguard``, ``peer`` or ``device``."""
    address: IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachability:
    """The answers: for each host that asked, which targets it asked and which ones answered."""

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    asked: Mapping[str, frozenset[Target]]
    answered: Mapping[str, frozenset[Target]]
    outside: tuple[str, ...] = ()
    """Hosts that take no part: off, without a running agent, or the player of a peer that the
    mesh has not got (yet). Nothing is asked of them."""
    crashed: tuple[str, ...] = ()
    """Those of them that nobody stopped."""

    @property
    def missing(self) -> list[tuple[str, Target]]:
        """What should have answered and did not, with who asked."""
        return [
            (source, target)
            for source in self.sources
            for target in sorted(self.asked[source] - self.answered[source], key=_order)
        ]

    @property
    def complete(self) -> bool:
        """Whether everybody takes part who should, and everything answers."""
        return bool(self.sources) and not self.missing and not self.crashed

    def explain(self) -> str:
        """Why it is not complete, in one line that names the first thing to look at."""
        outside = f"; outside the mesh: {', '.join(self.outside)}" if self.outside else ""
        if self.crashed:
            return f"{self.crashed[0]} is not running, though nobody stopped it{outside}"
        if not self.missing:
            return f"nobody asks anybody{outside}"
        source, target = self.missing[0]
        return (
            f"answers missing: {len(self.missing)}, such as that of {target.host}"
            f" ({target.kind} {target.address}) to {source}{outside}"
        )

    def count(self, source: str, destination: str) -> tuple[int, int]:
        """How many of the destination's addresses answered the source, of how many."""
        asked = [t for t in self.asked.get(source, ()) if t.host == destination]
        return sum(t in self.answered[source] for t in asked), len(asked)

    def as_document(self) -> dict[str, Any]:
        """The same as JSON would have it."""
        return {
            "complete": self.complete,
            "outside": list(self.outside),
            "crashed": list(self.crashed),
            "from": {
                source: [
                    {
                        "host": target.host,
                        "kind": target.kind,
                        "address": str(target.address),
                        "reached": target in self.answered[source],
                    }
                    for target in sorted(self.asked[source], key=_order)
                ]
                for source in self.sources
            },
        }


def _order(target: Target) -> tuple[str, str, int, int]:
    return target.host, target.kind, target.address.version, int(target.address)


def list_targets(spec: LabSpec, snapshot: Snapshot, topology: Topology) -> list[Target]:
    """Everything in the mesh that a host of the lab must answer for."""
    found = [*_node_targets(spec, snapshot), *_leader_targets(spec, topology)]
    found += _peer_targets(spec, topology)
    found += _device_targets(spec, snapshot)
    families: set[int] = {subnet.version for subnet in topology.settings.subnets}
    return [target for target in found if target.address.version in families]


def _node_targets(spec: LabSpec, snapshot: Snapshot) -> Iterator[Target]:
    names = {host.name for host in spec.hosts if host.agent}
    for node in snapshot.nodes:
        if node.name in names:
            for interface in node.internal_ips:
                yield Target(host=node.name, kind="internal", address=interface.ip)
            for interface in meshdir.find_pod_addresses(node):
                yield Target(host=node.name, kind="pod", address=interface.ip)


def _leader_targets(spec: LabSpec, topology: Topology) -> Iterator[Target]:
    names = {host.name for host in spec.hosts if host.agent}
    for segment in topology.segments:
        if segment.leader.name in names:
            for interface in segment.wireguard_ips:
                yield Target(host=segment.leader.name, kind="wireguard", address=interface.ip)


def _peer_targets(spec: LabSpec, topology: Topology) -> Iterator[Target]:
    players = {host.peer: host.name for host in spec.hosts if host.peer}
    for peer in topology.peers:
        if peer.name in players:
            for network in peer.allowed_ips:
                if network.num_addresses == 1:
                    address = network.network_address
                    yield Target(host=players[peer.name], kind="peer", address=address)


def _device_targets(spec: LabSpec, snapshot: Snapshot) -> Iterator[Target]:
    allowed = [network for node in snapshot.nodes for network in node.spec.allowed_location_ips]
    for host in spec.hosts:
        if not host.agent and not host.peer:
            for address in host.addresses:
                if any(address in network for network in allowed):
                    yield Target(host=host.name, kind="device", address=address)


def put_pods_in_place(targets: Iterable[Target], hosts: Iterable[Host]) -> list[Target]:
    """The same, where agents connect pods with those that there are, in the place of the bridge
    that stands in for them elsewhere.
    """
    found = list(hosts)
    connected = {host.name for host in found if host.has_cni}
    kept = [one for one in targets if one.kind != "pod" or one.host not in connected]
    return kept + [
        Target(host=pod.name, kind="pod", address=interface.ip)
        for host in found
        for pod in host.pods.list()
        for interface in pod.addresses
    ]


PROBE_KINDS = ("pod", "peer", "internal", "wireguard", "device")


def choose_address(targets: Iterable[Target], host: str) -> IPAddress | None:
    """The address that stands for a host where one is enough; IPv4 if it has."""
    best = min(
        (target for target in targets if target.host == host),
        key=lambda target: (PROBE_KINDS.index(target.kind), target.address.version),
        default=None,
    )
    return best.address if best else None


def list_families(place: Host | Pod, topology: Topology) -> set[int]:
    """The address families that a host or pod can speak over the overlay."""
    families: set[int] = {subnet.version for subnet in topology.settings.subnets}
    if isinstance(place, Pod):
        return families & {interface.version for interface in place.addresses}
    if place.spec.peer:
        peers = [peer for peer in topology.peers if peer.name == place.spec.peer]
        return {network.version for peer in peers for network in peer.allowed_ips}
    return families


def select_targets(
    place: Host | Pod, targets: Iterable[Target], topology: Topology, expected: set[str]
) -> frozenset[Target]:
    """What a host or pod is to ask: all of others that are expected, in families it speaks."""
    families = list_families(place, topology)
    return frozenset(
        target
        for target in targets
        if target.host in expected - {place.name} and target.address.version in families
    )


def ask(place: Host | Pod, targets: Iterable[Target]) -> frozenset[Target]:
    """Those of the targets that answer a ping from the host or pod."""
    wanted = list(targets)
    addresses = {str(target.address) for target in wanted}
    if not addresses:
        return frozenset()
    limits = [f"--timeout={PING_TIMEOUT_MS}", f"--retry={PING_RETRIES}", "--interval=1"]
    # Its exit status only says whether all answered; errors about single addresses are answers.
    shown = place.call(["fping", "--alive", *limits, *sorted(addresses)]).stdout.split()
    return frozenset(target for target in wanted if str(target.address) in shown)


def draw_table(result: Reachability) -> str:
    """Rows ask, columns answer: ``✓`` and how many addresses, ``✗`` and how many of how many."""
    header = ["from \\ to", *result.destinations]
    rows = [
        [source, *(_draw_cell(result, source, to) for to in result.destinations)]
        for source in result.sources
    ]
    lines = align([header, *rows])
    if result.outside:
        lines.append(f"outside the mesh: {', '.join(result.outside)}")
    if result.crashed:
        lines.append(f"✗ not running, though nobody stopped it: {', '.join(result.crashed)}")
    return "\n".join(lines)


def _draw_cell(result: Reachability, source: str, destination: str) -> str:
    if source == destination:
        return "-"
    good, total = result.count(source, destination)
    if not total:
        return "."
    return f"✓ {total}" if good == total else f"✗ {good}/{total}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
