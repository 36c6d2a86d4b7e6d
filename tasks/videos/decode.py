"""Decode: videos to uint8 clips, block by block, and the table that makes blocks a training or a test set.

A block is a fixed run of videos, an artifact of its own: a killed run keeps its finished blocks, and a new video costs
the blocks of its class alone. The `clips` artifact lists blocks and copies nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from vidistill.storage.clips import (
    OUTCOMES,
    TABLE,
    ClipTable,
    ClipVideo,
    Rejected,
    channel_statistics,
    create_clip_array,
)
from vidistill.storage.errors import RunError, TransientError
from vidistill.storage.keys import file_digest
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.decoder import Decoder, PassingError, Sampling, VideoError, borrowed, twice
from vidistill.tasks.videos.index import IndexTable, load_index
from vidistill.tasks.videos.layouts import data_folder
from vidistill.tasks.videos.scan import Video

BLOCK_VIDEOS = 32
CHANGED = "{} changed since it was indexed: run the same command again."
PASSING = "passing"
"""Of a video's outcome: that it failed by what may have been the machine's doing."""
SHARDED_FROM_CLIPS = 20_000
"""Splits of more clips have a file a block instead of one a clip."""


class DecodeParameters(Parameters):
    """How videos become clips.

    16 frames at an interval of 4, 112×112: VDSD's clips, which every later paper takes over (methods §1.2); its
    160×120 squeeze and its random test clips are not. One stored view a video for test, the centre.
    """

    frames: int = Field(16, ge=1, description="Frames a clip.")
    interval: int = Field(4, ge=1, description="Every how many frames of the video one is taken.")
    size: int = Field(112, ge=8, description="Height and width of a clip in pixels.")
    views: int = Field(4, ge=1, description="Stored temporal views of a training video; training draws one an epoch.")
    test_views: int = Field(
        1, ge=1, exclude_if=lambda views: views == 1, description="Stored temporal views of a test video."
    )
    max_lost_share: float = Field(0.1, ge=0, le=1, description="The run ends when more of the videos cannot be used.")

    def sampling(self, split: str) -> Sampling:
        views = self.views if split == "train" else self.test_views
        return Sampling(frames=self.frames, interval=self.interval, size=self.size, views=views)


class BlockVideo(Parameters):
    path: str
    bytes: int
    sha256: str


class BlockParameters(Parameters):
    sampling: Sampling
    videos: tuple[BlockVideo, ...]
    sharded: bool = Field(False, exclude_if=lambda sharded: not sharded)


def block_jobs(table: IndexTable, parameters: DecodeParameters, split: str) -> list[Job]:
    """Jobs over runs of 32 videos of one class: a video that is added or changed moves only its class's blocks."""
    sampling, every = parameters.sampling(split), table.of_split(split)
    sharded = len(every) * sampling.views > SHARDED_FROM_CLIPS
    jobs: list[Job] = []
    for videos in runs(every):
        own = BlockParameters(sampling=sampling, videos=named(videos), sharded=sharded)
        jobs.append(block(own, label=f"decode {split} {len(jobs) + 1}"))
    return jobs


def named(videos: list[Video]) -> tuple[BlockVideo, ...]:
    return tuple(BlockVideo(path=video.path, bytes=video.bytes, sha256=video.sha256) for video in videos)


def runs(videos: list[Video]) -> list[list[Video]]:
    """Runs of 32 videos of one class, in path order: the videos of a block."""
    classes: dict[int, list[Video]] = {}
    for video in sorted(videos, key=lambda video: video.path):
        classes.setdefault(video.label, []).append(video)
    return [run[i : i + BLOCK_VIDEOS] for run in classes.values() for i in range(0, len(run), BLOCK_VIDEOS)]


