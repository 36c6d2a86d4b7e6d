"""The `tracks` stage: detect in the first frame and follow to the last, in blocks of 32 videos of one class.

What is kept are boxes, a few kilobytes a video: grids, sizes, scores and seeds share them, and tracking is what costs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vidistill.storage.files import expanded
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.crops.detect import (
    HOG,
    MOTION,
    NOTHING,
    TRAINED,
    Detection,
    Detector,
    People,
    Rule,
    Yolo,
    check_labels,
    choose_boxes,
    opencv,
)
from vidistill.tasks.crops.motion import moving
from vidistill.tasks.crops.score import TEACHER
from vidistill.tasks.crops.track import track_all
from vidistill.tasks.crops.training import DetectorOf, load_detector
from vidistill.tasks.learning.training import Device, generator
from vidistill.tasks.learning.weights import content_of, unchanged
from vidistill.tasks.piecewise import pieces, taken_over
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.decode import BlockVideo, check_unchanged
from vidistill.tasks.videos.decoder import Decoder, VideoError, twice
from vidistill.tasks.videos.layouts import data_folder

TRACKS, FIRST_FRAMES = "tracks.json", "first"
WORDS = {HOG, MOTION, NOTHING, TRAINED, TEACHER}  # that name no file, whatever lies in the working folder
PICTURE_SIDE = 160  # short side at most of the first frames that are kept for the report


class TrackParameters(Parameters):
    """How objects are found and followed; see `OptDistillParameters`."""

    detector: str
    digest: str
    confidence: float
    labels: tuple[str, ...]
    rule: Rule
    redetect: int
    seed: int
    videos: tuple[BlockVideo, ...]


def weights_of(name: str) -> tuple[str, str, dict[str, str]]:
    """Weights as a job knows them: a name, the digest of a file (none for a name alone), and where that file is."""
    path = expanded(name)
    if name in WORDS or not path.is_file():
        return name, "", {}
    return path.name, content_of(path), {path.name: str(path.absolute())}


def given_weights(work: Work, name: str, digest: str) -> str:
    """Where the weights are that a key knows by this name and digest.

    Raises:
        RequestError: they are gone.
        TransientError: they are others since the run was planned.
    """
    place = work.job.places.get(name, name)
    return unchanged(place, f"{name}:{digest[:16]}") if digest else place


def tracks_job(parameters: TrackParameters, detector: ArtifactRef | None, places: dict[str, str], label: str) -> Job:
    job = tracks(parameters, {"detector": detector} if detector else {}, label=label)
    return job.model_copy(update={"places": places})


@stage("tracks", version=4, threads="one")  # 4: frames are no darker than clips
def tracks(work: Work) -> None:
    import torch

    torch.set_num_threads(work.threads)
    parameters = TrackParameters.model_validate(work.job.parameters)
    detector = open_detector(work, parameters)
    root = data_folder(Path(work.runtime.data))
    (work.folder / FIRST_FRAMES).mkdir()
    with Decoder(timeout_seconds=work.runtime.timeout_seconds) as decoder:

        def outcome_of(number: int) -> dict[str, Any]:
            picture = work.folder / FIRST_FRAMES / f"{number:02d}.jpg"
            return track_video(root, parameters.videos[number], parameters, detector, decoder, picture)

        outcomes = each_video(work, TRACKS, root, parameters.videos, outcome_of)
    tracked = sum(bool(one["tracks"]) for one in outcomes)
    work.record(counts={"videos": len(outcomes), "tracked": tracked}, threads=work.threads)


def each_video(
    work: Work, file: str, root: Path, videos: Sequence[BlockVideo], outcome_of: Callable[[int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The outcome of each video, in `file`. A job that was killed goes on where it was.

    Args:
        work: the job, which keeps what `outcome_of` wrote into its folder.
        file: the name of the list of outcomes.
        root: where the videos are.
        videos: as they were indexed.
        outcome_of: from a video's number to its outcome.

    Raises:
        RunError: a video is gone, or another than was indexed.
    """
    first = taken_over(work)
    outcomes: list[dict[str, Any]] = json.loads((work.folder / file).read_text()) if first else []
    for number in pieces(work, first, len(videos)):
        work.progress(number, len(videos), videos[number].path)
        outcomes.append(outcome_of(number))
        check_unchanged(root, videos[number])
        (work.folder / file).write_text(json.dumps(outcomes))
    work.progress(len(videos), len(videos))
    return outcomes


