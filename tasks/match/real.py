"""Real clips for what is matched: random ones of each class, drawn from (seed, iteration, class), and their views and
flips, drawn from (seed, iteration, all classes of the batch).

Shapes: B clips a batch, C colours, T frames, H height, W width. `x_BCTHW` is float32 and normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.clips import Clips
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.training import Device, generator

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RealClips:
    """Random real clips of a class, from memory where the whole set takes at most 1 GiB, else read when needed.

    Attributes:
        clips: the training split.
        seed: with the iteration and the class it gives the rows; with the iteration and the batch's classes the views
            and, where the data allow them, the flips.
        device: where the clips go.
    """

    clips: Clips
    seed: int
    device: Device

    def __post_init__(self) -> None:
        self.clips.preload()

    def rows(self, iteration: int, label: int, count: int) -> NDArray[np.int64]:
        """`count` rows of the class without replacement; all of them, in random order, where it has fewer."""
        return generator(self.seed, iteration, label, streams.REAL_ROWS).permutation(self.clips.rows_of(label))[:count]

    def batch(
        self, iteration: int, labels: Sequence[int], count: int, frame: np.random.Generator | None = None
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """x_BCTHW of up to `count` clips of each of these classes, and their labels_B; x_BC1HW where `frame` draws one
        frame of each.
        """
        (whole,) = self.chunks(iteration, labels, count, count * len(labels), frame)
        return whole

    def chunks(
        self, iteration: int, labels: Sequence[int], count: int, size: int, frame: np.random.Generator | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """The same batch, at most `size` clips at a time."""
        table = self.clips.table
        rows_B = np.concatenate([self.rows(iteration, label, count) for label in labels])
        random = generator(self.seed, iteration, *labels, streams.REAL_VIEWS)
        views_B, flips_B = random.integers(table.views, size=len(rows_B)), random.random(len(rows_B)) < 0.5
        for first in range(0, len(rows_B), size):
            part = slice(first, first + size)
            clips_NTHWC = self.clips.read(rows_B[part], views_B[part])
            if frame is not None:
                frames_N = frame.integers(clips_NTHWC.shape[1], size=len(clips_NTHWC))
                clips_NTHWC = clips_NTHWC[range(len(frames_N)), frames_N][:, None]
            x_BCTHW = training.to_input(clips_NTHWC, table.mean, table.std, self.device)
            flipped = training.flip_some(x_BCTHW, flips_B[part]) if table.flips else x_BCTHW
            yield flipped, self.clips.labels_N[rows_B[part]]
