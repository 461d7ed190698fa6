"""The manifests are taken by a real API server, and say what the agent understands."""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kilo.agentflags import FLAGS, AgentConfig, parse_agent_flags
from kilo.backends.kubernetes.crd import make_peer_crd
from kilo.flags import name_variable
from kilo.http import PAGES
from kilo.lab.controlplane import ControlPlane
from kilo.mesh.view import Compatibility
from tests.cluster.kilomanifest import KILO
from tests.cluster.overlays import (
    BESIDES,
    EXAMPLES,
    FIELDS,
    KUSTOMIZATION,
    NETWORKS,
    OVERLAYS,
    Document,
    find_object,
    kustomize,
    list_containers,
    list_objects,
    list_pods,
    make_environment,
    make_words,
    render,
)
from tests.cluster.planes import RBAC
from tests.docs.test_docs import list_blocks

ALL = (*OVERLAYS, *BESIDES)
OURS = {
    "CustomResourceDefinition peers.kilo.squat.ai",
    "ServiceAccount kilo",
    "ClusterRole kilo",
    "ClusterRoleBinding kilo",
    "Role kilo",
    "RoleBinding kilo",
    "DaemonSet kilo",
}
KNOWN_TO_ALL_KUBECTLS = {
    *("apiVersion", "kind", "bases", "resources", "patchesStrategicMerge", "namespace"),
    *("configMapGenerator", "generatorOptions"),
}
"""What a kustomization may have since kubectl 1.14. Of what came later the one in Debian 12 knows
nothing."""
DOCS = EXAMPLES.parents[1] / "docs"
GUIDE = DOCS / "kubernetes.md"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
COMMANDS_SECONDS = 300.0
CERT_MANAGER = ("certificates", "issuers")
"""The kinds of cert-manager, in the plural."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster that has never heard of Kilo."""
    # As wherever networks are installed, and wireguard-go opens a device.
    flags = ("--allow-privileged",)
    with ControlPlane(tmp_path_factory.mktemp("plane"), flags=flags) as one:
        yield one


def find_agent(name: str) -> Document:
    """The agent's container."""
    template = find_object(name, "DaemonSet", "kilo")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    return dict(container)


def parse(container: Document) -> AgentConfig:
    """What ``kg`` makes of its flags and variables."""
    environment = make_environment(container)
    return parse_agent_flags(make_words(container, environment), environment)


# What there is


def test_there_is_an_overlay_for_each_kind_of_cluster_network_and_wireguard() -> None:
    found = {path.parent.name for path in EXAMPLES.glob(f"*/{KUSTOMIZATION}")}
    assert found >= {*ALL, "base"}
    assert {name for name in found if name.startswith(tuple(NETWORKS))} == set(OVERLAYS)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_holds_the_agent_and_what_it_needs_and_no_more(name: str) -> None:
    is_network = not name.endswith(
        ("-flannel", "-cilium", "-flannel-userspace", "-cilium-userspace")
    )
    more = {"ConfigMap kilo"} if is_network else set()
    more |= {"DaemonSet kilo-wireguard"} if name.endswith("-userspace") else set()
    objects = [f"{one['kind']} {one['metadata']['name']}" for one in list_objects(name)]
    assert sorted(objects) == sorted(OURS | more)


@pytest.mark.parametrize("name", ALL)
def test_what_is_rendered_twice_is_the_same(name: str) -> None:
    assert kustomize(name).decode() == render(name)


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.rglob(KUSTOMIZATION)), ids=lambda path: path.parent.name
)
def test_every_kubectl_can_read_a_kustomization(path: Path) -> None:
    kustomization = yaml.safe_load(path.read_text())
    assert kustomization.keys() <= KNOWN_TO_ALL_KUBECTLS
    # Older ones take no directory as a resource, and no file from elsewhere.
    files = [path.parent / name for name in kustomization.get("resources", ())]
    files += [path.parent / name for name in kustomization.get("patchesStrategicMerge", ())]
    assert all(file.is_file() and file.parent == path.parent for file in files)


