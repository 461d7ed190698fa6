"""What operators declare in a cluster: annotations and a ConfigMap, on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import make_settings_document
from kilo.errors import BackendError
from kilo.mesh.model import Endpoint, NodeSpec, PartialSettings
from tests.backends.stores import Store, open_cluster
from tests.builders import interfaces, make_key, make_report, networks
from tests.cluster.planes import CONFIG_MAPS, PREFIX, Cluster, share_plane

SETTINGS = f"{CONFIG_MAPS}/kilo-settings"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_cluster(tmp_path) as opened:
        yield opened


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(share_plane())


def put_config_map(cluster: Cluster, **data: str) -> None:
    metadata = {"name": "kilo-settings", "labels": {"mine": "yes"}}
    document = {"metadata": metadata, "data": {key.replace("_", "."): data[key] for key in data}}
    cluster.plane.call("POST", CONFIG_MAPS, document)


async def test_a_declaration_is_what_an_operator_of_kilo_would_annotate(
    store: Store, cluster: Cluster
) -> None:
    cluster.put_node("a1", {"force-endpoint": "203.0.113.1:1", "mine": "stays"})
    spec = NodeSpec(
        location="oregon",
        internal_ips=interfaces("192.168.0.1/24", "fd00:1::1/64"),
        leader=True,
        persistent_keepalive_seconds=10,
        allowed_location_ips=networks("192.168.0.50/32", "192.168.0.51/32"),
    )
    await store.backend.declare_node("a1", spec)
    assert cluster.read_annotations("a1") == {
        f"{PREFIX}location": "oregon",
        f"{PREFIX}force-internal-ip": "192.168.0.1/24,fd00:1::1/64",
        f"{PREFIX}leader": "true",
        f"{PREFIX}persistent-keepalive": "10",
        f"{PREFIX}allowed-location-ips": "192.168.0.50/32,192.168.0.51/32",
        f"{PREFIX}mine": "stays",
    }


async def test_a_forgotten_node_stays_registered_and_keeps_what_is_not_ours(
    store: Store, cluster: Cluster
) -> None:
    cluster.put_node("a1", {"mine": "stays"})
    await store.backend.declare_node("a1", NodeSpec(endpoint=Endpoint.parse("203.0.113.1:1")))
    await store.backend.publish(make_report("a1"))
    await store.backend.forget_node("a1")
    assert cluster.read_annotations("a1") == {f"{PREFIX}mine": "stays"}


async def test_a_node_that_no_kubelet_registered_cannot_be_declared(store: Store) -> None:
    with pytest.raises(BackendError, match=r"^kubernetes: Node a1 is not registered in the"):
        await store.backend.declare_node("a1", NodeSpec(location="oregon"))


async def test_a_field_that_a_cluster_has_no_place_for_is_refused_and_nothing_is_written(
    store: Store, cluster: Cluster
) -> None:
    cluster.put_node("a1", pod_cidrs=("10.2.1.0/24",))
    spec = NodeSpec(location="oregon")
    for refused, message in (
        (replace(spec, public_key=make_key("a1")), rf"a1: spec\.publicKey: {make_key('a1')} has "),
        (replace(spec, pod_subnets=networks("10.2.9.0/24")), r"spec\.podSubnets: 10\.2\.9\.0/24 "),
    ):
        with pytest.raises(BackendError, match=message.replace("+", r"\+")):
            await store.backend.declare_node("a1", refused)
    assert cluster.read_annotations("a1") == {}


async def test_what_was_read_of_a_node_can_be_declared_as_it_is(
    store: Store, cluster: Cluster
) -> None:
    cluster.put_node("a1", {"location": "oregon"}, pod_cidrs=("10.2.1.0/24",))
    (before,) = (await store.backend.snapshot()).nodes
    assert before.spec.pod_subnets == networks("10.2.1.0/24")
    await store.backend.declare_node("a1", before.spec)
    assert cluster.read_annotations("a1") == {f"{PREFIX}location": "oregon"}


async def test_settings_are_written_where_they_stand_and_labels_stay(
    store: Store, cluster: Cluster
) -> None:
    before = yaml.safe_dump(make_settings_document(PartialSettings(port=51820)))
    for entry in ("mesh_yaml", "mesh_json"):
        put_config_map(cluster, **{entry: before if entry == "mesh_yaml" else ""})
        await store.backend.declare_settings(PartialSettings(port=51821))
        written = cluster.plane.call("GET", SETTINGS)
        assert list(written["data"]) == [entry.replace("_", ".")]
        assert written["metadata"]["labels"] == {"mine": "yes"}
        assert (await store.backend.snapshot()).settings == PartialSettings(port=51821)
        await store.backend.forget_settings()
        assert (await store.backend.snapshot()).settings == PartialSettings()


async def test_settings_among_others_are_left_to_the_person_who_wrote_them(
    store: Store, cluster: Cluster
) -> None:
    text = yaml.safe_dump(make_settings_document(PartialSettings(port=51820)))
    put_config_map(cluster, a_yaml=text, b_yaml="# for later\n")
    message = "ConfigMap kilo-settings: the settings stand there among others: edit it by hand"
    with pytest.raises(BackendError, match=message):
        await store.backend.declare_settings(PartialSettings(port=51821))
    with pytest.raises(BackendError, match=message):
        await store.backend.forget_settings()
    assert cluster.plane.call("GET", SETTINGS)["data"] == {
        "a.yaml": text,
        "b.yaml": "# for later\n",
    }


async def test_of_two_who_write_settings_at_once_neither_fails(store: Store) -> None:
    async with asyncio.TaskGroup() as tasks:
        for backend, port in ((store.backend, 51821), (store.other, 51822)):
            tasks.create_task(backend.declare_settings(PartialSettings(port=port)))
    assert (await store.backend.snapshot()).settings["port"] in (51821, 51822)
