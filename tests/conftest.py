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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread, as it does in a stage that asks for one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_transformer() -> Iterator[None]:
    """Latte's size `micro` is smaller than micro."""
    from vidistill.models.latte import SIZES, Size

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "micro", Size(2, 32, 2))
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Flows of this process run against a Prefect server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
