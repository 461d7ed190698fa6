"""What kube-proxy writes for one Service, in either of its modes, and what others' programs have
on a host beside it; rules without counters of their own, to be compared to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence

SERVICE, PORT, TARGET_PORT = "10.96.0.10", 80, 9201
PODS = "10.2.0.0/16"
"""kube-proxy's ``--cluster-cidr``: other sources are masqueraded on their way to a Service."""

NAT = """*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-WEB - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" \
-j MASQUERADE --random-fully
-A KUBE-SERVICES -d {service}/32 -p tcp -m comment --comment "default/web cluster IP" \
-m tcp --dport {port} -j KUBE-SVC-WEB
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last" \
-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-WEB ! -s {pods} -d {service}/32 -p tcp -m comment \
--comment "default/web cluster IP" -m tcp --dport {port} -j KUBE-MARK-MASQ
{endpoints}
COMMIT
"""
ENDPOINT = """:KUBE-SEP-{number} - [0:0]
-A KUBE-SVC-WEB -m comment --comment "default/web -> {address}:{port}" {chance} -j KUBE-SEP-{number}
-A KUBE-SEP-{number} -s {address}/32 -m comment --comment "default/web" -j KUBE-MARK-MASQ
-A KUBE-SEP-{number} -p tcp -m comment --comment "default/web" -m tcp \
-j DNAT --to-destination {address}:{port}"""

REST = """*mangle
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-FORWARD - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -j RETURN
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 \
-j ACCEPT
COMMIT
"""
"""Docker's policy; a kubelet's canary; kube-proxy's accept of what it has marked."""
REST6 = """*mangle
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:FORWARD DROP [0:0]
COMMIT
*nat
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
COMMIT
"""
FIREWALLD = """
table inet firewalld {
 chain filter_FORWARD {
  type filter hook forward priority 10;
  ct state { established, related } accept
  iifname lo accept
  reject with icmpx admin-prohibited
 }
}
"""

NFTABLES = """
table ip kube-proxy {{
 comment "rules for kube-proxy"
 map service-ips {{
  type ipv4_addr . inet_proto . inet_service : verdict
  elements = {{ {service} . tcp . {port} : goto service-web }}
 }}
 chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
 chain nat-output {{ type nat hook output priority -100; jump services; }}
 chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
 chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
 chain service-web {{
  ip daddr {service} tcp dport {port} ip saddr != {pods} jump mark-for-masquerade
  numgen random mod {count} vmap {{ {choices} }}
 }}
 {endpoints}
 chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
 chain masquerading {{
  meta mark & 0x4000 == 0 return
  meta mark set meta mark ^ 0x4000
  masquerade fully-random
 }}
}}
table inet others {{ chain forward {{ type filter hook forward priority 10; }}; }}
"""
NFT_ENDPOINT = """chain endpoint-{number} {{
  ip saddr {address} jump mark-for-masquerade
  meta l4proto tcp dnat to {address}:{port}
 }}"""


def write_iptables(endpoints: Sequence[str]) -> str:
    """For ``iptables-restore --noflush``: chance by chance, as kube-proxy shares connections."""
    lines = []
    for number, address in enumerate(endpoints):
        left = len(endpoints) - number
        chance = f"-m statistic --mode random --probability {1 / left:.11f}" if left > 1 else ""
        lines.append(
            ENDPOINT.format(number=number, address=address, port=TARGET_PORT, chance=chance)
        )
    nat = NAT.format(service=SERVICE, port=PORT, pods=PODS, endpoints="\n".join(lines))
    return REST + nat


def write_nftables(endpoints: Sequence[str]) -> str:
    """For ``nft -f -``."""
    return NFTABLES.format(
        service=SERVICE,
        port=PORT,
        pods=PODS,
        count=len(endpoints),
        choices=", ".join(f"{number} : goto endpoint-{number}" for number in range(len(endpoints))),
        endpoints="\n ".join(
            NFT_ENDPOINT.format(number=number, address=address, port=TARGET_PORT)
            for number, address in enumerate(endpoints)
        ),
    )
