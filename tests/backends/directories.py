"""A mesh directory and what editors, tools and accidents do to its files."""

from __future__ import annotations

from pathlib import Path

import yaml

from kilo.backends.documents import make_node_document, make_peer_document
from kilo.mesh.model import NodeSpec
from tests.builders import make_peer


class MeshDirectory:
    """Files below one directory, written the plain way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str | bytes) -> Path:
        """In place: truncated, then filled."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, str):
            path.write_text(text)
        else:
            path.write_bytes(text)
        return path

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def rename_over(self, name: str, text: str) -> None:
        """As vim does: the old file aside, the new one under a name of its own, then renamed."""
        path = self.path / name
        path.rename(path.with_name(f"{path.name}~"))
        path.with_name("4913").write_text(text)
        path.with_name("4913").rename(path)

    def write_peers(self, name: str, *peers: str) -> Path:
        """One document a peer; the address comes from its place."""
        return self.write(name, render_peers(*peers))


def render_peers(*peers: str) -> str:
    return yaml.safe_dump_all(
        make_peer_document(make_peer(peer, f"10.5.0.{number}/32"))
        for number, peer in enumerate(peers, start=1)
    )


def render_node(name: str, location: str) -> str:
    return yaml.safe_dump(make_node_document(name, NodeSpec(location=location)))


def list_names(path: Path) -> list[str]:
    """Of everything in that directory, hidden or not."""
    return sorted(entry.name for entry in path.iterdir())
