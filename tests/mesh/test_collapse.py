"""The fewest networks that hold the same addresses."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.mesh.collapse import collapse

CROWDED_IPV4 = st.builds(
    lambda start, length: IPv4Network((start << 3, length), strict=False),
    st.integers(0, 63),
    st.sampled_from([0, 8, 23, 24, 25, 28, 31, 32]),
)
CROWDED_IPV6 = st.builds(
    lambda start, length: IPv6Network((start << 3, length), strict=False),
    st.integers(0, 63),
    st.sampled_from([0, 64, 119, 120, 124, 127, 128]),
)


@given(st.lists(CROWDED_IPV4), st.lists(CROWDED_IPV6))
@settings(deadline=None)
def test_networks_are_collapsed_as_the_standard_library_would(
    ipv4: list[IPv4Network], ipv6: list[IPv6Network]
) -> None:
    expected = frozenset((*collapse_addresses(ipv4), *collapse_addresses(ipv6)))
    assert collapse([*ipv6, *ipv4]) == expected


def test_halves_are_joined_again_and_again() -> None:
    quarters = [ip_network(f"10.2.{number}.0/24") for number in (3, 1, 0, 2)]
    assert collapse(quarters) == {ip_network("10.2.0.0/22")}
