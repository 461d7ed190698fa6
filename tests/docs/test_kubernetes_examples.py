"""The files that are applied to a cluster say what the code does. A server is not needed here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kilo.backends.annotations import REPORTED_ANNOTATIONS
from kilo.backends.documents import read_document
from kilo.backends.kubernetes.crd import (
    CRD_COMMAND,
    CRD_HEADER,
    CRD_NAME,
    RULES_COMMAND,
    RULES_HEADER,
    make_peer_crd,
    make_rules_patch,
    render,
)
from kilo.backends.kubernetes.settings import SETTINGS_NAME, read_config_map
from kilo.backends.objects import DeclaredSettings
from kilo.backends.yamltext import load_documents
from kilo.mesh.model import PartialSettings
from kilo.webhookflags import parse_webhook_flags
from tests.docs.test_docs import PAGES, ROOT, list_blocks

EXAMPLES = Path(__file__).parents[2] / "examples" / "kubernetes"
CRD, RBAC, WEBHOOK = "base/crd.yaml", "base/rbac.yaml", "webhook/webhook.yaml"
FILES = sorted((*EXAMPLES.glob("*.yaml"), *(EXAMPLES / name for name in (CRD, RBAC, WEBHOOK))))
PATCHES = ("crd-rules.yaml",)
"""Lists of operations, and no objects."""


def load(name: str) -> list[Any]:
    """The documents of a file, read as strictly as a mesh directory's are."""
    documents = list(load_documents((EXAMPLES / name).read_text(), as_json=False))
    assert [document.fault for document in documents if document.fault] == []
    return [document.value for document in documents]


