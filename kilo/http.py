"""What an agent tells over HTTP: ``/health``, ``/ready``, ``/metrics``, ``/graph``, ``/status``,
and ``/``, the page for people.

Everything comes from ``Status``, which holds no secret.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from types import MappingProxyType

from kilo.graphviz import (
    FORMATS,
    LAYOUTS,
    MAX_EDGES,
    TEXT_FORMATS,
    GraphvizError,
    GraphvizMissingError,
    choose_layout,
    count_edges,
    render_graph,
)
from kilo.mesh.graph import draw_graph
from kilo.mesh.topology import Topology
from kilo.metrics import CONTENT_TYPE, write_metrics
from kilo.page.document import Document, compose_document
from kilo.serving import Answer, Limits, Page, Server, answer_page, say
from kilo.status import Status
from kilo.statusdocument import StatusDocument
from kilo.statuspage import list_reasons

INSTEAD = "?format=dot has them, and the page at / shows the mesh"
REQUEST_SECONDS = Limits().request_seconds
"""How long a request may take in all; a picture has its own, shorter, limits."""


def answer_health(_status: Status, _query: Mapping[str, str]) -> Answer:
    """The process lives: that is all this says, for it decides on restarts."""
    return say("ok")


def answer_ready(status: Status, _query: Mapping[str, str]) -> Answer:
    """Whether the last pass succeeded and every store can be heard, or why not."""
    reasons = list_reasons(status)
    if reasons:
        return say("\n".join(reasons), HTTPStatus.SERVICE_UNAVAILABLE)
    return say("ready")


def answer_metrics(status: Status, _query: Mapping[str, str]) -> Answer:
    """Prometheus' text format."""
    return Answer(body=write_metrics(status), content_type=CONTENT_TYPE)


class GraphText:
    """The mesh as DOT, one text for all who read it; may be asked for from any thread.

    That of 600 segments has up to 12 MB, and keeps a processor busy for a quarter of a second.
    """

    def __init__(self) -> None:
        self._drawing = threading.Lock()
        self._last: tuple[Topology, bytes] | None = None

    def write(self, topology: Topology) -> bytes:
        """The text; the last one, while the mesh is the very same."""
        with self._drawing:
            if self._last is None or self._last[0] is not topology:
                self._last = None  # its memory is free before the next is drawn
                self._last = topology, draw_graph(topology).encode()
            return self._last[1]


def answer_graph(status: Status, text: GraphText, query: Mapping[str, str]) -> Answer:
    """The mesh as a picture, ``?format=svg&layout=circo`` unless asked otherwise; a mesh that is
    too large for ``circo`` by ``twopi``.
    """
    topology = status.topology
    image_format = query.get("format", "svg")
    size = (len(topology.segments), len(topology.peers)) if topology else (0, 0)
    layout = query.get("layout", choose_layout(*size))
    for name, value, known in (("format", image_format, FORMATS), ("layout", layout, LAYOUTS)):
        if value not in known:
            told = f"{name} {value!r}: possible values are {', '.join(known)}"
            return say(told, HTTPStatus.BAD_REQUEST)
    if topology is None:
        return say("the mesh is not known yet", HTTPStatus.SERVICE_UNAVAILABLE)
    edges = count_edges(*size)
    if edges > MAX_EDGES and image_format not in TEXT_FORMATS:
        told = f"/graph: {edges} lines are too many for a picture; {INSTEAD}"
        return say(told, HTTPStatus.SERVICE_UNAVAILABLE)
    try:
        image = render_graph(
            partial(text.write, topology), image_format=image_format, layout=layout
        )
    except GraphvizMissingError as error:
        return say(f"/graph: {error}", HTTPStatus.NOT_IMPLEMENTED)
    except GraphvizError as error:
        return say(f"/graph: {error}", HTTPStatus.SERVICE_UNAVAILABLE)
    return Answer(body=image, content_type=FORMATS[image_format])


def answer_status(document: StatusDocument, _query: Mapping[str, str]) -> Answer:
    """The mesh, this agent and its tunnels, as JSON."""
    written = document.write()
    return Answer(body=written.text, content_type="application/json", tag=written.tag)


def answer_people(document: Document, _query: Mapping[str, str]) -> Answer:
    """The page that shows ``/status`` as a picture."""
    return Answer(
        body=document.html,
        content_type="text/html; charset=utf-8",
        headers={"Content-Security-Policy": document.policy, "Referrer-Policy": "no-referrer"},
    )


PAGES: Mapping[str, Callable[[Status, Mapping[str, str]], Answer]] = MappingProxyType(
    {
        "/health": answer_health,
        "/ready": answer_ready,
        "/metrics": answer_metrics,
    }
)


class StatusServer(Server):
    """Serves one agent's ``Status`` on ``--listen``."""

    def __init__(
        self, listen: str, status: Status, *, request_seconds: float = REQUEST_SECONDS
    ) -> None:
        pages: dict[str, Page] = {path: partial(page, status) for path, page in PAGES.items()}
        pages["/graph"] = partial(answer_graph, status, GraphText())
        self.document = StatusDocument(status)
        pages["/status"] = partial(answer_status, self.document)
        pages["/"] = partial(answer_people, compose_document())
        super().__init__(
            listen, partial(answer_page, pages), limits=Limits(request_seconds=request_seconds)
        )
