from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real clips (`VIDISTILL_TEST_DATA`), which is not part of the project."""
    root = Path(os.environ.get("VIDISTILL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real clips at {root}: set VIDISTILL_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Flows of this process run against a Prefect server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