@stage("block", version=1)
def block(work: Work) -> None:
    parameters = BlockParameters.model_validate(work.job.parameters)
    with borrowed(work.runtime.timeout_seconds) as decoder:
        outcomes, sums, squares = decode_block(data_folder(Path(work.runtime.data)), parameters, decoder, work)
    facts = {"outcomes": outcomes, "sums": sums.tolist(), "squares": squares.tolist()}
    (work.folder / OUTCOMES).write_text(json.dumps(facts, indent=1))
    work.record(counts={"videos": len(outcomes), "kept": sum(row["row"] is not None for row in outcomes)})


def decode_block(
    root: Path, parameters: BlockParameters, decoder: Decoder, work: Work
) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """Decode a block's videos one after another into its Zarr array.

    Memory holds one video's views; those of the whole block where it is one shard.

    Returns:
        An outcome a video (`row` of its first view, or None and the reason), and the sums and sums of squares a
        channel of the kept videos' centre views.
    """
    sampling = parameters.sampling
    outcomes: list[dict[str, Any]] = []
    sums, squares = np.zeros(3), np.zeros(3)
    with _clip_array(work.folder, parameters) as array_NTHWC:
        for number, video in enumerate(parameters.videos):
            work.progress(number, len(parameters.videos), video.path)
            try:
                clips_VTHWC = twice(partial(decoder.clips, root / video.path, sampling))
            except VideoError as error:
                check_unchanged(root, video)
                passing = {PASSING: True} if isinstance(error, PassingError) else {}
                outcomes.append({"path": video.path, "row": None, "reason": str(error)} | passing)
                continue
            check_unchanged(root, video)
            row = number * sampling.views
            array_NTHWC[row : row + sampling.views] = clips_VTHWC
            outcomes.append({"path": video.path, "row": row, "reason": ""})
            centre = clips_VTHWC[0].reshape(-1, 3).astype(np.float64)
            sums, squares = sums + centre.sum(0), squares + (centre**2).sum(0)
    work.progress(len(parameters.videos), len(parameters.videos))
    return outcomes, sums, squares


def check_unchanged(root: Path, video: BlockVideo) -> None:
    """Make sure that a video is the one that was indexed: its artifact is kept by its content.

    Raises:
        TransientError: the file is gone, cannot be read, or has changed.
    """
    check_there(root / video.path)
    if file_digest(root / video.path) != video.sha256:
        raise TransientError(CHANGED.format(video.path))


def check_there(path: Path) -> None:
    """Make sure that there is a file which can be read.

    Raises:
        TransientError: there is none.
    """
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        why = error.strerror or error
        raise TransientError(f"{path} can be read no longer ({why}): run the same command when it is back.") from error


@contextmanager
def _clip_array(folder: Path, parameters: BlockParameters) -> Iterator[Any]:
    """The block's array, uint8 (N, T, H, W, 3), to be filled: each video has its rows, whichever others are lost."""
    sampling = parameters.sampling
    shape = (len(parameters.videos) * sampling.views, sampling.frames, sampling.size, sampling.size, 3)
    if not parameters.sharded:
        yield create_clip_array(folder, shape)
        return
    yield (clips_NTHWC := np.zeros(shape, np.uint8))
    create_clip_array(folder, shape, one_shard=True)[:] = clips_NTHWC


class ClipsParameters(Parameters):
    split: Literal["train", "test"]
    views: int
    max_lost_share: float


def clips_job(
    index: ArtifactRef,
    parameters: DecodeParameters,
    split: Literal["train", "test"],
    blocks: list[Job],
    statistics: ArtifactRef | None = None,
) -> Job:
    """The job that makes a set of blocks; a test set takes the mean and deviation of the training set."""
    views = parameters.sampling(split).views
    own = ClipsParameters(split=split, views=views, max_lost_share=parameters.max_lost_share)
    inputs: dict[str, Any] = {"index": index, "blocks": [job.ref for job in blocks]}
    return clips(own, inputs | ({"statistics": statistics} if statistics else {}), label=f"{split} clips")


