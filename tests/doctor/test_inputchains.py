"""Which chains let WireGuard's port in: rules as the real programs list them, and the answer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

import pytest

from kilo.doctor.inputchains import drops_port, read_listing, read_saved

PORT = 51820
NFT_RULES: dict[str, bool] = {
    "": True,
    "accept": False,
    "udp dport 51820 accept": False,
    "udp dport 51821 accept": True,
    "tcp dport 51820 accept": True,
    "udp dport { 53, 51000-52000 } accept": False,
    "udp dport { 53, 67-68 } accept": True,
    "udp sport 51820 accept": False,  # who knows
    "meta l4proto udp accept": False,
    "meta l4proto { tcp, icmp } accept": True,
    "meta l4proto { tcp, udp } th dport 51820 counter accept": False,
    "meta l4proto { tcp, udp } th dport 53 accept": True,
    "ip protocol icmp accept": True,
    "ip6 nexthdr udp accept": False,
    "iif lo accept": True,
    "iifname lo accept": True,
    "iifname eth0 accept": False,
    "ct state established,related accept": True,
    "ct state new accept": False,
    "ct state vmap { established : accept, related : accept, invalid : drop }": True,
    "ct state vmap { new : accept, invalid : drop }": False,
    "udp dport vmap { 51820 : accept }": False,
    "udp dport @open accept": False,
    "ip saddr 192.168.0.0/16 accept": False,
    "udp dport != 53 accept": False,
    "jump lets_in": False,
    "tcp dport 22 jump lets_in": True,
    "iifname vmap { eth0 : jump lets_in }": False,
    "udp dport 51820 drop": True,
}
"""A rule in a chain that drops by its policy -> whether packets to the port are dropped."""
ENDS: dict[str, bool] = {
    "accept; drop": False,
    "udp dport 53 accept; counter drop": True,
    "tcp dport 22 accept; reject": True,
    "tcp dport 22 drop": False,
    "udp dport 51820 accept; drop": False,
}
"""Rules of a chain that accepts by its policy."""
SAVED: Mapping[str, bool] = {
    "-P INPUT DROP": True,
    "-A INPUT -p udp --dport 51820 -j ACCEPT;-P INPUT DROP": False,
    "-A INPUT -p udp -m multiport --dports 53,51800:51900 -j ACCEPT;-P INPUT DROP": False,
    "-A INPUT -p udp -m multiport --dports 53,123 -j ACCEPT;-P INPUT DROP": True,
    "-A INPUT -p tcp --dport 51820 -j ACCEPT;-P INPUT DROP": True,
    "-A INPUT -i lo -j ACCEPT;-P INPUT DROP": True,
    "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT;-P INPUT DROP": True,
    "-A INPUT -m conntrack --ctstate NEW -j ACCEPT;-P INPUT DROP": False,
    "-A INPUT -s 192.168.0.0/16 -j ACCEPT;-P INPUT DROP": False,
    "-N users;-A INPUT -j users;-A users -p udp --dport 51820 -j ACCEPT;-P INPUT DROP": False,
    "-N users;-A INPUT -p tcp -j users;-A users -j ACCEPT;-P INPUT DROP": True,
    "-A INPUT -p udp --dport 53 -j ACCEPT;-A INPUT -j REJECT": True,
    "-A INPUT -p udp --dport 53 -j DROP": False,
    "-A INPUT ! -i lo -j ACCEPT;-P INPUT DROP": False,
    "-A INPUT ! -p tcp -j ACCEPT;-P INPUT DROP": False,
    "-A INPUT -p udp ! --dport 53 -j ACCEPT;-P INPUT DROP": False,
    "-A INPUT -p udp -m multiport ! --dports 53,123 -j ACCEPT;-P INPUT DROP": False,
    "-A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT;-P INPUT DROP": False,
    "-A INPUT -p tcp ! -i lo -j ACCEPT;-P INPUT DROP": True,
    "-A INPUT ! -i lo -j DROP": False,
}
"""Words of iptables, in their order -> likewise."""


@pytest.fixture(scope="module")
def listings() -> Mapping[str, list[Mapping[str, object]]]:
    """Rules of above -> what nft makes of them, in a table of their own."""
    script = "".join(
        f"table inet t{number} {{\n"
        "set open { type inet_service; elements = { 80 }\n}\n"
        "chain lets_in { accept\n}\n"
        f"chain in {{ type filter hook input priority 0; policy {policy};\n"
        + rules.replace(";", "\n")
        + "\n}\n}\n"
        for number, (rules, policy) in enumerate(
            [*((rules, "drop") for rules in NFT_RULES), *((rules, "accept") for rules in ENDS)]
        )
    )
    count = len(NFT_RULES) + len(ENDS)
    lists = f"for n in $(seq 0 {count - 1}); do nft --json --terse list table inet t$n; done"
    output = run_elsewhere(f"nft -f -; {lists}", stdin=script)
    listed = [json.loads(line)["nftables"] for line in output.splitlines() if line]
    return dict(zip([*NFT_RULES, *ENDS], listed, strict=True))


def run_elsewhere(script: str, stdin: str = "") -> str:
    """What a script prints in a network of its own."""
    done = subprocess.run(
        ["unshare", "--net", "bash", "-ec", script],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("rules", [*NFT_RULES, *ENDS])
def test_a_chain_of_nft_drops_the_port_if_no_rule_may_accept_it(
    rules: str, listings: Mapping[str, list[Mapping[str, object]]]
) -> None:
    expected = (NFT_RULES | ENDS)[rules]
    assert drops_port(read_listing(listings[rules], "in", PORT), "in") is expected


@pytest.fixture(scope="module")
def saved() -> Mapping[str, str]:
    """Words of above -> what iptables-save makes of them."""
    lines = [
        "iptables-nft -F; iptables-nft -X; iptables-nft -P INPUT ACCEPT;"
        + "".join(f"iptables-nft {words};" for words in commands.split(";"))
        + "iptables-nft-save; echo '# END'"
        for commands in SAVED
    ]
    texts = run_elsewhere("\n".join(lines)).split("# END\n")[:-1]
    return dict(zip(SAVED, texts, strict=True))


@pytest.mark.parametrize("words", SAVED)
def test_a_chain_of_iptables_drops_the_port_if_no_rule_may_accept_it(
    words: str, saved: Mapping[str, str]
) -> None:
    assert drops_port(read_saved(saved[words], PORT), "INPUT") is SAVED[words]
