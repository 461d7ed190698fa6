"""Each patient is examined once, however many tests ask about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.doctor.patients import Patient, Report

Examined = Callable[[Patient], Report]


@pytest.fixture(scope="session")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Examined:
    reports: dict[Patient, Report] = {}

    def ask(patient: Patient) -> Report:
        if patient not in reports:
            reports[patient] = patient(tmp_path_factory.mktemp(patient.__name__))
        return reports[patient]

    return ask
