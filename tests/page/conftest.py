"""One browser for all tests of the page; whatever a test leaves in its console fails that test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.page.browser import Browser, open_browser


@pytest.fixture(scope="session")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Browser) -> Iterator[Browser]:
    """A window as large as a laptop's, on an empty page."""
    shared_browser.open("about:blank")
    shared_browser.resize(1280, 860)
    shared_browser.prefer("light")
    shared_browser.read_console()
    yield shared_browser
    assert shared_browser.read_console() == []
