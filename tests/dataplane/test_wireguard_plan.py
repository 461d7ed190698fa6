"""Steps become the least update; on a model of a device, nothing that stays is ever let go."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.dataplane.wireguard import rank_step
from kilo.dataplane.wireguard_device import (
    NO_KEY,
    DeviceUpdate,
    Identity,
    PeerUpdate,
    join_updates,
)
from kilo.dataplane.wireguard_plan import plan_steps
from kilo.keyfile import public_key
from kilo.mesh.diff import Change
from kilo.mesh.keys import WITHHELD, PresharedKey, PrivateKey, PublicKey
from kilo.mesh.model import Endpoint, IPNetwork
from kilo.mesh.state import Resource, WireGuardDevice, WireGuardPeer

SECRET = PrivateKey(bytes(range(32)))
IDENTITY = Identity(SECRET, public_key(SECRET))
KEYS = [PublicKey.from_bytes(bytes([number]) * 32) for number in range(1, 6)]
PARKING = PublicKey.from_bytes(b"\xff" * 32)
NETWORKS = [ip_network(f"10.2.{number}.0/24") for number in range(4)]
NETWORKS += [ip_network(f"fd00:{number}::/64") for number in range(1, 4)]
PSK = PresharedKey(b"\x07" * 32)
HERE = Endpoint(host="192.168.0.2", port=51820)
THERE = Endpoint(host="2001:db8::2", port=51820)


def peer(*ips: IPNetwork, **fields: object) -> WireGuardPeer:
    given_fields: dict[str, object] = {"public_key": KEYS[0], **fields}
    return WireGuardPeer(link="kilo0", allowed_ips=frozenset(ips), **given_fields)  # type: ignore[arg-type]  # the caller names WireGuardPeer's


def device(key: PublicKey | None, port: int = 51820) -> WireGuardDevice:
    return WireGuardDevice(link="kilo0", public_key=key, listen_port=port)


def plan(old: Resource | None, new: Resource | None) -> DeviceUpdate:
    (update,) = plan_steps([Change(old=old, new=new)], IDENTITY)
    return update


def one_peer(**fields: object) -> DeviceUpdate:
    update = PeerUpdate(public_key=KEYS[0], only_if_there=True, **fields)  # type: ignore[arg-type]  # the caller names PeerUpdate's
    return DeviceUpdate(peers=(update,))


OURS = IDENTITY.public
A, B = NETWORKS[:2]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # The device: setting a new private key ends sessions, so only where it differs.
        (device(OURS), device(OURS, 4000), DeviceUpdate(listen_port=4000)),
        (device(KEYS[0]), device(OURS), DeviceUpdate(private_key=SECRET)),
        (device(None, 0), device(OURS), DeviceUpdate(private_key=SECRET, listen_port=51820)),
        (None, device(OURS), DeviceUpdate(private_key=SECRET, listen_port=51820)),
        (device(OURS), None, DeviceUpdate(private_key=PrivateKey(NO_KEY))),
        # A new peer is described whole, for it may be there with other settings.
        (
            None,
            peer(A),
            DeviceUpdate(
                peers=(
                    PeerUpdate(
                        public_key=KEYS[0],
                        keepalive_seconds=0,
                        preshared_key=PresharedKey(NO_KEY),
                        added_ips=(A,),
                    ),
                )
            ),
        ),
        (peer(A), None, DeviceUpdate(removed=(KEYS[0],))),
        # Of one that is there, only what differs.
        (peer(A), peer(A, B), one_peer(added_ips=(B,))),
        (peer(A, endpoint=HERE), peer(A, endpoint=THERE), one_peer(endpoint=THERE)),
        (peer(A, endpoint=HERE), peer(A), one_peer()),
        (peer(A, keepalive_seconds=5), peer(A), one_peer(keepalive_seconds=0)),
        (peer(A), peer(A, preshared_key=PSK), one_peer(preshared_key=PSK)),
        (peer(A, preshared_key=PSK), peer(A), one_peer(preshared_key=PresharedKey(NO_KEY))),
        (peer(A, preshared_key=PSK), peer(A, preshared_key=WITHHELD), one_peer()),
        (peer(A), peer(A, preshared_key=WITHHELD), one_peer()),
    ],
)
def test_a_step_asks_for_the_difference_and_no_more(
    old: Resource | None, new: Resource | None, expected: DeviceUpdate
) -> None:
    assert plan(old, new) == expected


def test_an_allowed_ip_that_goes_is_parked_and_the_parking_peer_removed() -> None:
    update = plan(peer(A, B), peer(A))
    assert update.revoked_ips == (B,)
    assert list(update.sequence(PARKING))[1:] == [
        PeerUpdate(public_key=PARKING, added_ips=(B,)),
        PeerUpdate(public_key=PARKING, remove=True),
    ]


def test_an_allowed_ip_that_moves_is_only_given_to_its_new_peer() -> None:
    other = peer(B, public_key=KEYS[1])
    updates = plan_steps([Change(old=peer(A, B), new=peer(A)), Change(new=other)], IDENTITY)
    assert join_updates(iter(updates)).revoked_ips == ()


def test_no_value_on_its_way_to_the_device_shows_a_secret() -> None:
    update = plan(None, peer(A, preshared_key=PSK))
    whole = repr([IDENTITY, update, plan(None, device(OURS)), list(update.sequence(PARKING))])
    assert "redacted" in whole
    for secret in (SECRET, PSK):
        for shown in (secret.reveal(), secret.raw.hex(), repr(secret.raw)[2:-1]):
            assert shown not in whole


Fleet = dict[PublicKey, frozenset[IPNetwork]]


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Peers with allowed IPs, each of which has one owner or none."""
    members = draw(st.sets(st.sampled_from(KEYS)))
    owners = draw(
        st.fixed_dictionaries(
            {network: st.sampled_from([*sorted(members), None]) for network in NETWORKS}
        )
    )
    return {
        key: frozenset(network for network, owner in owners.items() if owner == key)
        for key in members
    }


