"""Kilo: an encrypted layer-3 mesh of WireGuard tunnels between machines in different places."""

__version__ = "0.1.0"
