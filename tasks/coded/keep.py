"""Keep: clips to coded clips, as many of each class as a budget has room for, every byte of the set counted.

Legend: N clips, V views of each, K classes, T frames, H height, W width.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage import coded
from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet, materialised, variants
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.streams import MOST_FRAMES, WORST_CRF, Stream, decode, encode
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import generator

FINEST_CRF, COARSER = 20, (55, 60, WORST_CRF)
AT_ONCE = 32  # clips that are read before they are coded


class Coding(Parameters):
    """How clips are coded.

    Attributes:
        crf: the quantiser, 1 (fine) to 63 (coarse).
        preset: the encoder's effort, 0 to 12; 4 writes some 45 clips of 8×56² a second on one thread.
        scale: the side of the coded picture as a share of the clip's.
        even: every frame at the quantiser, the first as well.
    """

    crf: int = Field(50, ge=1, le=WORST_CRF)
    preset: int = Field(4, ge=0, le=12)
    scale: float = Field(1.0, gt=0, le=1)
    even: bool = Field(False, exclude_if=lambda even: not even)

    def encode(self, clips_NTHWC: NDArray[np.uint8]) -> Stream:
        size = max(1, round(self.scale * max(clips_NTHWC.shape[2:4])))
        return encode(clips_NTHWC, self.crf, self.preset, size, even=self.even)


@dataclass(frozen=True)
class Footage:
    """The frames of clips that are coded: `frames` times as many as a student sees.

    Attributes:
        clips: the run's own.
        frames: 1 for theirs, 1/k for every k-th of theirs, k for k times as many at a k-th of the interval, of `dense`.
        dense: the same videos' clips, of at least so many frames; the same stretch within a frame or two.
    """

    clips: Clips
    frames: float = 1.0
    dense: Clips | None = None

    @property
    def kept(self) -> int:
        """Frames of a coded clip."""
        return round(self.clips.shape_THWC[0] * self.frames)

    def read(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        if self.dense is None or self.frames <= 1:
            return self.clips.read(rows)[:, :: round(1 / self.frames)]
        step = round(self.dense.shape_THWC[0] / self.clips.shape_THWC[0] / self.frames)
        return self.dense.read([self._dense_rows[self.clips.table.videos[row].path] for row in rows])[:, ::step]

    @cached_property
    def _dense_rows(self) -> dict[str, int]:
        assert self.dense is not None
        return {video.path: row for row, video in enumerate(self.dense.table.videos)}


def in_both(clips: Clips, dense: Clips | None, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of these rows those whose videos are in `dense` too: one may be lost at one interval and not at another."""
    if dense is None:
        return rows_N
    there = {video.path for video in dense.table.videos}
    return np.array([row for row in rows_N if clips.table.videos[row].path in there], dtype=np.int64)


class Coder:
    """Codes rows of clips, each once at each quantiser; or all of them together, each predicted from those before."""

    def __init__(self, footage: Footage, coding: Coding, *, together: bool = False) -> None:
        self.footage, self.coding, self.together = footage, coding, together
        self._packets: dict[tuple[int, int], bytes] = {}
        self._empty: Stream | None = None
        self._whole = cache(self._one_stream)

    def stream(self, rows: Sequence[int], crf: int | Sequence[int]) -> Stream:
        """These rows as a stream, at one quantiser or one each; what a codec's clips share does not depend on it."""
        if self.together and isinstance(crf, int):
            return self._whole(tuple(rows), crf)
        asked = list(zip(rows, [crf] * len(rows) if isinstance(crf, int) else crf, strict=True))
        missing = [pair for pair in dict.fromkeys(asked) if pair not in self._packets]
        for one in sorted({quantiser for _, quantiser in missing}):
            own = [row for row, quantiser in missing if quantiser == one]
            coding = self.coding.model_copy(update={"crf": one})
            for part in (own[first : first + AT_ONCE] for first in range(0, len(own), AT_ONCE)):
                made = coding.encode(self.footage.read(part))
                self._packets.update(zip(((row, one) for row in part), made.clips, strict=True))
                self._empty = replace(made, clips=())
        assert self._empty is not None
        return self._empty.with_more([self._packets[pair] for pair in asked])

    def _one_stream(self, rows: tuple[int, ...], crf: int) -> Stream:
        clips_NTHWC = self.footage.read(rows)
        film_1XHWC = clips_NTHWC.reshape(1, -1, *clips_NTHWC.shape[2:])
        return self.coding.model_copy(update={"crf": crf}).encode(film_1XHWC)


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

    def size(self, stream: Stream, clips: int) -> int:
        """Bytes of the set with this stream of so many clips."""
        return coded.size_of(clips, self.views, self.classes, self.logits) + len(stream.to_bytes())

    @property
    def bytes(self) -> float:
        return math.inf if self.kb is None else self.kb * 1000 * self.classes


