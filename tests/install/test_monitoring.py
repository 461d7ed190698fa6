"""What is there to watch agents with: alerts fire, and every name in them exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kilo.mesh.model import Snapshot
from kilo.mesh.state import DataplaneState, PeerStats, WireGuardPeer
from kilo.metrics import Counted, write_metrics
from kilo.status import Status
from kilo.webhook import Tally
from tests.builders import make_key, make_peer, networks
from tests.install.guide import read_table
from tests.install.machine import ROOT
from tests.install.promtool import check_rules, lint_metrics

KUBERNETES = ROOT / "examples" / "kubernetes"
MONITORING = KUBERNETES / "monitoring"
CASES = Path(__file__).parent / "alerts_test.yaml"
SCRAPED = {"up"}
"""Metrics that Prometheus makes itself."""
TARGET = {"job", "instance"}
"""Labels that Prometheus adds."""
# A name that is no function and no label: labels stand in braces, or in the parentheses of by ().
METRIC = re.compile(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()")
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset"}


def write_agent_metrics() -> str:
    """An agent's answer to a scrape, with every series that it can have."""
    key = make_key("far")
    peer = WireGuardPeer(
        link="kilo0", public_key=key, allowed_ips=frozenset(networks("10.5.0.1/32"))
    )
    status = Status(name="berlin", interface="kilo0")
    status.snapshot = Snapshot(peers=(make_peer("far"),))
    status.state = DataplaneState(peers=frozenset({peer}))
    status.stats = {
        key: PeerStats(latest_handshake=1.0, received_bytes=2, sent_bytes=3, endpoint=None)
    }
    status.errors.labels("reconcile").inc()
    status.each_store_up.labels("etcd").set(1)
    return write_metrics(status).decode()


def write_webhook_metrics() -> str:
    """The same of a webhook."""
    tally = Tally()
    tally.admissions.labels("CREATE", "denied").inc()
    tally.requests.labels("/validate", "POST").inc()
    return generate_latest(Counted(tally.registry)).decode()


def list_families(text: str) -> dict[str, tuple[str, set[str]]]:
    """Family, as its samples or their sum are called -> type and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels}
        found[name] = (family.type, labels - {"le"})
    return found


def list_series() -> dict[str, set[str]]:
    """Metric -> its labels."""
    families = [
        family
        for text in (write_agent_metrics(), write_webhook_metrics())
        for family in text_string_to_metric_families(text)
    ]
    series: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        series.setdefault(sample.name, set()).update(sample.labels)
    return series


@cache
def load_rules() -> list[dict[str, Any]]:
    spec = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    return [rule for group in spec["groups"] for rule in group["rules"]]


def list_alerts() -> list[str]:
    return [rule["alert"] for rule in load_rules()]


def list_queries() -> Iterator[tuple[str, str]]:
    """Who asks, and what."""
    for rule in load_rules():
        yield rule["alert"], rule["expr"]
    board = json.loads((MONITORING / "kilo.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, _, label = variable["definition"][len("label_values(") : -1].rpartition(", ")
            yield variable["name"], f"count by ({label}) ({metric})"


def find_names(query: str) -> tuple[set[str], set[str]]:
    """The metrics of a query, and the labels that it chooses or groups by."""
    grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query)
    chosen = re.findall(r"\{([^}]*)\}", query)
    labels = {label.strip() for group in grouped for label in group.split(",")}
    labels |= {label for part in chosen for label in re.findall(r"(\w+)\s*[=!]~?", part)}
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", query)
    return set(METRIC.findall(rest)) - WORDS, labels


@pytest.mark.parametrize("query", list(list_queries()), ids=lambda query: query[0])
def test_every_query_names_metrics_and_labels_that_exist(query: tuple[str, str]) -> None:
    series = list_series()
    metrics, labels = find_names(query[1])
    assert metrics
    assert metrics <= series.keys() | SCRAPED
    known = {label for metric in metrics & series.keys() for label in series[metric]}
    assert labels <= known | TARGET


def test_the_metrics_follow_the_rules_of_prometheus_for_names() -> None:
    assert lint_metrics(write_agent_metrics()) == ""
    assert lint_metrics(write_webhook_metrics()) == ""
    assert "non-histogram" in lint_metrics("# HELP x_count X.\n# TYPE x_count gauge\nx_count 1\n")


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    spec = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    shutil.copy(CASES, tmp_path)
    check_rules(tmp_path / CASES.name)


@pytest.mark.parametrize("alert", list_alerts())
def test_each_alert_has_been_made_to_fire_and_to_be_silent(alert: str) -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    expected = [
        case["exp_alerts"]
        for group in cases
        for case in group["alert_rule_test"]
        if case["alertname"] == alert
    ]
    assert any(expected)
    assert not all(expected)


@pytest.mark.parametrize("rule", load_rules(), ids=list_alerts())
def test_the_runbook_says_of_each_alert_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    found = re.search(
        rf"^## {rule['alert']}\n(.*?)(?=^## |\Z)",
        (ROOT / page).read_text(),
        re.DOTALL | re.MULTILINE,
    )
    assert found
    parts = re.findall(r"^\*\*([^*]+):\*\*", found[1], re.MULTILINE)
    assert parts == ["Means", "Is cut", "Look at", "Remedy"]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]


def test_the_runbook_has_no_section_for_an_alert_that_is_gone() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert sections == list_alerts()


@cache
def render(folder: str) -> list[dict[str, Any]]:
    """The objects that kubectl would apply."""
    command = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def find_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def test_the_dashboard_reaches_grafana_as_it_is() -> None:
    config = find_kind(render("monitoring"), "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["data"]["kilo.json"] == (MONITORING / "kilo.json").read_text()


@pytest.mark.parametrize(
    ("folder", "kind"), [("base", "DaemonSet"), ("webhook", "Deployment")], ids=["agent", "webhook"]
)
def test_the_pods_of_the_manifests_are_those_that_are_scraped(folder: str, kind: str) -> None:
    monitor = find_kind(render("monitoring"), "PodMonitor")["spec"]
    pods = find_kind(render(folder), kind)
    template = pods["spec"]["template"]
    label = template["metadata"]["labels"][monitor["jobLabel"]]
    (choice,) = monitor["selector"]["matchExpressions"]
    assert choice["key"] == monitor["jobLabel"]
    assert label in choice["values"]
    assert pods["metadata"]["namespace"] in monitor["namespaceSelector"]["matchNames"]
    ports = [port for one in template["spec"]["containers"] for port in one.get("ports", ())]
    assert {one["port"] for one in monitor["podMetricsEndpoints"]} <= {p["name"] for p in ports}
    assert f'job="{label}"' in " ".join(rule["expr"] for rule in load_rules())


@pytest.mark.parametrize(
    ("heading", "text"),
    [
        ("Metrics of an agent", write_agent_metrics()),
        ("Metrics of a webhook", write_webhook_metrics()),
    ],
    ids=["agent", "webhook"],
)
def test_the_guide_has_every_metric_with_its_type_and_labels(heading: str, text: str) -> None:
    rows: Mapping[str, tuple[str, set[str]]] = {
        name.strip("`"): (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _meaning in read_table(heading)
    }
    assert rows == list_families(text)
