"""What of an object is noticed when it changes, and what is not."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from kilo.backends.entries import Entry
from kilo.backends.kubernetes.entries import decode_node, decode_peer, decode_settings
from tests.builders import make_key

NODE: dict[str, Any] = {
    "metadata": {
        "name": "a",
        "annotations": {
            "kilo.squat.ai/key": str(make_key("a")),
            "kilo.squat.ai/last-seen": "1700000000",
            "other/annotation": "x",
        },
        "labels": {"region": "oregon", "rack": "r1"},
    },
    "spec": {"podCIDR": "10.2.1.0/24", "podCIDRs": ["10.2.1.0/24"]},
    "status": {"conditions": []},
}
PEER: dict[str, Any] = {
    "metadata": {"name": "squat"},
    "spec": {"publicKey": str(make_key("squat")), "allowedIPs": ["10.5.0.1/32"]},
}
SETTINGS: dict[str, Any] = {
    "metadata": {"name": "kilo-settings"},
    "data": {
        "settings.yaml": "{apiVersion: kilo.squat.ai/v1alpha1, kind: Settings,"
        " metadata: {name: mesh}, spec: {port: 51821}}"
    },
}


def read_node(document: dict[str, Any], held: Entry | None = None) -> Entry:
    return decode_node(document, held, topology_label="region")


def change(document: dict[str, Any], *path: str, to: object) -> dict[str, Any]:
    """A copy with another value there; without one for None."""
    copy = deepcopy(document)
    at = copy
    for name in path[:-1]:
        at = at.setdefault(name, {})
    at[path[-1]] = to
    if to is None:
        del at[path[-1]]
    return copy


@pytest.mark.parametrize(
    "changed",
    [
        change(NODE, "metadata", "annotations", "kilo.squat.ai/location", to="frankfurt"),
        change(NODE, "metadata", "annotations", "kilo.squat.ai/key", to=None),
        change(NODE, "metadata", "annotations", "kilo.squat.ai/last-seen", to="soon"),
        change(NODE, "metadata", "annotations", to=None),
        change(NODE, "metadata", "labels", "region", to="frankfurt"),
        change(NODE, "metadata", "labels", "region", to=None),
        # Set by the cluster's controllers some time after a kubelet has registered its node.
        change(NODE, "spec", "podCIDRs", to=["10.2.1.0/24", "fd00:2:1::/64"]),
        change(change(NODE, "spec", "podCIDRs", to=None), "spec", "podCIDR", to="10.2.9.0/24"),
        change(NODE, "spec", to=None),
    ],
)
def test_what_counts_of_a_node_is_noticed_when_it_changes(changed: dict[str, Any]) -> None:
    before = read_node(NODE)
    after = read_node(changed, before)
    assert after.part == read_node(changed).part
    assert after.part != before.part
    assert read_node(NODE, after).part == before.part


@pytest.mark.parametrize(
    "changed",
    [
        change(NODE, "metadata", "annotations", "kilo.squat.ai/last-seen", to="1700000030"),
        change(NODE, "metadata", "annotations", "other/annotation", to="y"),
        change(NODE, "metadata", "labels", "rack", to="r2"),
        change(NODE, "spec", "taints", to=[{"key": "x"}]),
        change(NODE, "status", "conditions", to=[{"type": "Ready"}]),
    ],
)
def test_of_a_check_in_the_stamp_alone_is_taken(changed: dict[str, Any]) -> None:
    before = read_node(NODE)
    after = read_node(changed, before)
    assert after.part is before.part
    assert after.last_seen == int(changed["metadata"]["annotations"]["kilo.squat.ai/last-seen"])


def test_of_a_peer_the_spec_counts_and_nothing_else() -> None:
    before = decode_peer(PEER, None)
    told = change(PEER, "status", to={"conditions": [{"type": "Ready", "status": "False"}]})
    moved = change(PEER, "spec", "allowedIPs", to=["10.5.0.2/32"])
    assert decode_peer(told, before) is before
    assert decode_peer(moved, before).part == decode_peer(moved, None).part != before.part


def test_of_the_settings_the_data_count_and_nothing_else() -> None:
    before = decode_settings(SETTINGS, None)
    assert before.part.settings == {"port": 51821}
    labelled = change(SETTINGS, "metadata", "labels", to={"a": "b"})
    assert decode_settings(labelled, before) is before
    assert decode_settings(change(SETTINGS, "data", to=None), before).part.settings == {}
