"""Kilo's own agent, as far as others can see it: what it writes on its Node and to its host.

Written from the specification, sections 3 to 5, by hand and with the tools of an administrator,
so that nothing of ours decides what it looks like. It is not alive: it has written once what holds
for a mesh that does not change, and goes on saying that it was seen.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from kilo.lab.boxedplane import BoxedPlane
from kilo.lab.host import Host
from tests.lab.meshes import read_sessions

KILO = "kilo.squat.ai/"
PORT = 51820
HEARTBEAT_SECONDS = 10.0
CONFIGURATION = "/etc/cni/net.d/10-kilo.conflist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One node, of a mesh of IPv4 with the granularity ``location``."""

    name: str
    location: str
    internal: str
    """Its address in its location, with the prefix's length."""
    endpoint: str
    pods: str
    wireguard: str = ""
    """With the mesh's prefix length; empty for one that does not lead."""
    keepalive: int = 0

    @property
    def address(self) -> str:
        """Its internal one."""
        return self.internal.partition("/")[0]

    @property
    def hop(self) -> str:
        """Its WireGuard address."""
        return self.wireguard.partition("/")[0]


@dataclass(kw_only=True)
class Originals:
    """All that ran the original once; whoever has left it is ours."""

    sites: tuple[Site, ...]
    hosts: Mapping[str, Host]
    plane: BoxedPlane
    keys: dict[str, str] = field(default_factory=dict)
    seen_at: dict[str, str] = field(default_factory=dict)
    """Where a device behind a NAT is: node -> the endpoint that the others' WireGuard has seen."""
    alive: set[str] = field(default_factory=set)

    def make_keys(self) -> None:
        """A key for each, where the original keeps it."""
        for site in self.sites:
            script = "umask 077; wg genkey | tee /var/lib/kilo/key | wg pubkey"
            self.keys[site.name] = self.hosts[site.name].run(["sh", "-c", script]).strip()

    def take(self, site: Site) -> None:
        """The original starts here: device, firewall, routes, CNI, annotations."""
        host = self.hosts[site.name]
        self.alive.add(site.name)
        self.annotate(site)
        _write_firewall(host, self.sites, site)
        if site.wireguard:
            self._write_device(host, site)
        _batch(host, [f"route replace {route} proto static" for route in self.list_routes(site)])
        configuration = json.dumps(make_configuration(site.pods))
        host.run(
            ["sh", "-c", f"mkdir -p /etc/cni/net.d; cat > {CONFIGURATION}"], text=configuration
        )

    def annotate(self, site: Site) -> None:
        """Every annotation that the original's agent writes."""
        seen = {self.keys[name]: _write_endpoint(at) for name, at in self.seen_at.items()}
        seen = {key: at for key, at in seen.items() if key != self.keys[site.name]}
        self._annotate(
            [site.name],
            {
                "endpoint": site.endpoint,
                "internal-ip": site.internal,
                "key": self.keys[site.name],
                "last-seen": str(int(time.time())),
                "wireguard-ip": site.wireguard,
                "discovered-endpoints": json.dumps(seen if site.wireguard else {}),
                "granularity": "location",
                "cni-compatibility-ip": "",
            },
        )

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Those that are alive say so, meanwhile."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                if alive := sorted(self.alive):
                    self._annotate(alive, {"last-seen": str(int(time.time()))})

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _annotate(self, nodes: Iterable[str], annotations: Mapping[str, str]) -> None:
        words = [f"{KILO}{name}={text}" for name, text in annotations.items()]
        self.plane.kubectl("annotate", "--overwrite", "node", *nodes, *words)

    def _write_device(self, host: Host, site: Site) -> None:
        if not host.succeeds(["ip", "link", "show", "kilo0"]):
            host.run(["wireguard-go", "kilo0"])
        leaders = self.list_leaders(besides=site)
        lines = ["[Interface]", f"ListenPort = {PORT}"]
        for other in leaders:
            lines += ["[Peer]", f"PublicKey = {self.keys[other.name]}"]
            lines += [f"AllowedIPs = {', '.join(self.list_allowed_ips(other))}"]
            lines += [f"Endpoint = {self.seen_at.get(other.name, other.endpoint)}"]
            lines += [f"PersistentKeepalive = {site.keepalive}"]
        # As the original: a device that is right already is left alone, for its sessions' sake.
        if set(read_sessions(host)) != {self.keys[other.name] for other in leaders}:
            host.run(["wg", "set", "kilo0", "private-key", "/var/lib/kilo/key"])
            host.run(["wg", "addconf", "kilo0", "/dev/stdin"], text="\n".join(lines) + "\n")
            _batch(host, [f"address add {site.wireguard} dev kilo0", "link set kilo0 mtu 1420 up"])

    def list_leaders(self, *, besides: Site) -> list[Site]:
        """Those of other locations."""
        return [s for s in self.sites if s.wireguard and s.location != besides.location]

    def list_allowed_ips(self, leader: Site) -> list[str]:
        """Of a leader's whole segment."""
        segment = [site for site in self.sites if site.location == leader.location]
        networks = [n for site in segment for n in (site.pods, f"{site.address}/32")]
        return [*networks, f"{leader.hop}/32"]

    def list_routes(self, site: Site) -> list[str]:
        """What it has in the main table."""
        link = find_link(self.hosts[site.name], site.address)
        local = [s for s in self.sites if s.location == site.location and s != site]
        routes = [f"{other.pods} via {other.address} dev {link} onlink" for other in local]
        own_leader = next((other for other in local if other.wireguard), None)
        for leader in self.list_leaders(besides=site):
            for network in self.list_allowed_ips(leader):
                if site.wireguard:
                    hop = f"via {leader.hop} dev kilo0 src {site.address} onlink"
                    routes += [f"{network} {hop}"] if network != f"{leader.hop}/32" else []
                elif own_leader:
                    routes.append(f"{network} via {own_leader.address} dev {link} onlink")
        if own_leader:
            routes.append(f"{own_leader.hop}/32 via {own_leader.address} dev {link} onlink")
        return routes


