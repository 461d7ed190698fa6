"""A store's snapshot with documents laid over it: the mesh as it would be with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

from kilo.backends.objects import DeclaredNode, DeclaredSettings, Found, ReportedNode
from kilo.mesh.model import Node, Peer, Snapshot
from kilo.mesh.plan import find_node


def overlay(snapshot: Snapshot, found: Iterable[Found], *, now: int) -> Snapshot:
    """Each object in place of the one of its kind and name, or beside the others.

    A report that is new, or does not say when it was written, is written ``now``, in Unix seconds.
    """
    for one in found:
        match one.value:
            case DeclaredNode() as declared:
                snapshot = _put_node(snapshot, declared, now)
            case ReportedNode() as reported:
                snapshot = _put_report(snapshot, reported, now)
            case Peer() as peer:
                others = (other for other in snapshot.peers if other.name != peer.name)
                peers = sorted((*others, peer), key=lambda other: other.name)
                snapshot = replace(snapshot, peers=tuple(peers))
            case DeclaredSettings(settings=settings):
                snapshot = replace(snapshot, settings=settings)
    return snapshot


def _put_node(snapshot: Snapshot, declared: DeclaredNode, now: int) -> Snapshot:
    """A cluster's Node also holds its agent's report; without one the report stays."""
    node = replace(find_node(snapshot, declared.name), spec=declared.spec)
    snapshot = _replace_node(snapshot, node)
    if declared.report is None:
        return snapshot
    reported = ReportedNode(report=declared.report, last_seen=declared.last_seen)
    return _put_report(snapshot, reported, now)


def _put_report(snapshot: Snapshot, reported: ReportedNode, now: int) -> Snapshot:
    """Whoever sees a stamp change takes it for a sign of life, whatever it says."""
    name, stamp = reported.report.name, reported.last_seen
    snapshot = _replace_node(snapshot, replace(find_node(snapshot, name), report=reported.report))
    stamps = dict(snapshot.last_seen)
    changes = name in stamps and stamp != stamps[name]
    stamps[name] = now if changes or stamp is None else stamp
    return replace(snapshot, last_seen=MappingProxyType(stamps))


def _replace_node(snapshot: Snapshot, node: Node) -> Snapshot:
    others = (other for other in snapshot.nodes if other.name != node.name)
    nodes = sorted((*others, node), key=lambda other: other.name)
    return replace(snapshot, nodes=tuple(nodes))
