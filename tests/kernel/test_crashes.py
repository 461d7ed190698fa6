"""Every write to a host's network, counted; and a crash before any of them leaves nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.dataplane.firewall import Choice
from kilo.mesh.state import FORWARDING
from tests.dataplane.contract import OTHER_ADDRESSES, OTHER_LINK
from tests.kernel.crashing import Nursery
from tests.kernel.firewall_hosts import run
from tests.kernel.namespace import Namespace

SIGHTS = (
    "ip -d link",
    "ip address",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip -4 rule",
    "ip -6 rule",
    "nft list ruleset",
    "ipset save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "sysctl -a --pattern '^net[.]ipv[46][.](ip_forward|conf[.])'",
)
CHOICES = {
    "nftables": (Choice.NFTABLES, Choice.IPTABLES),
    "nft": (Choice.IPTABLES, Choice.NFTABLES),
    "legacy": (Choice.IPTABLES, Choice.NFTABLES),
}
"""What others use -> the flag of the agent, and another one, of whoever uninstalls."""


SCRIPT_BYTES = 2000
"""For one network more, and those that it is neighbour to: of a thousand a script has 20,000."""


class Ground:
    """A host before Kilo, with rules of others, and what a person sees who looks at it."""

    def __init__(self, netns: Namespace, kind: str) -> None:
        # No address that the kernel makes when it thinks fit.
        netns.set_sysctl("net/ipv6/conf/default/addr_gen_mode", "1")
        netns.add_veth(OTHER_LINK, "peer0")
        netns.set_sysctl("net/ipv6/conf/default/addr_gen_mode", "0")
        for address in OTHER_ADDRESSES:
            netns.ip("address", "add", str(address), "dev", OTHER_LINK, "nodad")
        for name in FORWARDING.values():
            netns.set_sysctl(name.replace(".", "/"), "0")
        if kind != "nftables":
            for command in ("iptables", "ip6tables"):
                # Tables of the legacy kind cannot be unloaded.
                run(f"for t in nat filter mangle; do {command}-legacy -t $t -L; done")
                run(f"{command}-{kind} -P FORWARD DROP")
                run(f"{command}-{kind} -t mangle -N KUBE-KUBELET-CANARY")
        run("ipset create other hash:net && ipset add other 10.2.0.0/24")
        self.before = self.look()

    @staticmethod
    def look() -> dict[str, str]:
        return {sight: strip_counts(run(sight)) for sight in SIGHTS}


def strip_counts(text: str) -> str:
    """Without comments, which give the time of day, and counters of packets."""
    return re.sub(r"^#.*\n| \[\d+:\d+\]$", "", text, flags=re.MULTILINE)


@pytest.fixture(params=CHOICES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ground(netns: Namespace, kind: str) -> Ground:
    return Ground(netns, kind)


@pytest.fixture
def nursery(kind: str, ground: Ground, tmp_path: Path, interface_name: str) -> Iterator[Nursery]:
    # What is no firewall is written in the same way beside any.
    wanted = "everything" if kind == "nftables" else "firewall"
    nursery = Nursery(tmp_path, interface_name, wanted=wanted)
    yield nursery
    nursery.close()


def test_a_crash_at_any_write_leaves_nothing_after_the_next_start_and_uninstall(
    kind: str, ground: Ground, nursery: Nursery
) -> None:
    """Every start is killed at another write, and so is every uninstall that follows."""
    choice, other = CHOICES[kind]
    made, removed = nursery.work("start", choice), nursery.work("uninstall", choice)
    assert made
    assert removed
    assert ground.look() == ground.before
    for at, again, later in list_deaths(kind, made, removed):
        nursery.work("start", choice, writes=at)
        if again:
            assert nursery.work("start", choice) is not None
        nursery.work("uninstall", choice, writes=later)
        assert nursery.work("uninstall", other if at % 4 > 1 else choice) is not None
        assert ground.look() == ground.before, f"killed at write {at}"
        assert [path.name for path in nursery.state.iterdir()] == ["agent.lock"]


def list_deaths(kind: str, made: int, removed: int) -> Iterator[tuple[int, bool, int]]:
    """At which write of a start, whether an agent starts once more, at which of an uninstall.

    Where a start takes long, it does so every other time.
    """
    if kind == "nftables":
        yield from ((at, again, at) for at in range(max(made, removed)) for again in (False, True))
    else:
        yield from ((at, at % 2 == 1, at // 2) for at in range(max(made, 2 * removed)))


def test_a_node_that_joins_a_thousand_takes_no_more_than_one_that_joins_ten(
    kind: str, ground: Ground, nursery: Nursery
) -> None:
    choice, _ = CHOICES[kind]
    joins = [list_writes(nursery, choice, size) for size in (10, 1000)]
    sizes = [int(line.split()[1]) for line in joins[1] if line.startswith("script")]
    assert 0 < sum(sizes) < SCRIPT_BYTES
    for journal in joins:
        journal[:] = [line for line in journal if not line.startswith("script")]
    assert joins[0] == joins[1]
    messages = [line for line in joins[1] if line.startswith(("uapi", "netlink"))]
    assert [line for line in messages if line in ("uapi public_key", "netlink 24")] == [
        "uapi public_key",
        "netlink 24",
    ], "one peer, one route"
    writers = [line for line in joins[1] if line in ("nft -f -", "ipset restore")]
    assert writers == ["nft -f -" if kind == "nftables" else "ipset restore"]
    assert not any("restore" in line for line in joins[1] if line not in writers)
    nursery.work("uninstall", choice)
    assert ground.look() == ground.before


def list_writes(nursery: Nursery, choice: Choice, size: int) -> list[str]:
    """What one more node takes: no rule is written, and no program is started for each."""
    nursery.work(f"mesh {size}", choice)
    before = count_rules()
    nursery.work(f"mesh {size + 1}", choice)
    assert count_rules() == before
    return nursery.read_journal()


def count_rules() -> int:
    saves = ("nft list ruleset", "iptables-legacy-save", "ip6tables-legacy-save")
    return sum(run(save).count("Kilo: ") for save in saves)
