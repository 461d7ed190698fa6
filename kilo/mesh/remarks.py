"""What agents have to say about the objects of a store, for operators to read beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Reason(StrEnum):
    """Why an object is remarked on: stable codes, which people and scripts filter by."""

    INVALID = "Invalid"
    """A value that does not parse, and so counts as absent."""
    REFUSED = "Refused"
    """A claim on addresses or a key that belong to another object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One thing that is wrong with one object."""

    object: str
    """Kind and name, ``Peer squat``."""
    reason: Reason
    message: str
    """One line that names field and value; no secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStanding:
    """What the mesh makes of a peer."""

    ready: bool
    """Whether it takes part."""
    remarks: tuple[Remark, ...] = ()
    """Why not, or what of it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remarks:
    """All that one agent has to say."""

    remarks: tuple[Remark, ...] = ()
    """Sorted, each once; empty on agents that are not the one to speak."""
    peers: Mapping[str, PeerStanding] = field(default_factory=lambda: MappingProxyType({}))
    """By name; empty on agents that are not the one to speak."""
    handshakes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Peer name -> Unix seconds of the last handshake that this node's device had with it."""
