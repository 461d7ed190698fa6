"""Hosts on which something is wrong, each a network, mount and process namespace of its own.

A patient is a shell script that makes it so, in a fresh namespace, and then asks ``kgctl doctor``;
with that process all is gone. Every patient is examined once a session, and only if wanted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.mesh.model import Encapsulation, Granularity, PartialSettings
from tests.builders import make_peer, make_report, make_spec, networks

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 300.0
NODE = "a1"
HOST = """
mount -t tmpfs none /var/lib && mkdir -m 700 /var/lib/kilo
mount -t tmpfs none /run && mkdir /run/wireguard
ip link set lo up
echo 0 > /proc/sys/net/ipv4/ip_forward
kgctl() { "$PYTHON" -m kilo.kgctl "$@"; }
DOCTOR="doctor -o json --backend=file --directory=$MESH --timeout=60s"
doctor() { kgctl $DOCTOR --hostname=a1 "$@"; }
"""
UPLINK = """
ip link add eth0 type veth peer name far
ip address add 192.168.0.11/24 dev eth0
ip link set eth0 up && ip link set far up
until ip link show eth0 | grep -q "state UP"; do sleep 0.1; done  # or routes are marked linkdown
ip route add default via 192.168.0.1
"""
AWAIT = """
import sys, time, urllib.request, json
ends_at = time.monotonic() + 120
while time.monotonic() < ends_at:
    try:
        agent = json.load(urllib.request.urlopen(sys.argv[1] + "/status", timeout=5))["agent"]
        if eval(sys.argv[2], {"agent": agent}):
            sys.exit()
    except OSError:
        pass
    time.sleep(0.1)
