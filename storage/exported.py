"""An exported set: a folder of videos (or one of arrays) beside `export.json`, which says how to train on them.

Legend: V variants, N clips, T frames, H height, W width; clips are uint8 RGB.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidistill.storage import coded
from vidistill.storage.distilled import CLIPS, DistilledSet, materialised, variants
from vidistill.storage.errors import ArtifactDamaged, ArtifactNotFound
from vidistill.storage.keys import file_digest
from vidistill.storage.streams import Stream, pictures, units

EXPORT, LOGITS, ARRAYS, TEACHER = "export.json", "logits.npy", "clips.npz", "teacher.safetensors"
LABELS, METADATA, SHARD = "labels.csv", "metadata.jsonl", "shard-{:06d}.tar"


def read_facts(folder: Path) -> dict[str, Any]:
    """What `export.json` says.

    Raises:
        ArtifactNotFound: the folder was not written by `vidistill export`.
        ArtifactDamaged: it cannot be read.
    """
    path = folder / EXPORT
    if not path.is_file():
        raise ArtifactNotFound(
            f"{folder} holds no distilled set, nor one that was exported (no {EXPORT}): run `vidistill export KEY`."
        )
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactDamaged(f"{path} cannot be read ({error}): export the set again.") from error
    return facts


def _whole(folder: Path, name: str, facts: dict[str, Any]) -> Path:
    """A file of the folder, byte by byte what was written.

    Raises:
        ArtifactDamaged: it is not, or is not there, or the name leads out of the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactDamaged(f"{folder / EXPORT} names {name!r}, which lies outside its folder: export the set again.")
    known = facts.get("sha256", {}).get(name)  # exports of older versions have none
    if not path.is_file() or (known and file_digest(path) != known):
        raise ArtifactDamaged(f"{path} is not what was written there: export the set again.")
    return path


def load_exported(folder: Path) -> DistilledSet:
    """The set in an exported folder: what a student sees, without what only the report draws.

    Raises:
        ArtifactDamaged: a file is missing, or is not as long or as large as it was.
    """
    facts = read_facts(folder)
    files, form, shape_NTHWC = facts["files"], facts["form"], tuple(facts["shape"])
    videos = _videos(folder, facts)
    stored: dict[str, NDArray[Any]] = {}
    kept = [video for video, one in zip(videos, files, strict=True) if one["variant"] == 0]
    first = [one for one in files if one["variant"] == 0]
    if "coded_size" in facts:
        boxes_NV3 = np.array(facts["boxes"], dtype=np.uint8).reshape(len(kept), -1, coded.BOX_BYTES)
        made = variants(coded.shown(np.stack(kept), boxes_NV3, shape_NTHWC[1]))
        clips_NTHWC, others = made["clips_NTHWC"], made.get("others_VNTHWC")
    elif form == CLIPS:
        clips_NTHWC = np.stack(kept)
        others = np.stack(videos[len(kept) :]).reshape(-1, *shape_NTHWC) if len(videos) > len(kept) else None
    else:
        stored, others = {"mosaics": np.stack(kept)}, None
        clips_NTHWC = materialised(form, stored, shape_NTHWC)
    return DistilledSet(
        clips_NTHWC=clips_NTHWC,
        labels_N=np.repeat([one["label"] for one in first], facts["clips_a_file"]).astype(np.int64),
        classes=tuple(facts["classes"]),
        logits_NK=np.load(_whole(folder, facts["logits"], facts)) if facts["logits"] else None,
        sources=tuple(source for one in first for source in one["sources"]),
        facts=facts["facts"],
        form=form,
        stored=stored,
        others_VNTHWC=others,
    )


