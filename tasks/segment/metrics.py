"""How well frames are named: accuracy, edit score and F1@k, as published (Lea et al. 2017; Farha and Gall 2019).

A *segment* is a run of frames of one class. Frames of the classes that are `background` make no segments.

Legend: T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
OVERLAPS = (0.10, 0.25, 0.50)
"""k of F1@k: the least intersection over union of a segment that is found."""


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `end − 1`, all of one class."""

    label: int
    start: int
    end: int

    @property
    def frames(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class SegmentScore:
    """The scores of a test split, from 0 to 1.

    Attributes:
        accuracy: of all frames of all videos.
        edit: the mean over videos.
        f1: at each of `OVERLAPS`, of the hits, false alarms and misses of all videos.
    """

    accuracy: float
    edit: float
    f1: tuple[float, ...]


def segments_of(labels_T: Labels, background: Collection[int] = ()) -> list[Segment]:
    """The runs of equal labels, in order."""
    cuts = [0, *(np.flatnonzero(np.diff(labels_T)) + 1).tolist(), len(labels_T)]
    runs = (Segment(int(labels_T[start]), start, end) for start, end in pairwise(cuts) if end > start)
    return [run for run in runs if run.label not in background]


def edit_score(found: Sequence[Segment], true: Sequence[Segment]) -> float:
    """1 − the Levenshtein distance of the two orders of classes over the length of the longer; 1 where both are empty.

    Two segments of one class with background between them are one class after itself.
    """
    longest = max(len(found), len(true))
    row = list(range(len(true) + 1))
    for i, one in enumerate(found, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(true, start=1):
            changed = diagonal + (one.label != other.label)
            diagonal, row[j] = row[j], min(changed, row[j] + 1, row[j - 1] + 1)
    return 1 - row[-1] / longest if longest else 1.0


def hits_at(found: Sequence[Segment], true: Sequence[Segment], overlap: float) -> int:
    """Segments that are found: each asks for the true segment of its class that it overlaps most, and gets it if that
    is at least `overlap` and nobody before it got the same one. There is no second choice.
    """
    taken: set[int] = set()
    for one in found:
        shares = [_shared(one, other) if one.label == other.label else 0.0 for other in true]
        best = int(np.argmax(shares)) if shares else -1
        if best >= 0 and shares[best] >= overlap:
            taken.add(best)
    return len(taken)


def _shared(one: Segment, other: Segment) -> float:
    """Intersection over union."""
    inside = max(0, min(one.end, other.end) - max(one.start, other.start))
    return inside / (one.frames + other.frames - inside)


def score_videos(found: Sequence[Labels], true: Sequence[Labels], background: Collection[int] = ()) -> SegmentScore:
    """The scores of these videos.

    Args:
        found: the labels that were given, a video each (T,).
        true: those that are right, of the same lengths.
        background: classes whose frames make no segments; their accuracy counts all the same.
    """
    pairs = [
        (segments_of(own_T, background), segments_of(right_T, background))
        for own_T, right_T in zip(found, true, strict=True)
    ]
    right = sum(int((own_T == right_T).sum()) for own_T, right_T in zip(found, true, strict=True))
    said, there = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    hits = [sum(hits_at(own, right, overlap) for own, right in pairs) for overlap in OVERLAPS]
    return SegmentScore(
        accuracy=right / sum(map(len, true)),
        edit=float(np.mean([edit_score(own, right) for own, right in pairs])),
        f1=tuple(2 * hit / (said + there) if said + there else 1.0 for hit in hits),
    )
