"""What holds for every layer: a layer that was skipped whole has not been tested, so it fails.

And what several layers share: one run of what needs another kernel.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from tests.kernel.vm.machine import Outcomes


def find_layer(nodeid: str) -> str:
    """The first folder below ``tests``; the files beside it are a layer of their own."""
    parts = Path(nodeid).parts
    return parts[1] if len(parts) > 2 else "tests"


class LayerCount:
    """Counts, by layer, the tests that ran and those that were skipped."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        layer = find_layer(report.nodeid)
        if report.skipped:
            self.skipped[layer] += 1
        elif report.when == "call":
            self.ran[layer] += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for layer in sorted(self.skipped.keys() - self.ran.keys()):
            sys.stderr.write(f"\nlayer {layer}: all {self.skipped[layer]} tests were skipped\n")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LayerCount(), "layer-count")


@pytest.fixture(autouse=True)
def _logging_left_as_it_was() -> Iterator[None]:
    """The log is the process's, and some tests run a program's ``main`` in this one."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of the tests that need another kernel: one boot for all that were selected."""
    # Imported here: most runs, and the one in that kernel itself, do without.
    from tests.kernel.vm.suite import run_cases, select_cases  # noqa: PLC0415 - see above

    capture = request.config.pluginmanager.getplugin("capturemanager")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\n{line}")

    return run_cases(select_cases(request.session), tmp_path_factory.mktemp("kernel"), tell)