@pytest.mark.parametrize("cluster", NETWORKS)
def test_the_agent_finds_the_api_server_in_the_same_way_whatever_is_beside_it(cluster: str) -> None:
    texts = {
        (EXAMPLES / f"{cluster}{beside}/server.yaml").read_text() for beside in NETWORKS[cluster]
    }
    assert len(texts) == 1


OWN = [block for block in list_blocks(GUIDE, "yaml") if block.startswith("bases:")]
"""Kustomizations as the guide has them: of the agents, and of what pulls their image."""


@pytest.mark.parametrize("text", OWN, ids=["agents", "pull"])
def test_a_directory_of_ones_own_names_the_image_of_every_container(
    tmp_path: Path, text: str
) -> None:
    own = make_own(tmp_path, text)
    ((name, image),) = {(one["newName"], one["newTag"]) for one in yaml.safe_load(text)["images"]}
    assert {container["image"] for container in list_containers(own)} == {f"{name}:{image}"}


def test_a_directory_of_ones_own_adds_a_flag_to_the_others(tmp_path: Path) -> None:
    (patch,) = list_blocks(GUIDE, "yml")
    own = make_own(tmp_path, OWN[0] + "\npatchesStrategicMerge: [patch.yaml]", patch)
    agent = find_agent(own)
    assert parse(agent).backend.topology_label == "topology.kubernetes.io/zone"
    others = make_environment(find_agent("k3s"))
    assert others.items() < make_environment(agent).items()


def make_own(directory: Path, kustomization: str, patch: str = "") -> str:
    """A directory beside the examples, as somebody would make it."""
    shutil.copytree(EXAMPLES, directory / "examples" / "kubernetes")
    own = directory / "mesh"
    own.mkdir()
    (own / KUSTOMIZATION).write_text(kustomization)
    (own / "patch.yaml").write_text(patch)
    return str(own)


# What the server says


@pytest.mark.parametrize("cluster", NETWORKS)
def test_a_server_takes_every_overlay(plane: ControlPlane, cluster: str) -> None:
    names = [name for name in OVERLAYS if name.startswith(cluster)]
    text = "\n---\n".join(map(render, names))
    said = plane.kubectl("apply", "--dry-run=server", "--filename=-", text=text)
    assert len(said.splitlines()) == sum(len(list_objects(name)) for name in names)


@pytest.mark.parametrize("name", ["pull", "webhook"])
def test_a_server_takes_what_stands_beside_it(plane: ControlPlane, name: str) -> None:
    said = plane.kubectl("apply", "--dry-run=server", f"--kustomize={EXAMPLES / name}")
    assert len(said.splitlines()) == len(list_objects(name))


def test_a_server_that_has_cert_manager_takes_the_webhook_with_its_certificate(
    plane: ControlPlane,
) -> None:
    for plural in CERT_MANAGER:
        plane.apply(make_stand_in(plural))
    plane.kubectl("wait", "--for=condition=established", "--timeout=120s", "crd", "--all")
    name = "webhook-cert-manager"
    said = plane.kubectl("apply", "--dry-run=server", f"--kustomize={EXAMPLES / name}")
    assert len(said.splitlines()) == len(list_objects(name))
    hook = find_object(name, "ValidatingWebhookConfiguration", "peers.kilo.squat.ai")
    certificate = find_object(name, "Certificate", "kilo-webhook")
    source = f"{certificate['metadata']['namespace']}/{certificate['metadata']['name']}"
    assert hook["metadata"]["annotations"] == {"cert-manager.io/inject-ca-from": source}
    (service,) = certificate["spec"]["dnsNames"]
    asked = hook["webhooks"][0]["clientConfig"]["service"]
    assert service == f"{asked['name']}.{asked['namespace']}.svc"


