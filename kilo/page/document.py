"""One document with its style and its scripts in it: the browser fetches nothing else but
``/status``, and its policy lets it run nothing else, whatever a node or a peer is called.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from kilo.mesh.roaming import SESSION_SECONDS

SCRIPTS = ("facts.js", "layout.js", "picture.js", "gestures.js", "tables.js", "live.js")
"""In this order they are one module, which shares nothing with the page's other scripts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What the browser is given."""

    html: bytes
    policy: str
    """The Content-Security-Policy under which all of it works."""


def compose_document() -> Document:
    """The page as it is installed."""
    style = _read("page.css")
    script = "\n".join(_read(name) for name in SCRIPTS)
    script = script.replace("@SESSION_SECONDS@", f"{SESSION_SECONDS:g}")
    html = _read("page.html").replace("@STYLE@", style).replace("@SCRIPT@", script)
    return Document(html=html.encode(), policy=_write_policy(style, script))


def _read(name: str) -> str:
    return files("kilo.page").joinpath(name).read_text(encoding="utf-8")


def _write_policy(style: str, script: str) -> str:
    """Names the two inline elements by their digests; no text becomes HTML (Trusted Types)."""
    rules = (
        "default-src 'none'",
        f"style-src {_digest(style)}",
        f"script-src {_digest(script)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
    return "; ".join(rules)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
