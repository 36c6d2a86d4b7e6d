"""Sequences: the frame-wise features and labels of one split, in one artifact that every other stage reads.

Features are standardised where they are used, each dimension by its mean and standard deviation over the training
split. (MS-TCN's code takes them as they are; a rate in standard deviations needs a scale.)

Legend: F frames of all videos, T frames of one, D features a frame, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field
from zarr.codecs import ZstdCodec

from vidistill.storage.arrays import open_whole
from vidistill.storage.clips import PRELOAD_BYTES
from vidistill.storage.errors import RequestError, TransientError
from vidistill.storage.keys import digest
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.segment.layout import SequenceTable, open_features, read_labels, survey_sequences
from vidistill.tasks.stage import Job, Work, stage

TABLE = "table.json"
SCALE = ("mean", "std", "low", "high")
CHUNK_FRAMES = 1024
STILL = 1e-6


class SequencesParameters(Parameters):
    """Which split, every which frame, and the digest of what there is; of rendered sprites their artifact says it."""

    split: int = Field(1, ge=1)
    sample_rate: int = Field(1, ge=1)
    content: str = ""


class Placed(Parameters):
    """Where a video's frames are: of its features, which are sampled, and of its labels, which are all there."""

    name: str
    split: str
    features: tuple[int, int]
    labels: tuple[int, int]


class Placement(Parameters):
    classes: tuple[str, ...]
    sample_rate: int
    videos: tuple[Placed, ...]


def sequences_job(split: int, sample_rate: int, table: SequenceTable | None, sprites: ArtifactRef | None = None) -> Job:
    """The sequences of a folder, by its table, or of sprites."""
    content = digest(table) if table else ""
    parameters = SequencesParameters(split=split, sample_rate=sample_rate, content=content)
    return sequences(parameters, {"sprites": sprites} if sprites else {}, label="sequences")


@stage("sequences", version=1)
def sequences(work: Work) -> None:
    parameters = SequencesParameters.model_validate(work.job.parameters)
    root = work.input("sprites") if work.refs("sprites") else Path(work.runtime.data)
    table = survey_sequences(root, parameters.split)
    if parameters.content and digest(table) != parameters.content:
        raise TransientError(f"The features in {root} changed while they were read: run again.")
    placement = _placed(table, parameters.sample_rate)
    last = placement.videos[-1]
    features_FD = _array(work.folder, "features", (last.features[1], table.dimensions), "float32")
    labels_F = _array(work.folder, "labels", (last.labels[1],), "int64")
    moments = Moments(table.dimensions)
    for number, (video, place) in enumerate(zip(table.videos, placement.videos, strict=True)):
        own_DT = open_features(root, video.name)[:, : video.frames : parameters.sample_rate]
        if not np.isfinite(own_DT).all():
            raise RequestError(f"The features of {video.name} hold values that are not finite: make that file anew.")
        features_FD[slice(*place.features)] = own_DT.T.astype(np.float32)
        if video.split == "train":
            moments.add(own_DT.T)
        labels_F[slice(*place.labels)] = read_labels(root, video.name, table.classes)[: video.frames]
        work.progress(number + 1, len(table.videos))
    for name, values_D in zip(SCALE, moments.scale(), strict=True):
        _array(work.folder, name, values_D.shape, "float64")[...] = values_D
    (work.folder / TABLE).write_text(placement.model_dump_json(indent=1), encoding="utf-8")
    work.record(
        dataset="sprites" if work.refs("sprites") else root.name,
        counts={"videos": len(table.videos), "classes": len(table.classes), "frames": last.labels[1]},
        cut={video.name: video.cut for video in table.videos if video.cut},
    )


