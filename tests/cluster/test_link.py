"""``kgctl cluster link`` between two real API servers, with the rights that are shipped for it.

Nodes are objects whose stamps somebody renews; tests/lab/test_recipes.py has the same with traffic.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kilo.backends.documents import make_node_document
from kilo.backends.kubernetes.client import Access, Client
from kilo.errors import BackendError, LabError
from kilo.kgctl.clustermirror import Document, ObjectChange, ServiceName, identify, make_mirror
from kilo.kgctl.clusterobjects import LinkedCluster
from kilo.lab.apicalls import MERGE_PATCH, RefusedError
from kilo.lab.controlplane import ControlPlane
from kilo.mesh.model import Endpoint
from tests.builders import make_key, make_spec, networks
from tests.cluster.planes import PEERS, Cluster, prepare
from tests.lab.meshes import wait_until

RIGHTS = Path(__file__).parents[2] / "examples" / "kubernetes" / "link.yaml"
SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices"
STAMP_SECONDS = 5.0
SECONDS = 120.0
"""How long these slow and noisy machines may take for what takes one or two."""
NODES = (
    {
        "a1": ("198.51.100.11:51820", "192.168.1.11/24", "10.2.1.0/24", "east"),
        "a2": ("198.51.100.12:51820", "192.168.1.12/24", "10.2.2.0/24", "east"),
    },
    {"c1": ("203.0.113.21:51820", "192.168.3.11/24", "10.7.1.0/24", "north")},
)
PROGRAM = (sys.executable, "-m", "kilo.kgctl", "cluster")
CIDRS = (
    "--subnet=10.4.0.0/16",
    "--to-subnet=10.6.0.0/16",
    "--service-cidr=10.43.0.0/16",
    "--to-service-cidr=10.53.0.0/16",
)


@pytest.fixture(scope="module")
def second_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    directory = tmp_path_factory.mktemp("second") / "plane"
    with ControlPlane(directory, flags=["--service-cluster-ip-range=10.53.0.0/16"]) as plane:
        prepare(plane)
        yield plane


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    command = [*PROGRAM, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


class Stamper:
    """What agents do every 30 s: it says of all nodes that they live."""

    def __init__(self, clusters: Sequence[Cluster]) -> None:
        self._clusters = clusters
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(STAMP_SECONDS):
            for cluster, nodes in zip(self._clusters, NODES, strict=True):
                for name in nodes:
                    try:
                        cluster.annotate(name, {"last-seen": str(int(time.time()))})
                    except LabError:
                        break  # its server is away


class Pair:
    """Two clusters, and credentials that may do what the shipped manifest allows."""

    def __init__(self, clusters: tuple[Cluster, Cluster], directory: Path) -> None:
        self.clusters = clusters
        self._directory = directory
        self.ways: list[Path] = []
        for cluster, nodes in zip(clusters, NODES, strict=True):
            cluster.plane.apply(RIGHTS.read_text())
            token = cluster.plane.make_service_account_token("kube-system", "kilo-link")
            self.ways.append(cluster.plane.make_kubeconfig("link", token=token))
            for name, (endpoint, internal, pods, location) in nodes.items():
                annotations = {
                    "key": str(make_key(name)),
                    "endpoint": endpoint,
                    "internal-ip": internal,
                    "location": location,
                    "last-seen": str(int(time.time())),
                }
                cluster.put_node(name, annotations, pod_cidrs=(pods,))

    def list_words(self, verb: str, *words: str) -> list[str]:
        one, other = self.ways
        return [verb, f"--kubeconfig={one}", f"--to-kubeconfig={other}", *CIDRS, *words]

    def run(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself."""
        return run(*self.list_words(verb, *words))

    @contextmanager
    def linked(self, *words: str) -> Iterator[Callable[[], str]]:
        """The command runs meanwhile; what is given tells all that it has said. It ends with 0."""
        log = self._directory / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*PROGRAM, *self.list_words("link", *words)], stdout=output, stderr=output
            )
        try:
            wait_until(
                lambda: process.poll() is not None or "linked: " in log.read_text(), "linked"
            )
            yield log.read_text
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=SECONDS)
        assert status == 0, log.read_text()

    def peers(self, number: int) -> dict[str, dict[str, Any]]:
        """Name -> the whole object, of the Peers in one of the clusters."""
        items = self.clusters[number].plane.call("GET", PEERS)["items"]
        return {item["metadata"]["name"]: item for item in items}

    def is_led_by(self, number: int, peer: str, node: str) -> bool:
        """Whether a peer has that node's key; not while its server is on its way back."""
        try:
            return bool(self.peers(number)[peer]["spec"]["publicKey"] == str(make_key(node)))
        except LabError:
            return False

    def read_revisions(self) -> list[str]:
        """Of all that a link may make; the Service of the server is the server's own."""
        return [
            f"{item['metadata']['name']} {item['metadata']['resourceVersion']}"
            for cluster in self.clusters
            for path in (PEERS, SERVICES, SLICES)
            for item in cluster.plane.call("GET", path)["items"]
            if item["metadata"]["name"] != "kubernetes"
        ]


