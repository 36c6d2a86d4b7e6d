"""Keep: clips to coded clips, as many of each class as a budget has room for, every byte of the set counted.

Legend: N clips, V views of each, K classes, T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage import coded
from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet, materialised
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.streams import WORST_CRF, Stream, encode
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import generator


class Coding(Parameters):
    """How clips are coded.

    Attributes:
        crf: the quantiser, 1 (fine) to 63 (coarse).
        preset: the encoder's effort, 0 to 12; 4 writes some 45 clips of 8×56² a second on one thread.
        scale: the side of the coded picture as a share of the clip's.
    """

    crf: int = Field(50, ge=1, le=WORST_CRF)
    preset: int = Field(4, ge=0, le=12)
    scale: float = Field(1.0, gt=0, le=1)

    def encode(self, clips_NTHWC: NDArray[np.uint8]) -> Stream:
        return encode(clips_NTHWC, self.crf, self.preset, round(self.scale * max(clips_NTHWC.shape[2:4])))


@dataclass(frozen=True)
class Budget:
    """What a set may keep: `ipc` clips a class, or as many as `kb` kilobytes a class have room for.

    Attributes:
        logits: whether the set will carry a teacher's logits.
    """

    kb: float | None
    ipc: int
    classes: int
    views: int
    logits: bool

    def size(self, stream: Stream) -> int:
        """Bytes of the set with these clips."""
        return coded.size_of(len(stream.clips), self.views, self.classes, self.logits) + len(stream.to_bytes())

    def holds(self, stream: Stream) -> bool:
        return self.kb is None or self.size(stream) <= self.kb * 1000 * self.classes


@dataclass(frozen=True)
class Kept:
    """Chosen rows, in class order, and their coded clips."""

    rows_N: NDArray[np.int64]
    stream: Stream


def kept(clips: Clips, orders: Sequence[NDArray[np.int64]], coding: Coding, budget: Budget) -> Kept:
    """The first clips of each class's order: the same number of each, as far as it has them.

    Raises:
        RequestError: not even one clip a class fits; says the least budget that would do.
    """
    most = max(map(len, orders)) if budget.kb is not None else budget.ipc
    rows: list[int] = []
    whole: Stream | None = None
    for place in range(most):
        more = [int(order[place]) for order in orders if place < len(order)]
        longer = coding.encode(clips.read(more))
        longer = longer if whole is None else whole.with_more(longer.clips)
        if not budget.holds(longer):
            break
        rows, whole = rows + more, longer
    if whole is None:
        least = math.ceil(budget.size(longer) / budget.classes / 100) / 10
        raise RequestError(
            f"kb {budget.kb:g} is less than one clip a class takes at crf {coding.crf}: ask for at least {least:g}."
        )
    order_N = np.argsort(clips.labels_N[rows], kind="stable")
    return Kept(np.array(rows)[order_N], whole.chosen(order_N.tolist()))


def as_set(clips: Clips, found: Kept, views: int, view_scale: float, seed: int) -> DistilledSet:
    """The set of kept clips as they are decoded, each with its views."""
    stored = coded.stored_of(found.stream, boxes(found.rows_N, views, view_scale, seed))
    shape = (len(found.rows_N) * views, *found.stream.shape_THW, 3)
    names = [clips.table.videos[row].path for row in found.rows_N for _ in range(views)]
    return DistilledSet(
        clips_NTHWC=materialised(coded.FORM, stored, shape),
        labels_N=clips.labels_N[found.rows_N].repeat(views),
        classes=clips.classes,
        sources=tuple(names),
        form=coded.FORM,
        stored=stored,
    )


def boxes(rows_N: NDArray[np.int64], views: int, view_scale: float, seed: int) -> NDArray[np.uint8]:
    """Views besides the whole picture, uint8 (N, V−1, 3): area share uniform in [view_scale, 1], place uniform."""
    drawn = np.zeros((len(rows_N), views - 1, coded.BOX_BYTES), dtype=np.uint8)
    for number, row in enumerate(rows_N):
        random = generator(seed, int(row), streams.CODED_VIEWS)
        drawn[number, :, 0] = np.round(255 * np.sqrt(random.uniform(view_scale, 1, views - 1)))
        drawn[number, :, 1:] = random.integers(256, size=(views - 1, 2))
    return drawn


def psnr(one_NTHWC: NDArray[np.uint8], other_NTHWC: NDArray[np.uint8]) -> float:
    """The mean over clips, in decibels; 99 for one that lost nothing."""
    errors_N = ((one_NTHWC.astype(np.float32) - other_NTHWC) ** 2).mean(axis=(1, 2, 3, 4))
    return round(float(np.minimum(99, 10 * np.log10(255**2 / np.maximum(errors_N, 1e-9))).mean()), 2)