def pick(name: str, kind: str) -> dict[str, Any]:
    (found,) = (document for document in load(name) if document["kind"] == kind)
    return dict(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_says_what_it_is_for_and_holds_objects(path: Path) -> None:
    assert path.read_text().startswith("# ")
    for document in load(str(path.relative_to(EXAMPLES))):
        if path.name in PATCHES:
            assert all(operation["op"] == "add" for operation in document)
        else:
            assert document["apiVersion"]
            assert document["kind"]
            assert document["metadata"]["name"]


@pytest.mark.parametrize(
    ("name", "made", "command"),
    [
        (CRD, render(make_peer_crd(), header=CRD_HEADER), CRD_COMMAND),
        ("crd-rules.yaml", render(make_rules_patch(), header=RULES_HEADER), RULES_COMMAND),
    ],
)
def test_what_is_made_is_what_is_shipped(name: str, made: str, command: str) -> None:
    assert (EXAMPLES / name).read_text() == made, f"{command} > examples/kubernetes/{name}"


def test_the_definition_is_no_other_when_read_back() -> None:
    assert load(CRD) == [make_peer_crd()]
    assert load("crd-rules.yaml") == [make_rules_patch()]


def test_the_peer_is_one() -> None:
    reading = read_document(pick("peer.yaml", "Peer"), source="peer.yaml")
    assert [found.kind for found in reading.found] == ["Peer"]
    assert reading.problems == []


def test_the_settings_show_each_field_that_a_cluster_leaves_to_its_operator() -> None:
    document = pick("settings.yaml", "ConfigMap")
    assert document["metadata"]["name"] == SETTINGS_NAME
    reading = read_config_map(document)
    assert reading.problems == []
    (found,) = reading.found
    assert isinstance(found.value, DeclaredSettings)
    # How packets travel within a location is left to the agents' own flag, and whose pod subnets
    # are whose to the cluster.
    left_out = {"encapsulation", "pod_subnet_pools"}
    assert found.value.settings.keys() == PartialSettings.__annotations__.keys() - left_out


def list_grants(name: str, role: str) -> set[tuple[str, str, str]]:
    """Group/resource, verb and the names it is restricted to."""
    return {
        (f"{group}/{resource}", verb, ",".join(rule.get("resourceNames", ())))
        for rule in pick(name, role)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


READ_BY_ALL = {
    *(("/nodes", verb, "") for verb in ("list", "watch")),
    *(("kilo.squat.ai/peers", verb, "") for verb in ("list", "watch")),
    ("apiextensions.k8s.io/customresourcedefinitions", "get", ""),
}


def test_an_agent_may_do_what_it_needs_and_no_more() -> None:
    assert list_grants(RBAC, "ClusterRole") == READ_BY_ALL | {
        ("/nodes", "patch", ""),
        ("kilo.squat.ai/peers/status", "patch", ""),
        ("/events", "create", ""),
    }
    assert list_grants(RBAC, "Role") == {
        ("/configmaps", verb, SETTINGS_NAME) for verb in ("get", "list", "watch")
    }


def test_the_webhook_may_read_and_write_nothing() -> None:
    assert list_grants(WEBHOOK, "ClusterRole") == READ_BY_ALL


@pytest.mark.parametrize("name", [RBAC, WEBHOOK])
def test_every_binding_joins_a_role_and_an_account_that_there_are(name: str) -> None:
    documents = load(RBAC) + load(name)
    known = {(one["kind"], one["metadata"]["name"]) for one in documents}
    bindings = [one for one in load(name) if one["kind"].endswith("Binding")]
    assert len(bindings) == 2
    for binding in bindings:
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in known
        for subject in binding["subjects"]:
            assert (subject["kind"], subject["name"]) in known


def test_the_policy_lets_an_agent_write_its_own_annotations_and_no_others() -> None:
    spec = pick("node-policy.yaml", "ValidatingAdmissionPolicy")["spec"]
    (written,) = (one["expression"] for one in spec["variables"] if one["name"] == "written")
    assert set(re.findall(r"'([^']*)'", written)) == set(REPORTED_ANNOTATIONS)


def test_the_policy_is_about_the_account_that_agents_have() -> None:
    spec = pick("node-policy.yaml", "ValidatingAdmissionPolicy")["spec"]
    account = pick(RBAC, "ServiceAccount")["metadata"]
    (condition,) = spec["matchConditions"]
    user = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert condition["expression"] == f"request.userInfo.username == '{user}'"
    binding = pick("node-policy.yaml", "ValidatingAdmissionPolicyBinding")
    assert binding["spec"]["policyName"] == binding["metadata"]["name"]


def test_the_webhook_is_asked_about_peers_where_it_listens() -> None:
    (hook,) = pick(WEBHOOK, "ValidatingWebhookConfiguration")["webhooks"]
    crd = make_peer_crd()["spec"]
    assert isinstance(crd, dict)
    (rule,) = hook["rules"]
    assert (rule["apiGroups"], rule["resources"]) == ([crd["group"]], [crd["names"]["plural"]])
    assert rule["apiVersions"] == [crd["versions"][0]["name"]]
    assert hook["name"] == CRD_NAME
    assert hook["clientConfig"]["service"]["path"] == "/validate"
    service = pick(WEBHOOK, "Service")
    assert hook["clientConfig"]["service"]["name"] == service["metadata"]["name"]


def test_the_webhook_is_started_with_flags_that_it_has() -> None:
    deployment = pick(WEBHOOK, "Deployment")["spec"]["template"]["spec"]
    (container,) = deployment["containers"]
    assert container["command"] == ["kg", "webhook"]
    config = parse_webhook_flags(container["args"], {})
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (config.listen, config.listen_metrics) == (
        f":{ports['webhook']}",
        f":{ports['metrics']}",
    )
    (mount,) = container["volumeMounts"]
    assert {config.cert_file.parent, config.key_file.parent} == {Path(mount["mountPath"])}


def test_what_a_documented_command_applies_is_there() -> None:
    blocks = "\n".join(block for page in PAGES for block in list_blocks(page, "sh"))
    words = r"(?:-k|-f|--patch-file)[ =](examples/\S+)"
    named = re.findall(words, blocks.replace("\\\n", " "))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_guide_names_every_overlay() -> None:
    names = {path.parent.name for path in EXAMPLES.glob("*/server.yaml")}
    clusters = "|".join(sorted({name.partition("-")[0] for name in names}))
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    assert set(re.findall(rf"`((?:{clusters})(?:-\w+)?)`", guide)) == names
    # Each stands there once more, which the guide says of all of them.
    assert all((EXAMPLES / f"{name}-userspace").is_dir() for name in names)
