"""The page behind a proxy that adds a prefix, as Kubernetes' API server does for pods."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kilo.http import StatusServer
from tests.page.browser import Browser
from tests.page.meshes import make_three

PREFIX = "/api/v1/namespaces/kilo/pods/berlin:1107/proxy"


@contextmanager
def proxying(port: int) -> Iterator[str]:
    """A proxy to that port; the URL of what is there at ``/``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.startswith(PREFIX)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            tag = {name: self.headers[name] for name in ("If-None-Match",) if name in self.headers}
            connection.request("GET", self.path.removeprefix(PREFIX), headers=tag)
            answer = connection.getresponse()
            body = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{PREFIX}/"
        finally:
            server.shutdown()
            thread.join()


def test_the_page_works_below_a_prefix(browser: Browser) -> None:
    with StatusServer("127.0.0.1:0", make_three()) as server, proxying(server.port) as url:
        browser.open(url)
        browser.wait("find('.place.segment')")
        links = browser.run("return [...document.querySelectorAll('a')].map((link) => link.href)")
        assert links
        assert [link for link in links if not link.startswith(url)] == []
        browser.open("about:blank")
