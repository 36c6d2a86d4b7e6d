"""What the flow tests share: tiny videos, and a bench of them. The server is in `tests/conftest.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from flow_running import CLASSES
from method_contract import Bench, build_bench

from vidistill.tasks.videos.sprites import SpritesParameters, render_sprites


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
