"""OptDistill (paper S2): real video, cut to the object that matters, scored by a network, tiled N×N.

§4.3 keeps the best crop of each video, §5.1 and the released code let all of them compete: here `candidates`, the
former by default.

Detection and tracking (§5.1, 1–2) are jobs of the flow, `tasks/crops/tracking.py`; cutting and scoring (§5.1, 2–3) too,
`tasks/crops/cutting.py`. Here the best crops of a class become its mosaics (§4.3, §4.4, §5.1, 4), which a student sees
region by region (Eq. 5).

Shapes: M mosaics, N clips, T frames, H height, W width, K classes; clips are uint8 RGB.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.models.regions import cells, regions, resize, tile
from vidistill.storage.clips import Clips
from vidistill.storage.distilled import CLIPS, DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.crops.cutting import CROPS, Candidates, CropParameters, Window, crops_job
from vidistill.tasks.crops.detect import HOG, MOTION, NOTHING, TARGET, TRAINED, Rule, check_labels
from vidistill.tasks.crops.mosaic import Crop, Grouping, grouped, preselected, side_by_side
from vidistill.tasks.crops.pictures import crop_pictures
from vidistill.tasks.crops.score import TEACHER, Kind, checked_name
from vidistill.tasks.crops.tracking import TrackParameters, tracks_job, weights_of
from vidistill.tasks.crops.training import BOXES, FACTS, DetectorParameters, detector_job
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.training import Precision, generator
from vidistill.tasks.learning.views import in_batches
from vidistill.tasks.methods import Given, Material, Method
from vidistill.tasks.videos.decode import named, runs
from vidistill.tasks.videos.layouts import data_folder
from vidistill.tasks.videos.scan import Video

AUTO, YOLO = "auto", "yolov5su.pt"
SMALLEST_REGION = 8
KNOWN = {HOG: ("person",), MOTION: (MOTION,), TRAINED: (TARGET,)}


class OptDistillParameters(Parameters):
    """S2 states the steps and leaves N, TOP_K, M, r̄*, the network of the evaluation and its training open."""

    grid: int = Field(2, ge=1, description="N: N×N regions a mosaic. The released runs have 1, 2 and 3.")
    height: int | None = Field(None, ge=8, description="H of a mosaic in pixels; the clips' where it is not given.")
    width: int | None = Field(None, ge=8, description="W of a mosaic in pixels; the clips' where it is not given.")
    interval: int | None = Field(
        None, ge=1, description="Frames of a video to one of a crop; as the clips' by default."
    )
    detector: str = Field(
        AUTO,
        description="auto: `trained` where the data record boxes, else YOLOv5; hog: OpenCV's people; motion: what "
        "changes, frame by frame, without a tracker; trained: a small network, made here; or any detection model of "
        "ultralytics, by name or path.",
    )
    crop: bool = Field(
        True, exclude_if=lambda crop: crop, description="Off: nothing is looked for, every video is kept whole."
    )
    window: Window = Field(
        "frame",
        exclude_if=lambda window: window == "frame",
        description="frame: §5.1, a window a frame, which takes the object's way out of the crop; union: one for all.",
    )
    candidates: Candidates = Field(
        "video",
        exclude_if=lambda candidates: candidates == "video",
        description="video: §4.3, the best crop of each; all: every crop competes, as in §5.1 and the released code.",
    )
    confidence: float = Field(
        0.25, description="The least confidence of a detection (hog: its margin; motion: its share of the change)."
    )
    labels: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="From a class, or * for the others, to the labels that are wanted; `person` by default, or what "
        "the trained detector knows.",
    )
    rule: Rule = Field("paper", description="paper: three boxes of the wanted labels at random; code: the first two.")
    redetect: int = Field(
        0, ge=0, description="Frames after which the tracker is set on the detection again; paper: 0."
    )
    max_lost: float = Field(0.5, ge=0, le=1, description="A track that is lost in a larger share of frames is dropped.")
    fallback: Literal["skip", "whole"] = Field("skip", description="A video without a box: left out, or kept whole.")
    detect_seed: int = Field(0, description="Draws the boxes; not the run's seed, so that all seeds share the tracks.")
    training: DetectorParameters = DetectorParameters()
    scorer: str = Field(
        TEACHER, description="teacher; or R3D-18 (S2) by torchvision's name, KINETICS400_V1, or a file of its weights."
    )
    score: Kind = Field("confidence", description="confidence: §5.1, of the top class; loss: §4.3, −ℓ on the true one.")
    videos: int | None = Field(None, ge=1, description="Videos of a class that are tracked at all; the same any seed.")
    preselect: int | None = Field(None, ge=1, description="V'_c of §4.3: crops of a class drawn by the run's seed.")
    threshold: float | None = Field(None, description="r̄* of §4.3: the least score.")
    top_k: int | None = Field(None, ge=1, description="TOP_K of §5.1: crops of a class that are grouped.")
    grouping: Grouping = Field("length", description="length: §5.1, neighbours by length; random: §4.4.")
    train_on: Literal["regions", "tiles"] = Field(
        "regions", description="Eq. 5: regions, each enlarged to a clip with a label of its own; or whole mosaics."
    )
    precision: Precision = "auto"


class OptDistill(Method):
    """One instance (IPC) is one mosaic of N² crops. The bytes of a set are those of its mosaics and labels.

    `soft` gives each region the teacher's label for it (§4.4). Where whole tiles are trained on, `learned` is the mean
    of those labels.
    """

    version = 1
    Parameters = OptDistillParameters
    recipes = ("hard", "soft")

    def used(self, kb: float | None) -> Any:
        """The keys of tracks and crops have the digests."""
        del kb
        names = {name: weights_of(getattr(self.parameters, name))[0] for name in ("detector", "scorer")}
        return self.parameters.model_copy(update=names)

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        """Tracks and crops of the training videos, in blocks of 32; a detector and a teacher where these are needed.

        Raises:
            RequestError: a class has fewer videos than its mosaics take crops; see `_detector` and `_region`.
        """
        p: OptDistillParameters = self.parameters
        made: dict[str, list[ArtifactRef]] = {"tracks": [], "crops": []}
        kind = self._detector(given)
        if kind == TRAINED:
            made["detector"] = [given.add(detector_job(given.index, p.training, given.root))]
        if p.scorer == TEACHER or p.train_on == "tiles":
            made["teacher"] = [given.add(given.teacher)]
        detector = made.get("detector", [None])[0]
        scorer = made["teacher"][0] if p.scorer == TEACHER else None
        name, digest, places = weights_of(p.scorer)
        if p.scorer != TEACHER and not digest:
            name = checked_name(p.scorer, p.score, given.table.classes)
        height, width = self._region(given.decode.size)
        self._check_videos(given)
        for number, videos in enumerate(runs(self._tracked(given)), start=1):
            tracks = given.add(self._tracks(given, kind, videos, detector, number))
            parameters = CropParameters(
                height=height, width=width, interval=p.interval or given.decode.interval, frames=given.decode.frames,
                scorer=name, digest=digest, score=p.score, max_lost=p.max_lost,
                fallback=p.fallback if p.crop else "whole", label=videos[0].label, precision=p.precision,
                window=p.window, candidates=p.candidates,
            )  # fmt: skip
            made["tracks"].append(tracks)
            made["crops"].append(
                given.add(crops_job(parameters, tracks, given.train, scorer, places, f"crop {height}×{width} {number}"))
            )
        return made

    def _check_videos(self, given: Given) -> None:
        """Where a video gives one crop at most, there must be as many as the mosaics of a class take."""
        p: OptDistillParameters = self.parameters
        if p.candidates == "all":
            return
        counts = Counter(video.label for video in self._tracked(given))
        label = min(counts, key=lambda label: counts[label])
        most, need = min(counts[label], p.preselect or math.inf, p.top_k or math.inf), given.ipc * p.grid**2
        if most < need:
            raise RequestError(
                f"ipc {given.ipc} with {p.grid}×{p.grid} regions takes {need} crops of a class, and "
                f"{given.table.classes[label]} has {most:g} at most, one a video: lower ipc or optdistill.grid, let "
                "optdistill.videos, preselect or top_k leave more, or set optdistill.candidates=all."
            )

    def _detector(self, given: Given) -> str:
        """The detector, decided and checked before anything runs.

        Raises:
            RequestError: there is nothing to train it on, or a label is not known.
        """
        p: OptDistillParameters = self.parameters
        if not p.crop:
            return NOTHING
        recorded = given.root is None or (data_folder(given.root) / BOXES).is_file()
        if p.detector == TRAINED and not recorded:
            raise RequestError(
                f"optdistill.detector={TRAINED} needs {BOXES} beside the videos, and {given.root} has none: give the "
                f"path of weights, {HOG} for people, or {MOTION} for what moves."
            )
        kind = p.detector if p.detector != AUTO else TRAINED if recorded else YOLO
        for name, wanted in p.labels.items():
            if name != "*" and name not in given.table.classes:
                raise RequestError(f"optdistill.labels names the class {name!r}, which the data do not have.")
            if kind in KNOWN:
                check_labels(wanted, KNOWN[kind], kind)
        return kind

    def _region(self, size: int) -> tuple[int, int]:
        """Height and width of a region.

        Raises:
            RequestError: it would be too small to show anything.
        """
        p: OptDistillParameters = self.parameters
        height, width = (p.height or size) // p.grid, (p.width or size) // p.grid
        if min(height, width) < SMALLEST_REGION:
            most = min(p.height or size, p.width or size) // SMALLEST_REGION
            raise RequestError(
                f"optdistill.grid={p.grid} leaves regions of {height}×{width} pixels: for mosaics of "
                f"{p.height or size}×{p.width or size} it can be {most} at most."
            )
        return height, width

    def _tracked(self, given: Given) -> list[Video]:
        """The training videos, or as many of each class as are asked for, drawn uniformly and for all seeds alike."""
        videos = sorted(given.table.of_split("train"), key=lambda video: video.path)
        chosen: list[Video] = []
        for label in range(len(given.table.classes)):
            own = [video for video in videos if video.label == label]
            order = generator(self.parameters.detect_seed, label, streams.TRACKED_VIDEOS).permutation(len(own))
            chosen += [own[place] for place in sorted(order[: self.parameters.videos])]
        return chosen

    def _tracks(self, given: Given, kind: str, videos: list[Video], detector: ArtifactRef | None, number: int) -> Any:
        p: OptDistillParameters = self.parameters
        if kind in (MOTION, NOTHING):  # whatever is asked about boxes that are detected makes no other tracks
            p = OptDistillParameters(**({"confidence": p.confidence} if kind == MOTION else {}))
        name, digest, places = weights_of(kind)
        wanted = p.labels.get(given.table.classes[videos[0].label], p.labels.get("*", ()))
        parameters = TrackParameters(
            detector=name, digest=digest, confidence=p.confidence, labels=wanted, rule=p.rule, redetect=p.redetect,
            seed=p.detect_seed, videos=named(videos),
        )  # fmt: skip
        return tracks_job(parameters, detector, places, f"track {number}")

    def distil(self, material: Material) -> DistilledSet:
        p, clips = self.parameters, material.clips
        found, counts = gather(material)
        groups: list[list[Crop]] = []
        for label in material.labels:
            random = generator(material.seed, label, streams.MOSAIC_GROUPS)
            groups += grouped(
                preselected(found.get(label, []), p.preselect, random), material.ipc, p.grid, top_k=p.top_k,
                threshold=p.threshold, grouping=p.grouping, random=random, name=clips.classes[label],
            )  # fmt: skip
            material.progress(len(groups), material.ipc * len(material.labels))
        frames, height, width, _ = clips.shape_THWC
        cells_NTHWC = np.concatenate([side_by_side([crop.read() for crop in group], frames) for group in groups])
        mosaics_MTHWC = tile(cells_NTHWC, p.grid, p.height or height, p.width or width)
        facts = {"grid": p.grid, "counts": counts, **detector_facts(material), **(mark(counts) if p.crop else {})}
        if p.train_on == "tiles":
            return tiles_set(mosaics_MTHWC, groups, material, facts)
        return regions_set(mosaics_MTHWC, groups, material, facts)


def gather(material: Material) -> tuple[dict[int, list[Crop]], dict[str, int]]:
    """Each class's crops, in path order, and how many videos gave one, and why the others did not."""
    rows = {video.path: row for row, video in enumerate(material.clips.table.videos)}
    found: dict[int, list[Crop]] = {}
    counts: Counter[str] = Counter(videos=0, cropped=0, border=0, still=0, whole=0)
    for folder in material.inputs("crops"):
        for outcome in json.loads((folder / CROPS).read_text()):
            counts["videos"] += 1
            if outcome["crop"] is None or outcome["path"] not in rows:
                counts[outcome["reason"].partition(":")[0] or "unreadable"] += 1
                continue
            row = rows[outcome["path"]]
            counts.update(cropped=1, border=outcome["border"], still=outcome["length"] == 1, whole=outcome["whole"])
            found.setdefault(int(material.clips.labels_N[row]), []).extend(
                Crop(row, one["path"], one["score"], one["length"], folder, one)
                for one in (outcome, *(outcome | other for other in outcome.get("others", [])))
            )
    return {label: sorted(crops, key=lambda crop: crop.path) for label, crops in found.items()}, dict(counts)