def clear(cluster: Cluster) -> None:
    for path in (SERVICES, SLICES):
        for item in cluster.plane.call("GET", path)["items"]:
            if item["metadata"]["name"] != "kubernetes":
                cluster.plane.call("DELETE", f"{path}/{item['metadata']['name']}")
    cluster.empty()


@pytest.fixture
def pair(cluster: Cluster, second_plane: ControlPlane, tmp_path: Path) -> Iterator[Pair]:
    other = Cluster(second_plane)
    try:
        one = Pair((cluster, other), tmp_path)
        with Stamper(one.clusters):
            yield one
    finally:
        clear(cluster)
        clear(other)


def test_leaders_are_each_others_peers_and_another_leader_is_followed(pair: Pair) -> None:
    before = pair.read_revisions()
    with pair.linked():
        (made,) = pair.peers(1).values()
        assert made["metadata"]["labels"] == {"kilo.squat.ai/link": "default"}
        assert made["spec"]["publicKey"] == str(make_key("a1"))
        assert made["spec"]["allowedIPs"] == [
            "10.2.1.0/24", "10.2.2.0/24", "10.4.0.1/32", "10.43.0.0/16", "192.168.1.11/32",
            "192.168.1.12/32",
        ]  # fmt: skip
        pair.clusters[0].annotate("a2", {"leader": "true"})
        wait_until(lambda: pair.is_led_by(1, "link.default.east", "a2"), "a2 is followed")
        pair.clusters[1].plane.call("DELETE", f"{PEERS}/link.default.east")
        wait_until(lambda: "link.default.east" in pair.peers(1), "what was deleted is back")
    made_now = pair.read_revisions()
    assert len(made_now) == len(before) + 2
    again = pair.run("link", "--once")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert pair.read_revisions() == made_now
    done = pair.run("unlink")
    assert (done.returncode, done.stderr) == (0, "")
    assert pair.read_revisions() == before


def test_a_peer_without_the_links_label_is_neither_changed_nor_deleted(pair: Pair) -> None:
    pair.clusters[1].put_peer(
        "link.default.east", publicKey=str(make_key("a1")), allowedIPs=["10.4.9.9/32"]
    )
    pair.clusters[1].put_peer(
        "link.default.gone", publicKey=str(make_key("gone")), allowedIPs=["10.4.9.8/32"]
    )
    before = pair.peers(1)
    said = pair.run("link", "--once")
    assert said.returncode == 1
    for name in before:
        words = f"Peer {name}: is there already, without the label kilo.squat.ai/link=default"
        assert words in said.stderr
    assert pair.peers(1) == before


def test_a_link_that_is_to_clean_up_leaves_nothing(pair: Pair) -> None:
    before = pair.read_revisions()
    with pair.linked("--clean-up"):
        assert len(pair.read_revisions()) == len(before) + 2
    assert pair.read_revisions() == before


def put_service(cluster: Cluster, name: str, *ports: int) -> str:
    """A Service; its cluster IP."""
    document = {"metadata": {"name": name}, "spec": {"ports": list_ports(ports)}}
    return str(cluster.plane.call("POST", SERVICES, document)["spec"]["clusterIP"])


def list_ports(numbers: Sequence[int]) -> list[dict[str, object]]:
    return [{"name": f"p{number}", "port": number} for number in numbers]


def read_mirror(cluster: Cluster, name: str) -> tuple[list[int], list[int], list[str]]:
    """Ports of the Service, ports and addresses of its slice; empty if there is none."""
    try:
        service = cluster.plane.call("GET", f"{SERVICES}/{name}")
        piece = cluster.plane.call("GET", f"{SLICES}/{name}-link-ipv4")
    except RefusedError:
        return [], [], []
    assert not service["spec"].get("selector")
    return (
        [port["port"] for port in service["spec"]["ports"]],
        [port["port"] for port in piece["ports"]],
        piece["endpoints"][0]["addresses"],
    )


