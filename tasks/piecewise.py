"""Artifacts made piece by piece: a job that was killed goes on after the last piece that a checkpoint holds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from vidistill.storage.files import second_name
from vidistill.storage.store import MANIFEST
from vidistill.tasks.stage import Work

CHECKPOINT_SECONDS = 2.0  # of work that a kill may cost, and the piece that it was at
CHECKPOINT_SHARE = 0.05  # of the time at most that checkpoints take: each has all pieces so far


def taken_over(work: Work) -> int:
    """How many pieces an earlier attempt left, whose files are in the job's folder now."""
    found = work.last_checkpoint()
    if found is None:
        return 0
    shutil.copytree(found[1], work.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    return found[0]


def pieces(work: Work, first: int, count: int) -> Iterator[int]:
    """The numbers of the pieces that are left; each is kept, sooner or later, once the next is asked for.

    A piece writes files of its own into the job's folder, which it does not change later; only lists, `*.json`, may be
    written anew.
    """
    kept, pause = time.monotonic(), CHECKPOINT_SECONDS
    for number in range(first, count):
        yield number
        if (begun := time.monotonic()) - kept > pause and number + 1 < count:
            work.checkpoint(number + 1, lambda folder: _link(work.folder, folder))
            kept = time.monotonic()
            pause = max(CHECKPOINT_SECONDS, (kept - begun) / CHECKPOINT_SHARE)


def _link(source: Path, target: Path) -> None:
    """Both folders hold the same files, which nothing changes but by writing them anew; lists are copied."""

    def link(old: str, new: str) -> None:
        (shutil.copyfile if old.endswith(".json") else second_name)(Path(old), Path(new))

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST), copy_function=link)
