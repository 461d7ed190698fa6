"""A node's first declaration, by its own agent, and its pod subnets.

What operators declare wins: an agent writes where there is nothing, and adds pod subnets where
there are none of a pool's family. Nothing is read while nothing can have changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from kilo.backends.documents import make_node_document
from kilo.backends.etcd.asks import get, is_absent, put, transact
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.pools import provide_subnets
from kilo.backends.etcd.views import encode_document, read_declared, read_pools, read_together
from kilo.log import get_logger
from kilo.mesh.model import NodeSpec
from kilo.mesh.pools import find_lacking

RECHECK_SECONDS = 300.0
"""In case that a change was never told: two keys are read then."""


class Registrar:
    """Keeps one node declared. Its methods are for one task at a time."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        spec: NodeSpec | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``spec``: what to declare where nothing is declared; None: nothing."""
        self._client = client
        self._keys = keys
        self._spec = spec
        self._clock = clock
        self._check_at = -math.inf
        self._is_lacking = False
        """Whether a pool has something to give to the node."""
        self._watched: frozenset[str] = frozenset()
        self._log = get_logger("registration")

    def note_change(self, key: str) -> None:
        """The key has another value, or is gone: look again before the next report."""
        if key in self._watched:
            self._check_at = -math.inf

    async def ensure(self, name: str) -> None:
        """See to it that the node is declared.

        ``BackendError`` where it is not and cannot be: it would take part in a wrong location.
        """
        watched = frozenset({self._keys.node(name), self._keys.settings})
        if self._clock() < self._check_at and watched == self._watched:
            return
        self._watched = watched
        # Set before reading: what changes meanwhile takes it back.
        self._check_at = self._clock() + RECHECK_SECONDS
        try:
            await self._check(name)
        except BaseException:
            self._check_at = -math.inf
            raise

    async def _check(self, name: str) -> None:
        node, settings = await read_together(
            self._client, get(self._keys.node(name)), get(self._keys.settings)
        )
        spec = read_declared(node, name).spec
        if not node:
            if self._spec is None:
                self._is_lacking = False
                return
            await self._declare(name, self._spec)
            spec = self._spec
        self._is_lacking = bool(find_lacking(read_pools(settings), spec.pod_subnets))

    async def _declare(self, name: str, spec: NodeSpec) -> None:
        """Unless an operator does at this moment."""
        key, document = self._keys.node(name), make_node_document(name, spec)
        answer = await self._client.call(
            transact(when=[is_absent(key)], then=[put(key, encode_document(document))])
        )
        if answer.succeeded:
            self._log.info("node declared", key=key)

    async def provide(self, name: str) -> None:
        """Get the node the pod subnets that it lacks.

        ``BackendError`` where a pool has none left: it is asked again at the next call.
        """
        if self._is_lacking:
            await provide_subnets(self._client, self._keys, name)
            self._is_lacking = False
