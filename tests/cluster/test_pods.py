"""The agent in the pod of the manifests: a real container, with the rights that they give it.

The tests stand in the order of a node's life: each begins where the one before ended.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from urllib.error import URLError

import pytest
import yaml

from kilo import __version__
from kilo.lab.certificates import Authority
from kilo.lab.controlplane import ControlPlane
from tests.cluster.kilomanifest import KILO
from tests.cluster.overlays import EXAMPLES, FIELDS, Document, find_object, make_environment
from tests.cluster.planes import ACCOUNT, NAMESPACE, PREFIX, Cluster
from tests.cluster.pods import ACCOUNT_DIRECTORY, Container, Node
from tests.cluster.relay import Relay
from tests.kernel.wireguard_hosts import Host, kernel_has_wireguard

NAME = FIELDS["spec.nodeName"]
OVERLAY = "k3s-userspace"
WAIT_SECONDS = 120.0
PATCH_SECONDS = 60.0
FORWARDING = "cat /proc/sys/net/ipv4/ip_forward"
NETWORK = "ip -brief address; ip route show table all; ip rule; nft list ruleset"
"""All that agents change, as an administrator sees it."""
SETTLED = """
for link in eth0 far; do
    for _ in $(seq 600); do
        ip -6 address show dev $link -tentative | grep -q fe80: && continue 2
        sleep 0.1
    done
    echo "the kernel still tries the address of $link" >&2; exit 1
done
"""
"""The kernel adds a route for an address once it has tried it, which takes it some seconds."""
WEBHOOK_NAME = "kilo-webhook.kube-system.svc"
CONFLIST = "etc/cni/net.d/10-kilo.conflist"
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters:
- name: default
  cluster: {{server: '{server}', certificate-authority: {account}/ca.crt}}
users: [{{name: default, user: {{tokenFile: {account}/token}}}}]
contexts: [{{name: default, context: {{cluster: default, user: default}}}}]
current-context: default
"""
"""As kubeadm writes it for kube-proxy."""


def find_pod(overlay: str, called: str, kind: str = "DaemonSet") -> Document:
    return dict(find_object(overlay, kind, called)["spec"]["template"]["spec"])


def find_server() -> tuple[str, int]:
    """Where an agent of k3s looks for the API server."""
    variables = make_environment(find_pod(OVERLAY, "kilo")["containers"][0])
    return variables["KUBERNETES_SERVICE_HOST"], int(variables["KUBERNETES_SERVICE_PORT"])


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    one = Cluster(control_plane)
    one.put_node(NAME, {"location": "oregon"})
    yield one
    one.empty()


@pytest.fixture(scope="module")
def host(cluster: Cluster) -> Iterator[Host]:
    """A node of k3s: on each the API server is behind a port of its own loopback."""
    with ExitStack() as stack:
        one = stack.enter_context(Host(NAME))
        one.sh(
            "ip link add eth0 type veth peer name far && ip link set far up &&"
            "ip address add 192.168.0.1/24 dev eth0 && ip link set eth0 up &&"
            "ip route add default via 192.168.0.254 && sysctl -qw net.ipv4.ip_forward=0"
        )
        one.sh(SETTLED)
        server = find_server()
        stack.enter_context(
            Relay(
                port=cluster.plane.files.port,
                listen=lambda: one.call(socket.create_server, server),
            )
        )
        yield one


