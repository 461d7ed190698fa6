"""The WireGuard interfaces of a host that have its key, whatever they are called.

An interface bears no mark but its name, which a flag may change from one agent to the next. The
key is a mark as well: agents of this host alone have it.
"""

from __future__ import annotations

from contextlib import suppress

from kilo.dataplane.links import read_links
from kilo.dataplane.nlsocket import run_with_socket
from kilo.dataplane.wireguard import KERNEL_KIND, WireGuard
from kilo.errors import DataplaneError
from kilo.keyfile import public_key
from kilo.mesh.keys import PrivateKey

KINDS = frozenset({KERNEL_KIND, "tun"})


async def find_interfaces(key: PrivateKey) -> list[str]:
    """Those that have this key, in the order of their names. Raises ``DataplaneError``.

    One that cannot be asked has none: it may be any program's.
    """
    own = public_key(key)
    links = await run_with_socket(read_links)
    found = []
    for name in sorted(link.name for link in links if link.kind in KINDS):
        with suppress(DataplaneError):
            device, _ = await WireGuard(name, key).read()
            if device is not None and device.public_key == own:
                found.append(name)
    return found
