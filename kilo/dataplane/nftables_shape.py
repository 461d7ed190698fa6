"""What our nftables table is made of: the one description of it.

The script that makes the table is written from these rows, and a listing is compared with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from kilo.dataplane.firewall_terms import LINKS, ROLES

TABLE = "kilo"


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain; priorities as numbers, for nft lists them so (100 is srcnat, 0 filter, -150
    mangle).
    """

    name: str
    type: str
    hook: str
    priority: int

    def __str__(self) -> str:
        hook = f"hook {self.hook} priority {self.priority}"
        return f"chain inet {TABLE} {self.name} {{ type {self.type} {hook}; policy accept; }}"


@dataclass(frozen=True, slots=True)
class Rule:
    """``if left equals right then verdict``: the only kind of rule there is."""

    chain: str
    left: str
    right: str
    verdict: str
    comment: str

    def __str__(self) -> str:
        match = f"{self.left} {self.right} {self.verdict}"
        return f'rule inet {TABLE} {self.chain} {match} comment "{self.comment}"'


@dataclass(frozen=True, slots=True)
class Shape:
    """What the table is made of, but for the networks in its sets."""

    chains: frozenset[Chain]
    rules: tuple[Rule, ...]
    """In order."""
    sets: frozenset[tuple[str, str]]
    """Name and type of each."""


CHAINS = (
    Chain("postrouting", "nat", "postrouting", 100),
    Chain("forward", "filter", "forward", 0),
    Chain("input", "filter", "input", 0),
    Chain("clamp", "filter", "forward", -150),
)

GUARDED = ("guarded", "inet_proto")
"""The set of protocols that only ``tunnel_sources`` may send us: IPIP, or none."""
CLAMPED = (LINKS, "ifname")
PLAIN_SETS = frozenset({GUARDED, CLAMPED})
"""Those that hold no networks."""
CLAMP = "tcp flags syn tcp option maxseg size set rt mtu"
CLAMP_LISTED = [
    {
        "match": {
            "op": "in",
            "left": {"payload": {"protocol": "tcp", "field": "flags"}},
            "right": "syn",
        }
    },
    {
        "mangle": {
            "key": {"tcp option": {"name": "maxseg", "field": "size"}},
            "value": {"rt": {"key": "mtu"}},
        }
    },
]
"""The same as nft lists it. It lowers what a SYN says, and never raises it."""
WORDS = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}
"""For each family how rules call its header, and the type of its addresses."""


def _both(chain: str, field: str, role: str, verdict: str, comment: str) -> list[Rule]:
    """The rule for IPv4 and for IPv6."""
    return [
        Rule(chain, f"{word} {field}", f"@{role}{family}", verdict, f"Kilo: {comment}")
        for family, (word, _) in WORDS.items()
    ]


RULES = (
    Rule("postrouting", "oifname", "lo", "return", "Kilo: the host itself is left alone"),
    *_both("postrouting", "daddr", "local", "return", "neighbours on the link are left alone"),
    *_both("postrouting", "daddr", "known", "return", "the mesh knows the source"),
    *_both(
        "postrouting",
        "daddr",
        "masquerade_destinations",
        "masquerade",
        "what is reached through this location does not know the mesh",
    ),
    *_both(
        "postrouting",
        "saddr",
        "masquerade_sources",
        "masquerade",
        "the world does not know the mesh",
    ),
    *_both("forward", "saddr", "forward", "accept", "from the mesh"),
    *_both("forward", "daddr", "forward", "accept", "to the mesh"),
    Rule("input", "ip saddr", "@tunnel_sources4", "return", "Kilo: IPIP from this location"),
    Rule("input", "ip protocol", "@guarded", "drop", "Kilo: IPIP from elsewhere"),
    Rule("clamp", "oifname", f"@{LINKS}", CLAMP, "Kilo: no more than the tunnels take"),
)

SHAPE = Shape(
    frozenset(CHAINS),
    tuple(sorted(RULES, key=lambda rule: rule.chain)),
    frozenset(
        (f"{role}{family}", kind)
        for role in ("local", *ROLES)
        for family, (_, kind) in WORDS.items()
    )
    | PLAIN_SETS,
)
