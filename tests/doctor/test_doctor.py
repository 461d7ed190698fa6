"""Every code is provoked on a real host, seen by the real program, and told with its object."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilo.doctor.findings import SEVERITIES, Code, Severity
from tests.doctor import patients
from tests.doctor.conftest import Examined
from tests.doctor.patients import Patient, run_in_namespace
from tests.kernel.wireguard_hosts import kernel_has

PROVOKED: dict[Code, tuple[Patient, str]] = {
    Code.UNFINISHED: (patients.examine_hanging, "'sizes' failed: it came to no end in 6 s"),
    Code.UNSEEN: (patients.examine_as_nobody, "ports could not be looked at: who holds a port"),
    Code.NO_WIREGUARD: (patients.examine_bare, "and wireguard-go is not installed"),
    Code.USERSPACE_WIREGUARD: (patients.examine_well, "wireguard-go takes its place"),
    Code.NO_IPIP: (patients.examine_bare, "has no IPIP"),
    Code.NO_NFT: (patients.examine_bare, "nft is not installed"),
    Code.NFT_REFUSED: (patients.examine_powerless, "Operation not permitted"),
    Code.IPTABLES_INCOMPLETE: (
        patients.examine_firewalled,
        "(nft), and writing such rules takes ipset, iptables",
    ),
    Code.FORWARDING_FIXED_OFF: (patients.examine_powerless, "net.ipv4.ip_forward is 0 and cannot"),
    Code.FORWARDING_OFF: (patients.examine_crowded, "net.ipv4.ip_forward is 0: this host"),
    Code.REVERSE_PATH_STRICT: (patients.examine_powerless, "conf.default.rp_filter is 1"),
    Code.NO_IPV6: (patients.examine_bare, "net.ipv6.conf.default.disable_ipv6 is 1"),
    Code.FORWARD_DROPPED: (patients.examine_firewalled, "chain FORWARD of table ip filter drops"),
    Code.INPUT_DROPPED: (patients.examine_firewalled, "chain incoming of table inet guard"),
    Code.TUNNEL_MTU: (patients.examine_narrow, "kilo0 has MTU 1270, and eth0 below it"),
    Code.POD_MTU: (patients.examine_narrow, "link kube-bridge has MTU 1500, more than the 1270"),
    Code.SMALL_MTU: (patients.examine_narrow, "kilo0 has MTU 1270, or will: IPv6 needs 1280"),
    Code.NO_DEFAULT_ROUTE: (patients.examine_crowded, "there is no default route"),
    Code.CNI_BROKEN: (patients.examine_narrow, "CNI configuration cni.conflist: is not JSON"),
    Code.UDP_PORT_TAKEN: (patients.examine_crowded, "UDP port 51820 is held by python"),
    Code.HTTP_PORT_TAKEN: (patients.examine_crowded, "TCP port 1107 is held by python"),
    Code.CLOCK_FREE: (patients.examine_silent, "is not synchronised, says timedatectl"),
    Code.STAMPS_AHEAD: (patients.examine_muddled, "3 of 3 nodes, Node b1 first"),
    Code.STAMPS_OLD: (patients.examine_forgotten, "the last stamp in the store is 36"),
    Code.HOST_NAME: (patients.examine_muddled, "the host's name a1 does not resolve"),
    Code.RESOLVER_SILENT: (
        patients.examine_forgotten,
        "the resolver gave no answer for nowhere.example",
    ),
    Code.ENDPOINT_NAME: (patients.examine_muddled, "nowhere.invalid of Node b2"),
    Code.STORE_UNUSABLE: (patients.examine_storeless, "(file) cannot be used: /nowhere"),
    Code.LEFT_OUT: (patients.examine_muddled, "Peer squat"),
    Code.REFUSED: (patients.examine_muddled, "10.5.0.1/32 refused"),
    Code.NOT_IN_MESH: (patients.examine_muddled, "Node a1, this host, takes no part"),
    Code.IN_DOUBT: (patients.examine_muddled, "Node b1: its agent goes by granularity full"),
    Code.KEY_UNUSABLE: (patients.examine_storeless, "private key /var/lib/kilo/key: "),
    Code.KEY_EXPOSED: (patients.examine_storeless, "/var/lib/kilo/key has mode 0644"),
    Code.NO_KEY: (patients.examine_crowded, "private key /var/lib/kilo/key: there is none yet"),
    Code.OTHERS_LEFTOVERS: (patients.examine_abandoned, "route 10.2.7.0/24 of table 1107"),
    Code.OWN_LEFTOVERS: (patients.examine_abandoned, "route 10.2.8.0/24 of table 254"),
    Code.NO_AGENT: (patients.examine_abandoned, "http://127.0.0.1:1107: Connection refused"),
    Code.AGENT_NOT_READY: (patients.examine_troubled, "the agent of Node a1 is not ready: "),
    Code.AGENT_WARNING: (patients.examine_troubled, "the agent of Node a1 warns: "),
    Code.AGENT_SILENT: (patients.examine_silent, "interface kilo0), but agent http://127.0.0.1"),
}
OF_THIS_KERNEL = {
    Code.NO_WIREGUARD: "wireguard",
    Code.USERSPACE_WIREGUARD: "wireguard",
    Code.NO_IPIP: "ipip",
}


def test_every_code_is_provoked() -> None:
    assert PROVOKED.keys() == set(Code)


@pytest.mark.parametrize("code", PROVOKED)
def test_the_finding_is_seen_on_a_host_that_has_it(code: Code, examined: Examined) -> None:
    kind = OF_THIS_KERNEL.get(code)
    if kind and kernel_has(kind):
        pytest.skip(f"this kernel has {kind}")
    patient, words = PROVOKED[code]
    report = examined(patient)
    sentences = report.list_sentences(code)
    assert any(words in sentence for sentence in sentences), (sentences, report.codes)


def test_a_host_whose_agent_is_well_has_nothing_worse_than_its_machine(examined: Examined) -> None:
    report = examined(patients.examine_well)
    grave = {c for c in map(Code, report.codes) if SEVERITIES[c] is not Severity.INFO}
    assert grave <= {Code.USERSPACE_WIREGUARD}, "which the machine's kernel may lack"
    assert report.status == 0


def test_what_a_killed_agent_has_left_is_told_from_what_kilos_own_leaves(
    examined: Examined,
) -> None:
    report = examined(patients.examine_killed)
    (ours,) = report.list_sentences(Code.OWN_LEFTOVERS)
    assert "link kilo0 with this host's key" in ours
    assert "chain KILO-" in ours
    assert not {Code.OTHERS_LEFTOVERS, Code.UDP_PORT_TAKEN, Code.FORWARD_DROPPED} & report.codes
    (theirs,) = examined(patients.examine_abandoned).list_sentences(Code.OTHERS_LEFTOVERS)
    assert "rule that looks up table 1107" in theirs
    assert "chain KILO-NAT of iptables (nft)" in theirs


def test_errors_alone_make_the_exit_status_one(examined: Examined) -> None:
    for patient in (patients.examine_crowded, patients.examine_abandoned):
        report = examined(patient)
        has_error = any(finding["severity"] == "error" for finding in report.findings)
        assert report.status == has_error
    assert {examined(p).status for p in (patients.examine_crowded, patients.examine_abandoned)} == {
        0,
        1,
    }


def test_a_check_that_hangs_does_not_keep_the_others_from_telling(examined: Examined) -> None:
    report = examined(patients.examine_hanging)
    unfinished = {c["name"] for c in report.checks if c["summary"] == "not finished"}
    assert "sizes" in unfinished
    assert len(report.checks) == 12
    assert {c["name"] for c in report.checks} - unfinished


def test_the_key_is_shown_nowhere(examined: Examined) -> None:
    assert "rubbish" not in str(examined(patients.examine_storeless))


def test_looking_changes_nothing_on_the_host(tmp_path: Path) -> None:
    script = f"""
    {patients.UPLINK}
    iptables-nft -P INPUT DROP
    look() {{
        ip -4 address; ip rule; ip -4 route show table all; nft list ruleset; ls -AR /var/lib /run
        sysctl -a --pattern 'forward|rp_filter|ipv6' 2>/dev/null
    }}
    look > before; doctor > told || true; look > after
    test -s before && diff before after && test -s told
    """
    done = run_in_namespace(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_people_are_told_a_line_a_check_and_the_remedy_below_the_finding(tmp_path: Path) -> None:
    script = 'kgctl doctor --hostname=a1 --backend=file --directory="$MESH"'
    lines = run_in_namespace(script, tmp_path).stdout.splitlines()
    (agent,) = (number for number, line in enumerate(lines) if line.startswith("warning  agent"))
    assert lines[agent + 1].startswith("         KILO-D906 warning: no agent runs")
    assert lines[agent + 2].strip().startswith("Remedy: start kg")
    assert sum(not line.startswith(" ") for line in lines) == 12
    assert "\x1b" not in "".join(lines), "colours are for terminals"
