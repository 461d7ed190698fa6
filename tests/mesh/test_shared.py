"""One object for each network and each address, equal to the standard library's in all ways."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.mesh.model import IPNetwork
from kilo.mesh.shared import parse_network, share, share_address, share_network

ADDRESSES = st.ip_addresses()


@st.composite
def networks(draw: st.DrawFn) -> IPNetwork:
    address = draw(ADDRESSES)
    length = draw(st.integers(0, address.max_prefixlen))
    return ip_network(f"{address}/{length}", strict=False)


@given(networks())
def test_a_shared_network_is_as_any_other(network: IPNetwork) -> None:
    shared = share(network)
    assert shared == network
    assert network == shared
    assert hash(shared) == hash(network)
    assert str(shared) == str(network)
    assert {network: 1}[shared] == 1
    assert isinstance(shared, IPv4Network if network.version == 4 else IPv6Network)
    assert share(ip_network(str(network))) is shared


@given(ADDRESSES)
def test_a_shared_address_is_as_any_other(address: object) -> None:
    one = ip_address(str(address))
    shared = share_address(one.version, int(one))
    assert shared == one
    assert hash(shared) == hash(one)
    assert str(shared) == str(one)
    assert shared is share_address(one.version, int(one))


@pytest.mark.parametrize(("version", "first", "length"), [(4, 1, 24), (4, 0, 33), (6, -1, 64)])
def test_what_is_no_network_is_refused(version: int, first: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        share_network(version, first, length)


@pytest.mark.parametrize("text", ["fd00:2::%x/64", "10.2.1.1/24", "10.2.1.0/33", "nonsense", ""])
def test_a_text_that_names_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_network(text)