@pytest.fixture(scope="module")
def node(host: Host, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Its kubelet, and what that learns from the cluster."""
    one = Node(host, tmp_path_factory.mktemp("node"), server=find_server())
    one.put_account(make_account(cluster.plane, ACCOUNT))
    one.put_data("kilo", find_object(OVERLAY, "ConfigMap", "kilo")["data"])
    address, port = find_server()
    kubeconfig = KUBECONFIG.format(server=f"https://{address}:{port}", account=ACCOUNT_DIRECTORY)
    one.put_data("kube-proxy", {"kubeconfig.conf": kubeconfig})
    return one


@pytest.fixture(scope="module")
def wireguard(node: Node) -> Iterator[Container]:
    """WireGuard outside the kernel, which this one may lack, in its own pod."""
    with node.run(find_pod(OVERLAY, "kilo-wireguard"), "wireguard") as one:
        wait_until((node.disk / "run/wireguard/kilo0.sock").exists, one)
        yield one


def make_account(plane: ControlPlane, name: str) -> dict[str, str]:
    """What a pod of that ServiceAccount finds."""
    return {
        "ca.crt": (plane.files.directory / "ca.crt").read_text(),
        "namespace": NAMESPACE,
        "token": plane.make_service_account_token(NAMESPACE, name),
    }


def wait_until(holds: Callable[[], object], container: Container) -> None:
    limit = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert container.running, container.read_log()
        assert time.monotonic() < limit, container.read_log()
        time.sleep(0.1)  # between two probes, as a kubelet has them


def run_agent(node: Node, pod: Document) -> Container:
    """The agent, once it is ready."""
    container = node.run(pod, "kilo")
    wait_until_ready(node, pod, container)
    return container


def wait_until_ready(node: Node, pod: Document, agent: Container) -> None:
    """Until its readiness probe succeeds."""
    (spec,) = pod["containers"]
    path = spec.get("readinessProbe", {}).get("httpGet", {}).get("path", "/ready")
    ports = {one["name"]: one["containerPort"] for one in spec["ports"]}
    url = f"http://192.168.0.1:{ports['metrics']}{path}"
    wait_until(lambda: node.host.call(answers, url), agent)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (URLError, ConnectionError):
        return False


def test_the_plugins_that_a_node_has_stay_and_the_missing_ones_come(node: Node) -> None:
    bin_directory = node.disk / "opt/cni/bin"
    bin_directory.mkdir(parents=True)
    (bin_directory / "bridge").write_text("somebody else's")
    with node.run(find_pod(OVERLAY, "kilo"), "install-cni") as installer:
        assert installer.wait() == 0, installer.read_log()
    assert (bin_directory / "bridge").read_text() == "somebody else's"
    found = {path.name: path.stat().st_mode & 0o777 for path in bin_directory.iterdir()}
    assert found.keys() == {"bridge", "host-local", "loopback", "portmap"}
    assert found["host-local"] == 0o755


def test_an_agent_makes_the_network_with_the_rights_of_the_manifest_alone(
    node: Node, cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    assert node.host.sh(FORWARDING) == "0\n"
    pod = find_pod(OVERLAY, "kilo")
    with node.run(pod, "kilo") as agent:
        if not kernel_has_wireguard():
            # One that it started itself would end with it.
            wait_until(lambda: "/dev/net/tun does not exist" in agent.read_log(), agent)
            request.getfixturevalue("wireguard")
        wait_until_ready(node, pod, agent)
        assert "10.4.0.1/16" in node.host.sh("ip -brief address show dev kilo0")
        # The node has pods, and a container's own /proc/sys is read-only.
        assert node.host.sh(FORWARDING) == "1\n"
        (pods,) = json.loads((node.disk / CONFLIST).read_text())["plugins"][0]["ipam"]["ranges"]
        assert pods == [{"subnet": "10.2.1.0/24"}]
        assert cluster.read_annotations(NAME)[PREFIX + "key"]
        assert agent.end() == 0


def test_an_agent_that_is_replaced_leaves_the_network_alone(node: Node) -> None:
    before = node.host.sh(NETWORK)
    key = (node.disk / "var/lib/kilo/key").read_text()
    assert "kilo0" in before
    with run_agent(node, find_pod(OVERLAY, "kilo")):
        assert node.host.sh(NETWORK) == before
    # Killed this time, as where a node runs out of memory.
    assert node.host.sh(NETWORK) == before
    assert (node.disk / "var/lib/kilo/key").read_text() == key


def test_the_patched_pod_is_ready_once_the_node_is_clean(node: Node, cluster: Cluster) -> None:
    pod = patch_agent(find_object(OVERLAY, "DaemonSet", "kilo"))
    (spec,) = pod["containers"]
    with node.run(pod, "kilo") as removal:
        wait_until(
            lambda: removal.execute(*spec["readinessProbe"]["exec"]["command"]) == 0, removal
        )
        left = node.host.sh(NETWORK)
        assert not [word for word in ("kilo", "10.4.0.", "proto 107") if word in left], left
        assert node.host.sh(FORWARDING) == "0\n"
        assert cluster.read_annotations(NAME) == {PREFIX + "location": "oregon"}


def patch_agent(daemonset: Document) -> Document:
    """The pod that kubectl makes of it with the patch that uninstalls."""
    patch = f"--patch-file={EXAMPLES / 'uninstall' / 'patch.yaml'}"
    done = subprocess.run(
        ["kubectl", "patch", "--local", "--filename=-", patch, "--output=json"],
        input=json.dumps(daemonset),
        capture_output=True,
        text=True,
        timeout=PATCH_SECONDS,
        check=True,
    )
    return dict(json.loads(done.stdout)["spec"]["template"]["spec"])


def test_a_manifest_written_for_kilo_runs_and_takes_everything_back_at_its_end(
    node: Node, cluster: Cluster
) -> None:
    (pod,) = (
        one["spec"]["template"]["spec"]
        for one in yaml.safe_load_all(KILO)
        if one["kind"] == "DaemonSet"
    )
    before = node.host.sh(NETWORK)
    (node.disk / "lib/modules").mkdir(parents=True)
    with node.run(pod, "install-cni") as installer:
        assert installer.wait() == 0, installer.read_log()
    with run_agent(node, pod) as agent:
        assert "10.4.0.1/16" in node.host.sh("ip -brief address show dev kilo0")
        (pods,) = json.loads((node.disk / CONFLIST).read_text())["plugins"][0]["ipam"]["ranges"]
        assert pods == [{"subnet": "10.2.1.0/24"}]
        assert cluster.read_annotations(NAME)[PREFIX + "key"]
        # As Kilo's users expect: without a flag that says otherwise, stopping cleans up.
        assert agent.end() == 0, agent.read_log()
    # The kernel's own device stays, which only --clean-up-interface would take along.
    node.host.sh("ip link delete kilo0 2>/dev/null || true")
    assert node.host.sh(NETWORK) == before


def test_what_stands_beside_the_agents_runs_without_any_rights(
    node: Node, cluster: Cluster
) -> None:
    pull = find_pod("pull", "kilo-pull")
    with node.run(pull, "pull") as pulling:
        wait_until(lambda: f"kg {__version__}" in pulling.read_log(), pulling)

    certificate = Authority.create("tests").issue_server([WEBHOOK_NAME])
    files = {"tls.crt": certificate.certificate, "tls.key": certificate.key}
    node.put_data("kilo-webhook", files)
    node.put_account(make_account(cluster.plane, "kilo-webhook"))
    pod = find_pod("webhook", "kilo-webhook", "Deployment")
    with node.run(pod, "webhook") as webhook:
        wait_until_ready(node, pod, webhook)
        served = node.host.call(ssl.get_server_certificate, ("192.168.0.1", 8443))
        assert served == certificate.certificate
        assert webhook.end() == 0
