"""Devices that move (spec section 4, last paragraph, and 13.1): when the live endpoint stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kilo.mesh.keys import WITHHELD, Withheld
from kilo.mesh.model import Endpoint
from kilo.mesh.roaming import (
    SESSION_SECONDS,
    Observed,
    distrust_loops,
    find_discovered_endpoints,
    find_live_endpoints,
    find_lost_endpoints,
    settle,
)
from kilo.mesh.state import PeerStats, WireGuardPeer
from tests.builders import make_key, make_preshared_key
from tests.mesh.fleets import make_node, make_peer

NOW = 1_700_000_000.0
KEY = make_key("p")
CONFIGURED, LIVE, NEW = (Endpoint.parse(f"203.0.113.{i}:51820") for i in (1, 2, 3))
PEER = WireGuardPeer(
    link="kilo0", public_key=KEY, allowed_ips=frozenset(), endpoint=CONFIGURED, keepalive_seconds=5
)
PRESHARED = make_preshared_key("p")


def _stats(age: float | None, *, sent: int = 0, received: int = 0) -> PeerStats:
    handshake = 0.0 if age is None else NOW - age
    return PeerStats(
        endpoint=LIVE, latest_handshake=handshake, sent_bytes=sent, received_bytes=received
    )


def _settle(
    peer: WireGuardPeer,
    present: WireGuardPeer | None,
    *,
    configured: Endpoint | None = None,
    stats: PeerStats | None = None,
    earlier: PeerStats | None = None,
) -> WireGuardPeer | None:
    settled = settle(
        [peer],
        [present] if present else [],
        observed=Observed(
            now=NOW,
            stats={KEY: stats} if stats else {},
            earlier={KEY: earlier} if earlier else {},
        ),
        configured={KEY: configured} if configured else {},
    )
    return next(iter(settled), None)


def _at(endpoint: Endpoint | None) -> WireGuardPeer:
    return replace(PEER, endpoint=endpoint)


@pytest.mark.parametrize(
    ("desired", "present", "configured", "stats", "earlier", "expected"),
    [
        pytest.param(
            CONFIGURED, LIVE, CONFIGURED, _stats(10), _stats(40), LIVE, id="it roamed and talks"
        ),
        pytest.param(
            CONFIGURED, LIVE, None, _stats(10), None, LIVE, id="it roamed before we started"
        ),
        pytest.param(
            CONFIGURED,
            LIVE,
            CONFIGURED,
            _stats(7200, sent=100, received=50),
            _stats(7170, sent=100, received=50),
            LIVE,
            id="it roamed and idles: silence from both sides proves nothing",
        ),
        pytest.param(
            CONFIGURED,
            LIVE,
            CONFIGURED,
            _stats(SESSION_SECONDS + 1, sent=248, received=50),
            _stats(SESSION_SECONDS - 29, sent=100, received=50),
            CONFIGURED,
            id="it roamed and no longer answers: back to where it should be",
        ),
        pytest.param(
            CONFIGURED,
            LIVE,
            CONFIGURED,
            _stats(SESSION_SECONDS - 1, sent=248, received=50),
            _stats(SESSION_SECONDS - 31, sent=100, received=50),
            LIVE,
            id="it has not answered yet, but the session still lives",
        ),
        pytest.param(
            CONFIGURED,
            LIVE,
            CONFIGURED,
            _stats(SESSION_SECONDS + 1, sent=248, received=60),
            _stats(SESSION_SECONDS - 29, sent=100, received=50),
            LIVE,
            id="something came back",
        ),
        pytest.param(
            CONFIGURED,
            LIVE,
            CONFIGURED,
            _stats(7200, sent=100),
            None,
            LIVE,
            id="no earlier pass to compare with",
        ),
        pytest.param(
            CONFIGURED,
            LIVE,
            CONFIGURED,
            _stats(None),
            None,
            CONFIGURED,
            id="it never answered there: no session to lose",
        ),
        pytest.param(
            CONFIGURED, LIVE, CONFIGURED, None, None, CONFIGURED, id="nothing is known of it"
        ),
        pytest.param(
            NEW, LIVE, CONFIGURED, _stats(10), _stats(40), NEW, id="the configuration changed"
        ),
        pytest.param(
            CONFIGURED, None, CONFIGURED, _stats(10), None, CONFIGURED, id="it had no endpoint"
        ),
        pytest.param(
            None,
            LIVE,
            CONFIGURED,
            _stats(None),
            None,
            LIVE,
            id="no endpoint is wanted: any is right",
        ),
        pytest.param(
            None, None, None, None, None, None, id="no endpoint is wanted and there is none"
        ),
        pytest.param(
            CONFIGURED, CONFIGURED, NEW, _stats(None), None, CONFIGURED, id="it is right already"
        ),
    ],
)
def test_the_endpoint_of_a_device_we_have_is(
    desired: Endpoint | None,
    present: Endpoint | None,
    configured: Endpoint | None,
    stats: PeerStats | None,
    earlier: PeerStats | None,
    expected: Endpoint | None,
) -> None:
    settled = _settle(
        _at(desired), _at(present), configured=configured, stats=stats, earlier=earlier
    )
    assert settled == _at(expected)


def test_a_new_device_gets_what_is_configured() -> None:
    assert _settle(PEER, None, stats=_stats(10)) == PEER


def test_the_same_key_on_another_link_is_another_device() -> None:
    assert _settle(PEER, replace(_at(LIVE), link="wg9"), stats=_stats(10)) == PEER


def test_nothing_but_endpoint_and_preshared_key_is_taken_from_the_device() -> None:
    present = replace(_at(LIVE), keepalive_seconds=99, preshared_key=PRESHARED)
    assert _settle(PEER, present, stats=_stats(10)) == _at(LIVE)


@pytest.mark.parametrize("withheld", [WITHHELD, Withheld()], ids=["the one", "an equal one"])
def test_a_withheld_preshared_key_stays_as_the_device_has_it(withheld: Withheld) -> None:
    desired = replace(PEER, preshared_key=withheld)
    for present in (replace(PEER, preshared_key=PRESHARED), PEER):
        assert _settle(desired, present) == present


@pytest.mark.parametrize("withheld", [WITHHELD, Withheld()], ids=["the one", "an equal one"])
def test_a_new_device_whose_preshared_key_is_withheld_waits(withheld: Withheld) -> None:
    assert _settle(replace(PEER, preshared_key=withheld), None) is None


def test_a_device_that_is_not_wanted_is_not_kept() -> None:
    settled = settle([], [PEER], observed=Observed(now=NOW), configured={})
    assert settled == frozenset()


def test_a_device_is_live_for_as_long_as_a_session_can_last_and_lost_from_then_on() -> None:
    stats = {
        make_key("talks"): _stats(179),
        make_key("talked"): _stats(180),
        make_key("silent"): _stats(None),
        make_key("nowhere"): replace(_stats(10), endpoint=None),
    }
    observed = Observed(now=NOW, stats=stats)
    assert find_live_endpoints(observed) == {make_key("talks"): LIVE}
    assert find_lost_endpoints(observed) == {make_key("talked"): LIVE}


def test_the_others_are_told_where_the_devices_behind_nat_are_and_no_more() -> None:
    nodes = [make_node("hidden", keepalive=25), make_node("public")]
    peers = [make_peer("laptop", "10.5.0.1/32", keepalive=10), make_peer("server", "10.5.0.2/32")]
    live = {make_key(name): LIVE for name in ("hidden", "public", "laptop", "server", "stranger")}
    found = find_discovered_endpoints(live, nodes, peers)
    assert found == tuple(sorted((make_key(name), LIVE) for name in ("hidden", "laptop")))
    assert find_discovered_endpoints({}, nodes, peers) == ()


def test_a_live_endpoint_inside_the_device_s_own_allowed_ips_is_not_believed() -> None:
    """Seen in the lab: a laptop sent its WireGuard packets through its own tunnel."""
    laptop = make_peer("laptop", "10.5.0.1/32", keepalive=5)
    inside = Endpoint.parse("10.5.0.1:51820")
    stats = {laptop.public_key: replace(_stats(10), endpoint=inside)}
    observed = distrust_loops(Observed(now=NOW, stats=stats), [laptop])
    assert find_live_endpoints(observed) == {}
    wanted = replace(PEER, public_key=laptop.public_key, endpoint=LIVE)
    there = replace(wanted, endpoint=inside)
    settled = settle([wanted], [there], observed=observed, configured={laptop.public_key: LIVE})
    assert settled == {wanted}

    declared = replace(laptop, endpoint=inside)
    trusted = distrust_loops(Observed(now=NOW, stats=stats), [declared])
    assert find_live_endpoints(trusted) == {laptop.public_key: inside}
