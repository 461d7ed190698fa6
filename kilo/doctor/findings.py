"""The findings that there can be: a code, how grave it is, a sentence and the remedy.

A code is for ever: scripts and runbooks go by it. What is not found any more leaves a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, unique
from types import MappingProxyType


class Severity(StrEnum):
    """How grave a finding is, worst first."""

    ERROR = "error"
    """The mesh does not work on this host."""
    WARNING = "warning"
    """Part of it does not, or soon will not."""
    INFO = "info"
    """Worth knowing."""


@unique
class Code(StrEnum):
    """What was found; the first digit is the matter."""

    UNFINISHED = "KILO-D001"
    UNSEEN = "KILO-D002"
    NO_WIREGUARD = "KILO-D101"
    USERSPACE_WIREGUARD = "KILO-D102"
    NO_IPIP = "KILO-D103"
    NO_NFT = "KILO-D104"
    NFT_REFUSED = "KILO-D105"
    IPTABLES_INCOMPLETE = "KILO-D106"
    FORWARDING_FIXED_OFF = "KILO-D201"
    FORWARDING_OFF = "KILO-D202"
    REVERSE_PATH_STRICT = "KILO-D203"
    NO_IPV6 = "KILO-D204"
    FORWARD_DROPPED = "KILO-D301"
    INPUT_DROPPED = "KILO-D302"
    TUNNEL_MTU = "KILO-D401"
    POD_MTU = "KILO-D402"
    SMALL_MTU = "KILO-D403"
    NO_DEFAULT_ROUTE = "KILO-D404"
    CNI_BROKEN = "KILO-D405"
    UDP_PORT_TAKEN = "KILO-D501"
    HTTP_PORT_TAKEN = "KILO-D502"
    CLOCK_FREE = "KILO-D601"
    STAMPS_AHEAD = "KILO-D602"
    STAMPS_OLD = "KILO-D603"
    HOST_NAME = "KILO-D701"
    RESOLVER_SILENT = "KILO-D702"
    ENDPOINT_NAME = "KILO-D703"
    STORE_UNUSABLE = "KILO-D801"
    LEFT_OUT = "KILO-D802"
    REFUSED = "KILO-D803"
    NOT_IN_MESH = "KILO-D804"
    IN_DOUBT = "KILO-D805"
    KEY_UNUSABLE = "KILO-D901"
    KEY_EXPOSED = "KILO-D902"
    NO_KEY = "KILO-D903"
    OTHERS_LEFTOVERS = "KILO-D904"
    OWN_LEFTOVERS = "KILO-D905"
    NO_AGENT = "KILO-D906"
    AGENT_NOT_READY = "KILO-D907"
    AGENT_WARNING = "KILO-D908"
    AGENT_SILENT = "KILO-D909"


SEVERITIES: Mapping[Code, Severity] = MappingProxyType(
    dict.fromkeys(Code, Severity.WARNING)
    | dict.fromkeys(
        (
            Code.NO_WIREGUARD,
            Code.NO_NFT,
            Code.NFT_REFUSED,
            Code.UDP_PORT_TAKEN,
            Code.HTTP_PORT_TAKEN,
            Code.STORE_UNUSABLE,
            Code.KEY_UNUSABLE,
            Code.AGENT_NOT_READY,
        ),
        Severity.ERROR,
    )
    | dict.fromkeys(
        (
            Code.UNSEEN,
            Code.USERSPACE_WIREGUARD,
            Code.FORWARDING_OFF,
            Code.NO_IPV6,
            Code.NO_DEFAULT_ROUTE,
            Code.HOST_NAME,
            Code.NO_KEY,
        ),
        Severity.INFO,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be."""

    code: Code
    sentence: str
    """Names the object and the value."""
    remedy: str

    @property
    def severity(self) -> Severity:
        return SEVERITIES[self.code]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a check came to."""

    summary: str
    """What was seen, in a few words, also where all is well."""
    findings: tuple[Finding, ...] = ()


AS_ROOT = "run kgctl doctor as root, on the host itself and not in a container"


def note_unseen(what: str, why: str, remedy: str = AS_ROOT) -> Finding:
    """The finding about what could not be looked at."""
    sentence = f"{what} could not be looked at: {why}"
    return Finding(code=Code.UNSEEN, sentence=sentence, remedy=remedy)


def find_worst(findings: tuple[Finding, ...]) -> Severity | None:
    """The gravest of them; None where there is none."""
    found = {finding.severity for finding in findings}
    return next((severity for severity in Severity if severity in found), None)
