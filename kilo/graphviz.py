"""DOT -> a picture, by the ``dot`` program of Graphviz."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kilo.errors import KiloError

FORMATS = {
    "dot": "text/vnd.graphviz; charset=utf-8",
    "gv": "text/vnd.graphviz; charset=utf-8",
    "jpg": "image/jpeg",
    "json": "application/json",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml; charset=utf-8",
}
"""Format -> content type; ``TEXT_FORMATS`` are DOT itself and need no Graphviz."""

TEXT_FORMATS = ("dot", "gv")

LAYOUTS = ("circo", "dot", "neato", "twopi", "fdp")

CIRCO_EDGES = 150
"""circo needs 3 s for 190 and more than 15 s for 600; twopi under 1 s for 1,800."""

MAX_EDGES = 50_000
"""A picture of 500,000 has 200 MB, all of which the agent would hold in its memory."""

RENDER_SECONDS = 15.0
"""What one picture may take; layouts of some hundred nodes can take for ever."""

MAX_WAITING = 4
"""Who wait for a picture while another is drawn: each keeps one of the agent's connections."""

# One picture at a time: a layout keeps a processor busy, and the host has other work.
_turn = threading.Lock()
_waiting = threading.BoundedSemaphore(MAX_WAITING)


class GraphvizMissingError(KiloError):
    """Graphviz is not installed."""


class GraphvizError(KiloError):
    """No picture came of it, or not in time."""


def count_edges(leaders: int, peers: int) -> int:
    """Every leader is joined with all others and with every peer."""
    return leaders * (leaders - 1) // 2 + leaders * peers


def choose_layout(leaders: int, peers: int) -> str:
    """The layout that suits a mesh of that size."""
    return "circo" if count_edges(leaders, peers) <= CIRCO_EDGES else "twopi"


def render_graph(write: Callable[[], bytes], *, image_format: str, layout: str) -> bytes:
    """The graph in one of ``FORMATS`` by one of ``LAYOUTS``; blocks, up to half a minute.

    ``write`` gives it as DOT, and is called when there is a use for that.
    """
    if image_format in TEXT_FORMATS:
        return write()
    with _taking_turns():
        return _run(write(), f"-K{layout}", f"-T{image_format}")


@contextmanager
def _taking_turns() -> Iterator[None]:
    if not _waiting.acquire(blocking=False):
        raise GraphvizError("too many wait for a picture; try again later")
    try:
        has_turn = _turn.acquire(timeout=RENDER_SECONDS)
    finally:
        _waiting.release()
    if not has_turn:
        raise GraphvizError("busy with another picture; try again later")
    try:
        yield
    finally:
        _turn.release()


def _run(dot: bytes, *options: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603 - options are from the two tables above
            ("dot", *options),  # noqa: S607 - wherever the operator's PATH has it
            input=dot,
            capture_output=True,
            check=False,
            timeout=RENDER_SECONDS,
        )
    except FileNotFoundError as error:
        raise GraphvizMissingError(
            "needs Graphviz, which is not installed (Debian: graphviz); ?format=dot works without"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise GraphvizError(
            f"no picture within {RENDER_SECONDS:g} s; a simpler ?layout=, dot say, may do"
        ) from error
    except OSError as error:
        raise GraphvizError(f"dot cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        complaint = done.stderr.decode(errors="replace").partition("\n")[0]
        raise GraphvizError(complaint or f"dot ended with {done.returncode}")
    return done.stdout