def test_named_services_are_mirrored_either_way_and_follow_their_source(pair: Pair) -> None:
    one, other = pair.clusters
    web = put_service(one, "web", 80)
    words = ("--service=default/web,default/later", "--to-service=default/db")
    with pair.linked(*words) as said:
        wait_until(lambda: read_mirror(other, "web") == ([80], [80], [web]), "web is mirrored")
        wait_until(lambda: "service default/db is not there" in said(), "db is missed")
        database = put_service(other, "db", 5432)
        wait_until(lambda: read_mirror(one, "db") == ([5432], [5432], [database]), "db is mirrored")
        spec = {"spec": {"ports": list_ports((80, 443))}}
        one.plane.call("PATCH", f"{SERVICES}/web", spec, content_type=MERGE_PATCH)
        ports = [80, 443]
        wait_until(lambda: read_mirror(other, "web") == (ports, ports, [web]), "ports follow")
        one.plane.call("DELETE", f"{SERVICES}/web")
        wait_until(lambda: read_mirror(other, "web") == ([], [], []), "web has gone")
        wait_until(lambda: len(read_slices(other)) == 0, "and its slice")
    made = pair.read_revisions()
    again = pair.run("link", "--once", *words)
    assert again.stdout == ""
    assert pair.read_revisions() == made
    assert pair.run("link", "--once").returncode == 0
    assert read_mirror(one, "db") == ([], [], []), "who does not name it takes it away"
    assert pair.run("link", "--once", "--to-service=default/db").returncode == 0
    assert read_mirror(one, "db") == ([5432], [5432], [database])
    assert pair.run("unlink").returncode == 0
    assert read_mirror(one, "db") == ([], [], [])
    assert "db" in [item["metadata"]["name"] for item in list_services(other)]


def list_services(cluster: Cluster) -> list[dict[str, Any]]:
    return list(cluster.plane.call("GET", SERVICES)["items"])


def read_slices(cluster: Cluster) -> list[str]:
    items = cluster.plane.call("GET", SLICES)["items"]
    return [item["metadata"]["name"] for item in items]


def test_a_service_that_is_somebody_elses_keeps_its_traffic(pair: Pair) -> None:
    one, other = pair.clusters
    web, words = put_service(one, "web", 80), ("link", "--once", "--service=default/web")
    slices = read_slices(other)

    def take_the_name() -> None:
        put_service(other, "web", 8080)
        before = list_services(other)
        said = pair.run(*words)
        assert said.returncode == 1
        assert "Service default/web: is there already, without the label" in said.stderr
        assert list_services(other) == before
        assert read_slices(other) == slices
        other.plane.call("DELETE", f"{SERVICES}/web")

    take_the_name()
    assert pair.run(*words).returncode == 0
    assert read_mirror(other, "web") == ([80], [80], [web])
    # Who comes after the mirror does not inherit its slice.
    other.plane.call("DELETE", f"{SERVICES}/web")
    take_the_name()


def write_mirror(kubeconfig: Path, *documents: Document) -> None:
    """As by a run that has seen none of these there."""

    async def write() -> None:
        client = Client(Access(kubeconfig=str(kubeconfig)))
        try:
            for document in documents:
                kind, name = identify(document)
                change = ObjectChange(
                    label="b", kind=kind, service=name, document=document, held=None
                )
                await LinkedCluster(client, "default").change_mirror(change)
        finally:
            await client.close()

    asyncio.run(write())


def make_web(*ports: int) -> tuple[Document, ...]:
    """The mirror of a Service ``default/web``."""
    spec = {"clusterIP": "10.43.0.7", "ports": list_ports(ports)}
    source = {"metadata": {}, "spec": spec}
    return make_mirror("default", ServiceName("default", "web"), source, networks("10.43.0.0/16"))


def test_what_another_run_of_the_link_has_just_made_is_brought_up_to_date(pair: Pair) -> None:
    write_mirror(pair.ways[1], *make_web(80))
    assert read_mirror(pair.clusters[1], "web") == ([80], [80], ["10.43.0.7"])
    made = pair.read_revisions()
    write_mirror(pair.ways[1], *make_web(80))
    assert pair.read_revisions() == made
    write_mirror(pair.ways[1], *make_web(81))
    assert read_mirror(pair.clusters[1], "web") == ([81], [81], ["10.43.0.7"])


