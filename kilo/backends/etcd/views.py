"""What stands in the store at one moment of what a node is, and of who holds which subnet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kilo.backends.documents import API_VERSION, read_document
from kilo.backends.etcd.asks import Ask, decode_key, get, get_prefix, transact
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.keys import Keys
from kilo.backends.fields import BadValueError, Spot
from kilo.backends.formats import read_good_networks, split_list
from kilo.backends.objects import DeclaredNode, DeclaredSettings
from kilo.errors import BackendError
from kilo.mesh.model import IPNetwork, NodeSpec, SubnetPool
from kilo.mesh.pools import find_lacking
from kilo.mesh.shared import parse_network


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A subnet that is a node's, or was set aside by an operator."""

    key: str
    revision: int
    """That the key was last changed at."""
    subnet: IPNetwork
    node: str
    """Empty where the key does not say whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A node's key: what its operator, or its agent, declared."""

    revision: int
    """That the key was last changed at; 0: there is none."""
    document: dict[str, Any]
    """Empty where it holds no Node."""
    spec: NodeSpec

    def add_pod_subnets(self, subnets: Iterable[IPNetwork], *, key: str) -> dict[str, Any]:
        """The document with these too, all else as it was written.

        ``BackendError``, which names the key, where something else than subnets stands there.
        """
        spec = self.document.get("spec") or {}
        spot = Spot(source=key, of="").under("spec").under("podSubnets")
        try:
            # A string and a list that holds bad entries are good to the reader as well.
            before = split_list(spec.get("podSubnets") or [], spot)
        except BadValueError as error:
            raise BackendError(f"{error}, so no pod subnet is declared in it") from error
        return self.document | {"spec": spec | {"podSubnets": [*before, *map(str, subnets)]}}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that counts for a node's subnets, at one moment."""

    node: Declared
    pools: Sequence[SubnetPool]
    settings_revision: int
    """That the settings, which name the pools, were last changed at; 0: there are none."""
    holdings: Sequence[Holding]
    others: Sequence[IPNetwork]
    """The pod subnets that are declared of other nodes."""

    @property
    def lacking(self) -> tuple[SubnetPool, ...]:
        """The pools of which the node is to be given a part."""
        return find_lacking(self.pools, self.node.spec.pod_subnets) if self.node.revision else ()


async def read_view(client: Client, keys: Keys, name: str) -> View:
    """All that counts for the node's subnets."""
    node, settings, holdings, nodes = await read_together(
        client,
        get(keys.node(name)),
        get(keys.settings),
        get_prefix(keys.subnets),
        get_prefix(keys.nodes),
    )
    return View(
        node=read_declared(node, name),
        pools=read_pools(settings),
        settings_revision=settings[0].mod_revision if settings else 0,
        holdings=tuple(list_holdings(holdings, keys)),
        others=tuple(list_others(nodes, keys, name)),
    )


async def read_holdings(client: Client, keys: Keys, name: str) -> tuple[Declared, list[Holding]]:
    """A node's declaration and what it holds."""
    node, subnets = await read_together(client, get(keys.node(name)), get_prefix(keys.subnets))
    held = [one for one in list_holdings(subnets, keys) if one.node == name]
    return read_declared(node, name), held


async def read_together(client: Client, *asks: Ask) -> list[Sequence[Any]]:
    """What is found by each, all at one moment."""
    answer = await client.call(transact(when=[], then=asks))
    return [response.response_range.kvs for response in answer.responses]


def read_declared(found: Sequence[Any], name: str) -> Declared:
    """What the node's key holds."""
    if not found:
        return Declared(revision=0, document={}, spec=NodeSpec())
    document = decode_document(found[0].value)
    value = _read_value(document)
    # What has another name, or is Kubernetes' own kind of Node, is none here.
    if isinstance(value, DeclaredNode) and value.name == name:
        return Declared(revision=found[0].mod_revision, document=document, spec=value.spec)
    return Declared(revision=found[0].mod_revision, document={}, spec=NodeSpec())


def read_pools(found: Sequence[Any]) -> Sequence[SubnetPool]:
    """The pools that the settings' key names."""
    value = _read_value(decode_document(found[0].value)) if found else None
    return value.settings.get("pod_subnet_pools", ()) if isinstance(value, DeclaredSettings) else ()


def list_others(found: Iterable[Any], keys: Keys, name: str) -> Iterator[IPNetwork]:
    """The pod subnets of all nodes but that one.

    Only those are looked at: there may be thousands of nodes, and all of them may ask at once.
    """
    own = keys.node(name)
    for pair in found:
        spec = decode_document(pair.value).get("spec")
        if isinstance(spec, dict) and decode_key(pair.key) != own:
            with suppress(BadValueError):
                yield from read_good_networks(spec.get("podSubnets") or [], _make_spot())


def _make_spot() -> Spot:
    """Whose problems nobody reads: whoever watches the store tells what is wrong in it."""
    return Spot(source="", of="")


def _read_value(document: dict[str, Any]) -> object:
    if document.get("apiVersion") != API_VERSION:
        return None
    found = read_document(document, source="").found
    return found[0].value if found else None


def list_holdings(found: Iterable[Any], keys: Keys) -> Iterator[Holding]:
    """Who holds which subnet; keys that name none are passed over."""
    for pair in found:
        key = decode_key(pair.key)
        try:
            subnet = parse_network("/".join(key.removeprefix(keys.subnets).rsplit("-", 1)))
        except ValueError:
            continue
        node = decode_document(pair.value).get("node")
        yield Holding(
            key=key,
            revision=pair.mod_revision,
            subnet=subnet,
            node=node if isinstance(node, str) else "",
        )


def make_subnet_key(keys: Keys, subnet: IPNetwork) -> str:
    """``PREFIX/subnets/10.2.3.0-24``: a slash would begin another level."""
    return f"{keys.subnets}{subnet.network_address}-{subnet.prefixlen}"


def decode_document(value: bytes) -> dict[str, Any]:
    """The mapping that a value holds; empty for anything else."""
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def encode_document(document: object) -> bytes:
    """On one line."""
    return json.dumps(document, separators=(",", ":")).encode()
