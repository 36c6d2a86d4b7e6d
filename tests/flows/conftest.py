"""What the flow tests share: tiny videos and a real Prefect server."""

from __future__ import annotations

import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidistill.tasks.videos.sprites import SpritesParameters, render_sprites

sys.path.append(str(Path(__file__).resolve().parent.parent))  # what tests share lies in tests/ itself
pytest.register_assert_rewrite("deployed", "flow_running", "method_contract")

from flow_running import BIN, CLASSES, background, environment  # noqa: E402
from method_contract import Bench, build_bench  # noqa: E402


@dataclass(frozen=True)
class Server:
    url: str
    home: Path

    @property
    def variables(self) -> dict[str, str]:
        return {"PREFECT_API_URL": self.url}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server on loopback with a database of its own."""
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


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in class folders, train and test, two videos a class, and one file that is no video."""
    rendered, folder = tmp_path_factory.mktemp("rendered"), tmp_path_factory.mktemp("data") / "videos"
    render_sprites(rendered, SpritesParameters(size=48, frames=12, train_per_class=2, test_per_class=1))
    for split in ("train", "test"):
        for name in CLASSES:
            shutil.copytree(rendered / split / name, folder / split / name)
    (folder / "train" / "left" / "broken.mp4").write_bytes(b"not a video")
    return folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Bench:
    """Decoded clips and a teacher, for methods."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    try:
        return build_bench(videos, tmp_path_factory.mktemp("bench"))
    finally:
        patch.undo()
