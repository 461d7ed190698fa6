"""Steps between two states of the mesh -> updates of a device. Pure.

Field by field: a step from one peer to another says nothing about what they have in common,
because setting the same key or endpoint again can cost a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from kilo.dataplane.wireguard_device import (
    NO_KEY,
    DeviceUpdate,
    Identity,
    PeerUpdate,
)
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.keys import PresharedKey, PrivateKey, Withheld
from kilo.mesh.model import Endpoint, IPNetwork
from kilo.mesh.state import WireGuardDevice, WireGuardPeer, sort_networks


def plan_steps(steps: Sequence[Change], identity: Identity) -> list[DeviceUpdate]:
    """What each step asks of the device, in the same order.

    An allowed IP that moves from one peer to another is only added to the second: the device
    moves it. Only an IP that no step gives to anybody is revoked.
    """
    given = frozenset(network for step in steps for network in list_added_ips(step))
    return [plan_step(step, identity, given) for step in steps]


def plan_step(step: Change, identity: Identity, given: AbstractSet[IPNetwork]) -> DeviceUpdate:
    """What one step asks of the device; ``given`` are the allowed IPs that any step adds."""
    old, new = step.old, step.new
    if isinstance(step.resource, WireGuardDevice):
        return plan_device(old, new, identity)
    if not isinstance(step.resource, WireGuardPeer):
        raise DataplaneError(f"{step}: is no step for a WireGuard device")
    if not isinstance(new, WireGuardPeer):
        return DeviceUpdate(removed=(step.resource.public_key,))
    before = old if isinstance(old, WireGuardPeer) else None
    gone = before.allowed_ips - new.allowed_ips - given if before else frozenset()
    return DeviceUpdate(peers=(plan_peer(before, new),), revoked_ips=tuple(sort_networks(gone)))


def plan_device(old: object, new: object, identity: Identity) -> DeviceUpdate:
    """The private key only if the device has another one: setting a new one ends every session."""
    if not isinstance(new, WireGuardDevice):
        return DeviceUpdate(private_key=PrivateKey(NO_KEY))
    before = old if isinstance(old, WireGuardDevice) else None
    has_our_key = before is not None and before.public_key == identity.public
    has_port = before is not None and before.listen_port == new.listen_port
    return DeviceUpdate(
        private_key=None if has_our_key else identity.private,
        listen_port=None if has_port else new.listen_port,
    )


def plan_peer(old: WireGuardPeer | None, new: WireGuardPeer) -> PeerUpdate:
    """A peer that is new is described whole: it may be there already, with other settings.

    One that should be there and is not is left to the next pass, which will see it is missing.
    """
    same_keepalive = old is not None and old.keepalive_seconds == new.keepalive_seconds
    had = old.allowed_ips if old else frozenset()
    return PeerUpdate(
        public_key=new.public_key,
        only_if_there=old is not None,
        endpoint=choose_endpoint(old, new),
        keepalive_seconds=None if same_keepalive else new.keepalive_seconds,
        preshared_key=choose_preshared_key(old, new),
        added_ips=tuple(sort_networks(new.allowed_ips - had)),
    )


def choose_endpoint(old: WireGuardPeer | None, new: WireGuardPeer) -> Endpoint | None:
    """The endpoint to set: none if nothing is wanted or it is in force."""
    return None if old is not None and old.endpoint == new.endpoint else new.endpoint


def choose_preshared_key(old: WireGuardPeer | None, new: WireGuardPeer) -> PresharedKey | None:
    """The preshared key to set, zeros to remove it; None to leave it, as when it is withheld."""
    wanted = new.preshared_key
    if isinstance(wanted, Withheld) or (old is not None and old.preshared_key == wanted):
        return None
    return wanted if wanted is not None else PresharedKey(NO_KEY)


def list_added_ips(step: Change) -> frozenset[IPNetwork]:
    """The allowed IPs that a step gives to a peer that did not have them."""
    if not isinstance(step.new, WireGuardPeer):
        return frozenset()
    had = step.old.allowed_ips if isinstance(step.old, WireGuardPeer) else frozenset()
    return step.new.allowed_ips - had
