"""``kg webhook`` behind a real API server, which asks it about every Peer."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kilo.backends.kubernetes.crd import make_peer_crd
from kilo.errors import LabError
from kilo.lab.certificates import Authority
from kilo.lab.controlplane import ControlPlane, find_free_ports
from tests.builders import make_key
from tests.cluster.planes import PEERS, RBAC, Cluster
from tests.webhook.reviews import BAD_SPECS, CLAIMED_SPECS, LAPTOP, MESH, make_document

HOST = "127.0.0.1"
EXAMPLE = RBAC.parents[1] / "webhook" / "webhook.yaml"
WAIT_SECONDS = 60.0
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
NAME = "peers.kilo.squat.ai"


def wait_until(holds: Callable[[], object]) -> None:
    limit = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < limit, f"not within {WAIT_SECONDS:g} s"
        time.sleep(0.05)


class Program:
    """``kg webhook`` with the rights that the example gives it, on ports of its own."""

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self._directory = directory
        self.port, self.metrics_port = find_free_ports(HOST, HOST)
        token = plane.make_service_account_token("kube-system", "kilo-webhook")
        self._kubeconfig = plane.make_kubeconfig("webhook", token=token)
        self._process: subprocess.Popen[bytes] | None = None
        self.replace_certificate(Authority.create("webhook"))

    def replace_certificate(self, authority: Authority) -> None:
        self.authority = authority
        authority.issue_server([HOST]).write(self._directory, "webhook")

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "kilo.kg", "webhook"),
            *("--cert-file", str(self._directory / "webhook.crt")),
            *("--key-file", str(self._directory / "webhook.key")),
            f"--listen={HOST}:{self.port}",
            f"--listen-metrics={HOST}:{self.metrics_port}",
            f"--kubeconfig={self._kubeconfig}",
            "--service-cidr=10.96.0.0/12",
        ]
        with (self._directory / "webhook.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.read_log()
        connection = http.client.HTTPConnection(HOST, self.metrics_port, timeout=WAIT_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(ConnectionError):
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        return False

    def stop(self) -> int:
        """By SIGTERM; the exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        return process.wait(WAIT_SECONDS)

    def read_log(self) -> str:
        return (self._directory / "webhook.log").read_text()

    def find_certificate(self) -> str:
        return ssl.get_server_certificate((HOST, self.port), timeout=WAIT_SECONDS)


class Site:
    """An API server that asks a webhook, and a mesh with one node and two peers."""

    def __init__(self, plane: ControlPlane, program: Program) -> None:
        self.plane = plane
        self.program = program
        self.register()

    def register(self, failure_policy: str = "Fail") -> None:
        """As the example does, but for the webhook's address."""
        configuration: dict[str, Any] = next(yaml.safe_load_all(EXAMPLE.read_text()))
        (webhook,) = configuration["webhooks"]
        webhook["clientConfig"] = {
            "url": f"https://{HOST}:{self.program.port}/validate",
            "caBundle": base64.b64encode(self.program.authority.certificate.encode()).decode(),
        }
        webhook["failurePolicy"] = failure_policy
        self.plane.apply(configuration)

    def unregister(self) -> None:
        self.plane.call("DELETE", f"{WEBHOOKS}/{NAME}")
        wait_until(lambda: not self.refusal_of("probe", publicKey="short"))

    def refusal_of(self, name: str, **spec: object) -> str:
        """What a dry run is told; empty if it would be admitted."""
        return self.try_to("create", make_peer_text(name, **spec), "--dry-run=server")

    def try_to(self, verb: str, text: str, *words: str) -> str:
        try:
            self.plane.kubectl(verb, "--filename=-", *words, text=text)
        except LabError as error:
            return str(error)
        return ""

    def wait_until_asked(self) -> None:
        """Until the API server knows of the webhook, and that of the mesh."""
        claim = ["10.5.0.1/32"]  # alice's
        wait_until(lambda: "denied" in self.refusal_of("probe", allowedIPs=claim))


def make_peer_text(name: str, **spec: object) -> str:
    document = make_document(LAPTOP, **spec)
    document["metadata"] = {"name": name}
    return json.dumps(document)


