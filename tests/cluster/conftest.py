"""A real control plane; what tests leave in it is deleted after each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kilo.lab.controlplane import ControlPlane
from tests.cluster.planes import Cluster, share_plane
from tests.cluster.relay import Relay


@pytest.fixture(scope="session")
def control_plane() -> ControlPlane:
    """The one of this test run, with Kilo's roles and CustomResourceDefinition."""
    return share_plane()


@pytest.fixture
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """The shared control plane, empty; whatever a test leaves there is deleted."""
    one = Cluster(control_plane)
    yield one
    one.empty()


@pytest.fixture
def relay(control_plane: ControlPlane) -> Iterator[Relay]:
    """A way to the shared API server that may be broken."""
    with Relay(port=control_plane.files.port) as one:
        yield one
