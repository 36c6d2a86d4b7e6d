"""An exported set: a folder of videos (or one of arrays) beside `export.json`, which says how to train on them.

Legend: V variants, N clips, T frames, H height, W width; clips are uint8 RGB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.distilled import CLIPS, DistilledSet, materialised
from vidistill.storage.errors import ArtifactDamaged, ArtifactNotFound

EXPORT, LOGITS, ARRAYS, TEACHER = "export.json", "logits.npy", "clips.npz", "teacher.safetensors"


def read_facts(folder: Path) -> dict[str, Any]:
    """What `export.json` says.

    Raises:
        ArtifactNotFound: the folder was not written by `vidistill export`.
    """
    path = folder / EXPORT
    if not path.is_file():
        raise ArtifactNotFound(
            f"{folder} holds no distilled set, nor one that was exported (no {EXPORT}): run `vidistill export KEY`."
        )
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def load_exported(folder: Path) -> DistilledSet:
    """The set in an exported folder: what a student sees, without what only the report draws.

    Raises:
        ArtifactDamaged: a file is missing, or is not as long or as large as it was.
    """
    facts = read_facts(folder)
    files, form, shape_NTHWC = facts["files"], facts["form"], tuple(facts["shape"])
    videos = _videos(folder, facts)
    kept = [video for video, one in zip(videos, files, strict=True) if one["variant"] == 0]
    first = [one for one in files if one["variant"] == 0]
    if form == CLIPS:
        clips_NTHWC, stored = np.stack(kept), {}
        others = np.stack(videos[len(kept) :]).reshape(-1, *shape_NTHWC) if len(videos) > len(kept) else None
    else:
        stored, others = {"mosaics": np.stack(kept)}, None
        clips_NTHWC = materialised(form, stored, shape_NTHWC)
    return DistilledSet(
        clips_NTHWC=clips_NTHWC,
        labels_N=np.repeat([one["label"] for one in first], facts["clips_a_file"]).astype(np.int64),
        classes=tuple(facts["classes"]),
        logits_NK=np.load(folder / facts["logits"]) if facts["logits"] else None,
        sources=tuple(source for one in first for source in one["sources"]),
        facts=facts["facts"],
        form=form,
        stored=stored,
        others_VNTHWC=others,
    )


def _videos(folder: Path, facts: dict[str, Any]) -> list[NDArray[np.uint8]]:
    """The clip (or mosaic) of each file, in the order of `files`."""
    frames, height, width, _ = facts["video_shape"]
    if facts["format"] == "npz":
        with np.load(folder / ARRAYS) as arrays:
            return list(arrays["videos"])
    videos = []
    for one in facts["files"]:
        video_THWC = read_video(folder / one["file"])[:, :height, :width]  # H.264 files of odd clips have a row more
        if video_THWC.shape != (frames, height, width, 3):
            raise ArtifactDamaged(
                f"{folder / one['file']} holds {video_THWC.shape[:3]} frames, rows and columns instead of "
                f"{(frames, height, width)}: export the set again."
            )
        videos.append(video_THWC)
    return videos


def read_video(path: Path) -> NDArray[np.uint8]:
    """Every frame of a video file, uint8 (T, H, W, 3); of one that keeps RGB exactly what was written.

    Raises:
        ArtifactDamaged: it cannot be read.
    """
    import av

    try:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            return np.stack(frames)
    except (OSError, IndexError, ValueError) as error:  # PyAV's errors are one of the first two
        raise ArtifactDamaged(f"{path} cannot be read ({error}): export the set again.") from error


def write_lossless(path: Path, clip_THWC: NDArray[np.uint8], fps: int) -> None:
    """FFV1 in Matroska, RGB bit by bit, each slice with a checksum; the same bytes for the same clip."""
    import av

    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=fps, options={"level": "3", "slicecrc": "1"})
        stream.height, stream.width = clip_THWC.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.codec_context.thread_count = 1
        for frame_HWC in clip_THWC:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode())
