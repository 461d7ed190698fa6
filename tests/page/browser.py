"""A real browser: headless Chromium, driven by its own driver over the W3C's WebDriver protocol,
which is JSON over HTTP.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

LIMIT_SECONDS = 120.0
OPTIONS = (
    "--headless",
    "--no-sandbox",  # tests run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class BrowserError(Exception):
    """The browser could not do what it was told; what it says about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """One window."""

    session: str
    """The URL of its session."""

    def open(self, url: str) -> None:
        """Go there; returns when the document is loaded."""
        self._post("url", url=url)

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body returns."""
        return self._post("execute/sync", script=script, args=list(arguments))

    def run_async(self, script: str) -> Any:
        """What a function body gives to the function that is its argument."""
        return self._post("execute/async", script=script, args=[])

    def wait(self, condition: str, *arguments: object) -> Any:
        """Until the expression is true of the page, looked at whenever the page changes; its value.

        It may use ``find`` for ``document.querySelector``, and ``args``.
        """
        script = f"""
            const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);
            const find = (selector) => document.querySelector(selector);
            const look = () => {{ try {{ return {condition}; }} catch (error) {{ return null; }} }};
            const watcher = new MutationObserver(check);
            function check() {{
                const found = look();
                if (found) {{ watcher.disconnect(); done(found); }}
            }}
            watcher.observe(document, {{
                subtree: true, childList: true, characterData: true, attributes: true
            }});
            check();"""
        return self._post("execute/async", script=script, args=list(arguments))

    def tap(self, *, x: int, y: int, kind: str) -> None:
        """Press there, and let go: with a ``mouse``, or a finger (``touch``)."""
        actions = [
            {"type": "pointerMove", "duration": 0, "x": x, "y": y},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}}
        self._post("actions", actions=[{**pointer, "actions": actions}])

    def command(self, name: str, **parameters: object) -> Any:
        """One of the DevTools' commands."""
        return self._post("goog/cdp/execute", cmd=name, params=parameters)

    def resize(self, width: int, height: int) -> None:
        """The page's own size, in its pixels, without the window's frame."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def prefer(self, scheme: str) -> None:
        """``dark`` or ``light``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def read_console(self) -> list[str]:
        """What was written to the console since the last time, errors of the browser's own too."""
        entries = self._post("se/log", type="browser")
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def shoot(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(_call("GET", f"{self.session}/screenshot"))

    def _post(self, path: str, **body: object) -> Any:
        return _call("POST", f"{self.session}/{path}", body)


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in ``folder``; gone afterwards."""
    with start_driver() as driver:
        options = {
            "args": [*OPTIONS, f"--user-data-dir={folder}"],
            "binary": "/usr/bin/chromium",
        }
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {
                "script": int(LIMIT_SECONDS * 1000),
                "pageLoad": int(LIMIT_SECONDS * 1000),
            },
        }
        answer = _call("POST", f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
        browser = Browser(session=f"{driver}/session/{answer['sessionId']}")
        try:
            yield browser
        finally:
            _call("DELETE", browser.session)


@contextlib.contextmanager
def start_driver() -> Iterator[str]:
    """The driver's URL; it chooses its port and says so."""
    program = ("chromedriver", "--port=0")
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if "successfully on port" in line)
            yield f"http://127.0.0.1:{line.rstrip().rstrip('.').rpartition(' ')[2]}"
        finally:
            process.terminate()


def _call(method: str, url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_SECONDS + 30) as answer:
            return json.load(answer)["value"]
    except HTTPError as error:
        found = json.load(error)["value"]
        raise BrowserError(f"{found['error']}: {found['message']}") from error
