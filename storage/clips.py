"""Clip arrays: decoded blocks, and the table over them that makes a training or a test set.

Shapes: N videos, V views a video, T frames, H height, W width, 3 colours (RGB). `clips_NTHWC` is uint8.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from vidistill.storage.arrays import open_whole
from vidistill.storage.errors import ArtifactDamaged
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store

TABLE = "table.json"
OUTCOMES = "outcomes.json"
PRELOAD_BYTES = 1 << 30


class ClipVideo(Parameters):
    """One video of a clip array. Its views are rows `row … row + views − 1` of block number `block`."""

    path: str
    label: int
    group: str | None
    duration_seconds: float | None
    block: int
    row: int


class Rejected(Parameters):
    """A file that gives no clip, and why: left out by a rule (filtered), or unreadable (failed)."""

    video: str
    outcome: Literal["filtered", "failed"]
    reason: str


class ClipTable(Parameters):
    """What a `clips` artifact holds beside its list of blocks."""

    classes: tuple[str, ...]
    flips: bool
    views: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    videos: tuple[ClipVideo, ...]
    rejected: tuple[Rejected, ...]


def create_clip_array(folder: Path, shape_NTHWC: tuple[int, ...], *, one_shard: bool = False) -> zarr.Array[Any]:
    """A uint8 clip array `(N, T, H, W, 3)`: one clip a chunk, zstd with a checksum, black clips stored too.

    `one_shard` keeps all chunks in one file, which must be written whole, at once: parts of a shard that are written
    side by side are lost.
    """
    return zarr.create_array(
        folder,
        name="clips",
        shape=shape_NTHWC,
        chunks=(1, *shape_NTHWC[1:]),
        shards=shape_NTHWC if one_shard else None,
        dtype="uint8",
        compressors=ZstdCodec(level=1, checksum=True),
        dimension_names=("clip", "time", "y", "x", "channel"),
        config={"write_empty_chunks": True},
    )


def open_clip_array(folder: Path) -> zarr.Array[Any]:
    return open_whole(folder, "clips")


class Clips:
    """A training or test set read clip by clip from its blocks.

    Args:
        store: where the artifact is.
        ref: a `clips` artifact.
    """

    def __init__(self, store: Store, ref: ArtifactRef) -> None:
        manifest = store.manifest(ref)
        self.table = ClipTable.model_validate_json((store.folder(ref) / TABLE).read_bytes())
        self._store, self._blocks = store, manifest.inputs["blocks"]
        self._arrays: dict[int, zarr.Array[Any]] = {}
        self._rows: dict[int, dict[str, int | None]] = {}
        self._loaded: NDArray[np.uint8] | None = None
        self.classes = self.table.classes
        self.labels_N: NDArray[np.int64] = np.array([video.label for video in self.table.videos], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.table.videos)

    @property
    def shape_THWC(self) -> tuple[int, int, int, int]:
        self._open({0})
        _, *shape = self._arrays[0].shape
        return tuple(shape)  # type: ignore[return-value]

    def rows_of(self, label: int) -> NDArray[np.int64]:
        """The rows of one class, in path order."""
        return np.flatnonzero(self.labels_N == label)

    def read(self, rows: Iterable[int], views: Iterable[int] | int = 0) -> NDArray[np.uint8]:
        """The clips of these rows, each at its view (one for all, or one each; view 0 is the centre): uint8 NTHWC."""
        rows = list(rows)
        picked = [views] * len(rows) if isinstance(views, int) else list(views)
        if self._loaded is not None:
            return self._loaded[np.array(rows, dtype=np.int64), np.array(picked, dtype=np.int64)]
        self._open({self.table.videos[row].block for row in rows})
        clips_NTHWC = np.empty((len(rows), *self.shape_THWC), dtype=np.uint8)
        for slot, (row, view) in enumerate(zip(rows, picked, strict=True)):
            video = self.table.videos[row]
            clips_NTHWC[slot] = self._arrays[video.block][self._row(video) + view]
        return clips_NTHWC

    def _open(self, blocks: set[int]) -> None:
        """Open the arrays of those blocks that nothing was read from yet."""
        new = sorted(blocks - self._arrays.keys())
        folders = self._store.folders(self._blocks[block] for block in new)
        for block, folder in zip(new, folders, strict=True):
            self._store.check_content(self._blocks[block])
            if (outcomes := folder / OUTCOMES).is_file():  # parts of a pool have none
                decoded = json.loads(outcomes.read_text())["outcomes"]
                self._rows[block] = {one["path"]: one["row"] for one in decoded}
            self._arrays[block] = open_clip_array(folder)

    def _row(self, video: ClipVideo) -> int:
        """Of its first view: as its block has it, which may have been made again since the table was."""
        row = self._rows.get(video.block, {video.path: video.row})[video.path]
        if row is None:
            ref = self._blocks[video.block]
            self._store.discard(ref)  # what could be decoded once is tried again by the next run
            raise ArtifactDamaged(f"{video.path} could not be decoded when {ref} was made again: run the same command.")
        return row

    @property
    def in_memory(self) -> bool:
        return self._loaded is not None

    def preload(self) -> Clips:
        """Hold the whole set in memory where it takes at most 1 GiB; larger sets go on being read clip by clip."""
        views = self.table.views
        if len(self) * views * int(np.prod(self.shape_THWC)) <= PRELOAD_BYTES and self._loaded is None:
            every = [self.read(range(len(self)), view) for view in range(views)]
            self._loaded = np.stack(every, axis=1)
        return self


def in_common(sources: Iterable[str], test: Clips) -> int:
    """How many test videos are named as one that a clip of a set, or a part of its mosaic, began from."""
    own = {path for one in sources for path in one.split(" + ")}
    return sum(video.path in own for video in test.table.videos)


def channel_statistics(
    sums: Sequence[Sequence[float]], squares: Sequence[Sequence[float]], pixels: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation a channel, in units of full white (0–1), from sums over uint8 values."""
    mean = np.sum(sums, axis=0) / pixels / 255
    variance = np.sum(squares, axis=0) / pixels / 255**2 - mean**2
    std = np.sqrt(np.maximum(variance, 1e-6))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
