"""Draws the pictures of docs/page.md anew: ``python -m tests.page.screenshots docs/images``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kilo.http import StatusServer
from tests.page.browser import open_browser
from tests.page.meshes import make_many, make_three

SIZE = (1040, 640)
PICTURES = {"page-3.png": make_three, "page-300.png": make_many}
DRAWN = "find('.place') && find('#segments tbody tr')"


def shoot_all(folder: Path) -> None:
    """One picture a mesh."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
        for name, make in PICTURES.items():
            with StatusServer("127.0.0.1:0", make()) as server:
                browser.resize(*SIZE)
                browser.prefer("light")
                browser.open(f"http://127.0.0.1:{server.port}/")
                browser.wait(DRAWN)
                (folder / name).write_bytes(browser.shoot())
                browser.open("about:blank")


if __name__ == "__main__":
    shoot_all(Path(sys.argv[1]))