def mark(counts: dict[str, int]) -> dict[str, str]:
    """What a row of the table says of itself where fewer than half of the videos gave a crop of an object."""
    cut = counts["cropped"] - counts["whole"]
    if 2 * cut >= counts["videos"]:
        return {}
    return {"mark": f"only {cut} of {counts['videos']} videos ({cut / counts['videos']:.0%}) gave a crop of an object"}


def detector_facts(material: Material) -> dict[str, Any]:
    """The mAP of a detector that was trained here."""
    folders = material.inputs("detector")
    return {"detector": json.loads((folders[0] / FACTS).read_text())} if folders else {}


def regions_set(
    mosaics_MTHWC: NDArray[np.uint8], groups: list[list[Crop]], material: Material, facts: dict[str, Any]
) -> DistilledSet:
    """A clip a region, kept as mosaics."""
    clips, crops = material.clips, [crop for group in groups for crop in group]
    stored, shape = {"mosaics": mosaics_MTHWC}, (len(crops), *clips.shape_THWC)
    plain = mosaics_MTHWC.shape == shape
    return DistilledSet(
        clips_NTHWC=mosaics_MTHWC if plain else regions(stored, shape),
        labels_N=labels_of(crops, clips),
        classes=clips.classes,
        sources=tuple(crop.path for crop in crops),
        facts=facts,
        extras=crop_pictures(crops, cells(mosaics_MTHWC, facts["grid"]), material),
        form=CLIPS if plain else "regions",
        stored={} if plain else stored,
    )


