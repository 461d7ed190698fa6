"""The networks between the boxes, made as ``wiring`` plans them. Nothing is made outside boxes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kilo.errors import ConfigError, LabError
from kilo.lab import wiring
from kilo.lab.box import Box
from kilo.lab.spec import LabSpec, Network

PARALLEL_BOXES = 8

IP, TC, NFT = ["ip", "-batch", "-"], ["tc", "-batch", "-"], ["nft", "-f", "-"]


class Fabric:
    """The box that holds a bridge a network, and the far ends of all cables."""

    def __init__(self, lab: Path, spec: LabSpec) -> None:
        self.spec = spec
        self.box = Box(lab, wiring.FABRIC)
        self.cables = wiring.plan_cables(spec)
        self._lab = lab

    def build(self) -> None:
        """Make bridges and routers; ``ConfigError`` for a latency this kernel cannot make."""
        self.box.start()
        self._refuse_missing_netem()
        self.box.run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        self.box.configure(IP, "link set lo up\n" + wiring.render_bridges(self.spec))
        routed = [network for network in self.spec.networks if network.routed]
        with ThreadPoolExecutor(PARALLEL_BOXES) as pool:
            list(pool.map(self._start_router, routed))
        for network in routed:
            self.plug(Box(self._lab, wiring.router_of(network)))
        self.set_cuts(())

    def _refuse_missing_netem(self) -> None:
        slow = next((net for net in self.spec.networks if net.latency_seconds), None)
        if slow is None:
            return
        try:
            self.box.configure(TC, "qdisc add dev lo root netem delay 1ms\n")
        except LabError as error:
            raise ConfigError(
                f"lab.yaml: networks.{slow.name}.latency: '{slow.latency_seconds * 1000:g}ms' needs"
                f" the kernel's netem (module sch_netem), which is not there: {error}"
            ) from error
        self.box.configure(TC, "qdisc del dev lo root\n")

    def _start_router(self, network: Network) -> None:
        router = Box(self._lab, wiring.router_of(network))
        router.start()
        if network.nat:
            router.configure(NFT, wiring.render_nat())

    def plug(self, box: Box) -> None:
        """Give a box, just started, its cables, addresses and routes."""
        cables = [cable for cable in self.cables if cable.box == box.name]
        self.unplug(box)
        self.box.configure(IP, "".join(wiring.render_plug(c, box.pid) for c in cables))
        latency = wiring.render_latency(self.spec, cables)
        if latency:
            self.box.configure(TC, latency)
        box.configure(IP, wiring.render_links(cables))

    def unplug(self, box: Box) -> None:
        """Take away the ports of a killed box: the kernel does so later."""
        present = set(self.box.run(["ls", "/sys/class/net"]).split())
        for cable in self.cables:
            if cable.box == box.name and cable.port in present:
                # Not ``run``: the kernel may be faster than we are.
                self.box.call(["ip", "link", "del", cable.port])

    def set_cuts(self, cuts: Iterable[tuple[str, ...]]) -> None:
        """Make exactly these cuts, in one transaction."""
        script = wiring.render_faults(self.spec, self.cables, cuts)
        self.box.configure(NFT, script)