def training_clips(
    table: IndexTable, index: ArtifactRef, parameters: DecodeParameters, add: Callable[[Job], ArtifactRef]
) -> ArtifactRef:
    """Add the jobs of the training split's clips to a graph; their reference."""
    blocks = block_jobs(table, parameters, "train")
    for job in blocks:
        add(job)
    return add(clips_job(index, parameters, "train", blocks))


@stage("clips", version=1)
def clips(work: Work) -> None:
    parameters = ClipsParameters.model_validate(work.job.parameters)
    table = load_index(work.store, work.ref("index"))
    blocks = [json.loads((work.store.folder(ref) / OUTCOMES).read_text()) for ref in work.refs("blocks")]
    outcomes = {row["path"]: (number, row) for number, block in enumerate(blocks) for row in block["outcomes"]}
    wanted = sorted(table.of_split(parameters.split), key=lambda video: video.path)
    kept = [_clip_video(video, *outcomes[video.path]) for video in wanted if outcomes[video.path][1]["row"] is not None]
    failed = [row for _, row in outcomes.values() if row["row"] is None]
    try:
        _check_losses(table, parameters, {video.label for video in kept}, failed)
    except RunError:
        for ref, block in zip(work.refs("blocks"), blocks, strict=True):
            if any(row.get(PASSING) for row in block["outcomes"]):
                work.store.discard(ref)  # the next run tries these videos again
        raise
    mean, std = _statistics(work, blocks, len(kept))
    rejected = [Rejected(video=row["path"], outcome="failed", reason=row["reason"]) for row in failed]
    made = ClipTable(classes=table.classes, flips=table.flips, views=parameters.views, mean=mean,
                     std=std, videos=tuple(kept), rejected=tuple(rejected))  # fmt: skip
    (work.folder / TABLE).write_text(made.model_dump_json(indent=1), encoding="utf-8")
    work.record(counts={"videos": len(kept), "failed": len(failed), "blocks": len(blocks)})


def _clip_video(video: Video, block: int, outcome: dict[str, Any]) -> ClipVideo:
    return ClipVideo(path=video.path, label=video.label, group=video.group, duration_seconds=video.duration_seconds,
                     block=block, row=outcome["row"])  # fmt: skip


def _statistics(work: Work, blocks: list[dict[str, Any]], videos: int) -> tuple[Any, Any]:
    if work.refs("statistics"):
        table = ClipTable.model_validate_json((work.input("statistics") / TABLE).read_bytes())
        return table.mean, table.std
    sampling = Sampling.model_validate(work.store.manifest(work.refs("blocks")[0]).parameters["sampling"])
    pixels = videos * sampling.frames * sampling.size**2
    return channel_statistics([block["sums"] for block in blocks], [block["squares"] for block in blocks], pixels)


def _check_losses(
    table: IndexTable, parameters: ClipsParameters, labels: set[int], failed: list[dict[str, Any]]
) -> None:
    unread = [f"{row.video} ({row.reason})" for row in table.rejected if row.outcome == "failed"]
    bad = [f"{row['path']} ({row['reason']})" for row in failed] + unread
    own = len(failed), len(table.of_split(parameters.split))
    every = len(bad), len(table.videos) + len(unread)  # of those that were not read nobody knows the split
    lost, of = max(own, every, key=lambda counts: counts[0] / max(1, counts[1]))
    share = lost / max(1, of)
    if share > parameters.max_lost_share:
        raise RunError(
            f"{lost} of {of} videos ({share:.0%}) cannot be used, more than max_lost_share="
            f"{parameters.max_lost_share:.0%}; the first: {'; '.join(bad[:3])}. "
            "Mend or remove them; a run may raise decode.max_lost_share."
        )
    empty = [name for label, name in enumerate(table.classes) if label not in labels]
    if empty:
        raise RunError(f"No {parameters.split} video of {', '.join(empty)} could be decoded: add videos of that class.")