@dataclass(frozen=True)
class Kept:
    """Chosen rows, in class order, the quantiser of each, and their coded clips."""

    rows_N: NDArray[np.int64]
    crf_N: NDArray[np.int64]
    stream: Stream


def kept(coder: Coder, orders: Sequence[NDArray[np.int64]], crf: int, budget: Budget, finest: int = FINEST_CRF) -> Kept:
    """The first clips of each class's order: the same number of each, as far as it has them, as many as have room at
    this quantiser; what is left of the budget is spent on the finest one at which they still have room.

    Raises:
        RequestError: not even one clip a class fits; says what these take.
    """
    labels_N = coder.footage.clips.labels_N

    def first(count: int) -> list[int]:
        rows = [int(row) for order in orders for row in order[:count]]
        return sorted(rows, key=lambda row: (labels_N[row], row)) if coder.together else rows

    def size(count: int, crf: int) -> int:
        return budget.size(coder.stream(first(count), crf), len(first(count)))

    if budget.kb is None:
        count = budget.ipc
    else:
        most = max(map(len, orders))
        if coder.together:
            most = max(1, min(most, MOST_FRAMES // (coder.footage.kept * len(orders))))
        count = _most_that_hold(lambda count: size(count, crf) <= budget.bytes, most)
        if not count:
            least = math.ceil(size(1, crf) / budget.classes / 100) / 10
            raise RequestError(
                f"kb {budget.kb:g} is less than one clip a class takes at crf {crf}: the clips of this draw take "
                f"{least:g}, those of other seeds may take more; ask for more than that."
            )
        while crf > finest and size(count, crf - 1) <= budget.bytes:
            crf -= 1
    rows_N = np.array(first(count))
    return Kept(rows_N, np.full(len(rows_N), crf), coder.stream(first(count), crf))


def kept_coarser(coder: Coder, orders: Sequence[NDArray[np.int64]], crf: int, budget: Budget) -> Kept:
    """`kept` at this quantiser, or at a coarser one where not one clip a class has room.

    Raises:
        RequestError: nor has it at the coarsest.
    """
    for one in (crf, *(coarser for coarser in COARSER if coarser > crf)):
        try:
            return kept(coder, orders, one, budget)
        except RequestError as error:
            problem = error
    raise problem


def _most_that_hold(holds: Callable[[int], bool], most: int) -> int:
    """The largest count that holds, found by doubling and then by halves."""
    high = 1
    while high < most and holds(high):
        high *= 2
    counts = range(high // 2 + 1, min(high, most) + 1)
    return high // 2 + bisect_left(counts, True, key=lambda count: not holds(count))


def as_set(clips: Clips, found: Kept, views: int, view_scale: float, seed: int) -> DistilledSet:
    """The set of kept clips as they are decoded, each with its views."""
    stored = coded.stored_of(found.stream, boxes(found.rows_N, views, view_scale, seed))
    shape = (len(found.rows_N) * views, *clips.shape_THWC)
    names = [clips.table.videos[row].path for row in found.rows_N for _ in range(views)]
    return DistilledSet(
        **variants(materialised(coded.FORM, stored, shape)),
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


def loss_of(coder: Coder, found: Kept) -> float:
    """The `psnr` of what is kept, some clips at a time where they are coded by themselves."""
    rows, at_once = found.rows_N.tolist(), len(found.rows_N) if coder.together else AT_ONCE
    lost = []
    for own in (range(len(rows))[first : first + at_once] for first in range(0, len(rows), at_once)):
        raw_NTHWC = coder.footage.read([rows[number] for number in own])
        stream = found.stream if coder.together else found.stream.chosen(own)
        lost.append(decibels(raw_NTHWC, decode(stream).reshape(raw_NTHWC.shape)))
    return round(float(np.concatenate(lost).mean()), 2)


def psnr(one_NTHWC: NDArray[np.uint8], other_NTHWC: NDArray[np.uint8]) -> float:
    """The mean of the `decibels` of clips."""
    return round(float(decibels(one_NTHWC, other_NTHWC).mean()), 2)


def decibels(one_NTHWC: NDArray[np.uint8], other_NTHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The peak signal-to-noise ratio of each clip, (N,), in decibels; 99 for one that lost nothing."""
    pairs = zip(one_NTHWC, other_NTHWC, strict=True)
    errors_N = np.array([((one.astype(np.float32) - other) ** 2).mean() for one, other in pairs])
    found_N: NDArray[np.float64] = np.minimum(99, 10 * np.log10(255**2 / np.maximum(errors_N, 1e-9)))
    return found_N