def find_link(host: Host, address: str) -> str:
    """The name of the one that bears it."""
    shown = json.loads(host.run(["ip", "-json", "address", "show", "to", address]))
    return str(next(link["ifname"] for link in shown if link))


def make_configuration(pods: str) -> dict[str, object]:
    """The file that the original's agent keeps for the CNI plugins."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": pods}]]}
    bridge = {
        "name": "kubernetes",
        "type": "bridge",
        "bridge": "kube-bridge",
        "isDefaultGateway": True,
        "forceAddress": True,
        "mtu": 1420,
        "ipam": ipam,
    }
    return {"cniVersion": "0.3.1", "name": "kilo", "plugins": [bridge]}


def _write_firewall(host: Host, sites: Iterable[Site], site: Site) -> None:
    """``KILO-NAT``, made anew."""
    known = [n for s in sites for n in (s.pods, f"{s.address}/32", f"{s.hop}/32") if n != "/32"]
    jump = f'POSTROUTING -s {site.pods} -m comment --comment "Kilo: jump to chain" -j KILO-NAT'
    returns = [
        f'-A KILO-NAT -d {network} -m comment --comment "Kilo: do not NAT" -j RETURN'
        for network in known
    ]
    rest = '-A KILO-NAT -m comment --comment "Kilo: NAT remaining packets" -j MASQUERADE'
    lines = ["*nat", ":KILO-NAT - [0:0]", *returns, rest]
    if not host.succeeds(["sh", "-c", f"iptables -t nat -C {jump}"]):
        lines.append(f"-A {jump}")
    host.run(["iptables-restore", "--noflush"], text="\n".join([*lines, "COMMIT", ""]))


def _write_endpoint(at: str) -> dict[str, object]:
    address, _, port = at.rpartition(":")
    return {"IP": address, "Port": int(port), "Zone": ""}


def _batch(host: Host, lines: Iterable[str]) -> None:
    host.run(["ip", "-batch", "-"], text="\n".join([*lines, ""]))
