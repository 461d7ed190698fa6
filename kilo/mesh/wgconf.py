"""WireGuard's INI, both ways: what ``wg setconf`` takes and ``wg showconf`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from kilo.errors import MeshError
from kilo.mesh.keys import PresharedKey, PublicKey
from kilo.mesh.model import Endpoint, IPNetwork, Peer
from kilo.mesh.shared import parse_network
from kilo.mesh.state import sort_networks
from kilo.mesh.topology import Segment, Topology

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConf:
    """One ``[Peer]`` block; the endpoint may be a DNS name."""

    public_key: PublicKey
    allowed_ips: tuple[IPNetwork, ...]
    endpoint: Endpoint | None = None
    preshared_key: PresharedKey | None = None
    keepalive_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """A configuration. A private key is never part of it: its owner adds it."""

    listen_port: int | None = None
    peers: tuple[PeerConf, ...] = ()


def render_conf(conf: Conf) -> str:
    """The INI text. It holds the preshared keys: whoever asked for it needs them."""
    blocks = [["[Interface]"]]
    if conf.listen_port is not None:
        blocks[0].append(f"ListenPort = {conf.listen_port}")
    blocks += [list(_list_peer_lines(peer)) for peer in conf.peers]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def render_peer(peer: PeerConf) -> str:
    """One ``[Peer]`` block, as ``wg addconf`` takes it."""
    return "\n".join(_list_peer_lines(peer)) + "\n"


def _list_peer_lines(peer: PeerConf) -> Iterator[str]:
    yield "[Peer]"
    yield f"PublicKey = {peer.public_key}"
    if peer.preshared_key is not None:
        yield f"PresharedKey = {peer.preshared_key.reveal()}"
    yield f"AllowedIPs = {', '.join(map(str, sort_networks(peer.allowed_ips)))}"
    if peer.endpoint is not None:
        yield f"Endpoint = {peer.endpoint}"
    if peer.keepalive_seconds:
        yield f"PersistentKeepalive = {peer.keepalive_seconds}"


@dataclass(frozen=True, slots=True)
class _Setting:
    """The right side of one line; an error about it says which line, never a secret."""

    line: int
    name: str
    text: str = field(repr=False)

    def read(self, parse: Callable[[str], T]) -> T:
        try:
            return parse(self.text)
        except ValueError as error:
            raise ValueError(f"line {self.line}: {self.name} {error}") from None


_Section = dict[str, _Setting]


def parse_conf(text: str) -> Conf:
    """From INI text; ``ValueError`` names the line that cannot be read.

    Settings that WireGuard itself does not know (``wg-quick``'s ``Address``, say) are skipped.
    """
    interface: _Section = {}
    peers: list[_Section] = []
    section: _Section | None = None
    for number, line in _list_lines(text):
        if line.lower() == "[interface]":
            section = interface
        elif line.lower() == "[peer]":
            # A block without a key is an error of the block's first line.
            section = {"publickey": _Setting(number, "PublicKey", "")}
            peers.append(section)
        else:
            name, equals, value = (part.strip() for part in line.partition("="))
            if not equals or section is None:
                raise ValueError(f"line {number}: is not a setting inside a section")
            _put(section, _Setting(number, name, value))
    port = interface.get("listenport")
    return Conf(
        listen_port=port.read(_parse_number) if port else None,
        peers=tuple(map(_parse_peer, peers)),
    )


def _list_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            yield number, content


def _put(section: _Section, setting: _Setting) -> None:
    """``AllowedIPs`` may be given several times and adds up; anything else is replaced."""
    name = setting.name.lower()
    earlier = section.get(name)
    if name == "allowedips":
        # Read now, so that an error names the line it stands in.
        setting.read(_parse_allowed_ips)
        if earlier:
            setting = replace(setting, text=f"{earlier.text},{setting.text}")
    section[name] = setting


def _parse_peer(section: _Section) -> PeerConf:
    def read(name: str, parse: Callable[[str], T], default: T) -> T:
        setting = section.get(name)
        return setting.read(parse) if setting else default

    return PeerConf(
        public_key=section["publickey"].read(PublicKey.parse),
        allowed_ips=read("allowedips", _parse_allowed_ips, ()),
        endpoint=read("endpoint", _parse_endpoint, None),
        preshared_key=read("presharedkey", _parse_preshared_key, None),
        keepalive_seconds=read("persistentkeepalive", _parse_keepalive, 0),
    )


def _parse_allowed_ips(text: str) -> tuple[IPNetwork, ...]:
    parts = (part.strip() for part in text.split(","))
    return tuple(parse_network(part, strict=False) for part in parts if part)


def _parse_endpoint(text: str) -> Endpoint | None:
    return Endpoint.parse(text)


def _parse_preshared_key(text: str) -> PresharedKey | None:
    return PresharedKey.parse(text)


def _parse_keepalive(text: str) -> int:
    return 0 if text == "off" else _parse_number(text)


def _parse_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError("is not a number from 0 to 65535")
    return int(text)


def render_peer_conf(topology: Topology, peer_name: str) -> str:
    """The INI that a peer of the mesh loads; see ``make_peer_conf``."""
    return render_conf(make_peer_conf(topology, peer_name))


def make_peer_conf(topology: Topology, peer_name: str) -> Conf:
    """What a peer of the mesh needs to reach every segment and every other peer.

    ``MeshError`` if no peer of that name takes part.
    """
    peer = find_peer(topology, peer_name)
    preshared_key = read_preshared_key(peer)
    segments = (
        replace(
            describe_segment(topology, segment),
            preshared_key=preshared_key,
            keepalive_seconds=peer.persistent_keepalive_seconds,
        )
        for segment in topology.segments
    )
    others = (
        replace(
            describe_peer(topology, other),
            keepalive_seconds=peer.persistent_keepalive_seconds,
        )
        for other in topology.peers
        if other.name != peer_name
    )
    return Conf(peers=(*segments, *others))


def make_node_conf(topology: Topology, node_name: str) -> Conf:
    """What the device of a leader has: every segment behind a tunnel, and every peer.

    ``MeshError`` for a node that leads nothing, or takes no part.
    """
    segment = find_led_segment(topology, node_name)
    tunnelled = (s for s in topology.segments if s.neighbourhood != segment.neighbourhood)
    keepalive = segment.leader.spec.persistent_keepalive_seconds
    others = (
        *(describe_segment(topology, other) for other in tunnelled),
        *(describe_secret_peer(topology, peer) for peer in topology.peers),
    )
    endpoint = segment.leader.endpoint
    return Conf(
        listen_port=endpoint.port if endpoint else topology.settings.port,
        peers=tuple(replace(other, keepalive_seconds=keepalive) for other in others),
    )


def describe_segment(topology: Topology, segment: Segment) -> PeerConf:
    """How a segment is reached, with the keepalive that its leader was declared with."""
    keepalive = segment.leader.spec.persistent_keepalive_seconds
    return PeerConf(
        public_key=segment.key,
        allowed_ips=(*segment.allowed_ips, *segment.allowed_location_ips),
        endpoint=_find_endpoint(topology, segment.key, segment.leader.endpoint, keepalive),
        keepalive_seconds=keepalive,
    )


def describe_peer(topology: Topology, peer: Peer) -> PeerConf:
    """How a peer is reached, with the keepalive that it was declared with; without its preshared
    key, which is for it and the mesh alone.
    """
    keepalive = peer.persistent_keepalive_seconds
    return PeerConf(
        public_key=peer.public_key,
        allowed_ips=peer.allowed_ips,
        endpoint=_find_endpoint(topology, peer.public_key, peer.endpoint, keepalive),
        keepalive_seconds=keepalive,
    )


def describe_secret_peer(topology: Topology, peer: Peer) -> PeerConf:
    """The same with the preshared key; ``MeshError`` if that exists and is not known."""
    return replace(describe_peer(topology, peer), preshared_key=read_preshared_key(peer))


def find_led_segment(topology: Topology, node_name: str) -> Segment:
    """The segment that the node leads; ``MeshError`` says who leads it otherwise."""
    segment = topology.find_segment(node_name)
    if segment is None:
        raise MeshError(f"node {node_name} takes no part in the mesh")
    if segment.leader.name != node_name:
        raise MeshError(
            f"node {node_name} has no tunnel: node {segment.leader.name} leads its segment"
            f" {segment.name}"
        )
    return segment


def find_peer(topology: Topology, peer_name: str) -> Peer:
    """The peer of that name; ``MeshError`` if it takes no part."""
    peer = next((p for p in topology.peers if p.name == peer_name), None)
    if peer is None:
        raise MeshError(f"peer {peer_name} takes no part in the mesh")
    return peer


def read_preshared_key(peer: Peer) -> PresharedKey | None:
    """The key, if the peer has one; ``MeshError`` for one that exists and is not known."""
    if not isinstance(peer.preshared_key, PresharedKey | None):
        raise MeshError(f"peer {peer.name}: its preshared key is not known here")
    return peer.preshared_key


def _find_endpoint(
    topology: Topology, key: PublicKey, declared: Endpoint | None, keepalive_seconds: int
) -> Endpoint | None:
    seen = topology.discovered_endpoints.get(key) if keepalive_seconds else None
    return seen or declared
