"""Rows: which clips of a class are drawn, where a method begins or a selection ends with random ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.clips import Clips
from vidistill.storage.errors import RequestError
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import generator


def draw_rows(clips: Clips, labels: tuple[int, ...], ipc: int, seed: int) -> NDArray[np.int64]:
    """Rows of `ipc` random clips a class, seeded by (seed, class): a class draws the same in any group."""
    return np.concatenate(
        [generator(seed, label, streams.CORESET).permutation(enough(clips, label, ipc))[:ipc] for label in labels]
    )


def enough(clips: Clips, label: int, ipc: int, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The rows of a class, or those of them that are given.

    Raises:
        RequestError: they are fewer than `ipc`.
    """
    rows = clips.rows_of(label) if rows is None else rows
    if len(rows) < ipc:
        name = clips.classes[label]
        raise RequestError(
            f"ipc {ipc} asks for more clips than the class {name!r} has ({len(rows)} usable training videos)."
        )
    return rows