def make_lax_crd() -> dict[str, object]:
    """As Kilo's own: whatever is wrong with a Peer is left to the webhook."""
    crd: dict[str, Any] = make_peer_crd()
    (version,) = crd["spec"]["versions"]
    version["schema"] = {
        "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    }
    return crd


def serves_peers(plane: ControlPlane) -> bool:
    try:
        plane.call("GET", PEERS)
    except LabError:
        return False
    return True


def put_mesh(plane: ControlPlane) -> None:
    """MESH of the reviews, its node silent since 1970."""
    cluster = Cluster(plane)
    annotations = {
        "location": "eu",
        "key": str(make_key("berlin")),
        "endpoint": "198.51.100.1:51820",
        "internal-ip": "192.168.0.1/24",
        "allowed-location-ips": "10.9.0.0/16",
        "last-seen": "1",
    }
    cluster.put_node("berlin", annotations, pod_cidrs=("10.2.1.0/24",))
    for peer in MESH.peers:
        cluster.put_peer(
            peer.name,
            publicKey=str(peer.public_key),
            allowedIPs=[str(network) for network in peer.allowed_ips],
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ControlPlane(tmp_path_factory.mktemp("plane")) as plane:
        plane.apply(make_lax_crd())
        plane.apply(RBAC.read_text())
        rights = [one for one in yaml.safe_load_all(EXAMPLE.read_text()) if is_right(one)]
        plane.apply(yaml.safe_dump_all(rights))
        wait_until(lambda: serves_peers(plane))
        put_mesh(plane)
        program = Program(plane, tmp_path_factory.mktemp("webhook"))
        program.start()
        one = Site(plane, program)
        one.wait_until_asked()
        yield one
        program.stop()


def is_right(document: dict[str, Any]) -> bool:
    return document["kind"] in (
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "RoleBinding",
    )


PREFIX = f'admission webhook "{NAME}" denied the request: '


@pytest.mark.parametrize(("spec", "reason"), BAD_SPECS)
def test_a_bad_peer_is_refused_and_kubectl_says_why(
    site: Site, spec: dict[str, object], reason: str
) -> None:
    assert f"{PREFIX}{reason}" in site.refusal_of("laptop", **spec)


@pytest.mark.parametrize(("spec", "reason"), CLAIMED_SPECS)
def test_a_claim_on_what_is_anothers_is_refused_and_kubectl_names_the_owner(
    site: Site, spec: dict[str, object], reason: str
) -> None:
    assert f"{PREFIX}Peer laptop: {reason}" in site.refusal_of("laptop", **spec)


def test_a_good_peer_is_admitted_changed_and_deleted(site: Site) -> None:
    assert site.try_to("apply", make_peer_text("laptop")) == ""
    assert site.try_to("apply", make_peer_text("laptop", persistentKeepalive=25)) == ""
    refusal = site.try_to("apply", make_peer_text("laptop", persistentKeepalive=-25))
    assert f"{PREFIX}Peer laptop: spec.persistentKeepalive: '-25' is outside 0-65535" in refusal
    site.plane.kubectl("delete", "peer", "laptop")


def test_an_unknown_field_is_a_warning_that_kubectl_shows(site: Site) -> None:
    text = make_peer_text("laptop", keepAlive=25)
    command = ["kubectl", f"--kubeconfig={site.plane.kubeconfig}", "create", "--filename=-"]
    done = subprocess.run(
        [*command, "--dry-run=server", "--validate=false"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    assert "Warning: Peer laptop: spec.keepAlive: '25' is not a field" in done.stderr


def test_a_peer_that_was_bad_before_can_be_labelled_and_deleted_but_not_made_worse(
    site: Site,
) -> None:
    site.unregister()
    assert site.try_to("create", make_peer_text("relic", publicKey="short")) == ""
    site.register()
    site.wait_until_asked()

    site.plane.kubectl("label", "peer", "relic", "old=yes")
    patch = {"spec": {"persistentKeepalive": 5}}
    with pytest.raises(LabError, match=r"denied the request: Peer relic: spec.publicKey"):
        site.plane.kubectl("patch", "peer", "relic", "--type=merge", f"--patch={json.dumps(patch)}")
    site.plane.kubectl("delete", "peer", "relic")


def test_a_status_that_agents_write_is_not_asked_about(site: Site) -> None:
    site.plane.call(
        "PATCH",
        f"{PEERS}/alice/status",
        {"status": {"conditions": []}},
        content_type="application/merge-patch+json",
    )
    assert site.plane.call("GET", f"{PEERS}/alice")["status"] == {"conditions": []}


def test_a_certificate_replaced_on_disk_is_used_without_a_restart(site: Site) -> None:
    before = site.program.find_certificate()

    site.program.replace_certificate(Authority.create("renewed"))
    assert site.program.find_certificate() != before

    # The API server does not trust it, until it is told whom to trust now.
    wait_until(lambda: "failed calling webhook" in site.refusal_of("laptop"))
    site.register()
    wait_until(lambda: not site.refusal_of("laptop"))
    assert "denied" in site.refusal_of("laptop", publicKey="short")
    assert "TLS handshake failed" in site.program.read_log()


def test_a_webhook_that_is_down_is_worked_around_only_where_that_was_chosen(site: Site) -> None:
    assert site.program.stop() == 0
    try:
        assert "failed calling webhook" in site.refusal_of("laptop")
        site.register(failure_policy="Ignore")
        wait_until(lambda: not site.refusal_of("laptop"))
        assert site.refusal_of("laptop", publicKey="short") == ""
    finally:
        site.program.start()
        site.register()
        site.wait_until_asked()


def test_it_makes_no_request_that_its_role_forbids(site: Site) -> None:
    user = "system:serviceaccount:kube-system:kilo-webhook"
    own = [one for one in site.plane.read_audit() if one["user"]["username"] == user]
    assert {one["verb"] for one in own} <= {"list", "watch", "get"}
    codes = {one.get("responseStatus", {}).get("code") for one in own}
    assert {"list", "watch"} <= {one["verb"] for one in own}
    assert 403 not in codes
