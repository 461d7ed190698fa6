"""``kgctl`` on a cluster and on the objects dumped from it: the same answers without it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from kilo.kgctl import main
from kilo.lab.controlplane import ControlPlane
from kilo.mesh.wgconf import parse_conf
from tests.builders import make_key, make_preshared_key
from tests.cluster.planes import Cluster

NODES = {
    "a1": ("oregon", "198.51.100.11:51820", "192.168.1.11/24", "10.2.1.0/24"),
    "a2": ("oregon", "192.168.1.12:51820", "192.168.1.12/24", "10.2.2.0/24"),
    "b1": ("frankfurt", "203.0.113.21:51820", "192.168.2.11/24", "10.2.3.0/24"),
    "dead": ("frankfurt", "203.0.113.22:51820", "192.168.2.12/24", "10.2.4.0/24"),
}
MOVED = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "b1",
        "annotations": {
            "kilo.squat.ai/key": str(make_key("b1")),
            "kilo.squat.ai/endpoint": "203.0.113.21:51820",
            "kilo.squat.ai/internal-ip": "192.168.2.11/24",
            "kilo.squat.ai/location": "oregon",
        },
    },
    "spec": {"podCIDRs": ["10.2.3.0/24"]},
}


class Said(NamedTuple):
    status: int
    out: str


class Store:
    """One of the two, with its flags."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *flags: str) -> None:
        self._capsys = capsys
        self._flags = flags

    def ask(self, *words: str) -> Said:
        """Flags first, as in scripts made for Kilo."""
        self._capsys.readouterr()
        status = main((*self._flags, *words))
        return Said(status, self._capsys.readouterr().out)


@pytest.fixture
def stores(
    cluster: Cluster,
    control_plane: ControlPlane,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> tuple[Store, Store]:
    """The cluster, and a directory with what kubectl prints of it."""
    now = int(time.time())
    for name, (location, endpoint, internal, pods) in NODES.items():
        annotations = {
            "key": str(make_key(name)),
            "endpoint": endpoint,
            "internal-ip": internal,
            "last-seen": str(now - 500 * (name == "dead")),
            "granularity": "location",
        }
        labels = {"topology.kubernetes.io/region": location}
        cluster.put_node(name, annotations, labels=labels, pod_cidrs=(pods,))
    cluster.annotate("b1", {"persistent-keepalive": "25", "force-endpoint": "b.example.com:1"})
    preshared = make_preshared_key("squat").reveal()
    cluster.put_peer(
        "squat",
        publicKey=str(make_key("squat")),
        allowedIPs=["10.5.0.1/32"],
        presharedKey=preshared,
        persistentKeepalive=10,
        endpoint={"dnsOrIP": {"dns": "squat.example.com"}, "port": 51820},
    )
    cluster.put_peer("thief", publicKey=str(make_key("thief")), allowedIPs=["10.2.1.0/25"])
    (tmp_path / "dump.yaml").write_text(control_plane.kubectl("get", "nodes,peers", "-o", "yaml"))
    live = Store(capsys, f"--kubeconfig={control_plane.kubeconfig}")
    dump = Store(capsys, "--backend=file", f"--directory={tmp_path}")
    return live, dump


def test_a_dump_answers_as_the_cluster_it_came_from(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    live, dump = stores
    new = tmp_path.with_name(f"{tmp_path.name}.new.yaml")
    new.write_text(yaml.safe_dump(MOVED))
    for words, status in (
        (("graph",), 0),
        (("showconf", "node", "a1"), 0),
        (("showconf", "node", "a2"), 1),
        (("showconf", "node", "b1", "--as-peer", "-o", "yaml"), 0),
        (("showconf", "peer", "squat"), 0),
        (("showconf", "peer", "thief"), 1),
        (("plan", "-f", str(new)), 2),
    ):
        answer = live.ask(*words)
        assert (answer.status, bool(answer.out)) == (status, status != 1), words
        assert dump.ask(*words) == answer, words
    states = [json.loads(store.ask("status", "-o", "json").out) for store in stores]
    assert len(states[0]["segments"]) == 2
    assert [one["name"] for one in states[0]["absent"]] == ["dead"]
    assert strip_times(states[0]) == strip_times(states[1])


def strip_times(view: dict[str, object]) -> dict[str, object]:
    """Without what depends on when it was asked."""
    return view | {"at": 0, "absent": [one["name"] for one in view["absent"]]}  # type: ignore[attr-defined]


def test_a_leader_joins_another_cluster_by_the_recipe(
    stores: tuple[Store, Store], cluster: Cluster, control_plane: ControlPlane
) -> None:
    """What ``showconf --as-peer`` prints is taken by a real API server, and read back the same."""
    live, _ = stores
    words = ("showconf", "node", "b1", "--as-peer", "-o", "yaml", "--allowed-ips", "10.43.0.0/16")
    assert "peer.kilo.squat.ai/b1 created" in control_plane.kubectl(
        "apply", "-f", "-", text=live.ask(*words).out
    )
    stored = json.loads(control_plane.kubectl("get", "peer", "b1", "-o", "json"))
    assert stored["spec"] == {
        "publicKey": str(make_key("b1")),
        "allowedIPs": ["10.4.0.1/32", "192.168.2.11/32", "10.2.3.0/24", "10.43.0.0/16"],
        "persistentKeepalive": 25,
        "endpoint": {"dnsOrIP": {"dns": "b.example.com"}, "port": 1},
    }
    cluster.delete_node("b1")
    conf = parse_conf(live.ask("showconf", "node", "a1").out)
    assert make_key("b1") in {peer.public_key for peer in conf.peers}
