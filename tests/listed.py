"""Indices of videos that need not exist, for what is planned and never run."""

from __future__ import annotations

from vidistill.tasks.videos.index import IndexTable
from vidistill.tasks.videos.scan import Video


def table(groups: int = 3) -> IndexTable:
    videos = tuple(
        Video(path=f"{split}/{name}/{group}.mp4", label=label, split=split, group=f"{name}_{group}", bytes=1,
              sha256=f"{split}{name}{group}", width=64, height=64, frames=32, duration_seconds=2, codec="")
        for split, count in (("train", groups), ("test", 1))
        for label, name in enumerate(("left", "right"))
        for group in range(count)
    )  # fmt: skip
    return IndexTable(layout="folders", classes=("left", "right"), flips=False, videos=videos, rejected=())
