"""The flags of ``kgctl cluster``: those of a mesh, and the same with ``--to-`` for another one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from kilo.backends.opening import BackendConfig
from kilo.errors import ConfigError
from kilo.flags import BOOL, Flag, Kind, Parsed, list_of
from kilo.kgctl.clustermirror import ServiceName
from kilo.kgctl.meshing import MESH_FLAGS
from kilo.kgctl.storing import UsageError, find_store
from kilo.storeflags import STORE_FLAGS, find_backend

TO = "to-"
LABEL = re.compile("[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
"""A DNS label, short enough that names of objects may begin with it."""
NAME = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Of a namespace or a Service."""


def parse_link(text: str) -> str:
    """What a link is called, in names and labels of objects."""
    if not LABEL.fullmatch(text):
        raise ValueError("is not a link's name: up to 40 lower case letters, digits and '-'")
    return text


def parse_service(text: str) -> ServiceName:
    """``NAMESPACE/NAME``."""
    namespace, _, name = text.partition("/")
    if not (NAME.fullmatch(namespace) and NAME.fullmatch(name)):
        raise ValueError("is not NAMESPACE/NAME of a Service")
    return ServiceName(namespace, name)


SERVICES = list_of(Kind(word="service", parse=parse_service), "namespace/name")

LINK_NAME = Flag(
    "name", Kind(word="name", parse=parse_link), "default", "of the link: each has one of its own"
)
SERVICE = Flag("service", SERVICES, (), "Services of this cluster to mirror in the other")
TO_SERVICE = Flag(
    TO + "service", SERVICES, (), "Services of the other cluster to mirror in this one"
)
ONCE = Flag("once", BOOL, default=False, help="link as the meshes are now, and end")
DRY_RUN = Flag("dry-run", BOOL, default=False, help="say what would be written, and write nothing")
CLEAN_UP = Flag("clean-up", BOOL, default=False, help="unlink at the end")

MIRRORED: tuple[Flag[Any], ...] = (*STORE_FLAGS, *MESH_FLAGS)
"""Flags that either mesh has, besides the Services."""
TO_FLAGS: tuple[Flag[Any], ...] = tuple(
    replace(
        flag,
        name=TO + flag.name,
        help=f"of the other mesh: {flag.help.replace('--backend', '--to-backend')}",
    )
    for flag in MIRRORED
)
CLUSTER_FLAGS: tuple[Flag[Any], ...] = (
    LINK_NAME,
    SERVICE,
    ONCE,
    DRY_RUN,
    CLEAN_UP,
    *MESH_FLAGS,
    TO_SERVICE,
    *TO_FLAGS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndConfig:
    """One of the two meshes, as flags name it."""

    label: str
    """What messages call it."""
    store: BackendConfig
    parsed: Parsed
    """Its flags, by the names that they have everywhere."""
    services: tuple[ServiceName, ...]
    """Those of it that are to be mirrored in the other."""


def find_ends(parsed: Parsed) -> tuple[EndConfig, ...]:
    """Both meshes, or the first alone where no flag names another; ``UsageError`` for flags that
    contradict each other.
    """
    one = _make_end(parsed, find_store(parsed, os.environ), parsed.value(SERVICE))
    if not any(parsed.given(flag.name) for flag in TO_FLAGS):
        if parsed.value(TO_SERVICE):
            raise UsageError("--to-service: is of another mesh, and no --to- flag names one")
        return (one,)
    other_parsed = _take_other(parsed)
    other = _make_end(other_parsed, _find_other_store(other_parsed), parsed.value(TO_SERVICE))
    if one.label == other.label:
        raise UsageError(f"{one.label}: is named twice, and a mesh is not linked with itself")
    return one, other


def _take_other(parsed: Parsed) -> Parsed:
    """The flags of the other mesh, under the names that they have everywhere."""

    def take(values: Mapping[str, Any]) -> Mapping[str, Any]:
        return MappingProxyType({flag.name: values[TO + flag.name] for flag in MIRRORED})

    return replace(parsed, values=take(parsed.values), sources=take(parsed.sources))


def _find_other_store(parsed: Parsed) -> BackendConfig:
    try:
        config = find_backend(parsed)
    except ConfigError as error:
        raise UsageError(f"of the other mesh (--to-…): {error}") from error
    kinds = (config.kind, *config.others)
    if "kubernetes" in kinds and not (config.kubeconfig or config.master):
        raise UsageError("--to-kubeconfig: is missing: there is no default for the other mesh")
    return config


def _make_end(
    parsed: Parsed, config: BackendConfig, services: tuple[ServiceName, ...]
) -> EndConfig:
    label = describe_store(config)
    if services and config.kind != "kubernetes":
        raise UsageError(f"{label}: holds no Services such as {services[0]}: that is no cluster")
    return EndConfig(label=label, store=config, parsed=parsed, services=services)


def describe_store(config: BackendConfig) -> str:
    """What tells it from others, in a word: a path or an address, never a secret."""
    match config.kind:
        case "kubernetes":
            return config.master or config.kubeconfig or "this cluster"
        case "etcd":
            return f"{config.etcd.endpoints[0]}{config.etcd.prefix}"
    return str(config.directory)
