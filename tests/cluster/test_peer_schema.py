"""What the API server takes as a Peer is what the agent takes; and the files we ship are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.backends.documents import API_VERSION, make_peer_document, read_document
from kilo.backends.kubernetes.crd import CRD_NAME
from kilo.lab.apicalls import RefusedError
from kilo.lab.controlplane import ControlPlane
from kilo.mesh.model import Peer
from tests.backends import strategies
from tests.backends.document_reading import KEY, PRESHARED
from tests.cluster.planes import PEERS, Cluster

EXAMPLES = Path(__file__).parents[2] / "examples" / "kubernetes"
ALLOWED = ["10.5.0.1/32"]
UNPROCESSABLE = 422


def make_document(**spec: object) -> dict[str, object]:
    spec = {"publicKey": KEY, "allowedIPs": ALLOWED} | spec
    return {"apiVersion": API_VERSION, "kind": "Peer", "metadata": {"name": "x"}, "spec": spec}


def is_taken_by_server(plane: ControlPlane, document: dict[str, object]) -> bool:
    """Whether it would be stored; it is not."""
    try:
        plane.call("POST", f"{PEERS}?dryRun=All", document)
    except RefusedError as error:
        if error.status != UNPROCESSABLE:
            raise
        return False
    return True


def is_taken_by_agent(document: dict[str, object]) -> bool:
    reading = read_document(document, source="peer.yaml")
    return bool(reading.found) and not reading.problems


def make_host(**host: object) -> dict[str, object]:
    return {"endpoint": {"dnsOrIP": host, "port": 51820}}


GOOD: tuple[dict[str, object], ...] = (
    {},
    {"allowedIPs": ["10.5.0.9/24", "fd00::9/64", "0.0.0.0/0", "::/0", "::ffff:198.51.100.1/128"]},
    {"allowedIPs": ["10.5.0.1/032"]},
    {"persistentKeepalive": 0},
    {"persistentKeepalive": 65535},
    {"persistentKeepalive": None, "presharedKey": None, "endpoint": None},
    {"presharedKey": PRESHARED},
    {"presharedKey": ""},
    make_host(ip="203.0.113.7"),
    make_host(ip="2001:db8::7"),
    make_host(ip="2001:DB8:0::7", dns=""),
    make_host(ip="203.0.113.7", dns="a.example.com"),
    make_host(ip="", dns="A_1.example.com."),
    make_host(ip=None, dns="localhost"),
    make_host(dns="203.0.113.7"),
    make_host(dns="2001:db8::7"),
    {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}, "port": 1}},
    {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}, "port": 65535}},
)
BAD: tuple[dict[str, object], ...] = (
    {"publicKey": None},
    {"publicKey": ""},
    {"publicKey": 7},
    {"publicKey": KEY[:-1]},
    {"publicKey": f"{KEY}\n"},
    {"publicKey": f"{KEY[:-2]}B="},
    {"allowedIPs": None},
    {"allowedIPs": []},
    {"allowedIPs": "10.5.0.1/32"},
    {"allowedIPs": [""]},
    {"allowedIPs": [None]},
    {"allowedIPs": ["10.5.0.1"]},
    {"allowedIPs": ["10.5.0.1/33"]},
    {"allowedIPs": ["10.5.0.1/255.255.255.0"]},
    {"allowedIPs": [" 10.5.0.1/32"]},
    {"allowedIPs": ["fe80::1%eth0/64"]},
    {"allowedIPs": ["fd00::1/129"]},
    {"allowedIPs": [*ALLOWED, "x"]},
    {"persistentKeepalive": -1},
    {"persistentKeepalive": 65536},
    {"persistentKeepalive": "10"},
    {"persistentKeepalive": 1.5},
    {"presharedKey": 7},
    {"endpoint": "203.0.113.7:51820"},
    {"endpoint": {"port": 51820}},
    {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}}},
    {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}, "port": 0}},
    {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}, "port": 65536}},
    {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}, "port": "51820"}},
    make_host(),
    make_host(ip="", dns=""),
    make_host(ip="host"),
    make_host(ip="203.0.113.7/32"),
    make_host(ip="fe80::1%eth0"),
    make_host(ip="host", dns="a.example.com"),
    make_host(dns="-a"),
    make_host(dns="a..b"),
    make_host(dns="a b"),
    make_host(dns=f"{'a' * 64}.example.com"),
    make_host(dns=".".join(["a" * 50] * 6)),
)
AGENT_KNOWS_MORE: tuple[dict[str, object], ...] = (
    {"presharedKey": "short"},  # a server would answer with the secret
    make_host(dns="203.0.113.300"),
    make_host(dns="1:::2"),
    make_host(ip=None),
)


@pytest.mark.parametrize("spec", GOOD, ids=json.dumps)
def test_what_the_agent_takes_the_server_takes(
    control_plane: ControlPlane, spec: dict[str, object]
) -> None:
    document = make_document(**spec)
    assert is_taken_by_agent(document)
    assert is_taken_by_server(control_plane, document)


@pytest.mark.parametrize("spec", BAD, ids=json.dumps)
def test_what_the_agent_complains_of_the_server_refuses(
    control_plane: ControlPlane, spec: dict[str, object]
) -> None:
    document = make_document(**spec)
    assert not is_taken_by_agent(document)
    assert not is_taken_by_server(control_plane, document)


@pytest.mark.parametrize("spec", AGENT_KNOWS_MORE, ids=json.dumps)
def test_some_things_only_the_agent_knows(
    control_plane: ControlPlane, spec: dict[str, object]
) -> None:
    document = make_document(**spec)
    assert not is_taken_by_agent(document)
    assert is_taken_by_server(control_plane, document)


@settings(deadline=None, max_examples=25)
@given(peer=strategies.peers)
def test_every_peer_that_we_write_is_taken(control_plane: ControlPlane, peer: Peer) -> None:
    assert is_taken_by_server(control_plane, make_peer_document(peer))


cidr_texts = st.builds(
    "{}{}{}".format,
    st.ip_addresses().map(str),
    st.sampled_from(["", ":", ".1", "x", "/", "//"]),
    st.integers(0, 140).map(lambda length: f"/{length}"),
) | st.from_regex(r"[0-9a-f:.]{2,20}/[0-9]{1,3}", fullmatch=True)


@settings(deadline=None, max_examples=60)
@given(text=cidr_texts)
def test_server_and_agent_agree_on_what_a_cidr_is(control_plane: ControlPlane, text: str) -> None:
    document = make_document(allowedIPs=[text])
    assert is_taken_by_server(control_plane, document) == is_taken_by_agent(document)


# The rest on the same server.


def test_the_definition_is_applied_twice_without_a_change(control_plane: ControlPlane) -> None:
    text = (EXAMPLES / "base" / "crd.yaml").read_text()
    control_plane.apply(text)
    assert control_plane.apply(text).strip().endswith(" unchanged")


def test_kubectl_shows_what_becomes_of_a_peer(cluster: Cluster) -> None:
    cluster.plane.apply((EXAMPLES / "peer.yaml").read_text())
    conditions = [{"type": "Ready", "status": "False", "reason": "Refused", "message": "claimed"}]
    status = {
        "conditions": conditions,
        "lastHandshake": {"node": "oregon-1", "time": "2026-01-31T12:00:00Z"},
    }
    cluster.patch(f"{PEERS}/squat/status", {"status": status})
    assert cluster.plane.call("GET", f"{PEERS}/squat")["status"] == status
    table = cluster.plane.kubectl("get", "peers", "--output=wide")
    for text in ("squat", "False", "10.5.0.1/32", "oregon-1", "claimed"):
        assert text in table


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_file_is_one_that_the_server_takes(control_plane: ControlPlane, path: Path) -> None:
    if path.name == "crd-rules.yaml":
        patch = ("patch", "crd", CRD_NAME, "--type=json", f"--patch-file={path}")
        control_plane.kubectl(*patch, "--dry-run=server")
        return
    if path.name == "node-policy.yaml" and not knows_policies(control_plane):
        pytest.skip("this server is older than 1.30 and knows no ValidatingAdmissionPolicy")
    control_plane.kubectl("apply", "--dry-run=server", f"--filename={path}")


def knows_policies(plane: ControlPlane) -> bool:
    served = plane.call("GET", "/apis/admissionregistration.k8s.io/v1")["resources"]
    return "validatingadmissionpolicies" in {resource["name"] for resource in served}
