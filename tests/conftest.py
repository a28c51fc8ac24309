"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The models of the tests are tiny: a second thread only waits for the first. Set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first: several processes then end at about the same time."""
    items.sort(key=lambda item: not ("train" in item.path.parts or item.path.stem == "test_pipeline"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


class Fixtures:
    """Reference data that the numbers are checked against: `fixtures / "mask_case"` is the folder of one case.

    The small cases are in tests/fixtures. The large ones are in ../shared/fixtures: a clone that stands alone skips
    the tests that need them; under CI their absence is a failure.
    """

    def __truediv__(self, case: str) -> Path:
        for root in (REPOSITORY / "tests" / "fixtures", REPOSITORY.parent / "shared" / "fixtures"):
            if (root / case).is_dir():
                return root / case
        message = f"no reference data {case} in {root}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def shared_fixtures() -> Fixtures:
    """Reference data, by case."""
    return Fixtures()
