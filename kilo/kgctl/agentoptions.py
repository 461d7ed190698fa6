"""What agents were told by their flags and do not report: it must be told to ``kgctl`` as well."""

from __future__ import annotations

from kilo.agentflags import OWN_FLAGS, find_cni
from kilo.flags import Parsed
from kilo.kgctl.meshing import is_cluster
from kilo.mesh.model import Snapshot
from kilo.mesh.view import Compatibility, RenderOptions

NAMES = (
    "cni",
    "compatibility",
    "encapsulate",
    "interface",
    "iptables-forward-rules",
    "local",
    "mtu",
)
AGENT_FLAGS = tuple(flag for flag in OWN_FLAGS if flag.name in NAMES)


def find_options(parsed: Parsed, snapshot: Snapshot) -> RenderOptions:
    """What all agents were told of their hosts; in a cluster the pods' network is theirs."""
    values = parsed.values
    given = parsed.given("cni") or bool(values["compatibility"])
    return RenderOptions(
        interface=values["interface"],
        local=values["local"],
        cni=find_cni(parsed) or (is_cluster(snapshot) and not given),
        compatibility=Compatibility(values["compatibility"]),
        forward_rules=values["iptables-forward-rules"],
    )
