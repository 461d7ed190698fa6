"""The real plugins take the file that an agent keeps, called as a container runtime calls them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kilo.dataplane.cni import CNIFile
from kilo.errors import LabError
from kilo.lab import cni
from tests.builders import networks
from tests.kernel.namespace import Namespace

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples/cni/10-kilo.conflist"
DUAL = networks("10.2.1.0/24", "fd00:a:0:1::/64")

# What an installer may have put there, besides our template: as Kilo's manifests for kubeadm,
# bootkube, Typhoon and k3s have it, with an MTU; an older version of the format; a single plugin.
BRIDGE: dict[str, Any] = {
    "type": "bridge",
    "bridge": "kube-bridge",
    "isDefaultGateway": True,
    "forceAddress": True,
    "ipam": {"type": "host-local"},
}
PORTMAP = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
INSTALLED: dict[str, dict[str, Any]] = {
    "Kilo's manifests": {
        "cniVersion": "0.4.0",
        "name": "kilo",
        "plugins": [{"name": "kubernetes", **BRIDGE, "mtu": 1420}, PORTMAP],
    },
    "an older format": {"cniVersion": "0.3.1", "name": "kilo", "plugins": [BRIDGE, PORTMAP]},
    "a single plugin": {"cniVersion": "0.4.0", "name": "kilo", **BRIDGE},
    "point to point": {
        "cniVersion": "0.4.0",
        "name": "kilo",
        "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}],
    },
}


class Site:
    """The namespace of the test as a host, with a CNI configuration that an agent keeps."""

    def __init__(self, netns: Namespace, path: Path) -> None:
        self.netns = netns
        self.path = path / "net.d" / "10-kilo.conflist"
        self.data = path / "data"
        self.file = CNIFile(self.path)

    def install(self, config: Mapping[str, Any]) -> None:
        """As an administrator does; the addresses given out are noted in a place of the test's."""
        copied: dict[str, Any] = json.loads(json.dumps(config))
        for plugin in copied.get("plugins", [copied]):
            if "ipam" in plugin:
                plugin["ipam"]["dataDir"] = str(self.data)
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(copied))

    def read(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.path.read_text())
        return config


class Pod:
    """A network namespace of its own, held by a process that sleeps."""

    def __init__(self, process: int) -> None:
        self.container = cni.Container(
            name=f"pod{process}",
            namespace=f"/proc/{process}/ns/net",
            capabilities={
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}
                ]
            },
        )

    def run(self, *command: str) -> str:
        words = ["nsenter", f"--net={self.container.namespace}", "--", *command]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def call(command: Sequence[str], text: str) -> CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@contextmanager
def running_pod() -> Iterator[Pod]:
    command = ["unshare", "--net", "sh", "-c", "echo up; exec sleep infinity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield Pod(process.pid)
        finally:
            process.kill()


@pytest.fixture
def site(netns: Namespace, tmp_path: Path) -> Site:
    return Site(netns, tmp_path)


@pytest.fixture
def pod() -> Iterator[Pod]:
    with running_pod() as pod:
        yield pod


def read_link(run: Callable[..., str], name: str) -> dict[str, Any]:
    link: dict[str, Any] = json.loads(run("ip", "-json", "address", "show", "dev", name))[0]
    return link


def list_global(link: Mapping[str, Any]) -> list[str]:
    found = (one for one in link["addr_info"] if one["scope"] == "global")
    return [f"{one['local']}/{one['prefixlen']}" for one in found]


@pytest.mark.parametrize("config", INSTALLED.values(), ids=INSTALLED)
def test_a_pod_gets_an_address_of_each_range_and_the_mtu(
    site: Site, pod: Pod, config: dict[str, Any]
) -> None:
    site.install(config)
    assert site.file.keep(DUAL, 1333)
    result = cni.add(call, site.read(), pod.container)
    addresses = cni.read_addresses(result)
    assert [address.network for address in addresses] == list(DUAL)
    link = read_link(pod.run, "eth0")
    assert list_global(link) == [str(address) for address in addresses]
    assert link["mtu"] == 1333
    for gateway in ("10.2.1.1", "fd00:a:0:1::1"):
        assert pod.run("ping", "-c1", "-W5", gateway)
    cni.delete(call, site.read(), pod.container, result)
    assert "eth0" not in pod.run("ip", "link")


def test_the_template_makes_a_file_that_they_take_ports_of_the_host_included(
    site: Site, pod: Pod, tmp_path: Path
) -> None:
    site.install(json.loads(TEMPLATE.read_text()))
    template = site.path.rename(tmp_path / "template")
    CNIFile(site.path, template).keep(DUAL, 1380)
    config = site.read()
    cni.add(call, cni.LOOPBACK, cni.Container(**_on("lo", pod)))
    result = cni.add(call, config, pod.container)
    assert read_link(site.netns.run, "kube-bridge")["mtu"] == 1380
    assert set(list_global(read_link(site.netns.run, "kube-bridge"))) == {
        "10.2.1.1/24",
        "fd00:a:0:1::1/64",
    }
    assert "UP" in read_link(pod.run, "lo")["flags"]
    server = ["python3", "-m", "http.server", "80", "--bind", "::", "--directory", str(site.data)]
    with subprocess.Popen(
        ["nsenter", f"--net={pod.container.namespace}", "--", *server], stderr=subprocess.PIPE
    ) as process:
        try:
            fetch = "import urllib.request as u; print(u.urlopen('http://10.2.1.1:8080/').status)"
            site.netns.await_output(
                "LISTEN", "nsenter", f"--net={pod.container.namespace}", "--", "ss", "-lt"
            )
            assert site.netns.run("python3", "-c", fetch).strip() == "200"
        finally:
            process.kill()
    cni.delete(call, config, pod.container, result)
    assert "8080" not in site.netns.run("iptables-save")


def _on(interface: str, pod: Pod) -> dict[str, Any]:
    return {
        "name": pod.container.name,
        "namespace": pod.container.namespace,
        "interface": interface,
    }


def test_pods_that_were_there_stay_and_later_ones_follow_the_new_ranges_and_mtu(
    site: Site, pod: Pod
) -> None:
    site.install(INSTALLED["Kilo's manifests"])
    site.file.keep(DUAL[:1], 1400)
    before = site.read()
    result = cni.add(call, before, pod.container)
    site.file.keep(DUAL, 1300)
    with running_pod() as later:
        after = cni.add(call, site.read(), later.container)
        first, second = cni.read_addresses(result), cni.read_addresses(after)
        assert [one.version for one in (*first, *second)] == [4, 4, 6]
        assert len({*first, *second}) == 3, "no address is given out twice"
        assert read_link(pod.run, "eth0")["mtu"] == 1400
        assert read_link(later.run, "eth0")["mtu"] == 1300
        assert pod.run("ping", "-c1", "-W5", str(second[0].ip))
        cni.delete(call, site.read(), later.container, after)
    cni.delete(call, before, pod.container, result)


def test_a_range_that_is_used_up_is_said_by_the_plugin(site: Site, pod: Pod) -> None:
    site.install(INSTALLED["Kilo's manifests"])
    site.file.keep(networks("10.2.1.0/30"), 1400)
    result = cni.add(call, site.read(), pod.container)
    with running_pod() as other, pytest.raises(LabError, match=r"CNI ADD by bridge: .*no IP"):
        cni.add(call, site.read(), other.container)
    cni.delete(call, site.read(), pod.container, result)
