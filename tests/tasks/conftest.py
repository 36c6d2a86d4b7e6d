"""What the tests of methods share: a few rendered videos, decoded by the real stages."""

from __future__ import annotations

import pytest
from method_contract import Bench, build_bench, sprite_videos


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A few classes of sprites, two clips each for training."""
    videos = sprite_videos(tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("rendered"))
    return build_bench(videos, tmp_path_factory)
