"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The models of the tests are tiny: a second thread only waits for the first. Set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_FIXTURES = REPOSITORY.parent / "shared" / "fixtures"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """The reference data that the numbers are checked against: the folder ../shared/fixtures.

    A clone that stands alone skips the tests that need it; under CI its absence is a failure.
    """
    if not SHARED_FIXTURES.is_dir():
        message = f"no reference data at {SHARED_FIXTURES}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED_FIXTURES