def make_stand_in(plural: str) -> Document:
    """A kind of cert-manager's that takes anything."""
    crd: Document = make_peer_crd()
    crd["metadata"]["name"] = f"{plural}.cert-manager.io"
    kind = plural.removesuffix("s").capitalize()
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    crd["spec"] |= {"group": "cert-manager.io", "scope": "Namespaced", "names": names}
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    crd["spec"]["versions"] = [
        {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    ]
    return crd


def test_the_commands_of_the_guide_make_a_certificate_that_the_server_is_told_of(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """As somebody would type them, in a directory with the examples."""
    (commands,) = (
        block for block in list_blocks(DOCS / "webhook.md", "sh") if "openssl req" in block
    )
    (tmp_path / "examples").symlink_to(EXAMPLES.parent)
    environment = os.environ | {"KUBECONFIG": str(plane.kubeconfig)}
    run = functools.partial(
        subprocess.run, cwd=tmp_path, env=environment, timeout=COMMANDS_SECONDS, check=True
    )
    try:
        run(["bash", "-euc", commands], capture_output=True)
        hook = plane.call("GET", f"{WEBHOOKS}/peers.kilo.squat.ai")["webhooks"][0]["clientConfig"]
        (tmp_path / "ca.pem").write_bytes(base64.b64decode(hook["caBundle"]))
        secret = plane.call("GET", "/api/v1/namespaces/kube-system/secrets/kilo-webhook")["data"]
        (tmp_path / "served.pem").write_bytes(base64.b64decode(secret["tls.crt"]))
        service = f"{hook['service']['name']}.{hook['service']['namespace']}.svc"
        run(["openssl", "verify", "-CAfile=ca.pem", f"-verify_hostname={service}", "served.pem"])
    finally:
        plane.kubectl("delete", "--ignore-not-found", f"--kustomize={EXAMPLES / 'webhook'}")


# What the agent understands


def test_each_variable_is_a_flag_of_the_agent() -> None:
    known = {name_variable(flag.name) for flag in FLAGS}
    for name in ALL:
        for container in list_containers(name):
            given = {key for key in make_environment(container) if key.startswith("KG_")}
            assert given <= known, name


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_agent_is_told_where_and_beside_what_it_runs(name: str) -> None:
    config = parse(find_agent(name))
    assert config.command == ""
    assert config.name == FIELDS["spec.nodeName"]
    assert config.backend.kind == "kubernetes"
    assert not config.clean_up.network
    beside = next((one for one in ("flannel", "cilium") if one in name), "")
    assert config.options.compatibility is Compatibility(beside)
    assert (config.options.cni, config.options.local) == (
        (False, False) if beside else (True, True)
    )


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_the_agent_reads_and_writes_is_mounted(name: str) -> None:
    container = find_agent(name)
    config = parse(container)
    mounts = {
        mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]
    }
    needed = {"/var/lib/kilo": False, "/run/wireguard": False, "/host/proc/sys/net": False}
    if config.options.cni:
        assert config.cni_template is not None
        needed |= {str(config.cni_path.parent): False, str(config.cni_template.parent): True}
    assert needed.items() <= mounts.items()
    if config.backend.kubeconfig:
        path = Path(config.backend.kubeconfig)
        assert mounts.get(str(path), mounts.get(str(path.parent))) is True
    else:
        server = make_environment(container)
        assert {"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"} <= server.keys()
    assert not config.backend.master


def test_the_pods_network_is_the_one_of_the_example() -> None:
    data = find_object("k3s", "ConfigMap", "kilo")["data"]
    template = parse(find_agent("k3s")).cni_template
    assert template is not None
    example = EXAMPLES.parent / "cni" / "10-kilo.conflist"
    assert json.loads(data[template.name]) == json.loads(example.read_text())


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_agent_is_asked_for_pages_that_it_has_where_it_listens(name: str) -> None:
    container = find_agent(name)
    config = parse(container)
    (port,) = container["ports"]
    assert (config.listen, port["name"]) == (f":{port['containerPort']}", "metrics")
    paths = {}
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        request = container[probe]["httpGet"]
        assert request["port"] == port["name"]
        paths[probe] = request["path"]
    assert paths["readinessProbe"] == "/ready"
    # A store that is away must restart nobody.
    assert {paths["livenessProbe"], paths["startupProbe"]} == {"/health"}
    assert set(paths.values()) <= PAGES.keys()


# What it may do


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_roles_are_those_that_agents_have_in_the_tests(name: str) -> None:
    tested = [one for one in yaml.safe_load_all(RBAC.read_text()) if one]
    shipped = [find_object(name, one["kind"], one["metadata"]["name"]) for one in tested]
    assert shipped == tested
    assert find_object(name, "DaemonSet", "kilo")["spec"]["template"]["spec"][
        "serviceAccountName"
    ] in {one["metadata"]["name"] for one in tested if one["kind"] == "ServiceAccount"}


@pytest.mark.parametrize("name", ALL)
def test_no_container_may_more_than_it_needs(name: str) -> None:
    unit = (EXAMPLES.parent / "systemd" / "kg.service").read_text()
    (line,) = (one for one in unit.splitlines() if one.startswith("CapabilityBoundingSet="))
    allowed = {
        "kilo": {one.removeprefix("CAP_") for one in line.partition("=")[2].split()},
        "install-cni": {"DAC_OVERRIDE"},
    }
    for container in list_containers(name):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        if container["name"] == "wireguard":  # for /dev/net/tun
            continue
        assert not context.get("privileged")
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        added = set(context["capabilities"].get("add", ()))
        assert added == allowed.get(container["name"], set())
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("name", ALL)
def test_every_pod_says_what_it_takes_and_gets_no_variables_of_services(name: str) -> None:
    for container in list_containers(name):
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    for pod in list_pods(name):
        assert pod["enableServiceLinks"] is False


def test_userspace_wireguard_runs_only_on_nodes_that_are_labelled_for_it() -> None:
    pod = find_object("k3s-userspace", "DaemonSet", "kilo-wireguard")["spec"]["template"]["spec"]
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    wanted = {one["key"]: one["values"] for one in term["matchExpressions"]}
    assert wanted["kilo.squat.ai/wireguard"] == ["userspace"]
    # The tunnels live as long as this process.
    daemonset = find_object("k3s-userspace", "DaemonSet", "kilo-wireguard")
    assert daemonset["spec"]["updateStrategy"] == {"type": "OnDelete"}
    (container,) = pod["containers"]
    assert container["command"][-1] == parse(find_agent("k3s-userspace")).interface


# A life


def test_a_cluster_goes_from_kilos_manifest_to_ours_and_to_none(plane: ControlPlane) -> None:
    plane.apply(KILO)
    before = read_agents(plane)
    overlay = f"--kustomize={EXAMPLES / 'kubeadm'}"
    plane.kubectl("apply", overlay)
    ours = read_agents(plane)
    assert ours["metadata"]["uid"] == before["metadata"]["uid"]
    (container,) = ours["spec"]["template"]["spec"]["containers"]
    assert "args" not in container
    assert not container["securityContext"].get("privileged")

    patch = EXAMPLES / "uninstall" / "patch.yaml"
    target = ("--namespace=kube-system", "patch", "daemonset", "kilo")
    plane.kubectl(*target, f"--patch-file={patch}")
    leaving = read_agents(plane)["spec"]
    assert leaving["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "100%"
    (last,) = leaving["template"]["spec"]["containers"]
    changed = {"command", "readinessProbe", "livenessProbe", "startupProbe"}
    assert {key: last[key] for key in last.keys() - changed} == {
        key: container[key] for key in container.keys() - changed
    }
    assert last["readinessProbe"].keys() & {"exec", "httpGet"} == {"exec"}
    assert not last.keys() & {"livenessProbe", "startupProbe"}

    plane.kubectl("delete", overlay)
    left = plane.kubectl("--namespace=kube-system", "get", "daemonsets,configmaps", "--output=name")
    assert "kilo" not in left


def read_agents(plane: ControlPlane) -> dict[str, Any]:
    return plane.call("GET", "/apis/apps/v1/namespaces/kube-system/daemonsets/kilo")
