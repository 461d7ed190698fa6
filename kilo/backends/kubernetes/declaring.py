"""What operators declare, put where a cluster has room for it: annotations, and a ConfigMap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from kilo.backends.annotations import (
    DECLARED_ANNOTATIONS,
    REPORTED_ANNOTATIONS,
    make_declared_annotations,
    read_pod_cidrs,
)
from kilo.backends.documents import check_object_name
from kilo.backends.fields import BadValueError, Spot
from kilo.backends.kubernetes.client import MERGE_PATCH, ApiError, Client
from kilo.backends.kubernetes.settings import (
    ENTRY,
    SETTINGS_NAME,
    SOURCE,
    make_config_map,
    read_config_map,
    render_settings,
)
from kilo.backends.kubernetes.sources import NODES, NOT_FOUND
from kilo.errors import BackendError
from kilo.mesh.model import IPNetwork, NodeSpec, PartialSettings

CONFLICT = 409
"""Also where what is to be created is there."""
MAX_TRIES = 3
"""To write a ConfigMap that others write at the same time."""


class Declarer:
    """Writes for operators, with their rights: an agent has no need of these."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def declare_node(self, name: str, spec: NodeSpec) -> None:
        """Replace the operator's annotations of the Node, all in one patch."""
        _check_name(name)
        node = await self._find(f"{NODES}/{name}")
        if node is None:
            raise BackendError(
                f"kubernetes: Node {name} is not registered in the cluster: kubelets register"
                " nodes, and what is declared of them is added to that"
            )
        annotations = make_declared_annotations(_fit(name, spec, node))
        await annotate_node(self._client, name, annotations)

    async def forget_node(self, name: str) -> None:
        """Remove the operator's annotations of the Node and its agent's; the Node stays."""
        names = (*DECLARED_ANNOTATIONS, *REPORTED_ANNOTATIONS)
        try:
            await annotate_node(self._client, name, dict.fromkeys(names))
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def declare_settings(self, settings: PartialSettings) -> None:
        """Write the ConfigMap, or the one entry of it where settings stand."""
        for _ in range(MAX_TRIES):
            held = await self._find(self._config_map)
            try:
                await self._write_settings(held, settings)
            except ApiError as error:
                if error.status != CONFLICT:
                    raise
            else:
                return
        raise BackendError(f"kubernetes: {SOURCE}: changes too fast to be written")

    async def forget_settings(self) -> None:
        """Delete the ConfigMap."""
        held = await self._find(self._config_map)
        if held is not None:
            _check_alone(held)
            await self._delete(self._config_map)

    @property
    def _config_maps(self) -> str:
        return f"/api/v1/namespaces/{self._client.namespace}/configmaps"

    @property
    def _config_map(self) -> str:
        return f"{self._config_maps}/{SETTINGS_NAME}"

    async def _write_settings(
        self, held: Mapping[str, Any] | None, settings: PartialSettings
    ) -> None:
        if held is None:
            document = make_config_map(settings, namespace=self._client.namespace)
            await self._client.call("POST", self._config_maps, body=document)
        else:
            _check_alone(held)
            # With the resourceVersion that was read: refused if somebody else was faster.
            (entry,) = held.get("data") or (ENTRY,)
            document = dict(held) | {"data": {entry: render_settings(settings, entry)}}
            await self._client.call("PUT", self._config_map, body=document)

    async def _find(self, path: str) -> dict[str, Any] | None:
        try:
            return await self._client.call("GET", path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return None

    async def _delete(self, path: str) -> None:
        try:
            await self._client.call("DELETE", path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise


async def annotate_node(client: Client, name: str, annotations: Mapping[str, str | None]) -> None:
    """Set these annotations of the Node, None to remove one; all others stay."""
    _check_name(name)
    body = {"metadata": {"annotations": annotations}}
    await client.call("PATCH", f"{NODES}/{name}", body=body, content_type=MERGE_PATCH)


def _check_name(name: str) -> None:
    """A name that follows the rule needs no quoting in a path."""
    try:
        check_object_name("Node", name)
    except ValueError as error:
        raise BackendError(f"kubernetes: {error}") from error


def _fit(name: str, spec: NodeSpec, node: Mapping[str, Any]) -> NodeSpec:
    """What its annotations are to say; ``BackendError`` for what has no place there."""
    if spec.public_key is not None:
        raise BackendError(
            f"kubernetes: Node {name}: spec.publicKey: {spec.public_key} has no place in a"
            " cluster, where the node's agent reports its key: leave the field out"
        )
    try:
        given = read_pod_cidrs(node, Spot(source="", of=f"Node {name}"))
    except BadValueError as error:
        raise BackendError(f"kubernetes: {error}") from error
    if given and spec.pod_subnets and set(spec.pod_subnets) != set(given):
        raise BackendError(
            f"kubernetes: Node {name}: spec.podSubnets: {_join(spec.pod_subnets)} is not what the"
            f" cluster gave the node, {_join(given)}: leave the field out"
        )
    return replace(spec, pod_subnets=()) if given else spec


def _join(networks: Iterable[IPNetwork]) -> str:
    return ",".join(map(str, networks))


def _check_alone(config_map: Mapping[str, Any]) -> None:
    """``BackendError`` unless the ConfigMap holds one entry with one Settings, or less."""
    entries = config_map.get("data") or {}
    if len(entries) > 1 or len(read_config_map(config_map).found) > 1:
        raise BackendError(
            f"kubernetes: {SOURCE}: the settings stand there among others: edit it by hand"
        )