def test_a_slice_is_not_written_where_the_service_has_just_become_somebody_elses(
    pair: Pair,
) -> None:
    _, piece = make_web(80)
    slices = read_slices(pair.clusters[1])
    with pytest.raises(BackendError, match="there is no Service default/web"):
        write_mirror(pair.ways[1], piece)
    put_service(pair.clusters[1], "web", 8080)
    with pytest.raises(BackendError, match="Service default/web: is there already, without the"):
        write_mirror(pair.ways[1], piece)
    assert read_slices(pair.clusters[1]) == slices


def test_what_changes_while_an_api_server_is_away_is_written_when_it_is_back(
    pair: Pair, second_plane: ControlPlane
) -> None:
    one, other = pair.clusters
    web = put_service(one, "web", 80)
    with pair.linked("--service=default/web") as said:
        wait_until(lambda: read_mirror(other, "web") == ([80], [80], [web]), "web is mirrored")
        second_plane.kill_apiserver()
        try:
            wait_until(lambda: "the link stays as it is there" in said(), "it is missed")
            kept = pair.peers(0)
            one.annotate("a2", {"leader": "true"})
            spec = {"spec": {"ports": list_ports((81,))}}
            one.plane.call("PATCH", f"{SERVICES}/web", spec, content_type=MERGE_PATCH)
            assert pair.peers(0) == kept
        finally:
            second_plane.start_apiserver()
        wait_until(lambda: pair.is_led_by(1, "link.default.east", "a2"), "a2 is followed")
        wait_until(lambda: read_mirror(other, "web") == ([81], [81], [web]), "ports follow")
        assert pair.peers(0) == kept


def test_clusters_that_overlap_are_refused_in_one_line_before_anything_is_written(
    pair: Pair,
) -> None:
    pair.clusters[1].put_node("c2", {}, pod_cidrs=("10.2.0.0/20",))
    before = pair.read_revisions()
    for words in ((), ("--once",)):
        said = pair.run("link", *words)
        assert (said.returncode, said.stdout) == (1, "")
        assert said.stderr.startswith(
            f"kgctl: {pair.ways[0]}: pod subnet 10.2.1.0/24 of node a1 overlaps pod subnet"
            f" 10.2.0.0/20 of node c2 of {pair.ways[1]}"
        )
        assert said.stderr.count("\n") == 1
    assert pair.read_revisions() == before


def allow_peers_only(cluster: Cluster) -> Path:
    """Credentials with the shipped rights but for those that are for mirrors only."""
    documents = list(yaml.safe_load_all(RIGHTS.read_text().replace("kilo-link", "kilo-peers")))
    for document in documents:
        if document["kind"] == "ClusterRole":
            for_mirrors = (["services"], ["endpointslices"])
            document["rules"] = [r for r in document["rules"] if r["resources"] not in for_mirrors]
    cluster.plane.apply(yaml.safe_dump_all(documents))
    token = cluster.plane.make_service_account_token("kube-system", "kilo-peers")
    return cluster.plane.make_kubeconfig("peers", token=token)


def test_without_rights_to_services_a_cluster_is_linked_with_a_mesh_in_files(
    pair: Pair, tmp_path: Path
) -> None:
    kubeconfig, rack = allow_peers_only(pair.clusters[0]), tmp_path / "rack"
    rack.mkdir()
    spec = make_spec(
        location="rack",
        public_key=make_key("r1"),
        endpoint=Endpoint.parse("203.0.113.99:51820"),
        pod_subnets=networks("10.8.1.0/24"),
    )
    (rack / "r1.yaml").write_text(yaml.safe_dump(make_node_document("r1", spec)))
    there = ("--to-backend=file", f"--to-directory={rack}", "--to-subnet=10.9.0.0/16")
    flags = (f"--kubeconfig={kubeconfig}", *there)
    said = run("link", "--once", *flags)
    assert said.returncode == 0, said.stderr
    doubt = "its service CIDR is not known, so its Services are not reached, nor is it compared"
    assert f"{kubeconfig}: {doubt} with what {rack} has" in said.stderr
    assert pair.peers(0)["link.default.node.r1"]["spec"]["publicKey"] == str(make_key("r1"))
    made = yaml.safe_load((rack / "peers" / "link.default.east.yaml").read_text())
    assert made["spec"]["publicKey"] == str(make_key("a1"))
    refused = run("link", "--once", *flags, "--service=default/kubernetes")
    assert refused.returncode == 1
    assert "403 Forbidden" in refused.stderr
    done = run("unlink", *flags)
    assert done.returncode == 0
    assert done.stderr == (
        f"kgctl: {kubeconfig}: services and endpointslices may not be listed there: mirrors, if"
        " there are any, stay\n"
    )
    assert pair.peers(0) == {}
