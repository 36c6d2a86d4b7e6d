"""What all tests share: real clips, one thread, and the session's Prefect server.

`make test` runs two processes (pytest-xdist); each takes a file at a time, those of tests/flows first, which are the
longest. (By file: xdist 3.8 does not see its own groups under pytest 9.2.) A process has one server, which starts with
the first test that asks for it and is stopped at the end. A new test shares it by asking:

    def test_mine(server, tmp_path):                           # processes: the command line, a worker
        CommandLine(tmp_path, server.variables)("run", …)      # does not start a server of its own (5 s)

    @pytest.mark.usefixtures("prefect_server")                 # a flow that is called in the test's own process
    def test_its_flow(): …

It is shared: ask it for what you started (by name, time or run), never for everything. A test that must have no
server, or one of its own, asks for neither.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the processes that tests start inherit it

sys.path.append(str(Path(__file__).resolve().parent))  # what tests share lies in tests/ itself
pytest.register_assert_rewrite("deployed", "flow_running", "method_contract", "terminals")
settings.register_profile("ours", deadline=None)  # a machine that is busy is no finding
settings.load_profile("ours")
pytest_plugins = ["faults", "object_storage", "stumbling"]

from flow_running import BIN, background, environment  # noqa: E402


@dataclass(frozen=True)
class Server:
    url: str
    home: Path

    @property
    def variables(self) -> dict[str, str]:
        return {"PREFECT_API_URL": self.url}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server on loopback with a database of its own; see the top of this file."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/api"
    with background(command, folder, environment(folder)) as process:
        deadline = time.monotonic() + 180
        while not _healthy(url):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the Prefect server did not start"
            time.sleep(0.3)
        yield Server(url, folder)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def prefect_server(server: Server) -> Iterator[None]:
    """Flows of this process run on the session's server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.url}):
        yield


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
