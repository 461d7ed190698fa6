"""What this host needs to be a Peer of the mesh, as a value: no I/O, no clock.

It is what ``showconf peer`` prints and ``wg-quick`` would do with it, and more: it follows devices
that move, keeps packets for the mesh from leaving in clear, and lets one live leader carry what
is not the mesh's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface

from kilo.errors import ConfigError, MeshError
from kilo.kgctl.meshing import check_peer
from kilo.mesh.diff import Changes, diff
from kilo.mesh.host import HostFacts, find_wireguard_mtu
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, IPAddress, IPNetwork, Peer
from kilo.mesh.roaming import Observed, find_live_endpoints, settle
from kilo.mesh.state import (
    Address,
    Barrier,
    DataplaneState,
    Link,
    Route,
    WireGuardDevice,
    WireGuardPeer,
)
from kilo.mesh.survey import Survey
from kilo.mesh.topology import Segment, Topology
from kilo.mesh.wgconf import PeerConf, find_peer, make_peer_conf


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """The host that is to be a Peer of the mesh."""

    name: str
    public_key: PublicKey
    interface: str
    keepalive_seconds: int
    more: tuple[IPNetwork, ...] = ()
    """Networks that are not the mesh's, to be reached through a leader of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The host and its device, as they are now."""

    facts: HostFacts
    actual: DataplaneState
    observed: Observed
    resolved: Mapping[str, IPAddress]
    configured: Mapping[PublicKey, Endpoint]
    """The endpoints that were desired at the pass before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a pass comes to."""

    desired: DataplaneState
    changes: Changes
    configured: Mapping[PublicKey, Endpoint]
    carrier: str
    """The node through which ``Guest.more`` is reached; empty where there is none."""
    is_tentative: bool
    """Whether nothing has been heard of that node yet: another one may do better."""
    warnings: tuple[str, ...]


def check_host(guest: Guest, actual: DataplaneState) -> None:
    """``ConfigError`` where something of ours is on the host that no guest has made.

    What a guest that was killed has left is none: the first pass takes it over.
    """
    for device in actual.devices:
        if device.public_key not in (None, guest.public_key):
            raise ConfigError(
                f"--interface {guest.interface!r}: is there already, with the public key"
                f" {device.public_key}, and ours is {guest.public_key}: take another name, or end"
                " what made it (kg uninstall, if it was an agent)"
            )
    elsewhere = sorted(str(r) for r in actual.routes if r.link != guest.interface)
    strange = [*elsewhere, *actual.rules, *actual.tunnels, *actual.sysctls]
    if actual.firewall is not None:
        strange.append(actual.firewall)
    if strange:
        raise ConfigError(
            f"--interface {guest.interface!r}: an agent, or a guest with another interface, has"
            f" left its network on this host ({strange[0]}); kg uninstall removes it"
        )


def plan_connection(guest: Guest, survey: Survey, seen: Seen) -> Connection:
    """Compute a pass; ``MeshError`` if nothing should be changed: the Peer has gone, say."""
    topology = survey.topology
    own = find_own_peer(guest, survey)
    confs = make_peer_conf(topology, guest.name).peers
    carrier, warnings = choose_carrier(guest, topology, confs, seen)
    more = _list_granted(guest, confs, own) if carrier else ()
    rendered = frozenset(
        _render_peer(guest, conf, seen, more if carrier and conf.public_key == carrier.key else ())
        for conf in confs
    )
    peers = settle(rendered, seen.actual.peers, observed=seen.observed, configured=seen.configured)
    routes = {route.key: route for route in _list_routes(guest, own, peers, seen)}
    desired = DataplaneState(
        links=frozenset({_render_link(guest, topology, seen)}),
        devices=frozenset({_render_device(guest, own, seen)}),
        peers=peers,
        addresses=frozenset(_list_addresses(guest, own, seen)),
        routes=frozenset(routes.values()),
        barriers=frozenset(_list_barriers(guest, survey, seen, more)),
    )
    return Connection(
        desired=desired,
        changes=diff(seen.actual, desired),
        configured={p.public_key: p.endpoint for p in rendered if p.endpoint is not None},
        carrier=carrier.leader.name if carrier else "",
        is_tentative=bool(guest.more) and not (carrier and _is_live(carrier.key, seen)),
        warnings=(*warnings, *_list_refusals(guest, topology)),
    )


def find_own_peer(guest: Guest, survey: Survey) -> Peer:
    """The Peer that this host is; ``MeshError`` if there is none, or it has become another's."""
    check_peer(survey, guest.name)
    own = find_peer(survey.topology, guest.name)
    if own.public_key != guest.public_key:
        raise MeshError(
            f"peer {guest.name}: its public key is {own.public_key}, and this host's is"
            f" {guest.public_key}: another name, or --private-key with the key that belongs to it"
        )
    return own


def _list_refusals(guest: Guest, topology: Topology) -> Iterator[str]:
    claimant = f"Peer {guest.name}"
    return (str(one) for one in topology.refusals if one.claimant == claimant)


# Who carries what is not the mesh's own.