sys.exit(f"not so: {sys.argv[2]}")
"""


NAME_SERVER = """
echo "nameserver 127.0.0.53" > resolv.conf
echo "hosts: files dns" > nsswitch.conf
conf=$(readlink -m /etc/resolv.conf)
case "$conf" in /run/*) mkdir -p "${conf%/*}" && touch "$conf";; esac
mount --bind resolv.conf "$conf"
mount --bind nsswitch.conf /etc/nsswitch.conf
mkfifo listening
"$PYTHON" -c '
import os, socket
listener = socket.socket(type=socket.SOCK_DGRAM)
listener.bind(("127.0.0.53", 53))
open("listening", "w").close()
while True:
    question, asker = listener.recvfrom(512)
    if os.environ["ANSWER"]:  # there is no such name (RFC 1035 section 4.1.1)
        listener.sendto(question[:2] + bytes.fromhex("81830001000000000000") + question[12:], asker)
' &
read -r < listening || true
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ``kgctl doctor`` said of a patient."""

    status: int
    checks: Sequence[Mapping[str, Any]]

    @property
    def findings(self) -> list[Mapping[str, str]]:
        return [finding for check in self.checks for finding in check["findings"]]

    def list_sentences(self, code: str) -> list[str]:
        return [finding["sentence"] for finding in self.findings if finding["code"] == code]

    @property
    def codes(self) -> set[str]:
        return {finding["code"] for finding in self.findings}


def examine(script: str, directory: Path, **variables: str) -> Report:
    """Make the patient and ask of it; ``MESH`` is a directory below the one given."""
    done = run_in_namespace(script, directory, **variables)
    assert done.stdout.startswith("{"), f"{done.stdout}{done.stderr}"
    return Report(status=done.returncode, checks=json.loads(done.stdout)["checks"])


def run_in_namespace(
    script: str, directory: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    (directory / "mesh").mkdir(exist_ok=True)
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("KG_")},
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
        "MESH": str(directory / "mesh"),
        "HERE": str(directory),
        "AWAIT": AWAIT,
        **variables,
    }
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.run(
        [*command, "bash", "-ec", HOST + script],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
        stdin=subprocess.DEVNULL,
    )


def make_programs(directory: Path, *names: str) -> str:
    """A directory with these programs and no others, to be the whole of PATH."""
    programs = directory / "bin"
    programs.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, f"{name} is not installed"
        (programs / name).symlink_to(found)
    return str(programs)


def put(directory: Path, name: str, document: object) -> None:
    """Write a document where a directory's backend looks for it; JSON is YAML."""
    path = directory / "mesh" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def put_node(directory: Path, name: str, *, age_seconds: int = 0, **report: Any) -> None:
    """A node that reported so long ago."""
    put(directory, f"nodes/{name}.yaml", make_node_document(name, make_spec(location=name)))
    document = make_report_document(
        make_report(name, **report), last_seen=int(time.time()) - age_seconds
    )
    put(directory, f"reports/{name}.yaml", document)


# The patients


def examine_bare(directory: Path) -> Report:
    """Nothing is installed, and IPv6 is off; the mesh encapsulates."""
    settings = PartialSettings(encapsulation=Encapsulation.ALWAYS)
    put(directory, "settings.yaml", make_settings_document(settings))
    path = make_programs(directory, "ip", "unshare")
    script = """
    echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
    PATH="$BIN" doctor
    """
    return examine(script, directory, BIN=path)


def examine_powerless(directory: Path) -> Report:
    """Root without the right to administer the network, on settings that nobody can write."""
    script = """
    echo 1 > /proc/sys/net/ipv4/conf/default/rp_filter
    mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
    exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin \
        "$PYTHON" -m kilo.kgctl $DOCTOR
    """
    return examine(script, directory)


def examine_firewalled(directory: Path) -> Report:
    """All that is not allowed is dropped, in nftables, and in iptables, which lacks ipset."""
    programs = ("nft", "iptables-nft-save", "ip6tables-nft-save", "ip", "unshare")
    script = """
    iptables-nft -P FORWARD DROP
    nft -f - <<END
    table inet guard {
        chain incoming {
            type filter hook input priority 0; policy drop;
            iifname lo accept
            ct state established,related accept
            tcp dport 22 accept
        }
        chain passing { type filter hook forward priority 0; policy drop; }
    }
END
    PATH="$BIN" doctor
    """
    return examine(script, directory, BIN=make_programs(directory, *programs))


def examine_narrow(directory: Path) -> Report:
    """No link fits the one above it, and the pods' file is torn."""
    (directory / "cni.conflist").write_text('{"plugins": [')
    script = f"""
    {UPLINK}
    ip link set eth0 mtu 1300
    ip link add kilo0 mtu 1270 type veth peer name other
    ip link add kube-bridge type bridge
    doctor --cni-path=cni.conflist
    """
    return examine(script, directory)


def examine_crowded(directory: Path) -> Report:
    """Others have the ports; there is no default route."""
    script = """
    mkfifo taken
    "$PYTHON" -c '
import signal, socket
udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.create_server(("", 1107))
udp.bind(("", 51820))
open("taken", "w").close()
signal.pause()' &
    read -r < taken || true
    doctor
    """
    return examine(script, directory)


def examine_muddled(directory: Path) -> Report:
    """The store holds what is wrong, of nodes whose clocks are ahead."""
    ahead = -3600
    put_node(directory, "b1", age_seconds=ahead - 5, granularity=Granularity.FULL)
    put_node(directory, "b2", age_seconds=ahead, endpoint="nowhere.invalid:51820")
    put_node(directory, "b3", age_seconds=ahead)
    for name in ("office", "phone"):
        put(directory, f"peers/{name}.yaml", make_peer_document(make_peer(name)))
    document = make_peer_document(make_peer("squat", "10.5.0.9/32"))
    document["spec"] = {"publicKey": "short", "allowedIPs": ["10.5.0.9/32"]}
    put(directory, "peers/squat.yaml", document)
    script = f"""
    {NAME_SERVER}
    doctor --timeout=30s
    """
    return examine(script, directory, ANSWER="1")


def examine_forgotten(directory: Path) -> Report:
    """A store in which nobody writes any more, and a resolver that hears and says nothing."""
    put_node(directory, NODE, age_seconds=3600)
    script = f"""
    {NAME_SERVER}
    doctor --timeout=8s --hostname=nowhere.example
    """
    return examine(script, directory, ANSWER="")


def examine_storeless(directory: Path) -> Report:
    """There is no store, and the key is none, for all to read."""
    script = """
    echo rubbish > /var/lib/kilo/key && chmod 644 /var/lib/kilo/key
    doctor --directory=/nowhere
    """
    return examine(script, directory)


def examine_abandoned(directory: Path) -> Report:
    """Agents have been here, Kilo's and ours, and were killed."""
    script = f"""
    {UPLINK}
    iptables-nft -t nat -N KILO-NAT
    iptables-nft -t nat -A KILO-NAT -d 10.4.0.1/32 -m comment --comment 'Kilo: x' -j RETURN
    ip route add 10.2.7.0/24 via 192.168.0.7 proto static table 1107
    ip rule add from 10.2.1.0/24 to 192.168.0.7/32 lookup 1107
    ip route add 10.2.8.0/24 via 192.168.0.8 proto 107
    doctor
    """
    return examine(script, directory)


def examine_troubled(directory: Path) -> Report:
    """An agent whose packets are dropped, and whose store has gone."""
    pods = make_spec(pod_subnets=networks("10.2.1.0/24"))
    put(directory, "a1.yaml", make_node_document(NODE, pods))
    script = f"""
    {UPLINK}
    nft add table ip guard
    nft add chain ip guard passing '{{ type filter hook forward priority 0; policy drop; }}'
    "$PYTHON" -m kilo.kg --backend=file --directory="$MESH" --hostname=a1 > agent.log 2>&1 &
    "$PYTHON" -c "$AWAIT" http://127.0.0.1:1107 'agent["ready"] and agent["warnings"]'
    mv "$MESH" gone
    "$PYTHON" -c "$AWAIT" http://127.0.0.1:1107 'not agent["ready"]'
    doctor
    """
    return examine(script, directory)


def examine_silent(directory: Path) -> Report:
    """An agent that is well, at another address than the one asked, on a clock that drifts."""
    put(directory, "a1.yaml", make_node_document(NODE, make_spec()))
    script = WELL.replace("doctor", "doctor --agent=127.0.0.1:1108")
    return examine(script, directory, SYNCHRONISED="no")


def examine_well(directory: Path) -> Report:
    """An agent that is well."""
    put(directory, "a1.yaml", make_node_document(NODE, make_spec()))
    return examine(WELL, directory, SYNCHRONISED="yes")


WELL = f"""
{UPLINK}
mkdir bin && export PATH="$PWD/bin:$PATH"
cat > bin/timedatectl <<END
#!/bin/sh
echo NTPSynchronized=$SYNCHRONISED
END
chmod +x bin/timedatectl
echo 192.168.0.11 a1 > hosts && mount --bind hosts /etc/hosts
"$PYTHON" -m kilo.kg --backend=file --directory="$MESH" --hostname=a1 > agent.log 2>&1 &
"$PYTHON" -c "$AWAIT" http://127.0.0.1:1107 'agent["ready"]'
doctor
"""


def examine_killed(directory: Path) -> Report:
    """An agent wrote rules of iptables, and was killed."""
    pods = make_spec(pod_subnets=networks("10.2.1.0/24"))
    put(directory, "a1.yaml", make_node_document(NODE, pods))
    script = f"""
    {UPLINK}
    iptables-nft -P FORWARD DROP
    "$PYTHON" -m kilo.kg --backend=file --directory="$MESH" --hostname=a1 \
        --iptables-forward-rules > agent.log 2>&1 &
    "$PYTHON" -c "$AWAIT" http://127.0.0.1:1107 'agent["ready"]'
    kill -KILL $!
    wait $! || true
    doctor
    """
    return examine(script, directory)


def examine_hanging(directory: Path) -> Report:
    """A file that nobody ever ends to write."""
    return examine("mkfifo cni && doctor --cni-path=cni --timeout=2s", directory)


def examine_as_nobody(directory: Path) -> Report:
    """Asked by a user, who sees less. The one right lets it read this tree."""
    script = """
    exec setpriv --reuid=65534 --clear-groups --inh-caps=+dac_read_search \
        --ambient-caps=+dac_read_search \
        "$PYTHON" -m kilo.kgctl $DOCTOR
    """
    return examine(script, directory)


Patient = Callable[[Path], Report]
