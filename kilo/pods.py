"""What the programs that connect the host's pods are told: the CNI configuration, if it is ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from kilo.errors import DataplaneError
from kilo.log import get_logger
from kilo.mesh.model import IPNetwork
from kilo.mesh.plan import PodNetwork
from kilo.notices import Notices


class PodConfiguration(Protocol):
    """Where those programs look."""

    def keep(self, subnets: Sequence[IPNetwork], mtu: int) -> bool:
        """Bring it up to date; whether that took a change. Blocks. Raises ``DataplaneError``."""
        ...


class Pods:
    """Keeps the configuration; one that cannot be kept is a warning, and no pass fails for it."""

    def __init__(self, configuration: PodConfiguration | None) -> None:
        """None: the pods are somebody else's."""
        self._configuration = configuration
        self._log = get_logger("pods")
        self._notices = Notices("pods")

    async def configure(self, network: PodNetwork | None) -> None:
        """Say this from now on, if there is anything to say."""
        if self._configuration is None or network is None:
            return
        try:
            # Blocks: reads, and perhaps writes, a file.
            changed = await asyncio.to_thread(
                self._configuration.keep, network.subnets, network.mtu
            )
        except DataplaneError as error:
            self._notices.tell("pods not configured", [str(error)])
            return
        self._notices.tell("pods not configured", ())
        if changed:
            subnets = ",".join(map(str, network.subnets))
            self._log.info("pods configured", subnets=subnets, mtu=network.mtu)