def choose_carrier(
    guest: Guest, topology: Topology, confs: Sequence[PeerConf], seen: Seen
) -> tuple[Segment | None, tuple[str, ...]]:
    """The segment whose leader is to carry ``guest.more``, and what is wrong.

    One that answers, rather the one that does it already: what moves breaks its connections. A
    leader that carries the network which its own tunnel runs through would wait for itself.
    """
    granted = _list_granted(guest, confs, find_peer(topology, guest.name))
    taken = [f"--allowed-ips {net}: is the mesh's own" for net in guest.more if net not in granted]
    if not granted:
        return None, tuple(taken)
    endpoints = {conf.public_key: _find_endpoint(conf, seen) for conf in confs}
    fitting = [
        segment
        for segment in topology.segments
        if not _lies_inside(endpoints.get(segment.key), granted)
    ]
    if not fitting:
        return None, (*taken, f"--allowed-ips {_join(granted)}: no leader can carry them")
    carrying = {
        peer.public_key for peer in seen.actual.peers if not peer.allowed_ips.isdisjoint(granted)
    }
    chosen = min(
        fitting,
        key=lambda s: (not _is_live(s.key, seen), s.key not in carrying, not endpoints.get(s.key)),
    )
    return chosen, tuple(taken)


def _list_granted(guest: Guest, confs: Iterable[PeerConf], own: Peer) -> tuple[IPNetwork, ...]:
    """Those of ``guest.more`` that nobody in the mesh has."""
    held = {network for conf in confs for network in conf.allowed_ips} | {*own.allowed_ips}
    return tuple(network for network in guest.more if network not in held)


def _is_live(key: PublicKey, seen: Seen) -> bool:
    return key in find_live_endpoints(seen.observed)


def _lies_inside(endpoint: Endpoint | None, networks: Iterable[IPNetwork]) -> bool:
    address = endpoint.ip if endpoint else None
    return address is not None and any(address in network for network in networks)


def _join(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


# The interface.


def _render_link(guest: Guest, topology: Topology, seen: Seen) -> Link:
    mtu = topology.settings.mtu or find_wireguard_mtu(seen.facts)
    return Link(name=guest.interface, mtu=mtu, up=True)


def _render_device(guest: Guest, own: Peer, seen: Seen) -> WireGuardDevice:
    """At the port that others find it at, if they are told one; else at any: 0 lets the kernel
    choose, which may be done but once.
    """
    chosen = next((device.listen_port for device in seen.actual.devices), 0)
    return WireGuardDevice(
        link=guest.interface,
        public_key=guest.public_key,
        listen_port=own.endpoint.port if own.endpoint else chosen,
    )


def _list_addresses(guest: Guest, own: Peer, seen: Seen) -> Iterator[Address]:
    for network in own.allowed_ips:
        if network.num_addresses == 1 and network.version in seen.facts.families:
            yield Address(link=guest.interface, interface=ip_interface(str(network)))


def _render_peer(
    guest: Guest, conf: PeerConf, seen: Seen, more: Sequence[IPNetwork]
) -> WireGuardPeer:
    return WireGuardPeer(
        link=guest.interface,
        public_key=conf.public_key,
        allowed_ips=frozenset((*conf.allowed_ips, *more)),
        endpoint=_find_endpoint(conf, seen),
        keepalive_seconds=guest.keepalive_seconds,
        preshared_key=conf.preshared_key,
    )


def _find_endpoint(conf: PeerConf, seen: Seen) -> Endpoint | None:
    """None while its name has not been resolved: the device keeps what it has."""
    if conf.endpoint is None or conf.endpoint.ip is not None:
        return conf.endpoint
    address = seen.resolved.get(conf.endpoint.host)
    return Endpoint(host=str(address), port=conf.endpoint.port) if address else None


# Routes.


def _list_routes(
    guest: Guest, own: Peer, peers: Iterable[WireGuardPeer], seen: Seen
) -> Iterator[Route]:
    """To all that peers allow, but for networks that a peer's own tunnel runs through."""
    for peer in sorted(peers, key=lambda peer: peer.public_key):
        for network in peer.allowed_ips:
            if network.version in seen.facts.families and not _lies_inside(
                peer.endpoint, (network,)
            ):
                yield from _route(guest, own, network)


def _route(guest: Guest, own: Peer, network: IPNetwork) -> Iterator[Route]:
    """From an address of ours; none of a family that we are not known by."""
    known = [net for net in own.allowed_ips if net.version == network.version]
    source = next((net.network_address for net in known if net.num_addresses == 1), None)
    if known:
        yield Route(destination=network, link=guest.interface, source=source)


def _list_barriers(
    guest: Guest, survey: Survey, seen: Seen, more: Sequence[IPNetwork]
) -> Iterator[Barrier]:
    """What shall not leave in clear while a leader is away: Kilo's subnets, all pods, and what
    is carried. Not a network that a host itself lives in: it could not be reached any more.
    """
    nodes = survey.snapshot.nodes
    places = [a.interface.ip for a in seen.facts.addresses if a.link != guest.interface]
    places += [interface.ip for node in nodes for interface in node.internal_ips]
    places += [e.ip for node in nodes if (e := node.endpoint) is not None and e.ip is not None]
    pods = (network for node in nodes for network in node.pod_subnets)
    for network in dict.fromkeys((*survey.topology.settings.subnets, *pods, *more)):
        if network.version in seen.facts.families and not any(ip in network for ip in places):
            yield Barrier(destination=network)
