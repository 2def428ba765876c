import os
from pathlib import Path

import pytest


def _given(name: str) -> Path:
    path = os.environ.get(name)
    if not path:
        pytest.skip(f"{name} is not set: scripts/test-python sets it")
    return Path(path).resolve()


@pytest.fixture(scope="session")
def binary() -> Path:
    """streamgauge itself."""
    return _given("STREAMGAUGE_BIN")


@pytest.fixture(scope="session")
def quickstart() -> Path:
    """The store that scripts/quickstart makes."""
    return _given("STREAMGAUGE_QUICKSTART")
