"""When nftables' or iptables' rules have last been changed, told without reading any of them.

With iptables, reading ours takes reading all: a cluster's may be tens of thousands, and nodes of
the mesh come and go while none of them changes. With nftables it takes a program, which has to be
started and writes JSON.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from kilo.dataplane.nlsocket import (
    NetlinkSocket,
    parse_attributes,
    run_with_socket,
)
from kilo.errors import DataplaneError

# Apart from other sockets': it may have to wait for a long transaction of somebody's, and what
# depends on it is not to wait for a listing of routes.
_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ruleset")

LEGACY_SECONDS = 20.0
"""The legacy tables have no age. So they count as new after so long; shorter than Kilo's resync
period, which is what notices changes there, for the kernel tells nobody of them."""

_NETLINK_NETFILTER = 12
_GET_GENERATION = 10 << 8 | 16  # nf_tables, NFT_MSG_GETGEN
_HEADER = bytes(4)  # struct nfgenmsg: any family
_GENERATION_ID = 1  # NFTA_GEN_ID


async def find_nft_age() -> int | None:
    """The number of the ruleset's generation, another after each transaction that changed anything,
    whoever's it was; None where the kernel has no nf_tables.
    """
    try:
        return await run_with_socket(_ask_generation, _NETLINK_NETFILTER, threads=_threads)
    except DataplaneError:
        return None


def _ask_generation(netlink: NetlinkSocket) -> int | None:
    for body in netlink.ask(_GET_GENERATION, 0, _HEADER):
        value = parse_attributes(memoryview(body), len(_HEADER)).get(_GENERATION_ID)
        if value is not None:
            return int.from_bytes(value, "big")
    return None


def find_legacy_age() -> int:
    """A number that another takes the place of every now and then."""
    return int(time.monotonic() // LEGACY_SECONDS)