@dataclass
class ModelDevice:
    """Peers and the owner of each allowed IP, as WireGuard's table has them."""

    peers: set[PublicKey]
    owners: dict[IPNetwork, PublicKey]
    history: list[dict[IPNetwork, PublicKey]] = field(default_factory=list)

    def take(self, update: PeerUpdate) -> None:
        key = update.public_key
        if update.remove:
            self.peers.discard(key)
            self.owners = {net: owner for net, owner in self.owners.items() if owner != key}
        elif key in self.peers or not update.only_if_there:
            self.peers.add(key)
            for network in update.added_ips:
                self.owners[network] = key
                self.history.append(dict(self.owners))
        self.history.append(dict(self.owners))


def step_between(key: PublicKey, old: Fleet, new: Fleet) -> Change:
    before, after = (
        peer(*fleet[key], public_key=key) if key in fleet else None for fleet in (old, new)
    )
    return Change(old=before, new=after)


@settings(deadline=None)
@given(fleets(), fleets(), st.sampled_from(["at once", "one by one"]))
def test_a_device_ends_as_desired_and_no_allowed_ip_that_stays_is_let_go(
    old: Fleet, new: Fleet, how: str
) -> None:
    owners = {network: key for key, networks in old.items() for network in networks}
    wanted = {network: key for key, networks in new.items() for network in networks}
    model = ModelDevice(set(old), dict(owners))
    keys = sorted(key for key in KEYS if old.get(key) != new.get(key))
    steps = sorted((step_between(key, old, new) for key in keys), key=rank_step)
    updates = plan_steps(steps, IDENTITY)
    for update in updates if how == "one by one" else [join_updates(iter(updates))]:
        for part in update.sequence(PARKING):
            model.take(part)
    assert (model.peers, model.owners) == (set(new), wanted)
    for network in owners.keys() & wanted.keys():
        # Not for a moment without an owner, and never another's than the old or the new one.
        assert all(
            moment.get(network) in {owners[network], wanted[network]} for moment in model.history
        )
