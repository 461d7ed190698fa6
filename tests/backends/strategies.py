"""Random values of the core, all of them such as a store may hold."""

from __future__ import annotations

from hypothesis import strategies as st

from kilo.mesh.keys import PresharedKey, PublicKey
from kilo.mesh.model import (
    Encapsulation,
    Endpoint,
    Granularity,
    IPInterface,
    IPNetwork,
    NodeReport,
    NodeSpec,
    PartialSettings,
    Peer,
)
from tests.builders import interfaces, networks

NETWORKS = networks(
    "10.2.1.0/24", "10.4.0.0/16", "0.0.0.0/0", "192.168.7.9/32", "fd00:2::/64", "2001:db8::/32"
)
INTERFACES_4 = interfaces("192.168.0.1/24", "10.4.0.1/16", "198.51.100.7/32")
INTERFACES_6 = interfaces("2001:db8::1/64", "fd00::1/128")

names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?(\.[a-z0-9]{1,5})?", fullmatch=True)
keys = st.binary(min_size=32, max_size=32).map(PublicKey.from_bytes)
endpoints = st.builds(
    Endpoint,
    host=st.sampled_from(["198.51.100.1", "2001:db8::1", "a.example.com", "host_1.lan"]),
    port=st.integers(1, 65535),
)
network_lists = st.lists(st.sampled_from(NETWORKS), unique=True).map(tuple)
locations = st.text(st.characters(exclude_categories=["C", "Z"])) | st.sampled_from(
    ["no", "on", "1:30", "2026-01-31", "null", "~", "1e3", "0x10", "007", "- a", "a: b", "#", "yes"]
)


@st.composite
def interface_lists(draw: st.DrawFn) -> tuple[IPInterface, ...]:
    """At most one of a family, in any order."""
    some = [
        *draw(st.lists(st.sampled_from(INTERFACES_4), max_size=1)),
        *draw(st.lists(st.sampled_from(INTERFACES_6), max_size=1)),
    ]
    return tuple(draw(st.permutations(some)))


def subnet_lists() -> st.SearchStrategy[tuple[IPNetwork, ...]]:
    """At least one network and at most one of a family."""
    return st.sampled_from(
        [
            networks("10.4.0.0/16"),
            networks("fd00:4::/64"),
            networks("fd00:4::/64", "10.4.0.0/16"),
        ]
    )


keepalives = st.integers(0, 65535)
specs = st.builds(
    NodeSpec,
    location=locations,
    endpoint=st.none() | endpoints,
    internal_ips=st.none() | interface_lists(),
    leader=st.booleans(),
    persistent_keepalive_seconds=keepalives,
    allowed_location_ips=network_lists,
    pod_subnets=network_lists,
    public_key=st.none() | keys,
)
reports = st.builds(
    NodeReport,
    name=names,
    public_key=keys,
    endpoint=st.none() | endpoints,
    internal_ips=interface_lists(),
    wireguard_ips=interface_lists(),
    discovered_endpoints=st.dictionaries(keys, endpoints, max_size=3).map(
        lambda found: tuple(sorted(found.items(), key=lambda item: item[0]))
    ),
    granularity=st.none() | st.sampled_from(Granularity),
    cni_compatibility_ip=st.none() | interface_lists().filter(bool).map(lambda found: found[0]),
    agent=st.sampled_from(("", "kg 0.1.0")),
)
peers = st.builds(
    Peer,
    name=names,
    public_key=keys,
    allowed_ips=network_lists.filter(bool),
    persistent_keepalive_seconds=keepalives,
    preshared_key=st.none() | st.binary(min_size=32, max_size=32).map(PresharedKey),
    endpoint=st.none() | endpoints,
)
partial_settings: st.SearchStrategy[PartialSettings] = st.fixed_dictionaries(  # type: ignore[assignment]  # a dict of just these keys
    {},
    optional={
        "subnets": subnet_lists(),
        "granularity": st.sampled_from(Granularity),
        "port": st.integers(1, 65535),
        "mtu": st.none() | st.integers(1280, 9000),
        "encapsulation": st.sampled_from(Encapsulation),
        "service_cidrs": network_lists,
        "resync_period_seconds": st.floats(min_value=0.001, max_value=1e6),
    },
)