class Moments:
    """The mean, the standard deviation and the range of each dimension over all frames that are added."""

    def __init__(self, dimensions: int) -> None:
        self.frames, self.sum_D, self.square_D = 0, np.zeros(dimensions), np.zeros(dimensions)
        self.low_D, self.high_D = np.full(dimensions, np.inf), np.full(dimensions, -np.inf)

    def add(self, features_TD: NDArray[np.floating]) -> None:
        wide_TD = features_TD.astype(np.float64)
        self.frames += len(wide_TD)
        self.sum_D += wide_TD.sum(0)
        self.square_D += (wide_TD**2).sum(0)
        self.low_D, self.high_D = np.minimum(self.low_D, wide_TD.min(0)), np.maximum(self.high_D, wide_TD.max(0))

    def scale(self) -> tuple[NDArray[np.float64], ...]:
        """Each of `SCALE` (D,); the standard deviation is 1 where a dimension never changes."""
        mean_D = self.sum_D / self.frames
        std_D = np.sqrt(np.maximum(self.square_D / self.frames - mean_D**2, 0))
        return mean_D, np.where(std_D > STILL, std_D, 1.0), self.low_D, self.high_D


def _placed(table: SequenceTable, sample_rate: int) -> Placement:
    places, feature, label = [], 0, 0
    for video in table.videos:
        kept = -(-video.frames // sample_rate)
        spans = (feature, feature + kept), (label, label + video.frames)
        places.append(Placed(name=video.name, split=video.split, features=spans[0], labels=spans[1]))
        feature, label = feature + kept, label + video.frames
    return Placement(classes=table.classes, sample_rate=sample_rate, videos=tuple(places))


def _array(folder: Path, name: str, shape: tuple[int, ...], dtype: str) -> zarr.Array[Any]:
    return zarr.create_array(
        folder,
        name=name,
        shape=shape,
        chunks=(min(CHUNK_FRAMES, shape[0]), *shape[1:]),
        dtype=dtype,
        compressors=ZstdCodec(level=1, checksum=True),
        dimension_names=("frame", "feature")[: len(shape)],
        config={"write_empty_chunks": True},
    )


class Sequences:
    """The videos of both splits, read one by one; what fits within a gigabyte stays in memory.

    Args:
        store: where the artifact is.
        ref: a `sequences` artifact.
    """

    def __init__(self, store: Store, ref: ArtifactRef) -> None:
        folder = store.folder(ref)
        self._features = open_whole(folder, "features")
        self._labels_F = np.asarray(zarr.open_array(folder, path="labels", mode="r")[...])
        self.placement = Placement.model_validate_json((folder / TABLE).read_bytes())
        self.classes, self.sample_rate = self.placement.classes, self.placement.sample_rate
        self.mean_D, self.std_D, self._low_D, self._high_D = (
            np.asarray(zarr.open_array(folder, path=name, mode="r")[...]) for name in SCALE
        )
        self._kept: dict[int, NDArray[np.float32]] = {}

    @property
    def dimensions(self) -> int:
        return int(self._features.shape[1])

    def rows(self, split: str) -> list[int]:
        return [row for row, video in enumerate(self.placement.videos) if video.split == split]

    def name(self, row: int) -> str:
        return self.placement.videos[row].name

    def features(self, row: int) -> NDArray[np.float32]:
        """The features of a video as they are in its file: (T, D)."""
        if row in self._kept:
            return self._kept[row]
        found_TD = np.asarray(self._features[slice(*self.placement.videos[row].features)])
        if found_TD.nbytes + sum(one.nbytes for one in self._kept.values()) <= PRELOAD_BYTES:
            self._kept[row] = found_TD
        return found_TD

    def labels(self, row: int) -> NDArray[np.int64]:
        """The class of each frame that has features: (T,)."""
        return self.all_labels(row)[:: self.sample_rate]

    def all_labels(self, row: int) -> NDArray[np.int64]:
        """The class of every frame of the video."""
        return self._labels_F[slice(*self.placement.videos[row].labels)]

    def standardised(self, row: int) -> NDArray[np.float32]:
        """The features of a video in standard deviations from the mean: (T, D)."""
        return self.standard(self.features(row))

    def standard(self, features_TD: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features in the units of the files, in standard deviations from the mean: (T, D)."""
        return np.asarray((features_TD - self.mean_D) / self.std_D, dtype=np.float32)

    def limits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The least and the largest value of each dimension over the training frames, in standard deviations: (D,)."""
        low_D, high_D = self.standard(self._low_D[None])[0], self.standard(self._high_D[None])[0]
        return low_D, high_D
