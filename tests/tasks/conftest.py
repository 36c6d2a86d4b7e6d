"""What the tests of methods share: a few rendered videos, decoded by the real stages."""

from __future__ import annotations

import shutil

import pytest
from flow_running import CLASSES
from method_contract import Bench, build_bench

from vidistill.tasks.videos.sprites import SpritesParameters, render_sprites


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A few classes of sprites, two clips each for training."""
    rendered, videos = tmp_path_factory.mktemp("rendered"), tmp_path_factory.mktemp("videos")
    render_sprites(rendered, SpritesParameters(size=48, frames=12, train_per_class=2, test_per_class=1))
    for split in ("train", "test"):
        for name in CLASSES:
            shutil.copytree(rendered / split / name, videos / split / name)
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    try:
        return build_bench(videos, tmp_path_factory.mktemp("bench"))
    finally:
        patch.undo()
