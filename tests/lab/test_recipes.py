"""The shell of docs/recipes.md, as it is printed there, on two real API servers with hosts behind
each; and the command that does in one what the second recipe does.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kilo.lab.apicalls import MERGE_PATCH
from kilo.lab.cluster import NODES, PEERS
from tests.lab.meshes import wait_until
from tests.lab.pairs import SERVICES, SLICES, Pair, Side, fetch, open_pair, serving

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
VPN, SERVICE, GRAPH = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
PORT, TARGET_PORT = 80, 9201


def list_scripts(section: str) -> list[str]:
    """The blocks of shell in a part of the page."""
    return re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with open_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


def test_a_host_is_let_in_by_a_manifest_and_wg_setconf(pair: Pair) -> None:
    laptop = pair.lab.host("laptop")
    for script in list_scripts(VPN):
        done = pair.shell(f"set -e\n{script}")
        assert done.returncode == 0, done.stderr
    for address in ("10.2.11.1", "10.2.12.1"):
        command = ["fping", "--quiet", "--retry=1", address]
        wait_until(lambda: laptop.succeeds(command), f"{address} answers")  # noqa: B023 - called before the next one
    pair.sides[0].plane.call("DELETE", f"{PEERS}/squat")
    laptop.run(["ip", "link", "delete", "wg0"])


def test_the_mesh_is_drawn_by_circo(pair: Pair) -> None:
    (script,) = list_scripts(GRAPH)
    done = pair.shell(script)
    assert done.returncode == 0, done.stderr
    drawn = (pair.home / "cluster.svg").read_text()
    assert drawn.rstrip().endswith("</svg>")
    assert {"a1", "a2"} <= set(re.findall(r"<title>(.*?)</title>", drawn))


def test_a_service_is_mirrored_and_answers_across_once_the_nodes_are_registered(
    pair: Pair,
) -> None:
    first, second = pair.sides
    client = second.hosts[1]
    with serving(first.hosts[1], TARGET_PORT) as backend:
        first.put_service("important-service", port=PORT, backend=backend, target_port=TARGET_PORT)
        registering, mirroring = list_scripts(SERVICE)
        said = pair.shell(registering).stderr
        assert "node a2 has no tunnel: node a1 leads its segment location:east" in said
        assert (list(first.peers), list(second.peers)) == (["c1"], ["a1"])
        done = pair.shell(mirroring)
        assert done.returncode == 0, done.stderr
        for side in pair.sides:
            side.proxy()
        address = second.plane.call("GET", f"{SERVICES}/important-service")["spec"]["clusterIP"]
        wait_until(lambda: fetch(client, address, PORT) == "hello from a2", "a2 answers")
    for side, peer in zip(pair.sides, ("c1", "a1"), strict=True):
        side.plane.call("DELETE", f"{PEERS}/{peer}")
        side.plane.call("DELETE", f"{SERVICES}/important-service")  # its Endpoints go with it
        side.proxy()


LINK = (
    "kgctl cluster link --kubeconfig $KUBECONFIG1 --service-cidr $SERVICECIDR1"
    " --service default/important-service"
    " --to-kubeconfig $KUBECONFIG2 --to-service-cidr $SERVICECIDR2"
)
LEADER = "kilo.squat.ai/leader"


def read_key(side: Side, node: str) -> str:
    annotations = side.plane.call("GET", f"{NODES}/{node}")["metadata"]["annotations"]
    return str(annotations["kilo.squat.ai/key"])


def ask_to_lead(side: Side, node: str, *, wanted: str | None) -> None:
    document = {"metadata": {"annotations": {LEADER: wanted}}}
    side.plane.call("PATCH", f"{NODES}/{node}", document, content_type=MERGE_PATCH)


def read_made(side: Side) -> dict[str, str]:
    """Path -> revision, of all that a link makes in a cluster."""
    return {
        f"{path}/{item['metadata']['name']}": read_revision(item["metadata"])
        for path in (PEERS, SERVICES, SLICES)
        for item in side.plane.call("GET", path)["items"]
        if item["metadata"]["name"] != "kubernetes"
    }


def read_revision(metadata: Mapping[str, object]) -> str:
    """Of what is wanted, where the server counts that: agents write a Peer's status meanwhile."""
    return f"{metadata['uid']} {metadata.get('generation') or metadata['resourceVersion']}"


def test_one_command_does_the_same_and_follows_another_leader(pair: Pair, tmp_path: Path) -> None:
    first, second = pair.sides
    client, log = second.hosts[0], tmp_path / "log"
    with serving(first.hosts[1], TARGET_PORT) as backend:
        first.put_service("important-service", port=PORT, backend=backend, target_port=TARGET_PORT)
        before = [read_made(side) for side in pair.sides]
        link = pair.start(LINK, log)
        try:
            wait_until(lambda: "linked: " in log.read_text(), "both are linked")
            for side in pair.sides:
                side.proxy()
            address = second.plane.call("GET", f"{SERVICES}/important-service")["spec"]["clusterIP"]
            wait_until(lambda: fetch(client, address, PORT) == "hello from a2", "a2 answers")
            ask_to_lead(second, "c2", wanted="true")
            key = read_key(second, "c2")
            wait_until(
                lambda: first.peers["link.default.north"]["publicKey"] == key, "c2 is followed"
            )
            wait_until(lambda: fetch(client, address, PORT) == "hello from a2", "a2 answers c1")
        finally:
            for process in pair.lab.host("laptop").box.find_processes(["cluster", "link"]):
                os.kill(process, signal.SIGTERM)
            status = link.wait(timeout=90)
        assert status == 0, log.read_text()
        assert fetch(client, address, PORT) == "hello from a2"
    made = [read_made(side) for side in pair.sides]
    again = pair.shell(f"{LINK} --once")
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    assert [read_made(side) for side in pair.sides] == made
    done = pair.shell(LINK.replace("link", "unlink", 1))
    assert done.returncode == 0, done.stderr
    assert [read_made(side) for side in pair.sides] == before
    ask_to_lead(second, "c2", wanted=None)
    first.plane.call("DELETE", f"{SERVICES}/important-service")
