"""One mesh of three locations, from nothing to the kernel: what a dry run prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilo.mesh.diff import diff
from kilo.mesh.model import Settings
from kilo.mesh.state import DataplaneState
from kilo.mesh.view import RenderOptions
from tests.builders import make_key, make_preshared_key
from tests.mesh.fleets import make_node, make_peer, nets, render_node

NODES = [
    make_node(
        "berlin-1",
        location="berlin",
        endpoint="198.51.100.11:51820",
        internal="192.168.1.1/24 fd00:1:1::1/64",
        pods="10.2.1.0/24 fd00:2:1::/64",
        location_ips="192.168.1.200/32",
    ),
    make_node(
        "berlin-2",
        location="berlin",
        endpoint="192.168.1.2:51820",
        internal="192.168.1.2/24 fd00:1:1::2/64",
        pods="10.2.2.0/24 fd00:2:2::/64",
    ),
    make_node(
        "oslo-1",
        location="oslo",
        endpoint="[2001:db8::21]:51820",
        internal="192.168.2.1/24",
        pods="10.2.3.0/24",
    ),
    make_node(
        "oslo-2",
        location="oslo",
        endpoint="203.0.113.22:51999",
        internal="192.168.2.2/24",
        pods="10.2.4.0/24",
        leader=True,
    ),
    make_node(
        "shed",
        location="home",
        endpoint="192.168.3.1:51820",
        internal="192.168.3.1/24",
        keepalive=25,
    ),
]
PEERS = [
    make_peer("laptop", "10.5.0.1/32 fd00:5::1/128", preshared=make_preshared_key("laptop")),
    make_peer("greedy", "0.0.0.0/0 10.2.1.0/24 10.5.0.2/32", endpoint="203.0.113.77:7"),
]
SETTINGS = Settings(subnets=nets("10.4.0.0/16 fd00:4::/64"), service_cidrs=nets("10.43.0.0/16"))
KEYS = {
    str(make_key(name)): name.upper()
    for name in ("berlin-1", "berlin-2", "oslo-1", "oslo-2", "shed", "laptop", "greedy")
}
GOLDEN = Path(__file__).parent / "golden"


def _dry_run(name: str) -> str:
    """What a first pass would do, with names in place of keys."""
    state = render_node(
        name, NODES, PEERS, settings=SETTINGS, options=RenderOptions(cni=True, forward_rules=True)
    )
    text = str(diff(DataplaneState(), state))
    for key, owner in KEYS.items():
        text = text.replace(key, owner)
    return text + "\n"


@pytest.mark.parametrize("name", ["berlin-1", "berlin-2"], ids=["leader", "other"])
def test_a_first_pass_does_what_the_golden_text_says(name: str) -> None:
    assert _dry_run(name) == (GOLDEN / f"{name}.txt").read_text()
