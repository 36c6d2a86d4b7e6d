from __future__ import annotations

import os
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