def open_detector(work: Work, parameters: TrackParameters) -> Detector | None:
    """What finds objects in single frames; None where motion is what is looked for, or nothing."""
    if parameters.detector in (MOTION, NOTHING):
        return None
    detector: Detector
    if parameters.detector == HOG:
        detector = People(parameters.confidence)
    elif parameters.detector == TRAINED:
        trained = DetectorOf.model_validate(work.store.manifest(work.ref("detector")).parameters)
        detector = load_detector(work.input("detector"), trained, parameters.confidence)
    else:
        weights = given_weights(work, parameters.detector, parameters.digest)
        detector = Yolo(weights, parameters.confidence, Device.on(work.runtime, 1, "auto").torch_device)
    wanted = parameters.labels or (detector.wanted if parameters.rule == "paper" else ())
    check_labels(wanted, detector.labels, parameters.detector)
    return detector


def track_video(
    root: Path, video: BlockVideo, parameters: TrackParameters, detector: Detector | None, decoder: Decoder,
    picture: Path,
) -> dict[str, Any]:  # fmt: skip
    """A video's outcome: what was detected, and a track for each box that was chosen; no track, and the reason."""
    outcome: dict[str, Any] = {"path": video.path, "reason": "", "detections": [], "target": False, "tracks": []}

    def followed() -> dict[str, Any]:
        (first_HWC,) = decoder.frames(root / video.path, limit=1)
        _keep_picture(first_HWC, picture)
        outcome["shape"] = first_HWC.shape[:2]
        frames = decoder.frames(root / video.path)
        if detector is None:
            return moved(frames, parameters)
        found = detector.detect(first_HWC)
        outcome["detections"] = [_plain(asdict(one)) for one in found]
        random = generator(parameters.seed, int(video.sha256[:8], 16))
        wanted = parameters.labels or detector.wanted
        chosen = choose_boxes(found, wanted, parameters.rule, random, first_HWC.shape)
        if not chosen:
            missed = f"no {' or '.join(wanted)}" if parameters.rule == "paper" else "nothing"
            return {"reason": f"{missed} in the first frame"}
        tracks = track_all(frames, chosen, detector, parameters.redetect)
        return {"target": True, "tracks": [_plain(asdict(one)) for one in tracks]}

    try:
        return outcome | twice(followed)
    except VideoError as error:
        return outcome | {"reason": f"unreadable: {error}"}


def moved(frames: Iterator[np.ndarray], parameters: TrackParameters) -> dict[str, Any]:
    """Of a video's outcome, what moves in it, where that is what is looked for."""
    if parameters.detector == NOTHING:
        return {"reason": "kept whole"}
    track = moving(frames, parameters.confidence)
    if track is None:
        return {"reason": "nothing moves"}
    detection = Detection(track.boxes[0], MOTION, track.confidence)
    return {"target": True, "detections": [_plain(asdict(detection))], "tracks": [_plain(asdict(track))]}


def _plain(value: Any) -> Any:
    """Numbers with two decimals, so that a block's boxes take kilobytes."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return round(float(value), 2) if isinstance(value, float | np.floating) else value


def _keep_picture(frame_HWC: np.ndarray, path: Path) -> None:
    cv2 = opencv()
    scale = min(1.0, PICTURE_SIDE / min(frame_HWC.shape[:2]))
    small_HWC = cv2.resize(frame_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
    path.write_bytes(cv2.imencode(".jpg", cv2.cvtColor(small_HWC, cv2.COLOR_RGB2BGR), quality)[1])  # imwrite is silent