def tiles_set(
    mosaics_MTHWC: NDArray[np.uint8], groups: list[list[Crop]], material: Material, facts: dict[str, Any]
) -> DistilledSet:
    """A clip a mosaic. Its learned label is the mean of the teacher's probabilities for its regions."""
    clips, first = material.clips, [group[0] for group in groups]
    height, width = clips.shape_THWC[1:3]
    grid = facts["grid"]
    regions_NTHWC = resize(cells(mosaics_MTHWC, grid), height, width)
    logits_NK = teacher_logits(regions_NTHWC, material)
    mean_MK = np.exp(logits_NK).reshape(len(groups), grid**2, -1).mean(1)
    return DistilledSet(
        clips_NTHWC=resize(mosaics_MTHWC, height, width),
        labels_N=labels_of(first, clips),
        classes=clips.classes,
        logits_NK=np.log(mean_MK + 1e-12).astype(np.float32),
        sources=tuple(" + ".join(crop.path for crop in group) for group in groups),
        facts=facts,
        extras=crop_pictures(first, cells(mosaics_MTHWC, grid)[:: grid**2], material),
    )


def teacher_logits(clips_NTHWC: NDArray[np.uint8], material: Material) -> NDArray[np.float64]:
    """The teacher's log-probabilities, (N, K)."""
    batches = in_batches(clips_NTHWC.__getitem__, len(clips_NTHWC), material.clips.table, material.device)
    logits_NK = training.predict(material.teacher(), batches, material.device)
    return np.asarray(logits_NK.double().log_softmax(1).numpy())


def labels_of(crops: list[Crop], clips: Clips) -> NDArray[np.int64]:
    return clips.labels_N[[crop.row for crop in crops]]
