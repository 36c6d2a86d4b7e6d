"""A set of sequences: of each training video its segments, their lengths, and a few feature vectors of each segment.

Each vector, a *point*, stands for an equal part of its segment, all of whose frames show it when a network is trained.
Segments keep their order and their lengths, which cost a few bytes and without which no order could be learned.

Legend: V videos, S segments of all videos, M points of all segments, T frames of a video, D features, K classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from vidistill.tasks.segment.metrics import segments_of
from vidistill.tasks.segment.sequences import Sequences

ARRAYS, NAMES = "set.safetensors", "set.json"


@dataclass(frozen=True)
class SegmentSet:
    """What a method makes, and what a network is trained on.

    Attributes:
        points_MD: float32, in the units of the feature files, segment by segment, in the order of time.
        labels_S: the class of each segment.
        frames_S: its length.
        points_S: how many points it has, at most one a frame.
        videos_S: the number of its video.
        names: of the videos.
        soft_MK: a teacher's probabilities of each point, where labels are soft.
    """

    points_MD: NDArray[np.float32]
    labels_S: NDArray[np.int32]
    frames_S: NDArray[np.int32]
    points_S: NDArray[np.int32]
    videos_S: NDArray[np.int32]
    names: tuple[str, ...]
    soft_MK: NDArray[np.float32] | None = None

    @staticmethod
    def outline(sequences: Sequences, points: int) -> SegmentSet:
        """The segments of the training videos, `points` of each or as many as it has frames, all of zeros."""
        rows = sequences.rows("train")
        found = [(video, one) for video, row in enumerate(rows) for one in segments_of(sequences.labels(row))]
        frames_S = np.array([one.frames for _, one in found], np.int32)
        points_S = np.minimum(frames_S, points).astype(np.int32)
        return SegmentSet(
            points_MD=np.zeros((int(points_S.sum()), sequences.dimensions), np.float32),
            labels_S=np.array([one.label for _, one in found], np.int32),
            frames_S=frames_S,
            points_S=points_S,
            videos_S=np.array([video for video, _ in found], np.int32),
            names=tuple(map(sequences.name, rows)),
        )

    def points_of(self, video: int) -> NDArray[np.int64]:
        """The rows of `points_MD` that are of a video."""
        return np.flatnonzero(np.repeat(self.videos_S, self.points_S) == video)

    def shown(self, video: int) -> NDArray[np.int64]:
        """Which row of `points_MD` each frame of a video shows: (T,)."""
        first = int(self.points_S[self.videos_S < video].sum())
        rows_T: list[NDArray[np.int64]] = []
        for segment in np.flatnonzero(self.videos_S == video):
            frames, points = int(self.frames_S[segment]), int(self.points_S[segment])
            rows_T.append(first + parts(frames, points))
            first += points
        return np.concatenate(rows_T)

    def labels(self, video: int) -> NDArray[np.int64]:
        """The class of each frame of a video: (T,)."""
        own = self.videos_S == video
        return np.repeat(self.labels_S[own], self.frames_S[own]).astype(np.int64)

    def with_points(self, points_MD: NDArray[np.floating]) -> SegmentSet:
        return replace(self, points_MD=points_MD.astype(np.float32))

    def save(self, folder: Path) -> None:
        arrays = {"points": self.points_MD, "labels": self.labels_S, "frames": self.frames_S,
                  "counts": self.points_S, "videos": self.videos_S}  # fmt: skip
        save_file(arrays if self.soft_MK is None else arrays | {"soft": self.soft_MK}, folder / ARRAYS)
        (folder / NAMES).write_text(json.dumps({"videos": self.names}))

    @staticmethod
    def load(folder: Path) -> SegmentSet:
        arrays = load_file(folder / ARRAYS)
        names = tuple(json.loads((folder / NAMES).read_text())["videos"])
        return SegmentSet(
            arrays["points"], arrays["labels"], arrays["frames"], arrays["counts"], arrays["videos"], names,
            arrays.get("soft"),
        )  # fmt: skip


def parts(frames: int, points: int) -> NDArray[np.int64]:
    """Which of `points` equal parts of a segment each of its frames is in: 0 … points − 1."""
    return np.arange(frames) * points // frames
