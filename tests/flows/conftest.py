"""What the flow tests share: tiny videos, and a bench of them. The server is in `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from method_contract import Bench, build_bench, sprite_videos
from terminals import Terminal


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in class folders, train and test, two videos a class, and one file that is no video."""
    folder = sprite_videos(tmp_path_factory.mktemp("data") / "videos", tmp_path_factory.mktemp("rendered"))
    (folder / "train" / "left" / "broken.mp4").write_bytes(b"not a video")
    return folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Bench:
    """Decoded clips and a teacher, for methods."""
    return build_bench(videos, tmp_path_factory)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: object) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
