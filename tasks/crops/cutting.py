"""The `crops` stage: cut the tracked windows out of the videos, score them, keep the best crop of each video.

A block has the videos of a `tracks` block. Legend: L frames of a crop, T of a clip, H height, W width, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field
from zarr.codecs import ZstdCodec

from vidistill.storage.clips import Clips
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.crops.score import TEACHER, Kind, Scorer, checked_place, kinetics_scorer, score, teacher_scorer
from vidistill.tasks.crops.track import cut, window
from vidistill.tasks.crops.tracking import TRACKS, TrackParameters, each_video, given_weights
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.training import Device, Precision
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.decoder import Decoder, VideoError, twice
from vidistill.tasks.videos.layouts import data_folder

CROPS = "crops.json"
Window = Literal["frame", "union"]
Candidates = Literal["video", "all"]


class CropParameters(Parameters):
    """How crops are cut and scored; see `OptDistillParameters`. `height` and `width` are those of a region."""

    height: int
    width: int
    interval: int
    frames: int
    scorer: str
    digest: str
    score: Kind
    max_lost: float
    fallback: Literal["skip", "whole"]
    label: int
    precision: Precision
    window: Window = Field("frame", exclude_if=lambda window: window == "frame")
    candidates: Candidates = Field("video", exclude_if=lambda candidates: candidates == "video")


def crops_job(
    parameters: CropParameters, tracks: ArtifactRef, clips: ArtifactRef, teacher: ArtifactRef | None,
    places: dict[str, str], label: str,
) -> Job:  # fmt: skip
    inputs = {"tracks": tracks, "clips": clips} | ({"teacher": teacher} if teacher else {})
    return crops(parameters, inputs, label=label).model_copy(update={"places": places})


@dataclass(frozen=True)
class Bench:
    """What every video of a block is cut and scored with."""

    root: Path
    decoder: Decoder
    scorer: Scorer
    place: int | None
    parameters: CropParameters


@stage("crops", version=3, threads="one")  # 3: frames are no darker than clips
def crops(work: Work) -> None:
    parameters = CropParameters.model_validate(work.job.parameters)
    device, clips = Device.of(work, parameters.precision), Clips(work.store, work.ref("clips"))
    scorer = open_scorer(work, parameters, clips, device)
    place = checked_place(clips.classes[parameters.label], scorer.classes, parameters.score)
    tracked = json.loads((work.input("tracks") / TRACKS).read_text())
    videos = TrackParameters.model_validate(work.store.manifest(work.ref("tracks")).parameters).videos
    block = work.store.manifest(work.store.manifest(work.ref("clips")).inputs["blocks"][0])
    sampling = [block.parameters["sampling"][name] for name in ("frames", "interval")]
    zarr.open_group(work.folder, mode="a")
    with Decoder(timeout_seconds=work.runtime.timeout_seconds) as decoder:
        bench = Bench(data_folder(Path(work.runtime.data)), decoder, scorer, place, parameters)

        def outcome_of(number: int) -> dict[str, Any]:
            return crop_video(bench, tracked[number], work.folder, f"crop_{number:02d}") | {"sampling": sampling}

        outcomes = each_video(work, CROPS, bench.root, videos, outcome_of)
    kept = sum(one["crop"] is not None for one in outcomes)
    work.record(counts={"videos": len(outcomes), "crops": kept}, **device.facts())


def open_scorer(work: Work, parameters: CropParameters, clips: Clips, device: Device) -> Scorer:
    if parameters.scorer == TEACHER:
        return teacher_scorer(load_teacher(work.store, work.ref("teacher"), clips, device), clips, device)
    return kinetics_scorer(given_weights(work, parameters.scorer, parameters.digest), clips.classes, device)


def crop_video(bench: Bench, video: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """A video's outcome: the array of its best crop with its score and boxes, or None and the reason.

    Where all candidates compete, the others have the same in the list `others`, the best first.
    """
    p = bench.parameters
    whole = p.fallback == "whole" and "shape" in video and not video["target"]
    reason = "" if whole else video["reason"]
    outcome: dict[str, Any] = {"path": video["path"], "crop": None, "reason": reason, "border": False}
    tracks = [one["boxes"] for one in video["tracks"] if one["lost"] <= p.max_lost * len(one["boxes"])]
    if whole:
        height, width = video["shape"]
        tracks = [[(0, 0, width, height)]]
    if not tracks:
        return outcome | ({"reason": f"lost in more than {p.max_lost:.0%} of its frames"} if video["tracks"] else {})
    boxes, path = [windowed(track, p.window) for track in tracks], bench.root / video["path"]
    try:
        cuts, border = twice(lambda: cut_all(bench.decoder.frames(path, every=p.interval), boxes, p))
    except VideoError as error:
        return outcome | {"reason": f"unreadable: {error}"}
    scores = [score_of(crop_LHWC, bench) for crop_LHWC in cuts]
    outcome |= {"scores": scores, "length": len(cuts[0]), "whole": whole, "shape": video["shape"]}
    best_first = np.argsort(-np.array(scores), kind="stable")[: None if p.candidates == "all" else 1]
    made = []
    for place, track in enumerate(best_first):
        own = name if not place else f"{name}_{place}"
        keep_crop(folder, own, cuts[track])
        cut_short = border[track] and not whole
        made.append({"crop": own, "score": scores[track], "border": cut_short, "boxes": tracks[track]})
    return outcome | made[0] | ({"others": made[1:]} if p.candidates == "all" else {})


def keep_crop(folder: Path, name: str, crop_LHWC: NDArray[np.uint8]) -> None:
    zarr.create_array(folder, name=name, data=crop_LHWC, chunks=crop_LHWC.shape,
                      compressors=ZstdCodec(level=1, checksum=True), config={"write_empty_chunks": True})  # fmt: skip


def windowed(boxes: list[Any], window: Window) -> list[Any]:
    """What the windows of a track are to cover: each frame's box, or in all frames the union of its boxes.

    Windows that follow an object take its way through the picture out of the crop; one window leaves it in.
    """
    if window == "frame":
        return boxes
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return [(min(x0), min(y0), max(x1), max(y1))] * len(boxes)


def cut_all(
    frames: Iterable[NDArray[np.uint8]], tracks: list[list[Any]], parameters: CropParameters
) -> tuple[list[NDArray[np.uint8]], list[bool]]:
    """The crops (L, height, width, 3) along each track, and whether the border moved or shrank any of its windows.

    Args:
        frames: every `interval`-th frame of the video.
        tracks: boxes, one for each frame of the video; the last one holds where frames are more.
        parameters: size and interval.
    """
    cuts: list[list[NDArray[np.uint8]]] = [[] for _ in tracks]
    border = [False] * len(tracks)
    aspect = parameters.width / parameters.height
    for number, frame_HWC in enumerate(frames):
        for track, boxes in enumerate(tracks):
            box = boxes[min(number * parameters.interval, len(boxes) - 1)]
            place, moved = window(tuple(box), aspect, frame_HWC.shape)
            border[track] = border[track] or moved
            cuts[track].append(cut(frame_HWC, place, parameters.height, parameters.width))
    return [np.stack(one) for one in cuts], border


def score_of(crop_LHWC: NDArray[np.uint8], bench: Bench) -> float:
    clip_THWC = clip_of(crop_LHWC, bench.parameters.frames)
    return score(bench.scorer.log_probabilities(clip_THWC), bench.parameters.score, bench.place)


def clip_of(crop_LHWC: NDArray[np.uint8], frames: int) -> NDArray[np.uint8]:
    """The middle T frames of a crop; all of them, spread evenly with repeats, where there are fewer."""
    if len(crop_LHWC) < frames:
        return spread(crop_LHWC, frames)
    start = (len(crop_LHWC) - frames) // 2
    middle_THWC: NDArray[np.uint8] = crop_LHWC[start : start + frames]
    return middle_THWC


def spread(crop_LHWC: NDArray[np.uint8], frames: int) -> NDArray[np.uint8]:
    """So many frames of a crop, evenly from its first to its last."""
    chosen_LHWC: NDArray[np.uint8] = crop_LHWC[np.linspace(0, len(crop_LHWC) - 1, frames).round().astype(int)]
    return chosen_LHWC


def read_crop(folder: Path, outcome: dict[str, Any]) -> NDArray[np.uint8]:
    """The crop of an outcome from its block's folder: uint8 (L, height, width, 3)."""
    return np.asarray(zarr.open_array(folder, path=outcome["crop"], mode="r")[...])
