"""WireGuard's INI, both ways: what ``wg setconf`` takes and ``wg showconf`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from kilo.errors import MeshError
from kilo.mesh.keys import PresharedKey, PublicKey
from kilo.mesh.model import Endpoint, IPNetwork
from kilo.mesh.state import sort_networks
from kilo.mesh.topology import Topology


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
    blocks += [list(_render_peer(peer)) for peer in conf.peers]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _render_peer(peer: PeerConf) -> Iterator[str]:
    yield "[Peer]"
    yield f"PublicKey = {peer.public_key}"
    if peer.preshared_key is not None:
        yield f"PresharedKey = {peer.preshared_key.reveal()}"
    yield f"AllowedIPs = {', '.join(map(str, sort_networks(peer.allowed_ips)))}"
    if peer.endpoint is not None:
        yield f"Endpoint = {peer.endpoint}"
    if peer.keepalive_seconds:
        yield f"PersistentKeepalive = {peer.keepalive_seconds}"


def parse_conf(text: str) -> Conf:
    """From INI text; ``ValueError`` names the line that cannot be read."""
    interface: dict[str, str] = {}
    peers: list[dict[str, str]] = []
    section: dict[str, str] | None = None
    for number, line in _list_lines(text):
        if line.lower() == "[interface]":
            section = interface
        elif line.lower() == "[peer]":
            section = {}
            peers.append(section)
        else:
            name, equals, value = line.partition("=")
            if not equals or section is None:
                raise ValueError(f"line {number}: is not a setting inside a section")
            _put(section, name.strip().lower(), value.strip())
    port = interface.get("listenport")
    return Conf(
        listen_port=int(port) if port is not None else None,
        peers=tuple(map(_parse_peer, peers)),
    )


def _list_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            yield number, content


def _put(section: dict[str, str], name: str, value: str) -> None:
    """``AllowedIPs`` may be given several times and adds up; anything else is replaced."""
    if name == "allowedips" and section.get(name):
        value = f"{section[name]},{value}"
    section[name] = value


def _parse_peer(fields: dict[str, str]) -> PeerConf:
    endpoint, preshared = fields.get("endpoint"), fields.get("presharedkey")
    keepalive = fields.get("persistentkeepalive", "0")
    return PeerConf(
        public_key=PublicKey.parse(fields.get("publickey", "")),
        allowed_ips=_parse_allowed_ips(fields.get("allowedips", "")),
        endpoint=Endpoint.parse(endpoint) if endpoint else None,
        preshared_key=PresharedKey.parse(preshared) if preshared else None,
        keepalive_seconds=0 if keepalive == "off" else int(keepalive),
    )


def _parse_allowed_ips(text: str) -> tuple[IPNetwork, ...]:
    parts: Iterable[str] = (part.strip() for part in text.split(","))
    return tuple(ip_network(part, strict=False) for part in parts if part)


def render_peer_conf(topology: Topology, peer_name: str) -> str:
    """The INI that a peer of the mesh loads to reach every segment and every other peer.

    ``MeshError`` if no peer of that name takes part.
    """
    peer = next((p for p in topology.peers if p.name == peer_name), None)
    if peer is None:
        raise MeshError(f"peer {peer_name} takes no part in the mesh")
    if not isinstance(peer.preshared_key, PresharedKey | None):
        raise MeshError(f"peer {peer_name}: its preshared key is not known here")
    segments = tuple(
        PeerConf(
            public_key=segment.key,
            allowed_ips=(*segment.allowed_ips, *segment.allowed_location_ips),
            endpoint=_find_endpoint(
                topology,
                segment.key,
                segment.leader.endpoint,
                segment.leader.spec.persistent_keepalive_seconds,
            ),
            preshared_key=peer.preshared_key,
            keepalive_seconds=peer.persistent_keepalive_seconds,
        )
        for segment in topology.segments
    )
    others = tuple(
        PeerConf(
            public_key=other.public_key,
            allowed_ips=other.allowed_ips,
            endpoint=_find_endpoint(
                topology, other.public_key, other.endpoint, other.persistent_keepalive_seconds
            ),
            keepalive_seconds=peer.persistent_keepalive_seconds,
        )
        for other in topology.peers
        if other.name != peer_name
    )
    return render_conf(Conf(peers=(*segments, *others)))


def _find_endpoint(
    topology: Topology, key: PublicKey, declared: Endpoint | None, keepalive_seconds: int
) -> Endpoint | None:
    seen = topology.discovered_endpoints.get(key) if keepalive_seconds else None
    return seen or declared