def _videos(folder: Path, facts: dict[str, Any]) -> list[NDArray[np.uint8]]:
    """The clip (or mosaic) of each file, in the order of `files`."""
    frames, height, width, _ = facts["video_shape"]
    if "coded_size" in facts:
        frames, coded_HW = facts.get("coded_frames", frames), tuple(facts["coded_size"])
        held = Counter(one["file"] for one in facts["files"])
        clips = {
            name: iter(read_packets(_whole(folder, name, facts), count, (frames, height, width), coded_HW))
            for name, count in held.items()
        }
        return [next(clips[one["file"]]) for one in facts["files"]]
    if facts["format"] == "npz":
        with np.load(_whole(folder, ARRAYS, facts)) as arrays:
            return list(arrays["videos"])
    if facts["format"] == "webdataset":
        with tempfile.TemporaryDirectory() as unpacked:
            for shard in dict.fromkeys(one["shard"] for one in facts["files"]):
                names = [one["file"] for one in facts["files"] if one["shard"] == shard]
                _unpack(_whole(folder, shard, facts), names, Path(unpacked))
            return _frames_of(Path(unpacked), facts)
    return _frames_of(folder, facts)


def _unpack(shard: Path, names: list[str], folder: Path) -> None:
    """Write these files of a tar file into a folder; not by `extractall`, whose filters came with Python 3.11.4."""
    try:
        with tarfile.open(shard) as tar:
            for name in names:
                if (member := tar.extractfile(name)) is not None:
                    (folder / Path(name).name).write_bytes(member.read())
    except (OSError, KeyError, tarfile.TarError) as error:
        raise ArtifactDamaged(f"{shard} cannot be read ({error}): export the set again.") from error


def _frames_of(folder: Path, facts: dict[str, Any]) -> list[NDArray[np.uint8]]:
    frames, height, width, _ = facts["video_shape"]
    videos = []
    for one in facts["files"]:
        path = _whole(folder, one["file"], facts)
        video_THWC = read_video(path)[:, :height, :width]  # H.264 files of odd clips have a row more
        if video_THWC.shape != (frames, height, width, 3):
            raise ArtifactDamaged(
                f"{path} holds {video_THWC.shape[:3]} frames, rows and columns instead of "
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
            return np.stack([_rgb(frame) for frame in container.decode(video=0)])
    except (OSError, IndexError, ValueError) as error:  # PyAV's errors are one of the first two
        raise ArtifactDamaged(f"{path} cannot be read ({error}): export the set again.") from error


def _rgb(frame: Any) -> NDArray[np.uint8]:
    """A frame's pixels, as a clip of its video has them: swscale's way from YUV to "rgb24" alone is darker."""
    from av.video.reformatter import Interpolation

    if not frame.format.is_rgb:
        exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
        frame = frame.reformat(format="gbrp", interpolation=exact)
    made_HWC: NDArray[np.uint8] = frame.to_ndarray(format="gbrp" if frame.format.name == "gbrp" else "rgb24")
    return made_HWC


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


def write_packets(path: Path, stream: Stream, numbers: Sequence[int], fps: int) -> None:
    """The packets of coded clips in Matroska, one clip after the other, not coded again."""
    import av

    height, width = stream.picture_HW
    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        video = container.add_mux_stream(stream.codec, rate=fps, width=width, height=height)
        shown = [(place == 0, unit) for number in numbers for place, unit in enumerate(units(stream, number))]
        for time, (begins, unit) in enumerate(shown):
            packet = av.Packet(unit)
            packet.pts = packet.dts = time
            packet.duration, packet.time_base, packet.stream = 1, Fraction(1, fps), video
            packet.is_keyframe = begins
            container.mux(packet)


def read_packets(
    path: Path, clips: int, shape_THW: tuple[int, int, int], coded_HW: tuple[int, int]
) -> NDArray[np.uint8]:
    """The clips of a file that `write_packets` wrote, uint8 (N, T, H, W, 3): the pixels that the set itself gives.

    Raises:
        ArtifactDamaged: it cannot be read, or holds other frames.
    """
    import av

    try:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames = list(container.decode(video=0))
    except (OSError, IndexError, ValueError) as error:
        raise ArtifactDamaged(f"{path} cannot be read ({error}): export the set again.") from error
    frames_THW = (clips * shape_THW[0], *shape_THW[1:])
    if len(frames) != frames_THW[0]:
        raise ArtifactDamaged(f"{path} holds {len(frames)} frames instead of {frames_THW[0]}: export the set again.")
    return pictures(frames, frames_THW, coded_HW).reshape(clips, *shape_THW, 3)
