"""Is anything lost? A datagram every 10 ms between pairs of hosts, and what did not arrive.

with Probe(hosts, {("a1", "b1"): "10.2.3.1"}) as probe:
    ...
    losses = probe.stop()
assert not losses.lost, losses
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self

from kilo.errors import LabError
from kilo.lab import probe as program
from kilo.lab.box import PYTHON, Popen

PORT = 9107
INTERVAL_SECONDS = 0.01
DRAIN_SECONDS = 5.0
"""How long what was sent may be under way before it counts as lost."""

Pair = tuple[str, str]


class Place(Protocol):
    """Where a prober can run: a host or a pod."""

    name: str

    def popen(self, command: Sequence[str]) -> Popen:
        """Start a program whose input and output are pipes of text, line by line."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What became of one pair's datagrams, in one direction."""

    sent: int
    lost: int
    longest_gap_seconds: float
    """The longest time without any that arrived."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What became of all pairs' datagrams."""

    pairs: Mapping[Pair, Loss]

    @property
    def lost(self) -> int:
        """How many are lost, of all pairs."""
        return sum(loss.lost for loss in self.pairs.values())

    @property
    def sent(self) -> int:
        """How many were sent, by all pairs."""
        return sum(loss.sent for loss in self.pairs.values())

    def __str__(self) -> str:
        lines = [f"{self.lost} of {self.sent} lost"]
        lines += [
            f"{source} -> {target}: {loss.lost} of {loss.sent},"
            f" longest gap {loss.longest_gap_seconds:.2f} s"
            for (source, target), loss in self.pairs.items()
            if loss.lost
        ]
        return "\n".join(lines)


class Probe:
    """A running probe; as a context manager it ends with its block."""

    def __init__(
        self,
        places: Iterable[Place],
        addresses: Mapping[Pair, str],
        *,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        """Start to send from the first to the second of each pair, at the address given for it."""
        self._pairs = list(addresses)
        self._interval = interval_seconds
        names = {name for pair in addresses for name in pair}
        self._probers: dict[str, Popen] = {}
        try:
            for place in places:
                if place.name in names:
                    targets = [to for (source, _), to in addresses.items() if source == place.name]
                    self._start(place, targets)
            for name in self._probers:
                self._hear(name)
            for name in self._probers:
                self._tell(name, "go")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, place: Place, targets: list[str]) -> None:
        self._probers[place.name] = place.popen([*PYTHON, program.__file__])
        config = {"name": place.name, "port": PORT, "interval": self._interval, "targets": targets}
        self._tell(place.name, json.dumps(config))

    def _tell(self, name: str, line: str) -> None:
        stdin = self._probers[name].stdin
        assert stdin is not None  # noqa: S101 - for the type checker: it was opened with pipes
        try:
            stdin.write(line + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise LabError(f"host {name}: its prober has ended") from error

    def _hear(self, name: str) -> Any:
        stdout = self._probers[name].stdout
        assert stdout is not None  # noqa: S101 - likewise
        line = stdout.readline()
        if not line:
            raise LabError(f"host {name}: its prober has ended")
        return json.loads(line)

    def stop(self) -> Losses:
        """Stop sending, wait for what is under way, and count; once only."""
        for name in self._probers:
            self._tell(name, "stop")
        sent = {name: int(self._hear(name)["sent"]) for name in self._probers}
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            losses = self._count(sent)
            if not losses.lost or time.monotonic() > deadline:
                break
            time.sleep(0.1)  # nothing announces the arrival of the last datagram
        self.close()
        return losses

    def _count(self, sent: Mapping[str, int]) -> Losses:
        for name in self._probers:
            expected = {source: sent[source] for source, target in self._pairs if target == name}
            self._tell(name, f"report {json.dumps(expected)}")
        reports = {name: self._hear(name) for name in self._probers}
        return Losses({pair: self._make_loss(sent, reports, pair) for pair in self._pairs})

    def _make_loss(self, sent: Mapping[str, int], reports: Mapping[str, Any], pair: Pair) -> Loss:
        source, target = pair
        lost, run = reports[target][source]
        return Loss(
            sent=sent[source], lost=lost, longest_gap_seconds=run and (run + 1) * self._interval
        )

    def close(self) -> None:
        """End the probers; may be called twice."""
        for prober in self._probers.values():
            with suppress(BrokenPipeError):
                prober.communicate(timeout=10.0)
        self._probers = {}
