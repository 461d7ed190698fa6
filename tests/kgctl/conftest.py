"""A mesh in a directory for every test that asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kgctl.site import Site, fill


@pytest.fixture
def empty_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    """A directory with nothing in it."""
    directory = tmp_path / "mesh"
    directory.mkdir()
    return Site(directory, capsys)


@pytest.fixture
def site(empty_site: Site) -> Site:
    """The mesh described in ``tests.kgctl.site``."""
    fill(empty_site)
    return empty_site
