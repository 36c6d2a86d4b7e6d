"""Progress of long stages in the Prefect UI: an artifact a stage, updated at most every few seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from vidistill.tasks.stage import listening

INTERVAL_SECONDS = 3.0


@contextmanager
def publishing_progress() -> Iterator[None]:
    """While open, jobs of this process that take longer than a few seconds show their progress in the UI."""
    with listening(_Publisher()):
        yield


class _Publisher:
    def __init__(self) -> None:
        self._artifacts: dict[str, UUID] = {}
        self._shown: dict[str, float] = {}

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.context import TaskRunContext

        if TaskRunContext.get() is None:
            return
        now = time.monotonic()
        last = self._shown.setdefault(label, now)
        finished = done == total and label in self._artifacts
        if now - last < INTERVAL_SECONDS and not finished:
            return
        self._shown[label] = now
        percent = 100.0 * done / max(1, total)
        if label in self._artifacts:
            update_progress_artifact(self._artifacts[label], progress=percent)
        else:
            key = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
            made = create_progress_artifact(progress=percent, key=key, description=note or label)
            self._artifacts[label] = made  # type: ignore[assignment]
